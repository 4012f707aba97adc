"""What happens long after the optimum? Score, distance and lambda against the training steps.

Rebuilds Fig. 3 of DeLoRA (arXiv 2503.18225):

    python sweeps/prolonged_training.py --method lora dora delora
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from sweeps.options import Options, run_driver, with_defaults  # noqa: E402

NAME = "prolonged_training"
NUM_SUBJECTS = 4
NUM_EVALUATIONS = 8


@dataclass(frozen=True)
class ProlongedOptions(Options):
    """Flags of the prolonged training."""

    method: tuple[str, ...] = ("lora", "dora", "delora")
    """Methods to train: names, `name:option=value,...`, or `all`."""
    multipliers: tuple[float, ...] = (1.0,)
    """Learning rates as multiples of each method's base rate."""
    steps: int = 2000
    """Optimiser steps: four times the default length."""


def drive(options: ProlongedOptions) -> int:
    """Train long, score on the way, draw score, distance and lambda against the steps."""
    from sweeps.driver import run_sweep
    from sweeps.grid import expand, resolve_inputs

    if not options.eval_steps:
        count = min(NUM_EVALUATIONS, options.steps)
        options = with_defaults(options, eval_steps=tuple(options.steps * i // count for i in range(1, count)))
    inputs = resolve_inputs(options, num_subjects=NUM_SUBJECTS)
    outcome = run_sweep(options, inputs, expand(options, inputs), NAME)
    if outcome is not None:
        from sweeps.report import report_prolonged

        report_prolonged(outcome, docs=options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(run_driver(ProlongedOptions, drive, __doc__ or ""))
