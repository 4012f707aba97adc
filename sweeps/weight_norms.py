"""How different are the weight norms of a U-Net's blocks, before and after training?

Rebuilds Fig. 4 of DeLoRA (arXiv 2503.18225): of any diffusers model in seconds, and of what methods make of it:

    python sweeps/weight_norms.py
    python sweeps/weight_norms.py --method lora delora
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path[0] = str(Path(__file__).resolve().parents[1])

from sweeps.options import Options, run_driver  # noqa: E402

NAME = "weight_norms"
NUM_SUBJECTS = 2


@dataclass(frozen=True)
class NormOptions(Options):
    """Flags of the weight norms."""

    method: tuple[str, ...] = ()
    """Methods to train and to measure after; none: the base model alone, in seconds."""
    multipliers: tuple[float, ...] = (1.0,)
    """Learning rates as multiples of each method's base rate."""
    axis: Literal["columns", "rows"] = "columns"
    """Norms over torch's columns (one for each input) or rows (one for each output)."""


def drive(options: NormOptions) -> int:
    """Measure the model's norms, train if methods are named, draw the norms by block."""
    from figures.registry import draw_norms, draw_weight_norms
    from sweeps.report import report_norms

    if not options.method:
        from training.base_norms import norms_by_block

        kind, task_options = options.kind
        maker = kind.open()
        model = maker.locate(options.model)
        if options.dry_run:
            print(f"{options.model}: nothing to train; the norms are read from {model}")
            return 0
        norms = norms_by_block(maker.weights(str(model), task_options), options.axis, maker.where)
        report_norms(draw_norms(norms, options.axis), options.runs / NAME, options.docs)
        return 0
    from sweeps.driver import run_sweep
    from sweeps.grid import expand, resolve_inputs

    inputs = resolve_inputs(options, num_subjects=NUM_SUBJECTS)
    outcome = run_sweep(options, inputs, expand(options, inputs), NAME)
    if outcome is not None:
        report_norms(draw_weight_norms(outcome.results, options.axis), outcome.folder, options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(run_driver(NormOptions, drive, __doc__ or ""))
