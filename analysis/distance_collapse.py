"""Do the methods' curves coincide against the distance instead of the rate? A partial answer to *why* they differ.

If a score depends on how far the weights have moved and on nothing else of the method, one curve of log distance describes
all methods. So one curve, common to all series, is fitted over each axis, and judged on a subject that it has not seen:

    score[run of subject i] = offset_i + common(log2 axis) + residual.

The offset is the subject's own and is given to it; `common` is linear between knots at quantiles of the axis (Hastie et al.
2009, The Elements of Statistical Learning, Sec. 5.2), fitted to the other subjects: a cubic one swings between knots where
scores collapse. The residual is compared with that of `separate`, one such curve for every series: the same freedom that a curve
for each method has. Both over the multiplier and over the distance `separate` fits about alike, so what `common` loses
against it is what the curves do not share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from adapters.errors import BadInput
from adapters.words import counted
from analysis.curves import run_scores
from analysis.distances import final_distances
from analysis.metrics import UNIT, main_scores
from analysis.permutation import sign_flip
from analysis.results import Results
from analysis.statistics import Floats, Interval, log_interval, t_interval
from analysis.summary import Robustness, robustness

AXES = ("multiplier", "lr", "distance_rel")
NUM_KNOTS = 7


def run_ends(results: Results, metric: str | None = None, matrix: str = "mean") -> pd.DataFrame:
    """Every run's end: how far it went and what it scored.

    Args:
        results: the runs; a diverged one scores by the rule of `analysis.curves` and lies where it was frozen.
        metric: the score; None: the task's headline.
        matrix: whose distance, or "mean" for the mean over the matrices.

    Returns:
        Rows run_id, series, method, subject, seed, multiplier, lr, distance_rel, value, base, diverged.

    Raises:
        BadInput: if there is no such metric or matrix.
    """
    scores, metric = run_scores(results), metric or results.kind.headline.name
    if metric not in set(scores["metric"]):
        known = ", ".join(map(str, scores["metric"].unique()))
        raise BadInput(f"no scores of metric {metric!r}; allowed: {known}")
    distances = final_distances(results, matrix)
    rates = results.runs.set_index("run_id")["lr"].astype(float)
    table = scores[scores["metric"] == metric].merge(distances, left_on="run_id", right_index=True)
    table["lr"] = table["run_id"].map(rates)
    columns = ["run_id", "series", "method", "subject", "seed", *AXES, "value", "base", "diverged"]
    return table[columns].reset_index(drop=True)


def coincidence(
    runs: pd.DataFrame, axes: tuple[str, ...] = AXES, num_knots: int = NUM_KNOTS, unit: str = UNIT
) -> pd.DataFrame:
    """How well one curve over each axis describes all series, on subjects left out.

    Args:
        runs: what `run_ends` returned.
        axes: its columns to try, the first one as the reference.
        num_knots: of the splines, at quantiles of log2 of the axis: where runs lie, not where one that diverges has gone.
        unit: what `subject` stands for (`Results.kind.unit`), for errors.

    Returns:
        Rows axis; common, separate (residual standard deviation of the left-out subjects, in units of the score), each with
        _low and _high; unshared (the share of the spread within a subject that `common` leaves and `separate` does not),
        with its ends; ratio (residual variance of `common` over that of the reference axis, below 1 where the curves
        coincide better; geometric mean over the subjects) with its ends; p (sign flips of its logarithm), num_subjects,
        num_runs.

    Raises:
        BadInput: with fewer than 3 subjects or 2 series.
    """
    if runs["subject"].nunique() < 3 or runs["series"].nunique() < 2:
        raise BadInput(
            f"{counted(runs['subject'].nunique(), unit)} and {runs['series'].nunique()} series: "
            f"coincidence needs at least {counted(3, unit)}, of which one is left out, and 2 series"
        )
    left = {axis: left_out_variance(runs, axis, num_knots) for axis in axes}
    return pd.DataFrame([_row(axis, frame, left[axes[0]], len(runs)) for axis, frame in left.items()])


def common_curve(runs: pd.DataFrame, axis: str, num_knots: int = NUM_KNOTS, num_points: int = 200) -> pd.DataFrame:
    """The one curve of all series over an axis, fitted to all subjects, at their mean offset: rows axis, x, value."""
    runs = runs[runs[axis] > 0]
    place = np.log2(runs[axis].to_numpy(dtype=float))
    knots = _knots(place, num_knots)
    curve, offsets = linear_spline(place, knots), pd.get_dummies(runs["subject"]).to_numpy(dtype=float)
    found = np.linalg.lstsq(np.hstack([curve, offsets]), runs["value"].to_numpy(dtype=float), rcond=1e-9)[0]
    shown = np.linspace(place.min(), place.max(), num_points)
    value = linear_spline(shown, knots) @ found[: curve.shape[1]] + found[curve.shape[1] :].mean()
    return pd.DataFrame({"axis": axis, "x": np.exp2(shown), "value": value})


class ScoreVsDistance(NamedTuple):
    """What the figure of that name draws; every frame but `curves` has a column metric."""

    curves: Robustness
    runs: pd.DataFrame
    common: pd.DataFrame
    coincidences: pd.DataFrame


def score_vs_distance(results: Results, metrics: Sequence[str] | None = None) -> ScoreVsDistance:
    """Scores over the multiplier and over the distance, with one curve common to all series over each.

    Args:
        results: the runs.
        metrics: the scores; None: the task's two main ones (`analysis.metrics.main_scores`).

    Raises:
        BadInput: as `run_ends`, `coincidence` and `analysis.robustness`.
    """
    runs = {metric: run_ends(results, metric) for metric in metrics or main_scores(results.kind)}
    curves = {
        metric: pd.concat([common_curve(frame, axis) for axis in AXES], ignore_index=True)
        for metric, frame in runs.items()
    }
    found = {metric: coincidence(frame, unit=results.kind.unit) for metric, frame in runs.items()}
    return ScoreVsDistance(robustness(results), *(_stack(frames) for frames in (runs, curves, found)))


def _stack(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([frame.assign(metric=metric) for metric, frame in frames.items()], ignore_index=True)


def left_out_variance(runs: pd.DataFrame, axis: str, num_knots: int = NUM_KNOTS) -> pd.DataFrame:
    """For each subject left out: the variance of its runs (`total`) around its mean, around the common and the separate curves.

    Runs at a distance of zero, which has no logarithm, are left out.
    """
    runs = runs[runs[axis] > 0]
    place = np.log2(runs[axis].to_numpy(dtype=float))
    y = (runs["value"] - runs.groupby("subject")["value"].transform("mean")).to_numpy(dtype=float)
    common = linear_spline(place, _knots(place, num_knots))
    one = pd.get_dummies(runs["series"]).to_numpy(dtype=float)
    separate = (one[:, :, None] * np.concatenate([np.ones((len(y), 1)), common], axis=1)[:, None]).reshape(len(y), -1)
    offsets = pd.get_dummies(runs["subject"]).to_numpy(dtype=float)
    rows = {}
    for number, subject in enumerate(pd.get_dummies(runs["subject"]).columns):
        out = offsets[:, number] > 0
        fits = [_predict(design, offsets, y, out) for design in (common, separate)]
        rows[subject] = [float(np.var(y[out] - fit)) for fit in (0.0, *fits)]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["total", "common", "separate"])


def _predict(design: Floats, offsets: Floats, y: Floats, out: np.ndarray) -> Floats:
    """The curve at the runs left out, up to their subject's own offset, fitted to the other subjects' runs with theirs."""
    full = np.hstack([design, offsets])
    coefficients = np.linalg.lstsq(full[~out], y[~out], rcond=1e-9)[0]
    result: Floats = design[out] @ coefficients[: design.shape[1]]
    return result


def _knots(place: Floats, num_knots: int) -> Floats:
    """Quantiles of where runs lie, each once."""
    found: Floats = np.unique(np.quantile(place, np.linspace(0, 1, num_knots)))
    return found


def linear_spline(x: Floats, knots: Floats) -> Floats:
    """The basis `[point, max(1, knots - 1)]` of what is linear between knots, without the constant."""
    hats = [np.interp(x, knots, one) for one in np.eye(len(knots))]
    result: Floats = np.column_stack(hats[1:] or [np.zeros(len(x))])
    return result


def _row(axis: str, left: pd.DataFrame, reference: pd.DataFrame, num_runs: int) -> dict[str, Any]:
    logs = np.log(left["common"] / reference["common"].reindex(left.index))
    unshared = (left["common"] - left["separate"]) / left["total"].where(left["total"] > 0)  # a subject may score alike
    itself = left is reference
    parts = {
        "common": _root(t_interval(left["common"])),
        "separate": _root(t_interval(left["separate"])),
        "unshared": t_interval(unshared.dropna()),
        "ratio": Interval(1.0, np.nan, np.nan, len(left)) if itself else log_interval(np.exp(logs)),
    }
    row: dict[str, Any] = {"axis": axis}
    for name, part in parts.items():
        row |= {name: part.mean, f"{name}_low": part.low, f"{name}_high": part.high}
    return row | {"p": np.nan if itself else sign_flip(logs).p, "num_subjects": len(left), "num_runs": num_runs}


def _root(variance: Interval) -> Interval:
    mean, low, high = (float(np.sqrt(max(value, 0.0))) for value in variance[:3])
    return Interval(mean, low, high, variance.num_subjects)
