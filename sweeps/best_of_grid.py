"""How good is each method at its best? A small grid on few subjects chooses the settings; other subjects and seeds score them.

Rebuilds Tables 3 and 6 of DeLoRA (arXiv 2503.18225), where the subjects that chose are among those reported; here they are not:

    python sweeps/best_of_grid.py --method lora dora delora etherplus --rank 16
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from adapters.words import counted

sys.path[0] = str(Path(__file__).resolve().parents[1])

from sweeps.options import Options, run_driver, with_defaults  # noqa: E402

NAME = "best_of_grid"
NUM_CHOOSING = 4
NUM_SUBJECTS = 8


@dataclass(frozen=True)
class BestOptions(Options):
    """Flags of the comparison at the best settings."""

    method: tuple[str, ...] = ("lora", "dora", "delora", "etherplus")
    """Methods to compare: names, `name:option=value,...`, or `all`."""
    multipliers: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Learning rates of the grid as multiples of each method's base rate."""
    boundaries: tuple[float, ...] = ()
    """Starts of lambda in the grid, for methods that have one; default: the tuned one alone."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the best settings' runs; the grid is run with the first."""
    choosing_subjects: tuple[str, ...] = ()
    """Names of the subjects that choose, or how many of the tuning split; they are never among those reported."""


def drive(options: BestOptions) -> int:
    """Run the grid, choose, run the best settings; print and write grid, choice and table."""
    from adapters.errors import BadInput
    from sweeps.choosing import split_subjects
    from sweeps.driver import run_sweep
    from sweeps.grid import expand_each
    from sweeps.report_best import plan_best, report_best, report_choice

    if options.scale != "both":
        raise BadInput(f"--scale is {options.scale}; a grid that chooses both rates scales both")
    few, many = split_subjects(options, options.choosing_subjects, num_choosing=NUM_CHOOSING, num_subjects=NUM_SUBJECTS)
    trial = with_defaults(options, seeds=options.seeds[:1])
    grid = expand_each(trial, few, [{"boundary": start} for start in options.boundaries or (options.boundary,)])
    tried = run_sweep(trial, few, grid, NAME, smaller=("multipliers",))
    if tried is None:
        names, count = [subject.name for subject in many.subjects], len(options.specs()) * len(options.seeds)
        print(
            f"then the best setting of each method on {', '.join(names)}: {counted(count * len(names), 'cell')}, "
            "by the same command"
        )
        return 0
    best = report_choice(tried, few, options.docs)
    outcome = run_sweep(options, many, plan_best(best, grid, many, options), NAME, smaller=())
    if outcome is not None:
        report_best(outcome, options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(run_driver(BestOptions, drive, __doc__ or ""))
