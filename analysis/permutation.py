"""Sign-flip tests of paired differences, and Holm's correction for the comparisons of one table."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from analysis.statistics import Floats

MOST_EXACT = 14  # subjects; 2^14 = 16,384 sign patterns
NUM_DRAWS = 20_000


class SignFlip(NamedTuple):
    """The result of a sign-flip test.

    Attributes:
        p: two-sided; NaN without subjects.
        smallest_p: the smallest p that this many subjects (and draws) can give, whatever their differences are.
        num_subjects: the number of differences.
        num_draws: how many sign patterns were tried.
        exact: whether those are all there are.
    """

    p: float
    smallest_p: float
    num_subjects: int
    num_draws: int
    exact: bool


def sign_flip(differences: ArrayLike, num_draws: int = NUM_DRAWS, seed: int = 0) -> SignFlip:
    """Test whether paired differences are symmetric about zero (Fisher 1935, The Design of Experiments, section 21).

    Where two methods do not differ, each subject's difference might as well have had the other sign; p is the share of the
    2^n patterns of signs whose mean is at least as far from zero as the one seen. The most extreme pattern and its mirror
    image are always among them, so p is at least 2 / 2^n: 1/32 for 6 subjects. Beyond `MOST_EXACT` subjects patterns are
    drawn at random, and the one seen is counted among them (Phipson and Smyth 2010, doi 10.2202/1544-6115.1585).

    Args:
        differences: one number a subject; NaN counts as missing.
        num_draws: patterns to draw where not all are tried.
        seed: of those.
    """
    values = np.asarray(differences, dtype=float).ravel()
    values = values[~np.isnan(values)]
    n = len(values)
    if not n:
        return SignFlip(np.nan, np.nan, 0, 0, True)
    if n <= MOST_EXACT:
        share = float(_as_extreme(_all_signs(n), values).mean())
        return SignFlip(share, 2.0 ** (1 - n), n, 2**n, True)
    count = int(_as_extreme(_drawn_signs(n, num_draws, seed), values).sum())
    return SignFlip((count + 1) / (num_draws + 1), max(1 / (num_draws + 1), 2.0 ** (1 - n)), n, num_draws, False)


@cache
def _all_signs(n: int) -> Floats:
    """Every pattern of n signs `[2^n, n]`."""
    bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    return np.where(bits, -1.0, 1.0)


@lru_cache(8)
def _drawn_signs(n: int, num_draws: int, seed: int) -> Floats:
    """Patterns of n signs drawn at random `[num_draws, n]`."""
    return np.where(np.random.default_rng(seed).integers(2, size=(num_draws, n)), -1.0, 1.0)


def _as_extreme(signs: Floats, values: Floats) -> np.ndarray:
    """Whether each pattern's sum is as far from zero as the one seen; sums that agree to rounding are equal."""
    margin = 1e-12 * np.abs(values).sum()
    result: np.ndarray = np.abs(signs @ values) >= abs(values.sum()) - margin
    return result


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjusted p values (Holm 1979, Scand. J. Statist. 6, 65-70); NaN is no comparison and stays.

    The i-th smallest of m is multiplied by m - i + 1, then made at least as large as those before it and at most 1: the
    chance of any false finding among the m is at most the level at which the adjusted values are read.
    """
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    there = np.flatnonzero(~np.isnan(p))
    order = there[np.argsort(p[there], kind="stable")]
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted
