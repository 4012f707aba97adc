"""Compare every pair of series, paired by subject: differences, intervals, tests, smallest detectable differences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from adapters.errors import BadInput
from analysis.grid import Grid, subject_grid
from analysis.permutation import holm, sign_flip
from analysis.plateau import HALF_GAIN, TOLERANCE, find_plateaus, mean_over_octaves
from analysis.power import detectable_difference
from analysis.results import ANY, RANGES
from analysis.statistics import Floats, interquartile_interval, studentised_bootstrap, t_interval

# What is compared, each one number a subject.
MEASURES = {
    "area": "mean gain over the base along the grid's octaves",
    "half_width": "octaves on which the mean curve keeps half of its peak's gain: the subject's jackknife pseudo-value",
    "at_best": "score at the multiplier at which the mean over the subjects is highest",
    "at_one": "score at multiplier 1, the base rate",
    "sensitivity": "mean loss over the grid against the best multiplier, clipped where the mean is below the base",
    "worst": "score at the multiplier at which the mean over the subjects is lowest",
    "width": "octaves on which the subject's own curve stays within the tolerance of its own peak",
}
WIDTHS = ("half_width", "width")  # in octaves, not in units of the score
HIGHER_IS_WORSE = ("sensitivity",)


def compare(
    table: pd.DataFrame,
    measures: Sequence[str] = tuple(MEASURES),
    *,
    metric: str = "dino",
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
        metric: the score.
        tolerance: of the width.
        pairs: the series to compare, as (a, b); None compares every pair.

    Returns:
        Rows measure, a, b, mean (of a - b) with its t interval low, high; boot_low, boot_high (studentised bootstrap, from 4
        subjects); iqm, iqm_low, iqm_high (interquartile mean); p (sign flips), p_holm, smallest_p (that so many subjects can
        give); detectable (the smallest difference found with 80 % power at 5 %); num_subjects, those that both have.

    Raises:
        BadInput: if a measure, the metric or a series of the pairs is unknown, or there are fewer than two series.
    """
    for name in measures:
        if name not in MEASURES:
            raise BadInput(f"unknown measure {name!r}; allowed: {', '.join(MEASURES)}")
    series = dict(_series_of(table, metric))
    if len(series) < 2:
        raise BadInput(f"one series, {next(iter(series))}, has nothing to be compared with: run a second method")
    chosen = list(combinations(series, 2)) if pairs is None else list(pairs)
    if unknown := [name for pair in chosen for name in pair if name not in series]:
        raise BadInput(f"no series {unknown[0]!r}; allowed: {', '.join(series)}")
    values = {name: subject_measures(series[name], tolerance) for name in {name for pair in chosen for name in pair}}
    low, high = RANGES.get(metric, ANY)
    rows = [
        {"measure": measure, "a": a, "b": b, **_difference(values[a], values[b], measure, high - low)}
        for measure in measures
        for a, b in chosen
    ]
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
    """The measures of one series and metric: one row a subject, columns as in `MEASURES`, NaN where there is none."""
    grid = subject_grid(rows, "multiplier")
    scores, alive = grid.values, grid.num_diverged == 0
    mean = np.nanmean(scores, axis=0) if len(scores) else np.full(len(alive), np.nan)
    measures: dict[str, Any] = dict.fromkeys(MEASURES, np.nan)
    measures |= {"area": mean_over_octaves(np.log2(grid.points), scores - grid.base[:, None])}
    measures |= {"worst": scores[:, int(np.nanargmin(mean))], "width": _own_width(grid, tolerance)}
    measures |= {"half_width": pseudo_values(grid)}
    if alive.any():
        best = scores[:, int(np.where(alive, mean, -np.inf).argmax())]
        measures |= {"at_best": best}
        if np.nanmean(best) > grid.base.mean():  # else there is no gain to lose
            lost = best[:, None] - np.where(mean < grid.base.mean(), grid.base[:, None], scores)
            measures |= {"sensitivity": np.nanmean(lost, axis=1)}
    if (one := np.isclose(grid.points, 1.0)).any():
        measures |= {"at_one": scores[:, int(one.argmax())]}
    return pd.DataFrame(measures, index=grid.scores.index)


def _own_width(grid: Grid, tolerance: float) -> Floats:
    width: Floats = find_plateaus(grid.points, grid.values, grid.base, grid.num_diverged > 0, tolerance)[
        "width_octaves"
    ]
    return width


def pseudo_values(grid: Grid, tolerance: float = HALF_GAIN) -> Floats:
    """What each subject adds to the width of the mean curve, n w - (n - 1) w_i, w_i being the width without it.

    Jackknife (Efron and Tibshirani 1993, 11.5): the pseudo-values' t interval is one of the width, and their differences by
    subject are those of a difference. A subject's own curve is too noisy for a width; the mean over all but one is not. One
    subject has the width itself.
    """
    scores, base, n = grid.values, grid.base, len(grid.base)
    rows = [np.arange(n), *(np.delete(np.arange(n), i) for i in range(n if n > 1 else 0))]
    means = np.stack([np.nanmean(scores[kept], axis=0) for kept in rows])
    bases = np.array([base[kept].mean() for kept in rows])
    width: Floats = find_plateaus(grid.points, means, bases, grid.num_diverged > 0, tolerance)["width_octaves"]
    return n * width[0] - (n - 1) * width[1:] if n > 1 else width


def _difference(a: pd.DataFrame, b: pd.DataFrame, measure: str, span: float) -> dict[str, float]:
    """The differences of one measure; of scores they lie between -`span` and `span`."""
    first, second = a[measure].align(b[measure], join="inner")
    values = (first - second).dropna().to_numpy(dtype=float)
    ends = (-np.inf, np.inf) if measure in WIDTHS else (-span, span)
    mean, low, high, n = t_interval(values).within(*ends)
    boot, middle = studentised_bootstrap(values).within(*ends), interquartile_interval(values)
    test = sign_flip(values)
    return {
        "mean": mean, "low": low, "high": high, "boot_low": boot.low, "boot_high": boot.high,
        "iqm": middle.mean, "iqm_low": middle.low, "iqm_high": middle.high,
        "p": test.p, "smallest_p": test.smallest_p,
        "detectable": detectable_difference(values).difference, "num_subjects": n,
    }  # fmt: skip


def power_sentence(comparisons: pd.DataFrame, measure: str = "") -> str:
    """One sentence that says what a table of `compare` cannot show, of one measure; of its first one if none is named."""
    measure = measure or str(comparisons["measure"].iloc[0])
    rows = comparisons[comparisons["measure"] == measure]
    if rows.empty or rows["detectable"].isna().all():
        return f"{measure}: fewer than 2 subjects, so no difference can be told from chance."
    low, high = int(rows["num_subjects"].min()), int(rows["num_subjects"].max())
    smallest, largest = rows["detectable"].min(), rows["detectable"].max()
    spread = f"{smallest:.2g}" if np.isclose(smallest, largest) else f"{smallest:.2g} to {largest:.2g}, by pair"
    count = f"{low}" if low == high else f"{low} to {high}"
    floor = float(rows["smallest_p"].max())
    most = int(0.05 / floor + 1e-9)
    holm_text = f"nothing passes Holm's correction at 5 % in a table of more than {most} rows"
    return (
        f"{measure}: with {count} subjects a difference below {spread} is more likely than 20 % to be missed "
        f"(two-sided t test at 5 %, before correction). p cannot be below {floor:.2g}: "
        f"{holm_text if most else 'no sign-flip test of so few subjects can reach 5 %'}."
    )
