"""Can the scorers be believed? What they give real photographs, other subjects and noise, and whether that is in order.

    python -m analysis.controls runs/lr_robustness
    python -m analysis.controls docs/results/lr_robustness --out tables

Prints a table with a row for each subject and score, and what fails. Where the controls were not measured,
`python -m training.controls RUNS` does it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from adapters.errors import BadInput
from analysis.control_verdicts import control_gaps, judge_controls
from analysis.control_words import describe_controls
from analysis.load import load
from analysis.tables import to_markdown, write_tables
from training.command_line import run_program


@dataclass(frozen=True)
class Options:
    """Flags of the judgement."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Runs folders, sweeps of them, or compact copies."""
    out: Path | None = None
    """Folder for the tables, controls and control_gaps, as Markdown, LaTeX and CSV."""


def run(options: Options) -> int:
    """Print the verdicts and a sentence, and write the tables.

    Raises:
        BadInput: where nothing was measured.
    """
    results = load(*options.results)
    table = judge_controls(results)
    if results.kind.controls is None:
        raise BadInput(f"the task {results.kind.name!r} has no controls of its scores")
    if table.empty:
        raise BadInput(
            f"no controls in {options.results[0]}, which was scored before there were any: python -m training.controls "
            f"{options.results[0]} measures them, on the run folders"
        )
    print(to_markdown(table))
    print(f"\n{describe_controls(results)}")
    if options.out is not None:
        write_tables(options.out, {"controls": table, "control_gaps": control_gaps(results)})
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    return run_program(Options, run, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
