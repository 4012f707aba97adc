"""Compare every pair of series, paired by subject: differences, intervals, tests, smallest detectable differences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from adapters.errors import BadInput
from adapters.words import counted, plural
from analysis.grid import Grid, subject_grid
from analysis.metrics import UNIT, headline_of, value_range
from analysis.permutation import holm, sign_flip
from analysis.plateau import HALF_GAIN, TOLERANCE, find_plateaus, mean_over_octaves
from analysis.power import detectable_difference, effect_size
from analysis.statistics import (
    Floats,
    Ints,
    count_draws,
    interquartile_interval,
    studentised_bootstrap,
    subject_bootstrap,
    t_interval,
)

# What is compared: one number a subject, but for the half-gain width, which only mean curves have.
MEASURES = {
    "area": "mean gain over the base along the grid's octaves",
    "half_width": "octaves on which the mean curve keeps half of its peak's gain over the base",
    "at_best": "score at the multiplier at which the mean over the subjects is best",
    "at_one": "score at multiplier 1, the base rate",
    "sensitivity": "mean loss over the grid against the best multiplier, clipped where the mean is worse than the base",
    "worst": "score at the multiplier at which the mean over the subjects is worst",
    "width": "octaves on which the subject's own curve stays within the tolerance of its own peak",
}
HIGHER_IS_WORSE = ("sensitivity",)


def compare(
    table: pd.DataFrame,
    measures: Sequence[str] = tuple(MEASURES),
    *,
    metric: str | None = None,
    tolerance: float = TOLERANCE,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> pd.DataFrame:
    """Compare pairs of series by every measure.

    The rows of one table are one family: Holm's correction runs over all of them, so ask for no more than is wanted. The
    best and the worst multiplier are chosen by the same subjects that are compared there; by simulation the intervals keep
    their level all the same, which those of a choice left to the other subjects do not (docs/statistics.md).

    Args:
        table: what `subject_scores` returned; its rule for diverged runs holds here too.
        measures: keys of `MEASURES`.
        metric: the score; None: the headline of those in the table.
        tolerance: of the width.
        pairs: the series to compare, as (a, b); None compares every pair.

    Returns:
        Rows measure, a, b, mean (of a - b, of scores also where less is better) with its t interval low, high; boot_low,
        boot_high (studentised bootstrap, from 4 subjects); iqm, iqm_low, iqm_high (interquartile mean); p (sign flips),
        p_holm, smallest_p (that so many subjects can give); detectable (the smallest difference found with 80 % power at 5
        %); num_subjects, those that both have. Of the half-gain width the interval is that of the bootstrap over subjects,
        and there is no interquartile mean.

    Raises:
        BadInput: if a measure, the metric or a series of the pairs is unknown, or there are fewer than two series.
    """
    for name in measures:
        if name not in MEASURES:
            raise BadInput(f"unknown measure {name!r}; allowed: {', '.join(MEASURES)}")
    metric = metric or headline_of(table)
    series = dict(_series_of(table, metric))
    if len(series) < 2:
        raise BadInput(f"one series, {next(iter(series))}, has nothing to be compared with: run a second method")
    chosen = list(combinations(series, 2)) if pairs is None else list(pairs)
    if unknown := [name for pair in chosen for name in pair if name not in series]:
        raise BadInput(f"no series {unknown[0]!r}; allowed: {', '.join(series)}")
    wanted = {name for pair in chosen for name in pair}
    grids = {name: subject_grid(series[name], "multiplier") for name in wanted}
    values = {name: _subject_measures(grid, tolerance) for name, grid in grids.items()}
    low, high = value_range(metric)

    def difference(measure: str, a: str, b: str) -> dict[str, float]:
        if measure == "half_width":
            return half_width_difference(grids[a], grids[b])
        return _difference(values[a], values[b], measure, high - low)

    keys = [{"measure": measure, "a": a, "b": b} for measure in measures for a, b in chosen]
    rows = [{**key, **difference(**key)} for key in keys]
    frame = pd.DataFrame(rows)
    frame.insert(list(frame.columns).index("smallest_p"), "p_holm", holm(frame["p"]))
    return frame


def _series_of(table: pd.DataFrame, metric: str) -> list[tuple[str, pd.DataFrame]]:
    rows = table[table["metric"] == metric]
    if rows.empty:
        known = ", ".join(map(str, table["metric"].unique()))
        raise BadInput(f"no scores of metric {metric!r}; allowed: {known}")
    return [(str(name), group) for name, group in rows.groupby("series", sort=False, observed=True)]


def subject_measures(rows: pd.DataFrame, tolerance: float = TOLERANCE) -> pd.DataFrame:
    """The measures of one series and metric: one row a subject, a column each; NaN where there is none, or none by subject."""
    return _subject_measures(subject_grid(rows, "multiplier"), tolerance)


def _subject_measures(grid: Grid, tolerance: float) -> pd.DataFrame:
    scores, alive = grid.values, grid.num_diverged == 0
    mean = np.nanmean(scores, axis=0) if len(scores) else np.full(len(alive), np.nan)
    measures: dict[str, Any] = {name: np.nan for name in MEASURES if name != "half_width"}
    measures |= {"area": mean_over_octaves(np.log2(grid.points), scores - grid.base[:, None])}
    measures |= {"worst": grid.sign * scores[:, int(np.nanargmin(mean))], "width": _own_width(grid, tolerance)}
    if alive.any():
        best = scores[:, int(np.where(alive, mean, -np.inf).argmax())]
        measures |= {"at_best": grid.sign * best}
        if np.nanmean(best) > grid.base.mean():  # else there is no gain to lose
            lost = best[:, None] - np.where(mean < grid.base.mean(), grid.base[:, None], scores)
            measures |= {"sensitivity": np.nanmean(lost, axis=1)}
    if (one := np.isclose(grid.points, 1.0)).any():
        measures |= {"at_one": grid.sign * scores[:, int(one.argmax())]}
    return pd.DataFrame(measures, index=grid.scores.index)


def _own_width(grid: Grid, tolerance: float) -> Floats:
    width: Floats = find_plateaus(grid.points, grid.values, grid.base, grid.num_diverged > 0, tolerance)[
        "width_octaves"
    ]
    return width


def half_width_difference(a: Grid, b: Grid, num_draws: int = 4000) -> dict[str, float]:
    """How many more octaves `a` keeps half of its gain on than `b`: a row of `compare` without its keys.

    Subjects are drawn with all that they have in both series; each draw's mean curves have widths. A jackknife's pseudo-values
    jump where a curve lingers near the half: their t interval covers less than it says (docs/statistics.md). p is Student's,
    with the draws' standard deviation as standard error, and never below 1 / (num_draws + 1).
    """
    from scipy.special import stdtr

    both = a.scores.index.intersection(b.scores.index)
    first, second = (of_subjects(grid, both) for grid in (a, b))
    n, drawn = len(both), []

    def difference(draws: Ints) -> Floats:
        counts = count_draws(draws, n)
        drawn.append(half_widths(first, counts) - half_widths(second, counts))
        return drawn[-1][:, None]

    mean = float(difference(np.arange(n)[None])[0, 0]) if n else np.nan
    low, high = (float(end[0]) for end in subject_bootstrap(difference, n, num_draws=num_draws))
    spread = float(np.nanstd(drawn[-1])) * n / np.sqrt(n - 1) if n > 1 else np.nan  # of what one subject adds
    p = 2 * float(stdtr(n - 1, -abs(mean) * np.sqrt(n) / max(spread, 1e-12))) if n > 1 else np.nan
    least = 1 / (num_draws + 1)
    return {
        "mean": mean, "low": low, "high": high, "boot_low": low, "boot_high": high,
        "iqm": np.nan, "iqm_low": np.nan, "iqm_high": np.nan, "p": max(p, least) if n > 1 else p, "smallest_p": least,
        "detectable": effect_size(n) * spread if n > 1 else np.nan, "num_subjects": n,
    }  # fmt: skip


def of_subjects(grid: Grid, subjects: pd.Index) -> Grid:
    """The grid of some of its subjects, in their order."""
    return grid._replace(scores=grid.scores.loc[subjects], base=grid.base[grid.scores.index.get_indexer(subjects)])


def half_widths(grid: Grid, counts: Floats) -> Floats:
    """The half-gain width (octaves) of the mean curve of every draw, with how often it has each subject `[draw, subject]`."""
    there = ~np.isnan(grid.values)
    shares = counts @ there
    sums = counts @ np.where(there, grid.values, 0.0)
    means = np.divide(sums, shares, out=np.full(shares.shape, np.nan), where=shares > 0)
    bases = counts @ grid.base / np.where(counts.any(axis=1), counts.sum(axis=1), np.nan)
    found: Floats = find_plateaus(grid.points, means, bases, grid.num_diverged > 0, HALF_GAIN)["width_octaves"]
    return found


def _difference(a: pd.DataFrame, b: pd.DataFrame, measure: str, span: float) -> dict[str, float]:
    """The differences of one measure; of scores they lie between -`span` and `span`."""
    first, second = a[measure].align(b[measure], join="inner")
    values = (first - second).dropna().to_numpy(dtype=float)
    ends = (-np.inf, np.inf) if measure == "width" else (-span, span)  # octaves, or units of the score
    mean, low, high, n = t_interval(values).within(*ends)
    boot, middle = studentised_bootstrap(values).within(*ends), interquartile_interval(values)
    test = sign_flip(values)
    return {
        "mean": mean, "low": low, "high": high, "boot_low": boot.low, "boot_high": boot.high,
        "iqm": middle.mean, "iqm_low": middle.low, "iqm_high": middle.high,
        "p": test.p, "smallest_p": test.smallest_p,
        "detectable": detectable_difference(values).difference, "num_subjects": n,
    }  # fmt: skip


def power_sentence(comparisons: pd.DataFrame, measure: str = "", unit: str = UNIT) -> str:
    """One sentence that says what a table of `compare` cannot show, of one measure; of its first one if none is named.

    `unit` is what intervals generalise over (`Results.kind.unit`).
    """
    measure = measure or str(comparisons["measure"].iloc[0])
    rows = comparisons[comparisons["measure"] == measure]
    if rows.empty or rows["detectable"].isna().all():
        return f"{measure}: fewer than {counted(2, unit)}, so no difference can be told from chance."
    low, high = int(rows["num_subjects"].min()), int(rows["num_subjects"].max())
    smallest, largest = rows["detectable"].min(), rows["detectable"].max()
    spread = f"{smallest:.2g}" if np.isclose(smallest, largest) else f"{smallest:.2g} to {largest:.2g}, by pair"
    count = f"{low}" if low == high else f"{low} to {high}"
    floor = float(rows["smallest_p"].max())
    most = int(0.05 / floor + 1e-9)
    holm_text = f"nothing passes Holm's correction at 5 % in a table of more than {most} rows"
    return (
        f"{measure}: with {count} {plural(unit)} a difference below {spread} is more likely than 20 % to be missed "
        f"(two-sided t test at 5 %, before correction). p cannot be below {floor:.2g}: "
        f"{holm_text if most else f'no sign-flip test of so few {plural(unit)} can reach 5 %'}."
    )
