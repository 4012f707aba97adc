"""Which step from LoRA to ETHER+ brings the robustness? The rows of the ablation between them, over learning rates.

Rebuilds Table 1 of DeLoRA (arXiv 2503.18225), here with a grid of rates for each row:

    python sweeps/design_ablation.py
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from adapters import ABLATION_STEPS  # noqa: E402
from sweeps.options import Options, run_driver  # noqa: E402

NAME = "design_ablation"
NUM_SUBJECTS = 4


@dataclass(frozen=True)
class AblationOptions(Options):
    """Flags of the ablation."""

    method: tuple[str, ...] = ABLATION_STEPS
    """The rows, in the order of the table: names, `name:option=value,...`. Each is compared with the one before it."""
    multipliers: tuple[float, ...] = (0.25, 1.0, 4.0, 16.0)
    """Learning rates as multiples of each row's base rate."""


def drive(options: AblationOptions) -> int:
    """Run every row over the grid; print the table and what each step changes, draw scores and distances."""
    from sweeps.driver import run_sweep
    from sweeps.grid import expand, resolve_inputs

    inputs = resolve_inputs(options, num_subjects=NUM_SUBJECTS)
    outcome = run_sweep(options, inputs, expand(options, inputs), NAME)
    if outcome is not None:
        from figures.registry import draw_design_ablation
        from sweeps.report_variants import report_variants

        report_variants(outcome, draw_design_ablation, options.specs(), options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(run_driver(AblationOptions, drive, __doc__ or ""))
