"""Intervals of a curve's peak and of its plateau's edges, allowing for the choice of the best multiplier.

The highest of several noisy means lies above the highest true mean. A plateau measured from it is too narrow, and a
bootstrap, which draws the same noise once more, is worse: on a flat plateau of 3.25 octaves its 95 % interval of the width
covered less than half of the time (`tests/test_simulate.py`). Here a value is in the interval if no test of it rejects:

- Too far out: octave o cannot be on the plateau if its score is significantly below the level of *any* grid point k. Each
  k is a legitimate competitor, so these are many tests, held together by Dunnett's (1955, JASA 50, 1096) critical value.
- Too far in: o is surely on the plateau only if its score is significantly above the level of *every* k that may be the
  best, which needs no correction (intersection-union test, Berger 1982, Technometrics 24, 295).

The same two kinds of test bound the peak (multiple comparisons with the best, Hsu 1984, Ann. Statist. 12, 1136). Each has
a tail of 5 %; they cannot both be at their worst, and by simulation the intervals cover 93 % and more.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from analysis.statistics import Bools, Floats, t_quantile

TAIL = 0.05
STEP = 1 / 32  # octaves between the places that are tested


class Edges(NamedTuple):
    """Ends of the intervals of a plateau's width (octaves) and edges (log2 of the multiplier); NaN where there are none."""

    width_low: float
    width_high: float
    low_edge_low: float
    low_edge_high: float
    high_edge_low: float
    high_edge_high: float


@cache
def dunnett_quantile(num: int, degrees: int, tail: float = TAIL) -> float:
    """The c that the largest of `num` Student t's, correlated by 1/2, exceeds with probability `tail` (Dunnett 1955).

    2.03 for 2 and 2.51 for 7 comparisons with 20 degrees of freedom at 5 %.
    """
    from scipy.optimize import brentq
    from scipy.special import chdtri, ndtr

    z, weight = np.polynomial.hermite_e.hermegauss(60)
    scale = np.sqrt(chdtri(degrees, (np.arange(400) + 0.5) / 400) / degrees)

    def excess(c: float) -> float:
        below = ndtr((c * scale + z[:, None] * np.sqrt(0.5)) / np.sqrt(0.5)) ** num
        return float(tail - 1 + (weight / weight.sum()) @ below.mean(axis=1))

    return float(brentq(excess, -10, 1e6))


def max_interval(contrasts: Floats, tail: float = TAIL) -> tuple[float, float]:
    """The interval of the largest of several means.

    Args:
        contrasts: `[subject, point]`, NaN where a subject has no such point.
        tail: of each of the two tests.

    Returns:
        Its ends; NaN with fewer than 2 subjects.
    """
    mean, error, degrees = _mean_and_error(contrasts)
    if degrees < 1 or np.isnan(mean).all():
        return np.nan, np.nan
    far = dunnett_quantile(int((~np.isnan(mean)).sum()), degrees, tail)
    low, high = np.nanmax(mean - far * error), np.nanmax(mean + t_quantile(degrees, 1 - 2 * tail) * error)
    return float(low), float(high)


def edge_intervals(
    octaves: Floats, scores: Floats, base: Floats, alive: Bools, tolerance: float, kept: Floats | None = None
) -> Edges:
    """Intervals of the width and the edges of the plateau around the best point.

    Args:
        octaves: log2 of the grid, increasing.
        scores: `[subject, point]`.
        base: the base model's score of each subject.
        alive: the points at which no run diverged; the plateau ends at the last one before those that are not.
        tolerance: the share of the gain that may be lost on the plateau.
        kept: `[subject, point]`, a second condition of the plateau: its mean must not be below zero. None for no such.
    """
    if len(base) < 2 or not alive.any():
        return Edges(*[np.nan] * 6)
    allowed = alive if kept is None else alive & (_mean_and_error(kept)[0] >= 0)
    means = _mean_and_error(scores)[0]
    best = int(np.where(allowed if allowed.any() else alive, means, -np.inf).argmax())
    first, last = _run(alive, best)
    octaves, scores = octaves[first : last + 1], scores[:, first : last + 1]
    kept = None if kept is None else kept[:, first : last + 1]
    num = round((octaves[-1] - octaves[0]) / STEP)
    places = np.linspace(octaves[0], octaves[-1], num + 1)
    possible, certain = _on_plateau(_interpolation(places, octaves), scores, base, tolerance, kept)
    return _ends(places, possible, certain, int(np.abs(places - octaves[best - first]).argmin()))


def _on_plateau(
    weights: Floats, scores: Floats, base: Floats, tolerance: float, kept: Floats | None
) -> tuple[Bools, Bools]:
    """Which places may be on the plateau, and which surely are: `weights` `[place, point]` interpolate the curve there."""
    level = (1 - tolerance) * scores + tolerance * base[:, None]
    t, degrees = _t((scores @ weights.T)[:, :, None] - level[:, None, :])
    near = t_quantile(degrees, 1 - 2 * TAIL) if degrees else np.inf
    far = dunnett_quantile(scores.shape[1], degrees, TAIL) if degrees else np.inf
    below, above = t < -far, t > near
    possible, certain = np.ones(len(t), dtype=bool), np.ones(len(t), dtype=bool)
    if kept is not None:
        point, place = _t(kept)[0], _t(kept @ weights.T)[0]
        below, above = below[:, point > near], above[:, point >= -near]
        possible, certain = place >= -near, place > near
    return possible & ~below.any(axis=1), certain & above.all(axis=1)


def _ends(places: Floats, possible: Bools, certain: Bools, best: int) -> Edges:
    """The ends of the possible places, one step further out, and of the run of certain ones around the best."""
    if not possible.any():
        return Edges(0.0, 0.0, *[np.nan] * 4)
    first, last = np.flatnonzero(possible)[[0, -1]]
    low, high = places[max(first - 1, 0)], places[min(last + 1, len(places) - 1)]
    if not certain[best]:
        return Edges(0.0, float(high - low), float(low), float(high), float(low), float(high))
    start, end = places[list(_run(certain, best))]
    return Edges(*map(float, (end - start, high - low, low, start, end, high)))


def _run(flags: Bools, position: int) -> tuple[int, int]:
    """First and last position of the run of true flags around one of them."""
    off = np.flatnonzero(~flags)
    before, after = off[off < position], off[off > position]
    return int(before[-1]) + 1 if len(before) else 0, int(after[0]) - 1 if len(after) else len(flags) - 1


def _interpolation(places: Floats, octaves: Floats) -> Floats:
    """The matrix `[place, point]` that interpolates a curve linearly."""
    return np.stack([np.interp(places, octaves, unit) for unit in np.eye(len(octaves))], axis=1)


def _t(contrasts: Floats) -> tuple[Floats, int]:
    """Student's t of every contrast `[subject, ...]`, and the degrees of freedom; NaN counts as neither."""
    mean, error, degrees = _mean_and_error(contrasts)
    return np.nan_to_num(mean / error), degrees


def _mean_and_error(values: Floats) -> tuple[Floats, Floats, int]:
    """Mean and standard error over the subjects `[subject, ...]` that have a value, and the fewest degrees of freedom."""
    count = (~np.isnan(values)).sum(axis=0)
    mean = np.nansum(values, axis=0) / np.where(count, count, np.nan)
    variance = np.nansum((values - mean) ** 2, axis=0) / np.where(count > 1, count - 1, np.nan)
    error = np.maximum(np.sqrt(variance / np.where(count, count, np.nan)), 1e-9)  # for runs without any spread
    return mean, error, int(count[count > 0].min(initial=len(values))) - 1
