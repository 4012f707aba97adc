"""One series' scores by subject and point of the grid of rates."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from analysis.statistics import Floats, Ints


class Grid(NamedTuple):
    """One series and metric: scores `[subject, point]` with subjects and points, base `[subject]`, diverged runs `[point]`."""

    scores: pd.DataFrame
    base: Floats
    num_diverged: Ints

    @property
    def points(self) -> Floats:
        """The grid, increasing."""
        result: Floats = self.scores.columns.to_numpy(dtype=float)
        return result

    @property
    def values(self) -> Floats:
        """Scores `[subject, point]`."""
        result: Floats = self.scores.to_numpy(dtype=float)
        return result


def subject_grid(group: pd.DataFrame, x: str) -> Grid:
    """The grid of one series and metric, from the rows that `subject_scores` has of it."""
    values = complete_subjects(group.pivot(index="subject", columns=x, values="value").sort_index(axis=1))
    base = group.groupby("subject", observed=True)["base"].mean().loc[values.index].to_numpy(dtype=float)
    diverged = group.groupby(x)["num_diverged"].sum().reindex(values.columns).to_numpy()
    return Grid(values, base, diverged)


def complete_subjects(values: pd.DataFrame) -> pd.DataFrame:
    """Keep the subjects (rows) that have every point of the grid (columns); if none has, keep all."""
    complete = values.dropna()
    return complete if len(complete) else values
