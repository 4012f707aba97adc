"""Is the best learning rate lower where the loss is sharper at the start? The claim of arXiv 2602.04998, over methods.

Sharpness is the largest eigenvalue of the loss's Hessian in the adapter's own parameters (`--sharpness-steps 1`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.curves import in_order, run_scores
from analysis.metrics import sign_of
from analysis.results import Results
from analysis.statistics import log_interval, t_interval

FEWEST_SERIES = 3  # of a subject, for a rank correlation
KEYS = ["series", "method", "subject"]


class SharpnessVsRate(NamedTuple):
    """What was found.

    Attributes:
        points: rows series, method, subject, sharpness, best_lr, at_edge (whether the best is an end of the rates tried).
        means: rows series, method, geometric means sharpness and best_lr with _low and _high (95 % t intervals of logarithms
            over subjects), num_at_edge, num_subjects.
        correlation: one row: rho, low, high (mean and t interval over subjects of Spearman's correlation over the series),
            num_series, num_subjects.
    """

    points: pd.DataFrame
    means: pd.DataFrame
    correlation: pd.DataFrame


def sharpness_vs_rate(results: Results, metric: str | None = None) -> SharpnessVsRate:
    """Sharpness at the start beside the best rate, subject by subject.

    Args:
        results: the runs; those without `--sharpness-steps` have no part in it.
        metric: the score by which a rate is best; None: the task's headline.

    Returns:
        The points, their means and the correlation; empty frames where nothing was measured.
    """
    points = sharpness_at_start(results).merge(best_rates(results, metric), on=KEYS)
    groups = points.groupby(["series", "method"], sort=False, observed=True)
    means = pd.DataFrame([_mean(str(series), str(method), group) for (series, method), group in groups])
    return SharpnessVsRate(points, in_order(means, "series") if len(means) else means, _correlation(points))


def sharpness_at_start(results: Results) -> pd.DataFrame:
    """Rows series, method, subject, sharpness: the first measured (step 1: before any update), at the lowest rate."""
    found = results.sharpness().astype({"run_id": str})
    found = found[found["sharpness"] > 0]
    first = found[found["step"] == found.groupby("run_id")["step"].transform("min")]
    table = first.merge(results.runs[["run_id", "multiplier", *KEYS]], on="run_id")
    lowest = table[table["multiplier"] == table.groupby(KEYS)["multiplier"].transform("min")]
    return lowest.groupby(KEYS, sort=False)["sharpness"].mean().astype(float).reset_index()


def best_rates(results: Results, metric: str | None = None) -> pd.DataFrame:
    """Rows series, method, subject, best_lr, at_edge: each subject's best rate among those at which none of its runs diverged."""
    metric = metric or results.kind.headline.name
    scores = run_scores(results).query("metric == @metric").merge(results.runs[["run_id", "lr"]], on="run_id")
    table = scores.groupby([*KEYS, "lr"], sort=False, observed=True).agg(
        value=("value", "mean"), lost=("diverged", "any")
    )
    table = table.reset_index()
    kept = table[~table["lost"] & table["value"].notna()]
    upright = kept.assign(value=sign_of(metric) * kept["value"])
    best = kept.loc[upright.groupby(KEYS, sort=False)["value"].idxmax()]
    ends = table.groupby(KEYS)["lr"].agg(["min", "max"]).reset_index()
    best = best.merge(ends, on=KEYS)
    at_edge = (best["lr"] == best["min"]) | (best["lr"] == best["max"])
    return best.assign(best_lr=best["lr"], at_edge=at_edge)[[*KEYS, "best_lr", "at_edge"]]


def _mean(series: str, method: str, group: pd.DataFrame) -> dict[str, object]:
    row: dict[str, object] = {"series": series, "method": method}
    for name in ("sharpness", "best_lr"):
        found = log_interval(group[name])
        row |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
    return row | {"num_at_edge": int(group["at_edge"].sum()), "num_subjects": len(group)}


def _correlation(points: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of sharpness and best rate over the series of a subject, its mean over subjects."""
    rho = []
    for _, own in points.groupby("subject", observed=True):
        ranks = own[["sharpness", "best_lr"]].rank()
        if len(own) >= FEWEST_SERIES and ranks.nunique().min() > 1:
            rho.append(ranks["sharpness"].corr(ranks["best_lr"]))
    found = t_interval(rho)
    row = {"rho": found.mean, "low": max(found.low, -1.0), "high": min(found.high, 1.0)}
    row |= {"num_series": points["series"].nunique(), "num_subjects": found.num_subjects}
    return pd.DataFrame([row] if np.isfinite(found.mean) else [], columns=list(row))
