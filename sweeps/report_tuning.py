"""Report a search for base rates: every trial, each method's best by a rule, and the rates as they are kept."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from adapters import parse_method
from adapters.errors import BadInput
from analysis import best_settings, tried_settings
from analysis.best_settings import SETTING, describe_rule, trial_columns
from analysis.metrics import score_names, title_of
from sweeps.driver import SweepOutcome
from sweeps.grid import ResolvedInputs
from sweeps.rate_file import write_rates
from sweeps.report import command, keep_tables, processor, show
from sweeps.search import rates_of
from sweeps.trials import find_edges, find_trial
from training.states import ENDED, RunStatus
from training.store import writing
from training.task_kinds import PICTURES, TaskKind, kind_of

TRIALS = "trials.parquet"


def report_tuning(
    outcome: SweepOutcome, inputs: ResolvedInputs, scores: pd.DataFrame, *, rule: str, docs: Path | None, write: bool
) -> None:
    """Print the best setting of each method by a rule; keep all trials and, if they are to be written, the rates.

    Args:
        outcome: the search.
        inputs: of the search.
        scores: its `analysis.trial_scores`.
        rule: a name of `analysis.best_settings.RULES`.
        docs: a second folder for the tables.
        write: whether the rates go to `sweeps/base_rates.toml`, with their provenance.
    """
    tried = tried_settings(scores)
    best = show_choice(tried, rule, inputs.kind)
    keep_tables(outcome.folder, docs, {"tuning": tried})
    for folder in (outcome.folder, *([docs] if docs is not None else [])):
        with writing(folder / TRIALS) as aside:
            scores.astype({"status": str}).to_parquet(aside, index=False)
    if write:
        write_rates(inputs.model_name, _table(inputs, best, scores, describe_rule(rule, kind=inputs.kind)))


def show_choice(tried: pd.DataFrame, rule: str, kind: TaskKind) -> pd.DataFrame:
    """Print what was tried and the best setting of each method by a rule; returns those."""
    show(tried.drop(columns="options").rename(columns={"method": "series"}))
    best = best_settings(tried, rule)
    print(f"rule: {describe_rule(rule, kind=kind)}")
    for _, row in best.iterrows():
        own = tried[(tried["method"] == row["method"]) & (tried["options"] == row["options"])]
        scores = ", ".join(f"{title_of(name)} {row[name]:.3f}" for name in score_names(kind))
        print(f"{row['method']}: lr {row['lr']:g}{_boundary(row)}, {scores}, {len(own)} trials{edge(row, own)}")
    for name, own in tried.groupby("method", sort=False):
        if name not in set(best["method"]):
            print(
                f"{name}: no setting may be chosen, of {len(own)} trials, of which {(own['diverged'] > 0).sum()} diverged"
            )
    return best


def read_trials(path: Path, kind: TaskKind | None = None, methods: Sequence[str] = ()) -> pd.DataFrame:
    """A table of trials that a search has left.

    Args:
        path: of the table.
        kind: the task; None: that of cells which name none.
        methods: whose trials are wanted; none: all. A line says which others there are.

    Raises:
        BadInput: if the file is missing, is no Parquet, lacks a column, has text where numbers belong, a run that has not ended
            or has no score, or settings of a method that were not tried on the same subjects.
    """
    try:
        found = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"--trials is {path}, which cannot be read: {error}; allowed: a {TRIALS} of base_lr.py"
        ) from None
    kind = kind or kind_of(PICTURES)
    if missing := [name for name in trial_columns(kind) if name not in found]:
        raise BadInput(f"--trials is {path}, without the column {missing[0]}; allowed: a {TRIALS} of base_lr.py")
    _check_trials(path, found, score_names(kind))
    known = list(found["method"].unique())
    wanted = [name for name in known if name in methods] if methods else known
    if not wanted:
        raise BadInput(f"--trials is {path}, which has {', '.join(known) or 'no trials'}, and none of --method")
    if others := [name for name in known if name not in wanted]:
        print(f"--trials has {', '.join(others)} too: name them by --method", file=sys.stderr)
    return found[found["method"].isin(wanted)]


def _check_trials(path: Path, trials: pd.DataFrame, scores: list[str]) -> None:
    """Refuse trials that no rule can choose from.

    Raises:
        BadInput: naming the first of them.
    """
    for name in ("lr", "boundary", *scores):
        if not pd.api.types.is_numeric_dtype(trials[name]) and trials[name].notna().any():
            raise BadInput(f"--trials is {path}, whose column {name} is no number")
    is_scored = np.isfinite(trials[scores].astype(float)).all(axis=1) | (trials["status"] == RunStatus.DIVERGED)
    ended = trials["status"].isin(ENDED) & is_scored
    for _, row in trials[~ended].iterrows():
        values = ", ".join(f"{name} {row[name]}" for name in scores)
        raise BadInput(
            f"--trials is {path}, where {row['method']} at lr {row['lr']:g} is {row['status']} with {values}"
        )
    for method, own in trials.groupby("method", sort=False):
        settings = own.groupby(list(SETTING), dropna=False, sort=False)
        units = {setting: sorted(zip(rows["subject"], rows["seed"], strict=True)) for setting, rows in settings}
        most = max(units.values(), key=len)
        if few := next((setting for setting, found in units.items() if found != most), None):
            raise BadInput(
                f"--trials is {path}, where {method} at lr {few[2]:g} was tried on other subjects than at its other settings"
            )


def edge(best: pd.Series, tried: pd.DataFrame) -> str:
    """A word where the best setting lies at an end of what was tried: there may be a better one beyond."""
    ends = find_edges([find_trial(row) for _, row in tried.iterrows()], find_trial(best))
    return f" (at the edge of the grid of {' and '.join(ends)}: try a wider one)" if ends else ""


def _boundary(row: pd.Series) -> str:
    return "" if pd.isna(row["boundary"]) else f", lambda starts at {row['boundary']:g}"


def _table(inputs: ResolvedInputs, best: pd.DataFrame, runs: pd.DataFrame, rule: str) -> dict:
    methods = {}
    for _, row in best.iterrows():
        if row["options"] != parse_method(row["method"]).canonical:
            continue  # rates of unusual options are printed, not kept as the method's
        trials = runs[(runs["method"] == row["method"]) & (runs["options"] == row["options"])]
        methods[row["method"]] = {
            **rates_of(parse_method(row["method"]), find_trial(row)),
            **{metric: round(float(row[metric]), 4) for metric in score_names(inputs.kind)},
            "rank": int(trials["rank"].max()), "steps": int(trials["steps"].max()),
            "subjects": sorted(trials["subject"].unique()), "seeds": sorted(map(int, trials["seed"].unique())),
            "command": command(), "date": datetime.date.today().isoformat(), "machine": processor(),
        }  # fmt: skip
    return {"model_hash": inputs.model_hash, "rule": rule, "methods": methods}
