"""A compact, shareable copy of a results folder: what figures and tables need, in a few Parquet files.

    python -m analysis.compact runs/lr_robustness --out shared/lr_robustness

`analysis.load`, `python -m figures` and `python -m analysis.query` read the copy like the folder itself. Pictures,
adapters and losses stay behind; of the dynamics the last step of every matrix and the thinned means over all matrices go along.
Repeat the command when there are more runs: what is copied stays as it is, and they come in a part of the copy.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from adapters.words import counted
from analysis.compact_copy import export_compact
from analysis.load import load
from training.command_line import run_program


@dataclass(frozen=True)
class Options:
    """Flags of the copy."""

    results: Annotated[Path, tyro.conf.Positional]
    """A runs folder, or one sweep of it."""
    out: Path
    """Folder for the Parquet files."""
    matrices: tuple[str, ...] = ()
    """Matrices whose own trajectories are kept beside the means."""


def run(options: Options) -> int:
    """Copy, and say how much."""
    results = load(options.results)
    files = export_compact(results, options.out, kept_matrices=options.matrices)
    size = sum(file.stat().st_size for file in files) / 2**20
    print(f"{counted(len(results.runs), 'run')} in {counted(len(files), 'file')}, {size:.1f} MiB: {options.out}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    return run_program(Options, run, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
