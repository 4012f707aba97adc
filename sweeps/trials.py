"""Where a search for base rates tries next: beyond an edge that the best lies at, else closer around the best.

A trial is a rate and, for methods with a boundary, a start of lambda. Every method gets as many trials in every round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import pandas as pd

PER_ROUND = 4  # trials of every method after the first round
DIGITS = 3  # of a rate
OCTAVES = (1.0, 0.5, 0.25, 0.125, *(k / 16 for k in (12, 6, 2, 3, 5, 7, 9, 10, 11, 13, 14, 15, 1)))
"""How far neighbours of the best lie: closer and closer, then what is left of the octave, enough for any number of rounds."""


class Trial(NamedTuple):
    """One setting of a method.

    Attributes:
        lr: rate of the factors, and of lambda where that trains.
        boundary: lambda's start; None for methods without one.
    """

    lr: float
    boundary: float | None = None


def find_trial(row: pd.Series) -> Trial:
    """The trial of a row of `analysis.tried_settings`."""
    return Trial(float(row["lr"]), None if pd.isna(row["boundary"]) else float(row["boundary"]))


def find_edges(tried: Sequence[Trial], best: Trial) -> list[str]:
    """The axes, "lr" and "boundary", at whose end the best lies: there may be a better trial beyond."""
    return [
        axis
        for axis, values in _axes(tried).items()
        if len(values) > 1 and getattr(best, axis) in (values[0], values[-1])
    ]


def next_trials(tried: Sequence[Trial], best: Trial, count: int = PER_ROUND) -> list[Trial]:
    """The next trials of one method, none of them tried before.

    At an edge of lambda's starts a start beyond it, with the rates nearest the best one; at an edge of the rates rates beyond it,
    with the starts nearest the best one; elsewhere the neighbours of the best, an octave away, then half an octave, then less.

    Args:
        tried: all trials so far.
        best: one of them.
        count: how many are wanted.
    """
    axes, wanted = _axes(tried), _around(best)
    rates, starts = axes["lr"], axes.get("boundary", [best.boundary])
    if "boundary" in axes and (beyond := _beyond(axes["boundary"], best.boundary)):
        wanted = (Trial(lr, start) for start in beyond for lr in _nearest(rates, best.lr, count))
    elif beyond := _beyond(rates, best.lr):
        wanted = (Trial(lr, start) for lr in beyond for start in _nearest(starts, best.boundary, count))
    found: list[Trial] = []
    for trial in wanted:
        if trial not in tried and trial not in found:
            found.append(trial)
        if len(found) == count:
            break
    return found


def _axes(tried: Sequence[Trial]) -> dict[str, list[float]]:
    """Values of each axis that has more than one, sorted; the rates always."""
    rates = sorted({trial.lr for trial in tried})
    starts = sorted({trial.boundary for trial in tried if trial.boundary is not None})
    return {"lr": rates} | ({"boundary": starts} if len(starts) > 1 else {})


def _beyond(values: Sequence[float], best: float | None) -> list[float]:
    """Values beyond the end that the best lies at, each a grid's step further; none where it lies at no end."""
    if best is None or best not in (values[0], values[-1]):
        return []
    low = best == values[0]
    step = (values[1] / values[0] if low else values[-1] / values[-2]) if len(values) > 1 else 4.0
    return [_rounded(best * step ** (-i if low else i)) for i in range(1, 2 * PER_ROUND)]


def _nearest(values: Iterable[float | None], best: float | None, count: int) -> list:
    """The values nearest to the best one by ratio, the nearest first."""
    return sorted(values, key=lambda value: 0.0 if not value or not best else max(value / best, best / value))[:count]


def _around(best: Trial) -> Iterator[Trial]:
    """Neighbours of a trial in the rate and, where it has one, in lambda's start; closer and closer."""
    start = best.boundary
    for octaves in OCTAVES:
        down, up = 2**-octaves, 2**octaves
        yield from (best._replace(lr=_rounded(best.lr * by)) for by in (down, up))
        if start is not None:
            yield from (best._replace(boundary=_rounded(start * by)) for by in (down, up))
            yield from (Trial(_rounded(best.lr * a), _rounded(start * b)) for a, b in product((down, up), repeat=2))


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
