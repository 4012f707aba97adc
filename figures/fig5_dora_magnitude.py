"""Fig. 5 and App. C of the DeLoRA paper: does DoRA's trained magnitude matter for robustness?

The paper's claim: fixing the magnitude does not alter DoRA's robustness. Runs are paired by subject: same pictures, same noise.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adapters.errors import BadInput
from analysis import Robustness
from analysis.metrics import describe_metric, headline_of, in_table_order, is_side_effect, title_of
from analysis.series import BASE_AXIS
from figures.labels import fit_text
from figures.looks import looks
from figures.panels import draw_base_line, draw_curves, draw_legend, limit_to_means, plain_log_axis
from figures.style import INK, multiplier_axis, new_figure, num_beside, pt, styled
from figures.task_in_use import task_of

DIFFERENCE_STYLES = (
    ("#222222", "o"),
    ("#6f6f6f", "s"),
    ("#a0a0a0", "D"),
    ("#444444", "^"),
    ("#8c8c8c", "v"),
)  # in turn


@styled
def draw(
    curves: Robustness,
    differences: pd.DataFrame,
    *,
    first: str = "DoRA",
    second: str = "fixed magnitude",
    xlabel: str = BASE_AXIS,
) -> Figure:
    """The headline (DINO) and the distance of both methods, and their paired difference with its interval, over the multiplier.

    Args:
        curves: `analysis.robustness` of both methods' runs.
        differences: `analysis.paired_curve` of their `subject_scores`, first minus second.
        first, second: what the two are called beside the difference's axis.
        xlabel: what multipliers multiply (`analysis.series.name_multipliers`).

    Raises:
        BadInput: if there is nothing to draw or to compare.
    """
    if curves.scores.empty or differences.empty:
        raise BadInput("no finished run to draw: run python sweeps/dora_magnitude.py first")
    styles = looks(curves.scores)
    beside = num_beside(3, 11.0, 2.8) == 3
    figure = new_figure(11.0, 4.0 if beside else 8.6)
    shape = (1, 3) if beside else (3, 1)
    headline = headline_of(curves.scores)
    score, distance, paired = (
        figure.add_subplot(*shape, i + 1, label=name) for i, name in enumerate((headline, "distance", "difference"))
    )
    for ax in (score, distance, paired):
        multiplier_axis(ax, curves.scores["multiplier"], xlabel)
    scores = curves.scores[curves.scores["metric"] == headline]
    draw_curves(score, scores, "multiplier", styles)
    draw_base_line(score, curves.base, headline)
    limit_to_means(score, [scores], float(curves.base.set_index("metric")["mean"].get(headline, np.nan)))
    score.set_title(describe_metric(headline, task_of([headline])))
    plain_log_axis(distance, curves.distances["mean"])
    draw_curves(distance, curves.distances, "multiplier", styles)
    limit_to_means(distance, [curves.distances])
    distance.set_title("distance ‖Wₜ − W₀‖ / ‖W₀‖")
    marks = _draw_differences(paired, differences, first, second)
    draw_legend(figure, curves.scores, styles, marks=marks)
    fit_text(figure)
    return figure


def _draw_differences(ax: Axes, differences: pd.DataFrame, first: str, second: str) -> list[Line2D]:
    """One point with its interval for each metric and multiplier, the metrics side by side; returns the legend's entries."""
    ax.axhline(0, color=INK, lw=pt(0.9), zorder=2)
    shown = [name for name in in_table_order(differences["metric"].unique()) if not is_side_effect(name)]
    marks = []
    for place, metric in enumerate(shown):
        rows = differences[differences["metric"] == metric]
        color, marker = DIFFERENCE_STYLES[place % len(DIFFERENCE_STYLES)]
        shift = 2 ** (0.22 * (place - (len(shown) - 1) / 2))
        bars = np.nan_to_num(np.stack([rows["mean"] - rows["low"], rows["high"] - rows["mean"]]).astype(float))
        bars[:, (rows["num_subjects"] < 3).to_numpy()] = 0.0
        ax.errorbar(
            rows["multiplier"] * shift, rows["mean"], yerr=bars, fmt=marker, color=color, ms=pt(4.5), elinewidth=pt(1.2),
            capsize=pt(2), label=title_of(metric), zorder=3,
        )  # fmt: skip
        label = f"difference in {title_of(metric)}"
        marks.append(Line2D([], [], ls="none", marker=marker, color=color, ms=pt(5), label=label))
    ax.margins(y=0.1)
    ax.set_ylabel(f"{first} − {second}")
    pairs = [int(n) for n in (differences["num_subjects"].min(), differences["num_subjects"].max())]
    count = f"n = {pairs[0]}" if pairs[0] == pairs[1] else f"n = {pairs[0]} to {pairs[1]}"
    ax.set_title("paired difference" + (f" [95 %]: {count} pairs" if pairs[1] > 2 else f": {count}, no interval"))
    return marks
