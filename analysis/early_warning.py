"""Which gauge in the first steps predicts the loss of score at the end?

A rate that is too high shows early: weights run away, lambda climbs, directions turn. For every subject the runs beyond the
best rate are ranked by a gauge read early and by the score that they have lost at the end; Spearman's correlation of the two
is one number a subject. Runs below the best rate lose score as well, because they have not learned yet; they are no collapse
and are left out. The rate itself, known before any step, is the gauge to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from adapters.errors import BadInput
from analysis.curves import run_scores
from analysis.metrics import sign_of
from analysis.results import Results
from analysis.statistics import t_interval

SHARE = 0.1  # of the steps
FEWEST_RUNS = 4  # of a subject, for a rank correlation that says something
KNOWN_BEFORE = ("multiplier", "lr")
ALL = "all series"
COLUMNS = [
    "series", "gauge", "rho", "low", "high", "over_rate", "over_rate_low", "over_rate_high", "num_subjects", "num_runs",
]  # fmt: skip
CHOSEN = "chosen on the others"


def early_gauges(results: Results, share: float = SHARE, matrix: str = "mean") -> pd.DataFrame:
    """Every gauge as it stands after the first `share` of the steps, and how fast the distance grows there.

    Args:
        results: the runs; a compact copy is enough.
        share: of the planned steps.
        matrix: whose gauges, or "mean" for their means over the matrices.

    Returns:
        One row a run, indexed by run_id: the gauges of its last recorded step not beyond that share, `growth` (log2 of
        distance_rel there over distance_rel at half of that step: 1 for a straight path, 1/2 for a random walk), multiplier, lr.

    Raises:
        BadInput: if the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise BadInput(f"share {share} of the steps: allowed are numbers between 0 and 1")
    runs = results.runs.set_index("run_id")
    frame = results.trajectories(matrix).astype({"run_id": object})
    end = share * frame["run_id"].map(runs["steps"]).astype(float)
    last, half = (_last(frame[(frame["step"] <= limit) & (frame["step"] > 0)]) for limit in (end, end / 2))
    gauges = last.drop(columns=["step", "distance"])
    ratio = (last["distance_rel"] / half["distance_rel"]).where(lambda value: value > 0)
    gauges["growth"] = np.log2(ratio.astype(float))
    return gauges.join(runs[list(KNOWN_BEFORE)].astype(float)).astype(float)


