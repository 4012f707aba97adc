"""Search for a method's rate: trials on the tuning subjects, round after round, the same number for every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from adapters.errors import BadInput
from adapters.method_words import RATES
from adapters.words import counted
from sweeps.options import Options
from sweeps.trials import Trial, find_edges, find_trial, next_trials

if TYPE_CHECKING:
    import pandas as pd

    from adapters import MethodSpec
    from sweeps.driver import SweepOutcome
    from sweeps.grid import LabelledCell, ResolvedInputs


@dataclass(frozen=True)
class SearchOptions(Options):
    """Flags of every search for a rate."""

    rates: tuple[float, ...] = tuple(float(f"{4.0**i:.3g}") for i in range(-7, 1))
    """Rates tried first for methods without a boundary."""
    boundary_rates: tuple[float, ...] = (0.001, 0.004, 0.016, 0.064)
    """Rates of B and A tried first for methods with a boundary, each with every start of it."""
    boundaries: tuple[float, ...] = (4.0, 16.0)
    """Starts of lambda tried first for DeLoRA."""
    rounds: int = 4
    """Rounds of four more trials, at the most; one at the least, unless this is 0."""
    rule: str = "sum"
    """What is best: `sum`, of the task's scores (of pictures DINO + CLIP-I + CLIP-T), the first of them by its name (`dino`), or
    `matched-prompt`, that one where at least 80 % of the base model's CLIP-T is kept."""


@dataclass(frozen=True)
class Judgement(SearchOptions):
    """Flags of a judgement."""

    against: tuple[str, ...] = ("lora", "dora", "delora")
    """Methods that it is compared with; itself, where it is among them, is left out."""
    choosing_subjects: tuple[str, ...] = ()
    """Names of the subjects on which its rate is searched for, or how many of the tuning split; they are never on the card."""
    budget: str = ""
    """Time for all of it, as in 10min or 2h: subjects and multipliers are chosen that fit."""


def check(options: SearchOptions) -> None:
    """Refuse what a search cannot be run with.

    Raises:
        BadInput: naming the flag.
    """
    if options.optimizer != "adamw":
        raise BadInput(f"--optimizer is {options.optimizer}; base rates are AdamW's: Prodigy estimates its own")
    check_rule(options)
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


def check_rule(options: SearchOptions) -> None:
    """Refuse a rule that the task does not have.

    Raises:
        BadInput: naming the allowed ones.
    """
    from analysis.best_settings import rules

    if options.rule not in (known := rules(options.kind[0])):
        raise BadInput(f"--rule is {options.rule}; allowed: {', '.join(known)}")


def first_trials(options: SearchOptions, spec: MethodSpec) -> list[Trial]:
    """The trials of the first round: rates, or rates times starts of lambda."""
    from adapters import get_class

    if get_class(spec.name).uses_boundary:
        return [Trial(rate, start) for rate in options.boundary_rates for start in options.boundaries]
    return [Trial(rate) for rate in options.rates]


def rates_of(spec: MethodSpec, trial: Trial) -> dict[str, float]:
    """The rates of a method at a trial, as fields of a cell; a lambda that trains has the factors'."""
    from adapters import get_class

    rates = {"lr": trial.lr}
    if get_class(spec.name).has_role("lambda", spec.options):
        rates["lr_lambda"] = trial.lr
    return rates if trial.boundary is None else rates | {"boundary": trial.boundary}


def plan_trials(
    options: SearchOptions, inputs: ResolvedInputs, trials: Sequence[Sequence[Trial]]
) -> list[LabelledCell]:
    """The cells of all trials of each method, on every subject and with every seed."""
    from sweeps.grid import plan_cell

    planned = []
    for spec, settings in zip(options.specs(), trials, strict=True):
        for subject, seed, trial in product(inputs.subjects, options.seeds, settings):
            planned.append(plan_cell(inputs, spec, subject, seed, {"multiplier": None}, **rates_of(spec, trial)))
    return planned


def search(options: SearchOptions, inputs: ResolvedInputs, name: str) -> tuple[SweepOutcome, pd.DataFrame] | None:
    """Try settings, round after round, until no best lies at an edge of its grid.

    Args:
        options: the flags, with the methods.
        inputs: model, scorers and the subjects that choose.
        name: of the sweep's folder, unless `--sweep` names it.

    Returns:
        The outcome of all trials and their `analysis.trial_scores`; None after `--dry-run`, and while jobs do the work.

    Raises:
        BadInput: as `run_sweep`.
    """
    from analysis import best_settings, trial_scores, tried_settings
    from sweeps.driver import run_sweep

    specs = options.specs()
    trials, number = [first_trials(options, spec) for spec in specs], 0
    while (
        outcome := run_sweep(
            options, inputs, plan_trials(options, inputs, trials), name, smaller=("subjects",), early=False
        )
    ) is not None:
        scores = trial_scores(outcome.results)
        best = best_settings(tried_settings(scores), options.rule).set_index(["method", "options"])
        keys = [(spec.name, spec.canonical) for spec in specs]
        at = [
            find_trial(best.loc[key]) if key in best.index else min(own) for key, own in zip(keys, trials, strict=True)
        ]
        edges = [spec.label for spec, own, trial in zip(specs, trials, at, strict=True) if find_edges(own, trial)]
        if number == options.rounds or (number and not edges):
            return outcome, scores
        number += 1
        print(f"round {number}: four more trials of each; at an edge of its grid: {', '.join(edges) or 'none'}")
        trials = [[*own, *next_trials(own, trial)] for own, trial in zip(trials, at, strict=True)]
    return None
