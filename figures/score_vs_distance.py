"""Beyond the papers: scores of all methods against the learning rate, and against how far the weights moved.

Where curves that lie apart on the left fall together on the right, the distance explains what the rate does not.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adapters.errors import BadInput
from analysis.distance_collapse import ScoreVsDistance
from analysis.metrics import in_table_order, title_of
from analysis.series import BASE_AXIS
from figures.labels import add_subtitle, fit_text
from figures.looks import Look, looks
from figures.panels import draw_base_line, draw_curves, draw_legend, limit_to_means, plain_log_axis
from figures.style import INK, multiplier_axis, new_figure, num_beside, pt, styled

WIDTH_IN = 9.0
COMMON_DASHES = (0, (1, 1.4))
AXES = {"multiplier": "over the learning rate", "distance_rel": "over the distance"}
DISTANCE_LABEL = "distance ‖Wₜ − W₀‖ / ‖W₀‖ at the end"


@styled
def draw(data: ScoreVsDistance, xlabel: str = BASE_AXIS) -> Figure:
    """One row of panels a metric: on the left against the multiplier, on the right against the distance, same scores.

    Small dots are runs, lines the means over subjects (on the right at the geometric mean distance of each multiplier), the
    dotted line the one curve fitted to all series; the text gives what it leaves on subjects that it has not seen.

    Args:
        data: what `analysis.distance_collapse.score_vs_distance` returned.
        xlabel: what multipliers multiply (`analysis.series.name_multipliers`).

    Raises:
        BadInput: if there is nothing to draw.
    """
    if data.runs.empty:
        raise BadInput("no finished run to draw: run python sweeps/lr_robustness.py with several methods first")
    metrics = in_table_order(data.runs["metric"].unique())
    styles = looks(data.curves.scores)
    beside = num_beside(2, WIDTH_IN, 3.0)
    down = 2 * len(metrics) // beside
    figure = new_figure(WIDTH_IN, 0.6 + 3.2 * down, wspace=0.05)
    grid = figure.add_gridspec(down, beside)
    for place, (metric, axis) in enumerate(product(metrics, AXES)):
        ax = figure.add_subplot(grid[place // beside, place % beside], label=f"{metric} {axis}")
        _draw_panel(ax, data, metric, axis, styles, xlabel)
        if beside == 2 and metric != metrics[-1]:
            ax.set_xlabel("")
    common = Line2D([], [], color=INK, ls=COMMON_DASHES, lw=pt(2), label="one curve for all methods")
    draw_legend(figure, data.curves.scores, styles, marks=[common])
    fit_text(figure)
    return figure


def _draw_panel(ax: Axes, data: ScoreVsDistance, metric: str, axis: str, styles: dict[str, Look], xlabel: str) -> None:
    """Runs, means, the common curve and its residual, of one metric over one axis."""
    scores = mean_curves(data, metric)
    runs = data.runs[(data.runs["metric"] == metric) & (data.runs[axis] > 0)]
    if axis == "multiplier":
        multiplier_axis(ax, scores["multiplier"], xlabel)
    else:
        plain_log_axis(ax, scores[axis], "x")
        ax.set_xlabel(DISTANCE_LABEL)
    for series, group in runs.groupby("series", sort=False):
        ax.plot(
            group[axis], group["value"], ls="none", marker=".", ms=pt(3.5), mew=0, alpha=0.35, color=styles[str(series)].color,
            zorder=1.5, label=f"_runs {series}",
        )  # fmt: skip
    draw_curves(ax, scores, axis, styles)
    draw_base_line(ax, data.curves.base, metric)
    curve = data.common[(data.common["metric"] == metric) & (data.common["axis"] == axis)]
    ax.plot(curve["x"], curve["value"], color=INK, ls=COMMON_DASHES, lw=pt(2), zorder=2.8, label="_common")
    limit_to_means(ax, [scores], float(data.curves.base.set_index("metric")["mean"].get(metric, np.nan)))
    low, high = ax.get_ylim()
    shown = pd.concat([runs["value"], curve["value"]])
    ax.set_ylim(min(low, shown.min()), max(high, shown.max()))
    found = data.coincidences[(data.coincidences["metric"] == metric) & (data.coincidences["axis"] == axis)]
    ax.set_title(f"{title_of(metric)} {AXES[axis]}")
    add_subtitle(ax, residual_text(found.iloc[0]))


def mean_curves(data: ScoreVsDistance, metric: str) -> pd.DataFrame:
    """The mean scores of a metric with the mean distance at which they were reached, in the grid's order."""
    scores = data.curves.scores[data.curves.scores["metric"] == metric]
    distance = data.curves.distances[["series", "multiplier", "mean"]].rename(columns={"mean": "distance_rel"})
    return scores.merge(distance, on=["series", "multiplier"])


def residual_text(row: pd.Series) -> str:
    """What the curves leave on subjects that they have not seen, and how it compares with the learning rate's common curve."""
    text = f"left-out residual: {row['common']:.3f} with one curve, {row['separate']:.3f} with one a method\n"
    if np.isfinite(row["ratio_low"]):
        text += f"variance left, over the rate's: {row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
    return text
