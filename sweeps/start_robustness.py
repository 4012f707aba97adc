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

from sweeps.options import Options, run_driver  # noqa: E402

NAME = "start_robustness"
NUM_SUBJECTS = 4
VARIANTS = tuple(
    f"delora:start={start},norm={norm}" for norm in ("columns", "scalar") for start in ("eq9", "live", "zero_b")
)


@dataclass(frozen=True)
class StartOptions(Options):
    """Flags of the comparison of starts."""

    method: tuple[str, ...] = VARIANTS
    """The variants; all of them take DeLoRA's base rate and lambda, and each is compared with the first."""
    multipliers: tuple[float, ...] = (0.25, 1.0, 4.0, 16.0)
    """Learning rates as multiples of DeLoRA's base rate."""


def drive(options: StartOptions) -> int:
    """Run every variant over the grid; print the table and how each differs from the first, draw scores and distances."""
    from sweeps.driver import run_sweep
    from sweeps.grid import expand, set_scene
    from sweeps.report_variants import against_first, report_variants, series_of

    scene = set_scene(options, num_subjects=NUM_SUBJECTS)
    outcome = run_sweep(options, scene, expand(options, scene), NAME)
    if outcome is not None:
        variants = series_of(outcome.results, options.specs())
        report_variants(outcome, NAME, options.docs, order=variants, pairs=against_first(variants))
    return 0


if __name__ == "__main__":
    sys.exit(run_driver(StartOptions, drive, __doc__ or ""))
