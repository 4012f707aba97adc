"""Find each method's base rate on a model: the same number of trials for each, on the tuning subjects alone.

The first trials of LoRA, DoRA and ETHER+ are eight rates, those of DeLoRA four rates of B and A times two starts of lambda, whose
rate is that of B and A. Then every method gets four more a round: beyond the edge of its grid where its best lies there, else
closer around its best; until no best lies at an edge.

By the default rule the best has the highest mean of DINO + CLIP-I + CLIP-T, the protocol's three scores, over the tuning subjects
at the last step; a setting at which any run diverged is out. DINO alone would choose rates at which the prompt is forgotten,
DINO + CLIP-T rates at which the subject is only half learnt.

    python sweeps/base_lr.py --method lora dora delora etherplus
    python sweeps/base_lr.py --trials runs/base_lr/trials.parquet --rule dino    # chooses anew, trains nothing
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapters.words import counted

sys.path[0] = str(Path(__file__).resolve().parents[1])

from sweeps.options import Options, run_driver  # noqa: E402
from sweeps.trials import Trial, find_edges, find_trial, next_trials  # noqa: E402

if TYPE_CHECKING:
    from adapters import MethodSpec
    from sweeps.grid import LabelledCell, ResolvedInputs

NAME = "base_lr"


@dataclass(frozen=True)
class TuningOptions(Options):
    """Flags of the search."""

    method: tuple[str, ...] = ("lora", "dora", "delora", "etherplus")
    """Methods to tune: names, `name:option=value,...`, or `all`."""
    rates: tuple[float, ...] = tuple(float(f"{4.0**i:.3g}") for i in range(-7, 1))
    """Rates tried first for methods without a boundary."""
    boundary_rates: tuple[float, ...] = (0.001, 0.004, 0.016, 0.064)
    """Rates of B and A tried first for methods with a boundary, each with every start of it."""
    boundaries: tuple[float, ...] = (4.0, 16.0)
    """Starts of lambda tried first for DeLoRA."""
    rounds: int = 4
    """Rounds of four more trials, at the most; one at the least, unless this is 0."""
    rule: Literal["sum", "dino", "matched-prompt"] = "sum"
    """What is best: the three scores' sum, DINO, or DINO where at least 80 % of the base model's CLIP-T is kept."""
    trials: Path | None = None
    """Choose from this table of trials, print, write no rates and train nothing."""
    write: bool = True
    """Write the rates found to `sweeps/base_rates.toml`."""


def drive(options: TuningOptions) -> int:
    """Try settings on the tuning subjects, round after round, and keep the best."""
    from analysis import best_settings, trial_scores, tried_settings
    from sweeps.driver import run_sweep
    from sweeps.grid import resolve_inputs
    from sweeps.report_tuning import read_trials, report_tuning, show_choice

    if options.trials is not None:
        show_choice(tried_settings(read_trials(options.trials)), options.rule)
        return 0
    check(options)
    inputs, specs = resolve_inputs(options, num_subjects=12, split="tuning"), options.specs()
    trials = [first_trials(options, spec) for spec in specs]
    for number in range(options.rounds + 1):
        outcome = run_sweep(options, inputs, plan_trials(options, inputs, trials), NAME, smaller=("subjects",))
        if outcome is None:
            return 0
        scores = trial_scores(outcome.results)
        best = best_settings(tried_settings(scores), options.rule).set_index(["method", "options"])
        at = {i: find_trial(best.loc[key]) for i, s in enumerate(specs) if (key := (s.name, s.canonical)) in best.index}
        edges = [specs[i].label for i, trial in at.items() if find_edges(trials[i], trial)]
        if number == options.rounds or (number and not edges):
            report_tuning(outcome, inputs, scores, rule=options.rule, docs=options.docs, write=options.write)
            break
        print(f"round {number + 1}: four more trials of each; at an edge of its grid: {', '.join(edges) or 'none'}")
        trials = [[*tried, *next_trials(tried, at[i])] if i in at else tried for i, tried in enumerate(trials)]
    return 0


def check(options: TuningOptions) -> None:
    """Refuse what a search cannot be run with.

    Raises:
        BadInput: naming the flag.
    """
    from adapters.errors import BadInput
    from adapters.method_words import RATES

    if options.optimizer != "adamw":
        raise BadInput(f"--optimizer is {options.optimizer}; base rates are AdamW's: Prodigy estimates its own")
    if options.rounds < 0:
        raise BadInput(f"--rounds is {options.rounds}; allowed: whole numbers from 0 on")
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


def first_trials(options: TuningOptions, spec: MethodSpec) -> list[Trial]:
    """The trials of the first round: rates, or rates times starts of lambda."""
    from adapters import get_class

    if get_class(spec.name).uses_boundary:
        return [Trial(rate, start) for rate in options.boundary_rates for start in options.boundaries]
    return [Trial(rate) for rate in options.rates]


def plan_trials(
    options: TuningOptions, inputs: ResolvedInputs, trials: Sequence[Sequence[Trial]]
) -> list[LabelledCell]:
    """The cells of all trials of each method, on every subject and with every seed."""
    from adapters import get_class
    from sweeps.grid import plan_cell

    planned = []
    for spec, settings in zip(options.specs(), trials, strict=True):
        names = ("lr", "lr_lambda") if get_class(spec.name).has_role("lambda", spec.options) else ("lr",)
        for subject, seed, trial in product(inputs.subjects, options.seeds, settings):
            own = dict.fromkeys(names, trial.lr) | ({"boundary": trial.boundary} if trial.boundary else {})
            planned.append(plan_cell(inputs, spec, subject, seed, {"multiplier": None}, **own))
    return planned


if __name__ == "__main__":
    sys.exit(run_driver(TuningOptions, drive, __doc__ or ""))
