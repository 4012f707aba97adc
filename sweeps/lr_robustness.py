"""How wide is the plateau of learning rates? Scores and distances against the multiplier of each method's base rate.

Rebuilds Fig. 2 of DeLoRA (arXiv 2503.18225):

    python sweeps/lr_robustness.py --method delora
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path[0] = str(Path(__file__).resolve().parents[1])

from sweeps.options import Options, run_driver, with_defaults  # noqa: E402

if TYPE_CHECKING:
    from sweeps.driver import SweepOutcome

NAME = "lr_robustness"
EVIDENCE = Path(__file__).resolve().parents[1] / "docs" / "results" / "lr_robustness"


@dataclass(frozen=True)
class RobustnessOptions(Options):
    """Flags of the robustness to the learning rate."""

    split_seeds: tuple[int, ...] = ()
    """Further seeds on a few subjects, by which the spread is split into subject, seed and rest; none: no split."""
    split_subjects: int = 4
    """On how many subjects, the first ones, those seeds are run."""


def drive(options: RobustnessOptions) -> int:
    """Run the grid, print the table and the plateau, draw the figure and the sheet of pictures."""
    from adapters.errors import BadInput
    from sweeps.driver import run_sweep
    from sweeps.grid import expand, resolve_inputs

    inputs = resolve_inputs(options, num_subjects=options.kind[0].num_units)
    planned = expand(options, inputs)
    if options.split_seeds:
        if not 1 <= options.split_subjects <= len(inputs.subjects):
            few = f"a number from 1 to {len(inputs.subjects)}, that of the subjects"
            raise BadInput(f"--split-subjects is {options.split_subjects}; allowed: {few}")
        some = dataclasses.replace(inputs, subjects=inputs.subjects[: options.split_subjects])
        planned += expand(with_defaults(options, seeds=options.split_seeds), some, quiet=True)
    outcome = run_sweep(options, inputs, planned, NAME, draw_early=_draw_early)
    if outcome is not None:
        from sweeps.report import report_robustness

        report_robustness(outcome, background=EVIDENCE, docs=options.docs)
    return 0


def _draw_early(outcome: SweepOutcome, said: str) -> Path:
    from sweeps.report import draw_early  # what figures need is loaded while workers train

    return draw_early(outcome, said)


if __name__ == "__main__":
    sys.exit(run_driver(RobustnessOptions, drive, __doc__ or ""))
