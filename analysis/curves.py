"""Curves with intervals over subjects: pictures averaged within a prompt, prompts within a seed, seeds within a subject.

One rule for divergence: a diverged run scores, for every metric, the worse of what its frozen weights score and what the
base model scores on that subject. It is never dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from adapters import METHODS
from adapters.errors import BadInput
from analysis.metrics import (
    ANY,
    headline_of,
    in_table_order,
    is_side_effect,
    score_names,
    sign_of,
    signs_of,
    value_range,
)
from analysis.results import BASE_KEY, Results
from analysis.series import by_number
from analysis.statistics import Interval, paired_difference, t_interval
from training.states import ENDED, RunStatus

__all__ = [
    "base_line",
    "centre_on_best",
    "paired_curve",
    "score_curve",
    "subject_scores",
]


def subject_scores(results: Results, x: str = "multiplier") -> pd.DataFrame:
    """One score for each subject: the table that every interval, difference and plateau starts from.

    Args:
        results: the runs; only those that ended (finished or diverged) count.
        x: "multiplier" or another column of the runs, scored at the end; or "step", scored at every evaluation.

    Returns:
        Rows series, method, x, subject, metric, value, base (the base model's score of that subject, NaN if it was not
        scored), num_seeds, num_diverged.

    Raises:
        BadInput: if no run has ended, or a diverged run has neither pictures nor a base to stand for it.
    """
    keys = ["series", "method", x, "subject", "metric"]
    table = run_scores(results, x).groupby(keys, sort=False, observed=True)
    named = {"value": ("value", "mean"), "base": ("base", "mean"), "num_seeds": ("seed", "nunique")}
    return in_order(table.agg(**named, num_diverged=("diverged", "sum")).reset_index(), x)


def run_scores(results: Results, x: str = "multiplier") -> pd.DataFrame:
    """The same run by run, seeds not yet averaged: rows run_id, series, method, x, subject, seed, metric, value, base, diverged.

    Raises:
        BadInput: as `subject_scores`.
    """
    return _run_scores(results, x).copy()


@lru_cache(maxsize=2)
def _run_scores(results: Results, x: str) -> pd.DataFrame:
    """What most tables and figures start from, made once for those that are drawn of the same runs."""
    runs = ended_runs(results, x)
    scores = results.scores.groupby(["run_id", "step", "metric"], observed=True)["value"].mean().reset_index()
    names = score_names(results.kind)
    scores = _at_step(runs, scores, names) if x == "step" else _at_end(runs, scores, names)
    table = scores.merge(_base_scores(runs, results), on=["run_id", "metric"], how="left")
    table["value"] = _floored(table)
    return table.astype({"metric": object})


def score_curve(results: Results, x: str = "multiplier") -> pd.DataFrame:
    """Mean scores with 95 % t intervals on subject means.

    Returns:
        Rows series, method, x, metric, mean, low, high, num_subjects, num_diverged (runs), num_runs; low and high are NaN for
        one subject.
    """
    return summarise(subject_scores(results, x), x, ["metric"], t_interval)


def centre_on_best(curve: pd.DataFrame, scores: pd.DataFrame, metric: str | None = None) -> pd.DataFrame:
    """A curve over multiples of the rate at which each series' mean score is best, among those at which no run diverged.

    Args:
        curve: rows series, multiplier and others.
        scores: what `score_curve` returned.
        metric: the score that is best there; None: the headline of those in `scores`.

    Returns:
        The curve's rows with over_best, the multiplier over that of the best, and at_edge, whether that one is the lowest or
        highest tried; series whose runs diverged at every rate have no rows.
    """
    metric = metric or headline_of(scores)
    tried = scores[(scores["metric"] == metric) & scores["mean"].notna()]
    allowed = tried[tried["num_diverged"] == 0]
    means = (sign_of(metric) * allowed["mean"]).groupby(allowed["series"], sort=False)
    best = allowed.loc[means.idxmax()].set_index("series")["multiplier"]
    ends = tried.groupby("series")["multiplier"].agg(["min", "max"]).loc[best.index]
    kept = curve[curve["series"].isin(best.index)]
    over = (kept["multiplier"] / kept["series"].map(best).astype(float)).map("{:.6g}".format).astype(float)
    at_edge = (best == ends["min"]) | (best == ends["max"])
    return kept.assign(over_best=over, at_edge=kept["series"].map(at_edge).astype(bool)).reset_index(drop=True)


def paired_curve(table: pd.DataFrame, a: str, b: str, x: str = "multiplier") -> pd.DataFrame:
    """Differences `a - b` of two series, paired by subject: same pictures, same noise.

    Args:
        table: what `subject_scores` or `subject_distances` returned.
        a, b: names of the series.
        x: the column along which they are compared.

    Returns:
        Rows metric (if the table has it), x, mean, low, high, num_subjects; the headline first.

    Raises:
        BadInput: if a series is not in the table.
    """
    for name in (a, b):
        if name not in set(table["series"]):
            raise BadInput(f"no series {name!r}; allowed: {', '.join(map(str, table['series'].unique()))}")
    keys = ["metric", x] if "metric" in table else [x]
    first, second = (table.loc[table["series"] == name, [*keys, "subject", "value"]] for name in (a, b))
    pairs = first.merge(second, on=[*keys, "subject"], suffixes=("_a", "_b"))
    rows = [
        [*key, *_paired(group.set_index("subject"), value_range(str(key[0])))]
        for key, group in pairs.groupby(keys, sort=False, observed=True)
    ]
    return in_order(pd.DataFrame(rows, columns=[*keys, *Interval._fields]), x)


def _paired(group: pd.DataFrame, limits: tuple[float, float]) -> Interval:
    low, high = limits
    return paired_difference(group["value_a"], group["value_b"]).within(low - high, high - low)


def base_line(results: Results) -> pd.DataFrame:
    """The base model's scores: rows metric, mean, low, high, num_subjects over the subjects of the runs."""
    base = results.base
    if len(results.runs):
        base = base[base["subject"].isin(results.runs["subject"])]
    means = base.groupby(["metric", "subject"], observed=True)["value"].mean().astype(float)
    rows = [
        [metric.name, *t_interval(means[metric.name]).within(metric.low, metric.high)]
        for metric in results.kind.metrics
        if metric.name in means.index.get_level_values(0)
    ]
    return pd.DataFrame(rows, columns=["metric", *Interval._fields])


