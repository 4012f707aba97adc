"""The steps of a judgement before the card: contract, baselines, budget, rate, grid."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd

from adapters import PEFT, MethodSpec, get_class
from adapters.check import check as check_promises
from adapters.errors import BadInput
from adapters.words import counted, plural
from analysis import best_settings, load, tried_settings
from analysis.best_settings import describe_rule
from analysis.card import detectable_area
from slurm.store.sweep_state import duration
from sweeps.choosing import split_subjects
from sweeps.grid import LabelledCell, ResolvedInputs, expand, resolve_inputs
from sweeps.options import with_defaults
from sweeps.rates import FIELDS, choose_rates, is_tuned
from sweeps.report_tuning import edge
from sweeps.reuse import EarlierResults
from sweeps.search import Judgement, first_trials, plan_trials, rates_of, search
from sweeps.search import check as check_search
from sweeps.trials import PER_ROUND, find_trial
from sweeps.work import plan_work, resolve

Asked = TypeVar("Asked", bound=Judgement)
UNITS = {"s": 1, "min": 60, "h": 3600}
SUBJECTS = (40, 24, 16, 12, 8, 6, 4, 3, 2, 1)
CHOOSING = (12, 8, 6, 4, 3, 2, 1)
FEW_MULTIPLIERS = (0.25, 1.0, 4.0, 16.0)
TUNING_SHARE = 0.5  # of a budget that the search for the rate may take


@dataclass(frozen=True)
class Tuned:
    """A method with its rate.

    Attributes:
        spec: the method, with the rates among its words.
        source: where they come from, in words.
        trials: what was tried, as `analysis.tried_settings` says it; None where nothing was searched.
        minutes: worker-minutes of the search.
    """

    spec: MethodSpec
    source: str
    trials: pd.DataFrame | None = None
    minutes: float = 0.0


def check_question(options: Judgement) -> MethodSpec:
    """The one method that is asked for.

    Raises:
        BadInput: for none, several, or an unknown one.
    """
    if len(options.method) != 1:
        raise BadInput(
            f"judge.py takes one method, as its first word, and got {len(options.method)}: python sweeps/judge.py my_method.py"
        )
    [spec] = options.specs()
    with_defaults(options, method=(*options.method, *options.against)).specs()  # whose labels must differ
    return spec


def check_contract(spec: MethodSpec, options: Judgement) -> None:
    """Hold a method to the adapter contract; PEFT's tuners, which are not written against it, are let through.

    Raises:
        BadInput: naming the first promise that it breaks; the card of the sweep's folder names all.
    """
    if spec.name.startswith(PEFT):
        return
    print(f"checking the adapter contract of {spec.label}", file=sys.stderr, flush=True)
    broken = [finding for finding in check_promises(spec) if not finding.holds]
    if not broken:
        return
    folder = options.runs / str(options.sweep)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"- {finding.promise}: {finding.numbers}" for finding in broken]
    words = f"{spec.label} was not judged: it breaks {counted(len(broken), 'promise')} of the adapter contract."
    (folder / "card.md").write_text(
        "\n".join([f"# {spec.label}: a method card", "", words, "", *lines, ""]), encoding="utf-8"
    )
    raise BadInput(
        f"{spec.label} breaks a promise of the adapter contract, {broken[0].promise}: {broken[0].numbers} "
        f"(all: {folder / 'card.md'}; python -m adapters.check {options.method[0]})"
    )


def add_evidence(options: Asked, evidence: Path) -> Asked:
    """Look into the committed results too, where they are of the same model and scorers; else say why not."""
    if options.results or not options.against or not (evidence / "runs.parquet").exists():
        return options
    inputs = resolve_inputs(with_defaults(options, num_prompts=1), num_subjects=1)
    try:
        EarlierResults.read((evidence,), inputs)
    except BadInput as error:
        print(f"{', '.join(options.against)} are trained here: {error}", file=sys.stderr)
        return options
    return with_defaults(options, results=(evidence,))


def read_budget(text: str) -> float:
    """Seconds of a budget such as 10min.

    Raises:
        BadInput: if it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h)", text.strip())
    if not found or float(found[1]) <= 0:
        raise BadInput(f"--budget is {text!r}; allowed: a number with s, min or h, as in 10min")
    return float(found[1]) * UNITS[found[2]]


def fit_budget(options: Asked, spec: MethodSpec) -> Asked:
    """Choose subjects, and multipliers where it must be, that fit into the budget, and say what so few cannot show.

    Raises:
        BadInput: for a budget that cannot be read, or that not even one subject fits into.
    """
    if not options.budget:
        return options
    budget_s = read_budget(options.budget)
    left_s, chosen, tuning_s = budget_s, options, 0.0
    if needs_search(options, spec, resolve_inputs(with_defaults(options, num_prompts=1), num_subjects=1)):
        for count in CHOOSING:
            chosen = with_defaults(options, choosing_subjects=(str(count),), rounds=1)
            found_s = search_seconds(chosen, spec)
            tuning_s = tuning_s if found_s is None else found_s
            if found_s is not None and found_s <= TUNING_SHARE * budget_s:
                break
        left_s -= tuning_s
    for multipliers in (options.multipliers, FEW_MULTIPLIERS):
        least = 6 if multipliers == options.multipliers else 1
        for count in [n for n in SUBJECTS if n >= least]:
            tried = with_defaults(chosen, subjects=(*_folder(options), str(count)), multipliers=multipliers)
            seconds = grid_seconds(tried, spec)
            if seconds is not None and seconds <= left_s:
                _say_budget(tried, budget_s, tuning_s, seconds, count)
                return tried
    needed = tuning_s + (seconds or 0.0)
    raise BadInput(
        f"--budget is {options.budget}; one subject at {len(FEW_MULTIPLIERS)} rates takes {duration(needed)}"
    )


