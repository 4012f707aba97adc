"""Measures for claims: one number for each subject, with its interval over subjects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import pandas as pd

from adapters.errors import BadInput
from analysis.comparisons import compare
from analysis.curves import run_scores, subject_scores
from analysis.directions import magnitude_direction, magnitude_direction_correlation
from analysis.distances import subject_distances
from analysis.grid import Grid, subject_grid
from analysis.matched_prompt import MatchedPrompt, matched_prompt
from analysis.metrics import sign_of, value_range
from analysis.plateau import plateau
from analysis.results import Results
from analysis.statistics import Interval, log_interval, paired_difference, rate_interval, t_interval

# Many claims are put to the same results: their tables are made once, for the few results that were seen last.
_scores, _distances = lru_cache(maxsize=2)(subject_scores), lru_cache(maxsize=2)(subject_distances)


@lru_cache(maxsize=2)
def _matched(results: Results) -> MatchedPrompt:
    return matched_prompt(_scores(results))


@lru_cache(maxsize=2)
def _plateaus(results: Results) -> pd.DataFrame:
    return plateau(_scores(results))


def difference(results: Results, a: str, b: str, of: str, metric: str | None = None) -> Interval:
    """How much more series `a` has than `b` of a measure of `analysis.comparisons`, paired by subject."""
    row = compare(_scores(results), (of,), metric=metric, pairs=[(a, b)]).iloc[0]
    return Interval(row["mean"], row["low"], row["high"], int(row["num_subjects"]))


def score(results: Results, series: str, multiplier: float, metric: str | None = None) -> Interval:
    """The score at a multiplier."""
    metric = metric or results.kind.headline.name
    return t_interval(_at(results, series, multiplier, metric)["value"]).within(*value_range(metric))


def gain(results: Results, series: str, multiplier: float, metric: str | None = None) -> Interval:
    """How much better than the base model, paired by subject."""
    metric = metric or results.kind.headline.name
    rows = _at(results, series, multiplier, metric)
    return t_interval(sign_of(metric) * (rows["value"] - rows["base"]))


def difference_at(results: Results, a: str, b: str, multiplier: float, metric: str | None = None) -> Interval:
    """How much higher series `a` scores than `b` at a multiplier, paired by subject."""
    metric = metric or results.kind.headline.name
    first, second = (_at(results, name, multiplier, metric).set_index("subject")["value"] for name in (a, b))
    return paired_difference(first, second)


def distance(results: Results, series: str, multiplier: float) -> Interval:
    """The final relative distance at a multiplier: the geometric mean over subjects."""
    rows = _distances(results)
    rows = rows[(rows["series"] == series) & np.isclose(rows["multiplier"].astype(float), multiplier)]
    if rows.empty:
        raise BadInput(f"no distance of {series!r} at {multiplier:g}x")
    return log_interval(rows["value"])


def _at(results: Results, series: str, multiplier: float, metric: str) -> pd.DataFrame:
    rows = _scores(results).query("series == @series and metric == @metric and multiplier == @multiplier")
    if rows.empty:
        raise BadInput(f"no {metric} of {series!r} at {multiplier:g}x")
    return rows


def loss_at(
    results: Results, series: str, multiplier: float, metric: str | None = None, reference: float | None = None
) -> Interval:
    """What is lost at a multiplier, as a share of the mean gain over the base at the reference.

    None takes the best other multiplier: the choice adds to the loss what noise gave the best. A multiplier named beforehand
    does not.
    """
    metric = metric or results.kind.headline.name
    return _loss(_grid(_scores(results), series, metric, "multiplier"), multiplier, series, reference)


def loss_at_end(results: Results, series: str, metric: str | None = None) -> Interval:
    """What is lost at the last step against the best other one, as a share of the mean gain over the base there."""
    grid = _grid(subject_scores(results, "step"), series, metric or results.kind.headline.name, "step")
    return _loss(grid, float(grid.points[-1]), series)


def distance_octaves(results: Results, series: str, start: float, end: float) -> Interval:
    """By how many octaves the final distance grows from one multiplier to another."""
    rows = _distances(results)
    wide = rows[rows["series"] == series].pivot(index="subject", columns="multiplier", values="value")
    for multiplier in (start, end):
        if multiplier not in wide:
            raise BadInput(f"no distance of {series} at {multiplier:g}x; there are {', '.join(map(str, wide))}")
    return t_interval(np.log2(wide[end] / wide[start]).dropna())


def distance_reached(results: Results, series: str, share: float) -> Interval:
    """Which part of its final distance a run has after a share of its steps."""
    runs = results.runs.loc[results.runs["series"] == series, ["run_id", "subject"]].drop_duplicates()
    if runs.empty:
        raise BadInput(f"no series {series!r}; allowed: {', '.join(results.runs['series'].unique())}")
    paths = results.trajectories("mean", ["distance_rel"]).astype({"run_id": str}).merge(runs, on="run_id")
    ends = paths.groupby(["subject", "run_id"])[["step", "distance_rel"]].agg("last")
    early = paths[paths["step"] >= share * paths["run_id"].map(ends.reset_index("subject")["step"])]
    parts = early.groupby(["subject", "run_id"])["distance_rel"].first() / ends["distance_rel"]
    return t_interval(parts.groupby("subject").mean())


def diverged(results: Results) -> Interval:
    """The share of subjects of which some run diverged (Wilson)."""
    lost = run_scores(results).groupby("subject")["diverged"].any()
    return rate_interval(int(lost.sum()), len(lost))


def direction_correlation(results: Results, series: str) -> Interval:
    """The correlation of the changes of magnitude and direction at the base rate, over matrices and snapshots of a run."""
    table = magnitude_direction_correlation(magnitude_direction(results))
    row = table[(table["series"] == series) & (table["kind"] == "all")]
    if row.empty:
        raise BadInput(f"no series {series!r} at its base rate; allowed: {', '.join(table['series'].unique())}")
    found = row.iloc[0]
    return Interval(found["rho"], found["rho_low"], found["rho_high"], int(found["num_subjects"]))


def half_width(results: Results, series: str, metric: str | None = None) -> Interval:
    """On how many octaves of rates the mean curve keeps half of its best gain; a lower bound where the grid ends before."""
    metric = metric or results.kind.headline.name
    rows = _plateaus(results).query("series == @series and metric == @metric")
    if rows.empty:
        raise BadInput(
            f"no {metric} of {series!r}; there are {', '.join(map(str, _scores(results)['series'].unique()))}"
        )
    row = rows.iloc[0]
    return Interval(row["half_width"], row["half_width_low"], row["half_width_high"], int(row["num_subjects"]))


def gain_at_matched_prompt(results: Results, series: str) -> Interval:
    """The mean gain in the headline over losses of 0 to 20 % of the prompt's score (`analysis.matched_prompt`)."""
    return _mean_over_losses(_matched(results).gains.query("series == @series"), series)


