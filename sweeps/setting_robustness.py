"""What else moves the plateau? Lambda's start, weight decay, the number of pictures, prior preservation, one at a time.

Beyond the papers: each setting is varied around its default, over a grid of learning rates:

    python sweeps/setting_robustness.py --method lora delora
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from adapters.errors import BadInput  # noqa: E402
from sweeps.options import Options, run_driver  # noqa: E402

NAME = "setting_robustness"
NUM_SUBJECTS = 4
LISTS = {  # of each setting's values, as the options name them
    "boundary": "boundaries",
    "adam_weight_decay": "weight_decays",
    "num_instance_images": "instance_images",
    "prior_loss_weight": "prior_weights",
    "d_coef": "d_coefs",
}


@dataclass(frozen=True)
class SettingOptions(Options):
    """Flags of the comparison of settings; a list without values leaves its setting alone."""

    method: tuple[str, ...] = ("lora", "delora")
    """Methods to train: names, `name:option=value,...`, or `all`."""
    multipliers: tuple[float, ...] = (1.0, 4.0, 16.0)
    """Learning rates as multiples of each method's base rate, which stays the same."""
    boundaries: tuple[float, ...] = (1.0, 16.0, 64.0)
    """Starts of lambda, besides `--boundary` or the tuned one."""
    weight_decays: tuple[float, ...] = (0.0, 0.1)
    """Weight decays, besides `--adam-weight-decay`."""
    instance_images: tuple[int, ...] = (1, 3)
    """Numbers of the subject's pictures, besides `--num-instance-images`."""
    prior_weights: tuple[float, ...] = (1.0,)
    """Weights of prior preservation, besides `--prior-loss-weight`."""
    d_coefs: tuple[float, ...] = ()
    """Factors on Prodigy's estimate, besides `--d-coef`; with `--optimizer prodigy`."""


def drive(options: SettingOptions) -> int:
    """Run the grid of rates at every setting; print the table, draw peak, mean gain and plateau against each setting."""
    from sweeps.driver import run_sweep
    from sweeps.grid import expand_each, resolve_inputs
    from sweeps.options import with_defaults

    changes = [{setting: value} for setting, values in LISTS.items() for value in getattr(options, values)]
    for change in changes:
        with_defaults(options, **change).check()
    inputs = resolve_inputs(options, num_subjects=NUM_SUBJECTS)
    planned = expand_each(options, inputs, [{}, *changes])
    if len({p.cell.identity() for p in planned}) == len(planned) // (1 + len(changes)):
        flags = ", ".join(f"--{values.replace('_', '-')}" for values in LISTS.values())
        raise BadInput(f"nothing is varied: give {flags} a value that is not the default")
    outcome = run_sweep(options, inputs, planned, NAME)
    if outcome is not None:
        from sweeps.report_variants import report_settings

        report_settings(outcome, options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(run_driver(SettingOptions, drive, __doc__ or ""))
