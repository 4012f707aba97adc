"""Does the rank move the plateau? Scores and distances against the learning rate at several ranks.

The DoRA paper (arXiv 2402.09353, Sec. 5.5) compares ranks at one rate each; here each rank has a grid of rates:

    python sweeps/rank_robustness.py --method lora dora delora --ranks 1 4 16 64
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from sweeps.options import Options, run_driver  # noqa: E402

NAME = "rank_robustness"
NUM_SUBJECTS = 4


@dataclass(frozen=True)
class RankOptions(Options):
    """Flags of the comparison of ranks."""

    method: tuple[str, ...] = ("lora", "dora", "delora")
    """Methods to train: names, `name:option=value,...`, or `all`."""
    multipliers: tuple[float, ...] = (1.0, 4.0, 16.0)
    """Learning rates as multiples of each method's base rate, which is the same at every rank."""
    ranks: tuple[int, ...] = (1, 4, 16, 64)
    """Ranks that are compared; `--rank` itself is not used."""


def drive(options: RankOptions) -> int:
    """Run every method at every rank over the grid; print the table, draw curves, and the plateau against the rank."""
    from adapters import get_class
    from adapters.errors import BadInput
    from sweeps.driver import run_sweep
    from sweeps.grid import expand_each, resolve_inputs

    if not options.ranks or min(options.ranks) < 1:
        raise BadInput(f"--ranks is {' '.join(map(str, options.ranks)) or 'empty'}; allowed: whole numbers from 1 on")
    if without := [spec.name for spec in options.specs() if not get_class(spec.name).uses_rank]:
        raise BadInput(f"--method has {without[0]}, which has no rank; give methods with low-rank factors")
    inputs = resolve_inputs(options, num_subjects=NUM_SUBJECTS)
    planned = expand_each(options, inputs, [{"rank": rank} for rank in options.ranks])
    outcome = run_sweep(options, inputs, planned, NAME)
    if outcome is not None:
        from sweeps.report_variants import report_ranks

        report_ranks(outcome, options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(run_driver(RankOptions, drive, __doc__ or ""))