def summarise(
    table: pd.DataFrame,
    x: str,
    by: Sequence[str],
    interval: Callable[[np.ndarray], Interval],
    limits: tuple[float, float] = ANY,
) -> pd.DataFrame:
    """Reduce a subject-level table to one row for each series and x.

    Args:
        table: rows series, method, x, subject, value, num_seeds, num_diverged.
        x: the column along which the curve runs.
        by: further columns that tell curves apart.
        interval: of the subjects' values.
        limits: the range of the values, for tables without a metric; a metric has its own.

    Returns:
        Rows series, method, x, `by`, mean, low, high, num_subjects, num_diverged, num_runs, and least and most: the lowest and
        the highest subject.
    """
    values, diverged, seeds = (table[name].to_numpy(dtype=float) for name in ("value", "num_diverged", "num_seeds"))
    metrics = table["metric"].to_numpy(dtype=object) if "metric" in table else None
    rows = []
    grouped = table.groupby(["series", "method", x, *by], sort=False, observed=True)
    for key, places in sorted(grouped.indices.items(), key=lambda item: item[1][0]):  # as they come in the table
        ends = limits if metrics is None else value_range(str(metrics[places[0]]))
        own, counts = values[places], [int(diverged[places].sum()), int(seeds[places].sum())]
        rows.append([*key, *interval(own).within(*ends), *counts, own.min(), own.max()])
    columns = ["series", "method", x, *by, *Interval._fields, "num_diverged", "num_runs", "least", "most"]
    frame = pd.DataFrame(rows, columns=columns)
    return in_order(frame, x)


def in_order(frame: pd.DataFrame, x: str) -> pd.DataFrame:
    """Sort by method (as registered), series (numbers in their order), metric (as declared, side effects last), and x."""
    metrics = in_table_order(frame["metric"].unique()) if "metric" in frame else []
    ranks = {name: number for number, name in enumerate([*METHODS, *metrics])}
    keys = [name for name in ("method", "series", "metric", x) if name in frame]

    def rank(column: pd.Series) -> pd.Series:
        if column.name == "series":
            return column.map(by_number)
        if column.name in ("method", "metric"):
            return column.astype(object).map(lambda name: ranks.get(name, len(ranks)))
        return column

    return frame.sort_values(keys, key=rank, kind="stable", ignore_index=True)


