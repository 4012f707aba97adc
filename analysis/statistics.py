"""Intervals whose unit is the subject: callers average seeds within a subject first.

Taking (subject, seed) pairs or pictures as if they were independent is pseudo-replication (Hurlbert 1984): the interval
is then too narrow by what the seeds of one subject share, which `tests/test_statistics.py` shows by simulation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.intp]


class Interval(NamedTuple):
    """A mean, the ends of its interval (NaN where there is one subject only), and the number of subjects."""

    mean: float
    low: float
    high: float
    num_subjects: int

    def within(self, low: float, high: float) -> Interval:
        """The same interval without what lies beyond the range of what is measured; that takes nothing from its coverage."""
        return self._replace(low=float(np.clip(self.low, low, high)), high=float(np.clip(self.high, low, high)))


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of the mean, mean ± t sd / sqrt(n).

    Args:
        values: one number a subject; NaN counts as missing.
        level: the coverage that is asked for.

    Returns:
        The interval; without subjects all NaN, with one its value and no interval.
    """
    values = _finite(values)
    mean = float(values.mean()) if len(values) else np.nan
    if len(values) < 2:
        return Interval(mean, np.nan, np.nan, len(values))
    half = t_quantile(len(values) - 1, level) * float(values.std(ddof=1)) / np.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def log_interval(values: ArrayLike, level: float = 0.95, floor: float = 1e-12) -> Interval:
    """The t interval of the logarithms, taken back: the geometric mean of positive numbers (those below `floor` count as it)."""
    result = t_interval(np.log(np.maximum(_finite(values), floor)), level)
    mean, low, high = (float(np.exp(value)) for value in result[:3])
    return Interval(mean, low, high, result.num_subjects)


def interquartile_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """The mean of the middle half of the subjects (Agarwal et al. 2021, arXiv 2108.13264), which no single subject can move far.

    Where n is no multiple of 4 the subjects at the ends of the half count in part. The interval is
    the expanded percentile one of `subject_bootstrap`.
    """
    values = _finite(values)
    if not len(values):
        return Interval(np.nan, np.nan, np.nan, 0)
    low, high = subject_bootstrap(lambda draws: _middle(values[draws])[:, None], len(values), level)
    return Interval(float(_middle(values[None])[0]), float(low[0]), float(high[0]), len(values))


def _middle(values: Floats) -> Floats:
    """The interquartile mean of every row."""
    n = values.shape[-1]
    ends = np.arange(n + 1) / n
    weight = np.minimum(ends[1:], 0.75) - np.maximum(ends[:-1], 0.25)
    result: Floats = 2 * np.sort(values, axis=-1) @ weight.clip(min=0.0)
    return result


def rate_interval(count: int, num: int, level: float = 0.95) -> Interval:
    """A share `count` of `num` with Wilson's interval (Wilson 1927, JASA 22, 209), which is right at 0 and at `num` as well."""
    if not num:
        return Interval(np.nan, np.nan, np.nan, 0)
    from scipy.stats import binomtest

    found = binomtest(count, num).proportion_ci(level, method="wilson")
    return Interval(count / num, float(found.low), float(found.high), num)


def paired_difference(a: pd.Series, b: pd.Series, level: float = 0.95) -> Interval:
    """The interval of the mean of `a - b` over the subjects that both have.

    Args:
        a, b: one number a subject, indexed by subject.
        level: the coverage that is asked for.
    """
    a, b = a.align(b, join="inner")
    return t_interval((a - b).to_numpy(dtype=float), level)


def studentised_bootstrap(values: ArrayLike, level: float = 0.95, num_draws: int = 4000, seed: int = 0) -> Interval:
    """The bootstrap-t interval of the mean (Efron and Tibshirani 1993, 12.5): subjects are drawn with replacement.

    Draws in which every subject is the same have no standard error and are left out. With fewer than 4 subjects there
    are too few distinct draws: the mean comes without an interval.
    """
    values = _finite(values)
    n = len(values)
    if n < 4 or np.ptp(values) == 0:
        return t_interval(values, level) if n >= 4 else Interval(t_interval(values).mean, np.nan, np.nan, n)
    draws = values[np.random.default_rng(seed).integers(n, size=(num_draws, n))]
    spread = draws.std(axis=1, ddof=1)
    alive = spread > 1e-12 * np.ptp(values)
    t = (draws.mean(axis=1)[alive] - values.mean()) / (spread[alive] / np.sqrt(n))
    low, high = np.quantile(t, [(1 - level) / 2, (1 + level) / 2])
    error = values.std(ddof=1) / np.sqrt(n)
    return Interval(float(values.mean()), float(values.mean() - high * error), float(values.mean() - low * error), n)


def subject_bootstrap(
    statistic: Callable[[Ints], Floats], num_subjects: int, level: float = 0.95, num_draws: int = 1000, seed: int = 0
) -> tuple[Floats, Floats]:
    """Expanded percentile intervals (Hesterberg 2015, doi 10.1080/00031305.2015.1089789) over drawn subjects.

    The plain percentile interval of n subjects is too narrow by t_{n-1} / z and sqrt(n / (n - 1)); the quantiles are moved
    out by that much.

    Args:
        statistic: from the positions of the drawn subjects `[draw, subject]` to numbers `[draw, number]`; NaN where a draw
            has no such number.
        num_subjects: how many subjects there are; with fewer than 2 all ends are NaN.
        level: the coverage that is asked for.
        num_draws: how many times subjects are drawn.
        seed: of the draws.

    Returns:
        The low and the high ends, one for each number of the statistic.
    """
    if num_subjects < 2:
        blank = np.full(statistic(np.zeros((1, num_subjects), dtype=np.intp)).shape[1], np.nan)
        return blank, blank
    values = statistic(np.random.default_rng(seed).integers(num_subjects, size=(num_draws, num_subjects)))
    tail = expanded_tail(num_subjects, level)
    ends = [np.quantile(v[~np.isnan(v)], [tail, 1 - tail]) if not np.isnan(v).all() else [np.nan] * 2 for v in values.T]
    low, high = np.transpose(ends)
    return low, high


def count_draws(draws: Ints, num: int) -> Floats:
    """How often each of `num` subjects was drawn `[draw, subject]`, from their positions `[draw, place]`."""
    places = (draws + num * np.arange(len(draws))[:, None]).ravel()
    return np.bincount(places, minlength=num * len(draws)).reshape(len(draws), num).astype(float)


def expanded_tail(num_subjects: int, level: float = 0.95) -> float:
    """The tail of the expanded percentile interval, Phi(-sqrt(n / (n - 1)) t_{n-1})."""
    from scipy.special import ndtr

    return float(ndtr(-np.sqrt(num_subjects / (num_subjects - 1)) * t_quantile(num_subjects - 1, level)))


def t_quantile(degrees: int, level: float = 0.95) -> float:
    """The two-sided quantile of Student's t distribution: 2.776 for 4 degrees of freedom at 0.95."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + level) / 2))


def _finite(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=float).ravel()
    return array[~np.isnan(array)]