def difference_at_matched_prompt(results: Results, a: str, b: str) -> Interval:
    """How much more of it series `a` gains than `b`, paired by subject; whichever stands first in the table."""
    rows = _matched(results).differences
    if len(turned := rows.query("a == @b and b == @a")):
        found = _mean_over_losses(turned, f"{b} - {a}")
        return Interval(-found.mean, -found.high, -found.low, found.num_subjects)
    return _mean_over_losses(rows.query("a == @a and b == @b"), f"{a} - {b}")


def _mean_over_losses(rows: pd.DataFrame, name: str) -> Interval:
    means = rows[rows["loss"].str.startswith("0 to ")]
    if means.empty:
        raise BadInput(f"no gain at matched prompt of {name!r}")
    row = means.iloc[0]
    return Interval(row["mean"], row["low"], row["high"], int(row["num_subjects"]))


MEASURES: Mapping[str, Callable[..., Interval]] = {
    "difference": difference,
    "difference_at": difference_at,
    "score": score,
    "gain": gain,
    "distance": distance,
    "loss_at": loss_at,
    "loss_at_end": loss_at_end,
    "distance_octaves": distance_octaves,
    "distance_reached": distance_reached,
    "diverged": diverged,
    "half_width": half_width,
    "gain_at_matched_prompt": gain_at_matched_prompt,
    "difference_at_matched_prompt": difference_at_matched_prompt,
    "direction_correlation": direction_correlation,
}


def _grid(table: pd.DataFrame, series: str, metric: str, x: str) -> Grid:
    rows = table[(table["series"] == series) & (table["metric"] == metric) & (table[x] > 0)]
    if rows.empty:
        raise BadInput(f"no {metric} of {series!r}; there are {', '.join(map(str, table['series'].unique()))}")
    return subject_grid(rows, x)


def _loss(grid: Grid, point: float, series: str, reference: float | None = None) -> Interval:
    for wanted in (point, *([] if reference is None else [reference])):
        if wanted not in grid.scores:
            raise BadInput(f"no score of {series} at {wanted:g}; there are {', '.join(map(str, grid.scores))}")
    means, out = grid.values.mean(axis=0), (grid.num_diverged > 0) | (grid.points == point)
    out |= False if reference is None else grid.points != reference
    best = int(np.where(out, -np.inf, means).argmax())
    gain = means[best] - grid.base.mean()
    if out.all() or not gain > 0:
        raise BadInput(f"{series} exceeds the base model nowhere else, so there is no gain to lose")
    return t_interval((grid.values[:, best] - grid.scores[point].to_numpy(dtype=float)) / gain)
