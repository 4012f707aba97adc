"""Find each method's base rate on a model: the same number of trials for each, on the tuning subjects alone.

The rule: of the settings tried, the one with the highest mean of DINO + CLIP-I + CLIP-T, the protocol's three scores, over
the tuning subjects at the last step; a setting at which any run diverged is out. DINO alone would choose rates at which
the prompt is forgotten, DINO + CLIP-T rates at which the subject is only half learnt. LoRA, DoRA and ETHER+ are tried at
twenty-four rates, DeLoRA at eight rates of B and A times three starts of lambda; lambda's rate is that of B and A.

    python sweeps/base_lr.py --method lora dora delora etherplus
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from adapters.words import counted

sys.path[0] = str(Path(__file__).resolve().parents[1])

from sweeps.options import Options, run_driver  # noqa: E402

NAME = "base_lr"


@dataclass(frozen=True)
class TuningOptions(Options):
    """Flags of the search."""

    method: tuple[str, ...] = ("lora", "dora", "delora", "etherplus")
    """Methods to tune: names, `name:option=value,...`, or `all`."""
    rates: tuple[float, ...] = tuple(float(f"{2.0 ** (i / 2 - 12):.3g}") for i in range(24))
    """Rates tried for methods without a boundary."""
    boundary_rates: tuple[float, ...] = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064)
    """Rates of B and A tried for methods with a boundary, each with every start of it."""
    boundaries: tuple[float, ...] = (4.0, 16.0, 64.0)
    """Starts of lambda tried for DeLoRA."""
    write: bool = True
    """Write the rates found to `sweeps/base_rates.toml`."""


def drive(options: TuningOptions) -> int:
    """Try every setting on the tuning subjects and keep the best."""
    from adapters import get_class
    from adapters.errors import BadInput
    from adapters.method_words import RATES
    from analysis.best_settings import RULE
    from sweeps.driver import run_sweep
    from sweeps.grid import plan_cell, resolve_inputs
    from sweeps.report import report_tuning

    if options.optimizer != "adamw":
        raise BadInput(f"--optimizer is {options.optimizer}; base rates are AdamW's: Prodigy estimates its own")
    if len(options.rates) != len(options.boundary_rates) * len(options.boundaries):
        raise BadInput(
            f"--rates has {counted(len(options.rates), 'value')}, --boundary-rates x --boundaries "
            f"{len(options.boundary_rates) * len(options.boundaries)}: every method gets the same number of trials"
        )
    given = [
        flag for flag in RATES if getattr(options, flag) is not None or any(flag in s.words for s in options.specs())
    ]
    if given:
        raise BadInput(
            f"{given[0]} is given, and base_lr.py looks for it: --rates, --boundary-rates, --boundaries say where"
        )
    inputs = resolve_inputs(options, num_subjects=4, split="tuning")
    planned = []
    for spec in options.specs():
        if get_class(spec.name).uses_boundary:
            trains_lambda = get_class(spec.name).has_role("lambda", spec.options)
            trials = [
                {"lr": r, "boundary": b} | ({"lr_lambda": r} if trains_lambda else {})
                for r in options.boundary_rates
                for b in options.boundaries
            ]
        else:
            trials = [{"lr": rate} for rate in options.rates]
        for subject in inputs.subjects:
            for seed in options.seeds:
                planned += [plan_cell(inputs, spec, subject, seed, {"multiplier": None}, **trial) for trial in trials]
    outcome = run_sweep(options, inputs, planned, NAME)
    if outcome is not None:
        report_tuning(outcome, inputs, options.write, RULE)
    return 0


if __name__ == "__main__":
    sys.exit(run_driver(TuningOptions, drive, __doc__ or ""))
