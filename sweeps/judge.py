"""Is a method any good, at a fair rate? Tunes its rate, runs the grid, compares it by pairs, and writes a method card.

The rate is searched for on the tuning subjects, by the rule of the committed ones, with eight trials or more. Then
the grid runs on subjects that chose nothing. What LoRA, DoRA and DeLoRA do there comes from earlier results where these hold the
very same runs (model, scorers, subjects, seeds, prompts, steps), and is trained where they do not.

    python sweeps/judge.py path/to/my_method.py
    python sweeps/judge.py peft:hira --budget 30min
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

sys.path[0] = str(Path(__file__).resolve().parents[1])

from sweeps.options import run_driver, with_defaults  # noqa: E402
from sweeps.search import Judgement  # noqa: E402

NAME = "judge"
NUM_CHOOSING, NUM_SUBJECTS = 12, 12
EVIDENCE = Path(__file__).resolve().parents[1] / "docs" / "results" / "lr_robustness"


@dataclass(frozen=True)
class JudgeOptions(Judgement):
    """Flags of a judgement."""

    method: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="METHOD")] = ()
    """The method to judge: a name, `name:option=value,...`, `peft:<type>`, or a `.py` file that holds one."""
    multipliers: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    """Learning rates as multiples of the base rate."""
    num_prompts: int = 12
    """Prompts of every subject."""
    num_images: int = 1
    """Pictures of every prompt."""


def drive(options: JudgeOptions) -> int:
    """Check the contract, tune, run the grid, and write the card."""
    from sweeps.choosing import split_subjects
    from sweeps.driver import run_sweep
    from sweeps.judging import add_evidence, check_contract, check_question, fit_budget, plan_grid, tune

    spec = check_question(options)
    name = f"{NAME}-{spec.name.partition('@')[0].replace(':', '-')}"
    others = tuple(other for other in options.against if other != options.method[0])
    options = with_defaults(options, against=others, sweep=options.sweep or options.kind[0].sweep_name(name))
    check_contract(spec, options)
    options = add_evidence(options, EVIDENCE)
    options = fit_budget(options, spec)
    few, many = split_subjects(options, options.choosing_subjects, num_choosing=NUM_CHOOSING, num_subjects=NUM_SUBJECTS)
    tuned = tune(options, spec, few)
    if tuned is None:
        return 0
    outcome = run_sweep(options, many, plan_grid(options, tuned, many), NAME)
    if outcome is not None:
        from sweeps.report_card import report_card

        report_card(outcome, options, tuned, many.setting)
    return 0


if __name__ == "__main__":
    sys.exit(run_driver(JudgeOptions, drive, __doc__ or ""))
