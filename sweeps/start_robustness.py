"""Do DeLoRA's three starts and two norms behave alike? Scores and distances against the learning rate for each.

The paper subtracts a frozen copy (Eq. 9), the authors' code one that follows lambda, HF PEFT starts from B = 0; the norm of
the pretrained weight is a scalar in the text and the vector of column norms in both codes (`docs/methods.md`):

    python sweeps/start_robustness.py
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from adapters import DELORA_VARIANTS  # noqa: E402
from sweeps.options import Options, run_driver  # noqa: E402

NAME = "start_robustness"
NUM_SUBJECTS = 4


@dataclass(frozen=True)
class StartOptions(Options):
    """Flags of the comparison of starts."""

    method: tuple[str, ...] = DELORA_VARIANTS
    """The variants; all of them take DeLoRA's base rate and lambda, and each is compared with the first."""
    multipliers: tuple[float, ...] = (0.25, 1.0, 4.0, 16.0)
    """Learning rates as multiples of DeLoRA's base rate."""


def drive(options: StartOptions) -> int:
    """Run every variant over the grid; print the table and how each differs from the first, draw scores and distances."""
    from sweeps.driver import run_sweep
    from sweeps.grid import expand, resolve_inputs

    inputs = resolve_inputs(options, num_subjects=NUM_SUBJECTS)
    outcome = run_sweep(options, inputs, expand(options, inputs), NAME)
    if outcome is not None:
        from figures.registry import draw_start_robustness
        from sweeps.report_variants import report_variants

        report_variants(outcome, draw_start_robustness, options.specs(), options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(run_driver(StartOptions, drive, __doc__ or ""))
