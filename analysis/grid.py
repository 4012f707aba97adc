"""One series' scores by subject and point of the grid of rates."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from analysis.metrics import sign_of
from analysis.statistics import Floats, Ints


class Grid(NamedTuple):
    """One series and metric: scores `[subject, point]` with subjects and points, base `[subject]`, diverged runs `[point]`.

    Scores and base are times `sign`, -1 of a metric of which less is better, so that more is better in every grid. What is
    reported of them is a score again where it is multiplied by it once more.
    """

    scores: pd.DataFrame
    base: Floats
    num_diverged: Ints
    sign: float = 1.0

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
    sign = sign_of(str(group["metric"].iloc[0])) if "metric" in group else 1.0
    return Grid(sign * values, sign * base, diverged, sign)


def complete_subjects(values: pd.DataFrame) -> pd.DataFrame:
    """Keep the subjects (rows) that have every point of the grid (columns); if none has, keep all."""
    complete = values.dropna()
    return complete if len(complete) else values
