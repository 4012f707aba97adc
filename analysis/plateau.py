"""How wide the plateau is: the range of learning rates around a method's own best within a tolerance of its peak."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from adapters import BadInput
from analysis.statistics import Bools, Floats, Ints, subject_bootstrap

TOLERANCE = 0.05  # of the peak's gain over the untouched base


class Plateau(NamedTuple):
    """The plateau of one curve.

    Attributes:
        peak: the highest mean score among the multipliers without divergence.
        best_multiplier: where it is reached.
        width_octaves: log2 of high_edge / low_edge; 0 if the peak does not exceed the base. A lower bound if an edge is open.
        low_edge, high_edge: multipliers at which the curve crosses peak - tolerance (peak - base), or the grid's end.
        open_low, open_high: whether the curve was still on the plateau at that end of the grid.
        sensitivity: mean over the grid of the loss of score against the peak, clipped at the base's score (Wortsman et al. 2023,
            arXiv 2309.14322, with the sign turned and the base in place of the loss at initialisation).
    """

    peak: float
    best_multiplier: float
    width_octaves: float
    low_edge: float
    high_edge: float
    open_low: bool
    open_high: bool
    sensitivity: float


def find_plateau(
    multipliers: Floats, scores: Floats, base: float, diverged: Bools, tolerance: float = TOLERANCE
) -> Plateau:
    """The plateau of one curve, its edges interpolated between the grid's points in log2 of the multiplier.

    Args:
        multipliers: the grid, increasing.
        scores: the mean score at each point.
        base: the mean score of the untouched base.
        diverged: whether any run diverged there; such a point is never on the plateau.
        tolerance: the share of the gain (peak - base) that may be lost on the plateau.
    """
    found = find_plateaus(multipliers, scores[None], np.array([base]), diverged, tolerance)
    return Plateau(*(value[0].item() for value in found.values()))


def find_plateaus(
    multipliers: Floats, scores: Floats, base: Floats, diverged: Bools, tolerance: float = TOLERANCE
) -> dict[str, np.ndarray]:
    """`find_plateau` of many curves `[curve, point]` on one grid, each with its own base; one array a field of `Plateau`."""
    alive = ~diverged & ~np.isnan(scores)
    top = np.where(alive, scores, -np.inf).max(axis=1)
    top = np.where(np.isfinite(top), top, np.nan)
    gains = top > base
    best = np.where(alive, scores, -np.inf).argmax(axis=1)
    level = np.where(gains, top - tolerance * (top - base), top)
    octaves = np.log2(multipliers)
    low, open_low = _edges(octaves, scores, alive, best, -1, level)
    high, open_high = _edges(octaves, scores, alive, best, +1, level)
    return {
        "peak": top,
        "best_multiplier": np.where(gains, multipliers[best], np.nan),
        "width_octaves": np.where(gains, high - low, 0.0),
        "low_edge": np.where(gains, 2**low, np.nan),
        "high_edge": np.where(gains, 2**high, np.nan),
        "open_low": open_low & gains,
        "open_high": open_high & gains,
        "sensitivity": _sensitivity(scores, np.fmax(top, base), base),
    }


def _sensitivity(scores: Floats, top: Floats, base: Floats) -> Floats:
    """The mean over the points that were tried of the loss of score, which ends at the base's score."""
    tried = ~np.isnan(scores)
    lost = np.where(tried, top[:, None] - np.fmax(scores, base[:, None]), 0.0).clip(min=0.0)
    return lost.sum(axis=1) / np.maximum(tried.sum(axis=1), 1)


def _edges(octaves: Floats, scores: Floats, alive: Bools, best: Ints, side: int, level: Floats) -> tuple[Floats, Bools]:
    """Walk from every curve's best point to one side until it falls below `level`; (log2 of the edge, whether it is open)."""
    rows, here, walking = np.arange(len(scores)), best.copy(), np.ones(len(scores), dtype=bool)
    edge = octaves[best].copy()
    for _ in range(len(octaves) - 1):
        there = (here + side).clip(0, len(octaves) - 1)
        walking &= there != here
        now, after = scores[rows, here], scores[rows, there]
        fallen = walking & (after < level)
        share = np.divide(now - level, now - after, out=np.zeros_like(now), where=fallen)
        edge = np.where(fallen, octaves[here] + share * (octaves[there] - octaves[here]), edge)
        walking &= ~fallen & alive[rows, there]
        here = np.where(walking, there, here)
        edge = np.where(walking, octaves[here], edge)
    at_end = here == (0 if side < 0 else len(octaves) - 1)
    return edge, at_end