def _folder(options: Judgement) -> Sequence[str]:
    """The folder that `--subjects` begins with, if it does."""
    return [word for word in options.subjects[:1] if "/" in word or Path(word).is_dir()]


def needs_search(options: Judgement, spec: MethodSpec, inputs: ResolvedInputs) -> bool:
    """Whether nobody has tuned the method on the model, and no flag gives its rate."""
    is_given = options.base_lr is not None or "base_lr" in spec.words
    return not is_given and not is_tuned(spec, inputs.model_hash)


def search_seconds(options: Judgement, spec: MethodSpec) -> float | None:
    """Seconds of the first round and one more; None where there are fewer subjects."""
    try:
        few, _ = split_subjects(options, options.choosing_subjects, num_choosing=1, num_subjects=1)
    except BadInput:
        return None
    first = first_trials(options, spec)
    return _seconds(options, few, plan_trials(options, few, [first])) * (1 + PER_ROUND / len(first))


def grid_seconds(options: Judgement, spec: MethodSpec) -> float | None:
    """Seconds of the grid, without what earlier results hold; None where there are fewer subjects."""
    try:
        _, many = split_subjects(options, options.choosing_subjects, num_choosing=1, num_subjects=1)
    except BadInput:
        return None
    tuned = Tuned(_with_some_rate(options, spec, many), "")
    with contextlib.redirect_stderr(io.StringIO()):  # what it says of rates is said when it runs
        planned = plan_grid(options, tuned, many)
    return _seconds(options, many, planned)


def _seconds(options: Judgement, inputs: ResolvedInputs, planned: Sequence[LabelledCell]) -> float:
    """What is left of some cells takes; nothing is stored."""
    work = plan_work(resolve(with_defaults(options, dry_run=True), inputs, planned, str(options.sweep)))
    return work.seconds or 0.0


def _with_some_rate(options: Judgement, spec: MethodSpec, inputs: ResolvedInputs) -> MethodSpec:
    """The method with rates that cost as much as those that will be found."""
    words = {"base_lr": 1e-3} | ({"boundary": 1.0} if get_class(spec.name).uses_boundary else {})
    return (
        spec if not needs_search(options, spec, inputs) else dataclasses.replace(spec, words=words | dict(spec.words))
    )


def _say_budget(options: Judgement, budget_s: float, tuning_s: float, grid_s: float, count: int) -> None:
    unit = options.kind[0].unit
    tuning = f"{duration(tuning_s)} for the rate ({options.choosing_subjects[0]} subjects), " if tuning_s else ""
    print(
        f"budget {duration(budget_s)}: {tuning}{duration(grid_s)} for {counted(len(options.multipliers), 'multiplier')} on "
        f"{counted(count, unit)}",
        file=sys.stderr,
    )
    if options.results and count > 1:
        difference = detectable_area(load(*options.results), count)
        print(
            f"with {counted(count, unit)} a difference in area below {difference:.2g} is more likely than 20 % to be missed "
            "(spreads of the committed results)",
            file=sys.stderr,
        )
    elif count == 1:
        print("with one subject there is no interval, and no verdict", file=sys.stderr)


def tune(options: Judgement, spec: MethodSpec, few: ResolvedInputs) -> Tuned | None:
    """The method with its base rate: the one that is known, or the best of a search; None while jobs do the work.

    Raises:
        BadInput: if every setting diverged.
    """
    if not needs_search(options, spec, few):
        rates = choose_rates(options, spec, few.model_name, few.model_hash)
        return Tuned(spec, rates.source)
    check_search(options)
    print(f"searching for the rate of {spec.label} on {counted(len(few.subjects), few.kind.unit)}", flush=True)
    found = search(with_defaults(options, results=()), few, str(options.sweep))
    if found is None:
        return None
    outcome, scores = found
    tried = tried_settings(scores)
    best = best_settings(tried, options.rule).iloc[0]
    trial = find_trial(best)
    words = {FIELDS[field]: value for field, value in rates_of(spec, trial).items()}
    subjects = ", ".join(subject.name for subject in few.subjects)
    rule = describe_rule(options.rule, f"these {plural(few.kind.unit)}", few.kind)
    source = f"best of {counted(len(tried), 'trial')} on {subjects}: {rule}{edge(best, tried)}"
    print(f"{spec.label}: lr {trial.lr:g}, {source}", flush=True)
    minutes = outcome.results.runs.drop_duplicates("run_id")["seconds"].sum() / 60
    return Tuned(dataclasses.replace(spec, words=words | dict(spec.words)), source, tried, float(minutes))


def plan_grid(options: Judgement, tuned: Tuned, many: ResolvedInputs) -> list[LabelledCell]:
    """The cells of the method and of those that it is compared with."""
    others = with_defaults(options, method=options.against).specs() if options.against else []
    own = expand(options, many, [tuned.spec], quiet=True)
    own = [dataclasses.replace(p, labels=p.labels | {"rate_source": tuned.source}) for p in own]
    return [*own, *expand(options, many, others)]
