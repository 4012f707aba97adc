"""Does DoRA's learnt magnitude make it robust? DoRA against DoRA with its magnitude frozen, in paired cells.

Rebuilds Fig. 5 and the table of App. C of DeLoRA (arXiv 2503.18225), and Fig. 2 of DoRA (arXiv 2402.09353), which sets the
change of magnitude against that of direction, beside LoRA and full finetuning:

    python sweeps/dora_magnitude.py
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from sweeps.options import Options, run_driver, with_defaults  # noqa: E402

NAME = "dora_magnitude"
NUM_SUBJECTS = 4


@dataclass(frozen=True)
class MagnitudeOptions(Options):
    """Flags of the comparison."""

    method: tuple[str, ...] = ("dora", "dora-fixed")
    """The two methods that are compared; both have the same base rate."""
    beside: tuple[str, ...] = ("lora", "full")
    """Methods whose magnitudes and directions are shown beside DoRA's; trained at their base rates alone. May be empty."""


def drive(options: MagnitudeOptions) -> int:
    """Run both methods over the grid, print the paired differences, draw scores and distances."""
    from adapters.errors import BadInput
    from sweeps.driver import run_sweep
    from sweeps.grid import expand, resolve_inputs

    if [spec.name for spec in options.specs()] != ["dora", "dora-fixed"]:
        raise BadInput(f"--method is {' '.join(options.method)}; this comparison takes dora dora-fixed, with options")
    inputs = resolve_inputs(options, num_subjects=NUM_SUBJECTS)
    planned = expand(options, inputs)
    if options.beside:
        planned += expand(with_defaults(options, method=options.beside, multipliers=(1.0,)), inputs)
    outcome = run_sweep(options, inputs, planned, NAME)
    if outcome is not None:
        from sweeps.report import report_magnitude

        report_magnitude(outcome, docs=options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(run_driver(MagnitudeOptions, drive, __doc__ or ""))