def plateau(
    table: pd.DataFrame, tolerance: float = TOLERANCE, *, x: str = "multiplier", num_draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """The plateau of every series and metric, with intervals over the subjects.

    Args:
        table: what `subject_scores` returned. Subjects that lack a point of the grid are left out if others have all of it, so
            that every point of a curve is a mean over the same subjects.
        tolerance: the share of the gain that may be lost on the plateau.
        x: the column of the rates (or of the training lengths).
        num_draws, seed: of the bootstrap over subjects; intervals start from 2 subjects.

    Returns:
        Rows series, method, metric, num_subjects, num_diverged, base, every field of `Plateau`, and the ends of 95 % intervals
        peak_low/_high, width_low/_high, low_edge_low/_high, high_edge_low/_high, sensitivity_low/_high.

    Raises:
        BadInput: if the tolerance is not between 0 and 1, or a subject has no score of the untouched base.
    """
    if not 0 < tolerance < 1:
        raise BadInput(f"tolerance {tolerance} of the plateau: allowed are numbers between 0 and 1")
    if table["base"].isna().any():
        missing = table.loc[table["base"].isna(), "subject"].unique()
        raise BadInput(
            f"no score of the untouched base for subject {', '.join(map(str, missing))}: run the sweep again"
        )
    groups = table.groupby(["series", "method", "metric"], sort=False, observed=True)
    return pd.DataFrame([_row(key, group, tolerance, x, num_draws, seed) for key, group in groups])


_WITH_INTERVAL = {
    "peak": "peak", "width": "width_octaves", "low_edge": "low_edge", "high_edge": "high_edge", "sensitivity": "sensitivity",
}  # fmt: skip


def _row(
    key: tuple[str, str, str], group: pd.DataFrame, tolerance: float, x: str, num_draws: int, seed: int
) -> dict[str, object]:
    values = complete_subjects(group.pivot(index="subject", columns=x, values="value").sort_index(axis=1))
    base = group.groupby("subject", observed=True)["base"].mean().loc[values.index].to_numpy(dtype=float)
    diverged = group.groupby(x)["num_diverged"].sum().reindex(values.columns).to_numpy() > 0
    grid, scores = values.columns.to_numpy(dtype=float), values.to_numpy(dtype=float)
    found = find_plateau(grid, _mean(scores[None])[0], float(base.mean()), diverged, tolerance)

    def redraw(draws: Ints) -> Floats:
        fields = find_plateaus(grid, _mean(scores[draws]), base[draws].mean(axis=1), diverged, tolerance)
        return np.stack([fields[field] for field in _WITH_INTERVAL.values()], axis=1)

    low, high = subject_bootstrap(redraw, len(base), num_draws=num_draws, seed=seed)
    ends = {
        f"{name}_{end}": float(value[i])
        for i, name in enumerate(_WITH_INTERVAL)
        for end, value in (("low", low), ("high", high))
    }
    series, method, metric = key
    first = {"series": series, "method": method, "metric": metric, "num_subjects": len(base)}
    return {
        **first,
        "num_diverged": int(group["num_diverged"].sum()),
        "base": float(base.mean()),
        **found._asdict(),
        **ends,
    }


def complete_subjects(values: pd.DataFrame) -> pd.DataFrame:
    """Keep the subjects (rows) that have every point of the grid (columns); if none has, keep all."""
    complete = values.dropna()
    return complete if len(complete) else values


def _mean(scores: Floats) -> Floats:
    """The mean over subjects `[..., subject, point]` at every point, NaN where none has it."""
    there = ~np.isnan(scores)
    return np.where(there, scores, 0.0).sum(axis=-2) / np.where(there.any(axis=-2), there.sum(axis=-2), np.nan)
