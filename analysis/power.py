"""The smallest difference that a table with so many subjects can show."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from analysis.statistics import t_quantile


class Power(NamedTuple):
    """The smallest mean difference that is found with the wanted power.

    Attributes:
        difference: in units of the score; NaN with fewer than 2 subjects.
        low, high: the same at the ends of the 95 % interval of the spread that it rests on.
        spread: standard deviation of the paired differences.
        num_subjects: how many subjects it is for.
    """

    difference: float
    low: float
    high: float
    spread: float
    num_subjects: int


def detectable_difference(
    differences: ArrayLike, num_subjects: int | None = None, power: float = 0.8, level: float = 0.95
) -> Power:
    """The mean paired difference at which a two-sided t test rejects with probability `power`.

    Args:
        differences: one measured difference a subject, whose spread is taken; NaN counts as missing.
        num_subjects: for how many subjects; None for as many as were measured.
        power: the wanted chance of finding it.
        level: 1 minus the test's level. For m comparisons under Holm's correction the worst case is 1 - (1 - level) / m.
    """
    from scipy.stats import chi2

    values = np.asarray(differences, dtype=float).ravel()
    values = values[~np.isnan(values)]
    n, degrees = num_subjects or len(values), len(values) - 1
    if n < 2 or degrees < 1:
        return Power(np.nan, np.nan, np.nan, np.nan, n)
    spread, effect = float(values.std(ddof=1)), effect_size(n, power, level)
    low, high = (float(np.sqrt(degrees / chi2.ppf(tail, degrees))) for tail in (0.975, 0.025))
    return Power(effect * spread, effect * spread * low, effect * spread * high, spread, n)


@cache
def effect_size(num_subjects: int, power: float = 0.8, level: float = 0.95) -> float:
    """The mean in units of the standard deviation that a two-sided one-sample t test of that power finds.

    With noncentrality delta = sqrt(n) d, power is the mean of Phi(delta - t s) + Phi(-delta - t s) over s^2 = chi^2 / (n - 1)
    (Cohen 1988, chapter 2), taken at 4000 evenly spaced quantiles: scipy's noncentral t fails at a large delta.
    """
    from scipy.optimize import brentq
    from scipy.special import chdtri, ndtr

    degrees, root = num_subjects - 1, np.sqrt(num_subjects)
    edge = t_quantile(degrees, level) * np.sqrt(chdtri(degrees, (np.arange(4000) + 0.5) / 4000) / degrees)

    def shortfall(d: float) -> float:
        return float((ndtr(root * d - edge) + ndtr(-root * d - edge)).mean()) - power

    return float(brentq(shortfall, 0.0, 4 * t_quantile(degrees, level)))
