"""Command lines: tyro reads typed dataclasses, and its error boxes become one line."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TypeVar

from adapters.ending import end_well
from adapters.errors import BadInput

__all__ = ["end_well", "parse", "run_program"]

Parsed = TypeVar("Parsed")


def parse(
    options: type[Parsed], description: str, arguments: Sequence[str] | None = None, default: Parsed | None = None
) -> Parsed:
    """Read a command line, `sys.argv` where none is given, into a dataclass; `default` has other defaults than its own.

    Raises:
        BadInput: for anything that cannot be read.
        SystemExit: after `--help`.
    """
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if default is None:
                return tyro.cli(options, args=arguments, description=description)
            return tyro.cli(options, args=arguments, description=description, default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise BadInput(_one_line(said.getvalue())) from None


def run_program(
    options: type[Parsed], run: Callable[[Parsed], int], description: str, arguments: Sequence[str] | None = None
) -> int:
    """Read a command line and run a program on it; bad input is one line on stderr and exit code 2."""
    return end_well(lambda: run(parse(options, description, arguments)))


def _one_line(box: str) -> str:
    """The text of tyro's box of an error, without frame, rules, and the pointer to the help text."""
    lines = [line.strip(" │") for line in box.splitlines()]
    text = [line for line in lines if line and not set(line) <= set("─╭╮╰╯ ") and not line.startswith("╭")]
    told = takewhile(lambda line: not line.startswith("For full helptext"), text)  # which a long path breaks into lines
    kept = [line for line in told if not line.startswith(("Argument helptext", "╰"))]
    return " ".join(kept) or "the command line cannot be read; see --help"
