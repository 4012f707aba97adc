"""How good is each method at its best? A small grid on few subjects chooses the settings; other subjects and seeds score them.

Rebuilds Tables 3 and 6 of DeLoRA (arXiv 2503.18225), where the subjects that chose are among those reported; here they are not:

    python sweeps/best_of_grid.py --method lora dora delora etherplus --rank 16
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.words import counted

sys.path[0] = str(Path(__file__).resolve().parents[1])

from sweeps.options import Options, run_driver, with_defaults  # noqa: E402

if TYPE_CHECKING:
    from sweeps.grid import ResolvedInputs

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
    from sweeps.driver import run_sweep
    from sweeps.grid import expand_each
    from sweeps.report_best import plan_best, report_best, report_choice

    if options.scale != "both":
        raise BadInput(f"--scale is {options.scale}; a grid that chooses both rates scales both")
    few, many = split_subjects(options)
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


def split_subjects(options: BestOptions) -> tuple[ResolvedInputs, ResolvedInputs]:
    """The inputs of the subjects that choose, and of those that are reported.

    Raises:
        BadInput: if a subject that is named for one is among the other.
    """
    from adapters.errors import BadInput
    from sweeps.grid import choose_subjects, resolve_inputs

    folder, _ = choose_subjects(options.subjects, 1, "evidence")
    place = f"{folder.resolve()}/"
    _, few = choose_subjects((place, *options.choosing_subjects), NUM_CHOOSING, "tuning")
    _, many = choose_subjects(options.subjects, NUM_SUBJECTS, "evidence", without=few)
    if both := [name for name in many if name in few]:
        raise BadInput(f"subject {both[0]} would choose the settings and be reported; name it for one of the two")
    choosing = resolve_inputs(with_defaults(options, subjects=(place, *few)), num_subjects=0)
    return choosing, resolve_inputs(with_defaults(options, subjects=(place, *many)), num_subjects=0)


if __name__ == "__main__":
    sys.exit(run_driver(BestOptions, drive, __doc__ or ""))