def ended_runs(results: Results, x: str) -> pd.DataFrame:
    """The runs that count, with `diverged`; several multipliers on an axis of something else name their own series."""
    runs = results.runs[results.runs["status"].isin(ENDED)]
    runs = runs.assign(diverged=runs["status"] == RunStatus.DIVERGED)
    if x != "step":
        if x not in runs:
            raise BadInput(f"unknown axis {x!r}; allowed: step, {', '.join(results.runs.columns)}")
        runs = runs[runs[x].notna()]
    if runs.empty:
        raise BadInput(f"no run of {len(results.runs)} has ended with a {x}: run the sweep on, then draw")
    if x != "multiplier":
        named = runs.groupby("series")["multiplier"].transform("nunique") > 1
        runs = runs.assign(
            series=runs["series"].where(~named, runs["series"] + runs["multiplier"].map(", {:g}x".format))
        )
    columns = dict.fromkeys(["run_id", "series", "method", "subject", "seed", "diverged", "diverged_step", *BASE_KEY])
    extra = ["steps", "eval_steps"] if x == "step" else [x]
    return runs[[*dict.fromkeys([*columns, *extra])]].reset_index(drop=True)


def _at_end(runs: pd.DataFrame, scores: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Every run's scores at its last evaluation; every metric of `names` of every diverged run, NaN where it left none."""
    last = scores[scores["step"] == scores.groupby("run_id", observed=True)["step"].transform("max")]
    table = runs.merge(last.drop(columns="step"), on="run_id")
    return pd.concat([table, _missing(runs[runs["diverged"]], table, ["run_id", "metric"], names)], ignore_index=True)


def _at_step(runs: pd.DataFrame, scores: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Every run's scores at every evaluation; a diverged run keeps its last ones until the planned end.

    Before the step at which it diverged such a run counts like any other.
    """
    table = runs.merge(scores, on="run_id")
    frozen = runs[runs["diverged"]]
    planned = [
        sorted({*eval_steps, steps}) for eval_steps, steps in zip(frozen["eval_steps"], frozen["steps"], strict=True)
    ]
    expected = frozen.assign(step=planned).explode("step").astype({"step": scores["step"].dtype})
    rest = _missing(expected, table, ["run_id", "metric", "step"], names)
    table = pd.concat([table, rest], ignore_index=True).sort_values("step", kind="stable")
    carried = table.groupby(["run_id", "metric"], observed=True)["value"].ffill()
    table["value"] = table["value"].where(~table["diverged"], carried)
    table["diverged"] &= ~(table["step"] < table["diverged_step"])
    return table.drop(columns=["steps", "eval_steps"])


def _missing(runs: pd.DataFrame, table: pd.DataFrame, keys: list[str], names: Sequence[str]) -> pd.DataFrame:
    """The rows (run, metric of `names`) that `table` lacks, without a value."""
    wanted = runs.merge(pd.DataFrame({"metric": list(names)}), how="cross")
    there = pd.MultiIndex.from_frame(table[keys].astype({"metric": object}))
    return wanted[~pd.MultiIndex.from_frame(wanted[keys]).isin(there)].assign(value=np.nan)


def _base_scores(runs: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Rows run_id, metric, base: the base model scored on the run's subject in the run's way."""
    base = results.base.groupby([*BASE_KEY, "metric"], observed=True, dropna=False)["value"].mean().astype(float)
    merged = runs.drop_duplicates("run_id")[["run_id", *BASE_KEY]].merge(
        base.rename("base").reset_index(), on=list(BASE_KEY)
    )
    return merged[["run_id", "metric", "base"]]


def _floored(table: pd.DataFrame) -> pd.Series:
    """The divergence rule: the worse of the run's own score and the base's; a side effect stays its own."""
    signs = signs_of(table["metric"])
    floor = table[["value", "base"]].astype(float).mul(signs, axis=0).min(axis=1) * signs
    floor = floor.where(~table["metric"].astype(object).map(is_side_effect).astype(bool), table["value"].astype(float))
    lost = table[table["diverged"] & floor.isna()]
    if len(lost):
        raise BadInput(
            f"run {lost['run_id'].iloc[0]} diverged and left no {lost['metric'].iloc[0]}, and the base model has no score "
            f"of subject {lost['subject'].iloc[0]!r}: run the sweep again, it scores the base first"
        )
    return table["value"].astype(float).where(~table["diverged"], floor)