def _last(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values("step", kind="stable").groupby("run_id").last()


def lost_scores(results: Results, metric: str | None = None) -> pd.DataFrame:
    """How much score each run beyond its series' best rate has lost at the end; `metric` None is the task's headline.

    Returns:
        Rows run_id, series, subject, lost: the subject's score at the multiplier that is best for the *other* subjects of the
        series, minus the run's own, seed by seed. Only runs at that multiplier and above.

    Raises:
        BadInput: if there is no such metric.
    """
    scores, metric = run_scores(results), metric or results.kind.headline.name
    if metric not in set(scores["metric"]):
        raise BadInput(f"no scores of metric {metric!r}; allowed: {', '.join(map(str, scores['metric'].unique()))}")
    parts = []
    scores = scores[scores["metric"] == metric]
    scores = scores.assign(value=sign_of(metric) * scores["value"])
    for _, group in scores.groupby("series", sort=False, observed=True):
        for subject, own in group.groupby("subject", observed=True):
            others = group[(group["subject"] != subject)]
            rest = others[~others["multiplier"].isin(others.loc[others["diverged"], "multiplier"])]
            if rest.empty:
                continue
            best = rest.groupby("multiplier")["value"].mean().idxmax()
            top = own[own["multiplier"] == best].set_index("seed")["value"]
            beyond = own[own["multiplier"] >= best]
            parts.append(beyond.assign(lost=beyond["seed"].map(top) - beyond["value"]))
    columns = ["run_id", "series", "subject", "lost"]
    return pd.concat(parts)[columns].dropna().reset_index(drop=True) if parts else pd.DataFrame(columns=columns)


def early_warning(
    results: Results,
    *,
    metric: str | None = None,
    share: float = SHARE,
    matrix: str = "mean",
    series: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Rank correlation of every early gauge with the score lost at the end, by subject.

    Args:
        results: the runs.
        metric: the score; None: the task's headline.
        share: of the steps that are looked at.
        matrix: whose gauges.
        series: those to look at; None for each of them and for all together, there with the gauges that all have.

    Returns:
        Rows series, gauge, rho (mean over subjects of Spearman's correlation), low, high (t interval over subjects), over_rate
        (by how much |rho| exceeds the multiplier's, paired by subject) with its ends, num_subjects, num_runs. For each series
        the gauges in falling order of |rho|, then `CHOSEN`: the gauge, and its sign, that correlates most on the other
        subjects, judged on the one left out. The multiplier and lr stand for knowing the rate alone. Series whose subjects
        have fewer than `FEWEST_RUNS` runs beyond the best rate have no row.

    Raises:
        BadInput: if the metric is unknown or the share is not between 0 and 1.
    """
    gauges = early_gauges(results, share, matrix)
    lost = lost_scores(results, metric).join(gauges, on="run_id", how="inner")
    names = [str(name) for name in lost["series"].unique()] if series is None else list(series)
    groups = {name: lost[lost["series"] == name] for name in names}
    if series is None and len(names) > 1:
        groups[ALL] = lost
    rows = [row for name, group in groups.items() for row in _rows(name, group, list(gauges.columns))]
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(series: str, group: pd.DataFrame, gauges: list[str]) -> list[dict[str, Any]]:
    there = [name for name in gauges if group[name].notna().all() and group[name].nunique() > 1]
    rho = subject_correlations(group, there)
    if rho.empty:
        return []
    order = rho.mean().abs().sort_values(ascending=False, kind="stable").index
    chosen = left_out_choice(rho.drop(columns=list(KNOWN_BEFORE), errors="ignore"))
    judged = {**{str(name): rho[name] for name in order}, CHOSEN: chosen}
    rate = _upright(rho["multiplier"]) if "multiplier" in rho else rho.mean(axis=1) * np.nan
    return [_row(series, name, values, rate, len(group)) for name, values in judged.items()]


def _row(series: str, gauge: str, values: pd.Series, rate: pd.Series, num_runs: int) -> dict[str, Any]:
    """One gauge's correlation, and by how much it is stronger than the rate's."""
    mean, low, high, n = t_interval(values)
    over = t_interval((values if gauge == CHOSEN else _upright(values)) - rate)
    known = gauge == "multiplier"  # against itself
    ends = {"over_rate": over.mean, "over_rate_low": over.low, "over_rate_high": over.high}
    return {
        "series": series, "gauge": gauge, "rho": mean, "low": max(low, -1.0), "high": min(high, 1.0),
        **(dict.fromkeys(ends, np.nan) if known else ends), "num_subjects": n, "num_runs": num_runs,
    }  # fmt: skip


def _upright(rho: pd.Series) -> pd.Series:
    """Correlations with the sign turned so that their mean is positive."""
    return rho * (np.sign(rho.mean()) or 1.0)


def subject_correlations(group: pd.DataFrame, gauges: Sequence[str]) -> pd.DataFrame:
    """Spearman's correlation of every gauge with `lost`, one row a subject with runs enough; NaN where all ranks are tied."""
    rows = {}
    for subject, own in group.groupby("subject", observed=True):
        ranks = own[["lost", *gauges]].rank()
        if len(own) >= FEWEST_RUNS and ranks["lost"].nunique() > 1:
            with np.errstate(invalid="ignore", divide="ignore"):
                rows[subject] = ranks[list(gauges)].corrwith(ranks["lost"])
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(gauges))


def left_out_choice(rho: pd.DataFrame) -> pd.Series:
    """For every subject its correlation with the gauge that has the largest |mean| on the others, signed as it is there."""
    result = {}
    for subject in rho.index:
        mean = rho.drop(index=subject).mean()
        if mean.notna().any():
            best = mean.abs().idxmax()
            result[subject] = np.sign(mean[best]) * rho.loc[subject, best]
    return pd.Series(result, dtype=float)
