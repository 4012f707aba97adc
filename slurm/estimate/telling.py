"""Report the progress of long work: one line rewritten on a terminal, a line each elsewhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tell = Callable[[str], None]


@contextmanager
def telling() -> Iterator[Tell]:
    """Give a function that tells a line on stderr; on a terminal it takes the place of the last one, and goes at the end."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=sys.stderr)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield lambda line: live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
    else:
        yield lambda line: print(line, file=sys.stderr, flush=True)


def hear(process: subprocess.Popen[str], tell: Tell) -> str:
    """Tell the lines that a process prints as they come, but for a JSON object or list, which is what it has found.

    Returns:
        The last such object or list; "" if the process ended without one.
    """
    assert process.stdout is not None
    found = ""
    try:
        with process.stdout as lines:
            for line in lines:
                if line.startswith(("{", "[")):
                    found = line
                else:
                    tell(line.strip())
        process.wait()
    finally:  # after Ctrl-C nobody would wait for it
        process.kill()
        process.wait()
    return found
