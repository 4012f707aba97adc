"""Split the spread of scores into subject, seed and the rest.

score[i, s] = mean + subject_i + seed_s + rest[i, s]. A seed draws the start, the order of the data and the noise alike for
every subject, so the two factors are crossed; the rest holds their interaction and what chaos adds.

Estimates are Henderson's (1953, Biometrics 9, 226) method 3, which is the analysis of variance where every subject has every
seed. For a factor f, the other one's columns and the mean are projected out of the scores; in the space that f has left, with
an orthonormal basis u_k that makes f's covariance diagonal, the u_k'y are independent N(0, rest + lambda_k f). So

    sum_k (u_k'y)^2 / (rest + lambda_k f) ~ chi^2,      SS_rest / rest ~ chi^2,

exactly, balanced or not (Wald 1940, Ann. Math. Statist. 11, 96). Drawing both chi^2 and solving for f gives a generalised
interval (Weerahandi 1993, JASA 88, 899).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from adapters.errors import BadInput
from analysis.curves import in_order, run_scores
from analysis.results import Results
from analysis.statistics import Floats

NUM_DRAWS = 4000
FACTORS = ("subject", "seed")


class Split(NamedTuple):
    """Standard deviations of one factor or of the rest, with the ends of the 95 % interval; NaN where they cannot be told."""

    sd: float
    low: float
    high: float


def split_variance(scores: pd.DataFrame, num_draws: int = NUM_DRAWS, seed: int = 0) -> dict[str, Split]:
    """The standard deviations of "subject", "seed" and "rest".

    Args:
        scores: columns subject, seed, value; one row for each pair that was run, missing pairs are no harm.
        num_draws, seed: of the chi-squared numbers behind the intervals.

    Returns:
        All NaN where subjects and seeds cannot be told from the rest: fewer than 2 of either, or no more runs than terms.

    Raises:
        BadInput: if a pair comes twice.
    """
    scores = scores.dropna(subset=["value"])
    if scores.duplicated(list(FACTORS)).any():
        twice = scores.loc[scores.duplicated(list(FACTORS)), list(FACTORS)].iloc[0]
        raise BadInput(f"subject {twice['subject']!r}, seed {twice['seed']!r} comes twice: allowed is one score a pair")
    y = scores["value"].to_numpy(dtype=float)
    designs = {name: _dummies(scores[name]) for name in FACTORS}
    left = _complement(np.hstack(list(designs.values())))
    degrees = left.shape[1]
    if degrees < 1 or any(design.shape[1] < 2 for design in designs.values()):
        return dict.fromkeys((*FACTORS, "rest"), Split(np.nan, np.nan, np.nan))
    draw = np.random.default_rng(seed)
    squares = float(((left.T @ y) ** 2).sum())
    rest = squares / draw.chisquare(degrees, num_draws)
    return {
        "subject": _factor(y, designs["subject"], designs["seed"], squares / degrees, rest, draw),
        "seed": _factor(y, designs["seed"], designs["subject"], squares / degrees, rest, draw),
        "rest": _root(squares / degrees, rest),
    }


def _factor(y: Floats, own: Floats, other: Floats, rest: float, rest_draws: Floats, draw: np.random.Generator) -> Split:
    """One factor's standard deviation, from what the other factor leaves of it."""
    free = _complement(other)
    values, vectors = np.linalg.eigh(free.T @ own @ own.T @ free)
    kept = values > 1e-9 * values.max(initial=1e-300)
    if not kept.any():  # every level of it has its own level of the other factor
        return Split(np.nan, np.nan, np.nan)
    scale, squares = values[kept], (vectors[:, kept].T @ (free.T @ y)) ** 2
    estimate = (squares.sum() - kept.sum() * rest) / scale.sum()
    return _root(estimate, _solve(squares, scale, rest_draws, draw.chisquare(int(kept.sum()), len(rest_draws))))


def _solve(squares: Floats, scale: Floats, rest: Floats, wanted: Floats) -> Floats:
    """The f >= 0 with sum_k squares_k / (rest + scale_k f) = wanted, for every draw, by bisection; 0 where there is none."""
    low, high = np.zeros_like(wanted), (squares / scale).sum() / wanted
    for _ in range(60):
        middle = (low + high) / 2
        above = (squares / (rest[:, None] + scale * middle[:, None])).sum(axis=1) > wanted
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return low


def _root(estimate: float, draws: Floats) -> Split:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Split(*(float(np.sqrt(max(value, 0.0))) for value in (estimate, low, high)))


def _dummies(labels: pd.Series) -> Floats:
    """The indicator matrix `[run, level]`."""
    codes = pd.factorize(labels)[0]
    result: Floats = np.eye(codes.max(initial=-1) + 1)[codes]
    return result


def _complement(design: Floats) -> Floats:
    """An orthonormal basis `[run, dimension]` of what a design with a constant leaves free."""
    u, s, _ = np.linalg.svd(design)
    rank = int((s > 1e-9 * s.max(initial=1e-300)).sum())
    result: Floats = u[:, rank:]
    return result


def variance_table(
    results: Results, *, metric: str | None = None, multipliers: Sequence[float] | None = None, x: str = "multiplier"
) -> pd.DataFrame:
    """The split of every series at every multiplier, from the scores at the end of the runs.

    Args:
        results: the runs. A diverged one scores by the rule of `analysis.curves`.
        metric: the score; None: the task's headline.
        multipliers: those to show, None for all.
        x: another column of the runs in place of the multiplier.

    Returns:
        Rows series, method, x, subject, seed, rest (standard deviations), each with _low and _high, seed_of_mean (the standard
        deviation over seeds of a mean over that many subjects, which is what papers print), num_subjects, num_seeds, num_runs.

    Raises:
        BadInput: if there is no such metric.
    """
    table, metric = run_scores(results, x), metric or results.kind.headline.name
    if metric not in set(table["metric"]):
        raise BadInput(f"no scores of metric {metric!r}; allowed: {', '.join(map(str, table['metric'].unique()))}")
    table = table[(table["metric"] == metric) & (table[x].isin(multipliers) if multipliers is not None else True)]
    rows: list[dict[str, Any]] = []
    for key, group in table.groupby(["series", "method", x], sort=False, observed=True):
        parts = split_variance(group)
        row = dict(zip(("series", "method", x), key, strict=True))
        for name, part in parts.items():
            row |= {name: part.sd, f"{name}_low": part.low, f"{name}_high": part.high}
        num = {"num_subjects": group["subject"].nunique(), "num_seeds": group["seed"].nunique(), "num_runs": len(group)}
        spread = np.hypot(parts["seed"].sd, parts["rest"].sd / np.sqrt(num["num_subjects"]))
        rows.append(row | {"seed_of_mean": float(spread)} | num)
    return in_order(pd.DataFrame(rows), x)
