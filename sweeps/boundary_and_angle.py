"""Which of DeLoRA's two rates is the dangerous one? Lambda's rate alone, that of B and A alone, both; lambda on its way.

Rebuilds Fig. 6 of DeLoRA (arXiv 2503.18225), with several starts of lambda as an option:

    python sweeps/boundary_and_angle.py --boundaries 4 16 64
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path[0] = str(Path(__file__).resolve().parents[1])

from sweeps.options import Options, run_driver  # noqa: E402

NAME = "boundary_and_angle"
NUM_SUBJECTS = 4
Scale = Literal["both", "lambda", "factors"]


@dataclass(frozen=True)
class BoundaryOptions(Options):
    """Flags of the comparison of DeLoRA's two rates."""

    scales: tuple[Scale, ...] = ("lambda", "factors", "both")
    """Which rates the multiplier scales, one curve each; `--scale` itself is not used."""
    boundaries: tuple[float, ...] = ()
    """Starts of lambda that are compared; default: the tuned one alone."""


def drive(options: BoundaryOptions) -> int:
    """Run DeLoRA with each of its rates scaled over the grid; draw scores, distances, lambda and saturation."""
    from adapters import get_class
    from adapters.errors import BadInput
    from sweeps.driver import run_sweep
    from sweeps.grid import expand_each, resolve_inputs

    if without := [s.name for s in options.specs() if not get_class(s.name).has_role("lambda", s.options)]:
        raise BadInput(f"--method has {without[0]}, which trains no lambda; allowed: delora and the ablations with one")
    if not options.scales:
        raise BadInput("--scales got none; allowed: lambda, factors, both")
    if options.boundaries and min(options.boundaries) <= 0:
        raise BadInput(f"--boundaries is {' '.join(map(str, options.boundaries))}; allowed: positive numbers")
    inputs = resolve_inputs(options, num_subjects=NUM_SUBJECTS)
    starts = options.boundaries or (options.boundary,)
    changes = [{"scale": scale, "boundary": start} for start in starts for scale in options.scales]
    outcome = run_sweep(options, inputs, expand_each(options, inputs, changes), NAME)
    if outcome is not None:
        from sweeps.report_variants import report_boundary

        report_boundary(outcome, options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(run_driver(BoundaryOptions, drive, __doc__ or ""))
