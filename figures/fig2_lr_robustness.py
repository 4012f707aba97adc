"""Fig. 2 of the DeLoRA paper: scores and weight distances against the learning rate's multiplier.

The paper's claim: LoRA and DoRA degrade from 4x on, LoRA's distance keeps growing, DoRA's stops, DeLoRA stays.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adapters.errors import BadInput
from analysis import Robustness
from analysis.metrics import describe_metric, headline_of, in_table_order
from analysis.plateau import half_gain_plateaus
from analysis.series import BASE_AXIS
from figures.labels import End, fit_text
from figures.looks import Look, looks
from figures.panels import (
    draw_background,
    draw_base_line,
    draw_curves,
    draw_legend,
    draw_plateaus,
    limit_to_means,
    plain_log_axis,
)
from figures.style import MUTED, multiplier_axis, new_figure, pt, room_in, styled
from figures.task_in_use import task_of

WIDTH_IN = 11.0


@styled
def draw(curves: Robustness, background: Robustness | None = None, *, xlabel: str = BASE_AXIS) -> Figure:
    """The headline (DINO) with its half-gain plateaus; every other score that was measured; the distance; over the multiplier.

    Args:
        curves: what `analysis.robustness` returned.
        background: the same of other runs of the same model, drawn behind in grey; series of the same name are left out.
        xlabel: what multipliers multiply (`analysis.series.name_multipliers`).

    Raises:
        BadInput: if there is nothing to draw.
    """
    if curves.scores.empty:
        raise BadInput("no finished run to draw: run python sweeps/lr_robustness.py first")
    behind = _without(background, set(curves.scores["series"]))
    styles = looks(pd.concat([curves.scores, *([behind.scores] if behind else [])]))
    headline = headline_of(curves.scores)
    plateaus = curves.plateaus[curves.plateaus["metric"] == headline]
    beside = [name for name in in_table_order(curves.scores["metric"].unique()) if name != headline]
    figure, axes = _new_panels(headline, beside, len(plateaus))
    for name, ax in axes.items():
        ax.set_label(name)
        multiplier_axis(ax, curves.scores["multiplier"], xlabel)
    for metric in (headline, *beside):
        _draw_scores(axes[metric], metric, curves, behind, styles)
    _draw_plateau_strip(axes[headline], axes["plateau"], plateaus, styles)
    for metric in beside[:-1]:
        axes[metric].set_xlabel("")
    _draw_distances(axes["distance"], curves, behind, styles)
    draw_legend(figure, curves.scores, styles, behind=behind.scores if behind else None)
    fit_text(figure, {axes["distance"]: _ends(curves, behind, styles)} if _num_columns() == 3 else None)
    return figure


def _num_columns() -> int:
    """How many panels stand beside each other: three where a figure is as wide as it wants to be."""
    room = room_in(WIDTH_IN)
    return 3 if room >= 8.4 else 2 if room >= 4.9 else 1


def _new_panels(headline: str, beside: list[str], num_bars: int) -> tuple[Figure, dict[str, Axes]]:
    """The figure and its panels: the headline with the bars of the plateaus, the metrics beside it, and the distance."""
    columns, strip = _num_columns(), 0.4 + 0.19 * num_bars
    if columns == 3:
        figure = new_figure(WIDTH_IN, 2.7 + 0.8 * len(beside) + 0.19 * num_bars, wspace=0.06)
        grid = figure.add_gridspec(max(len(beside), 1), 3, width_ratios=[1.55, 1.0, 1.15])
        left, places, last = grid[:, 0], [grid[row, 1] for row in range(len(beside))], grid[:, 2]
    elif columns == 2:
        figure = new_figure(WIDTH_IN, max(5.4 + strip, 0.8 + 1.7 * len(beside)), wspace=0.06)
        grid = figure.add_gridspec(1, 2)
        down = grid[0].subgridspec(2, 1, height_ratios=[2.6 + strip, 2.2])
        across = grid[1].subgridspec(max(len(beside), 1), 1)
        left, places, last = down[0], [across[row] for row in range(len(beside))], down[1]
    else:
        heights = [2.6 + strip, *[1.9] * len(beside), 2.3]
        figure = new_figure(WIDTH_IN, 0.6 + sum(heights))
        grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        left, places, last = grid[0], [grid[row + 1] for row in range(len(beside))], grid[len(heights) - 1]
    ratios = [8, 0.5 + 0.5 * num_bars] if columns == 3 else [2.1, strip]
    first = left.subgridspec(2, 1, height_ratios=ratios, hspace=0.06)
    axes = {headline: figure.add_subplot(first[0]), "plateau": figure.add_subplot(first[1])}
    axes |= {metric: figure.add_subplot(place) for metric, place in zip(beside, places, strict=True)}
    return figure, axes | {"distance": figure.add_subplot(last)}


def _without(background: Robustness | None, drawn: set[str]) -> Robustness | None:
    if background is None:
        return None
    kept = Robustness(*(f[~f["series"].isin(drawn)] if "series" in f else f for f in background))
    return kept if len(kept.scores) else None


def _draw_scores(ax: Axes, metric: str, curves: Robustness, behind: Robustness | None, styles: dict[str, Look]) -> None:
    scores = curves.scores[curves.scores["metric"] == metric]
    if behind is not None:
        draw_background(ax, _on_grid(behind.scores[behind.scores["metric"] == metric], scores), "multiplier", styles)
    draw_curves(ax, scores, "multiplier", styles)
    draw_base_line(ax, curves.base, metric)
    grey = [behind.scores.loc[behind.scores["metric"] == metric, ["mean"]]] if behind else []
    limit_to_means(ax, [scores, *grey], float(curves.base.set_index("metric")["mean"].get(metric, np.nan)))
    ax.set_title(describe_metric(metric, task_of(curves.scores["metric"].unique())))


def _draw_plateau_strip(ax: Axes, strip: Axes, plateaus: pd.DataFrame, styles: dict[str, Look]) -> None:
    """The bars of the plateaus on which half of the gain is kept share the headline's x axis and stand on it."""
    ax.set_xlabel("")
    ax.tick_params(labelbottom=False, bottom=False)
    strip.spines["left"].set_visible(False)
    strip.grid(True, axis="x")
    draw_plateaus(strip, half_gain_plateaus(plateaus), styles)
    strip.grid(True, axis="x")
    several = (plateaus["num_subjects"] > 2).any()
    heads = {
        0.0: "half-gain width: ≥ 50 % of the best gain",
        1.03: "octaves" + (" [95 %]" if several else ""),
    }
    strip.set_title(heads[0.0], fontsize=pt(7.5), fontweight="normal", color=MUTED, pad=pt(1))
    strip.text(1.03, 1.02, heads[1.03], transform=strip.transAxes, fontsize=pt(7.5), color=MUTED, va="bottom")


def _draw_distances(ax: Axes, curves: Robustness, behind: Robustness | None, styles: dict[str, Look]) -> None:
    shown = [
        curves.distances,
        *([_on_grid(behind.distances, curves.distances)[["series", "multiplier", "mean"]]] if behind else []),
    ]
    plain_log_axis(ax, pd.concat([frame["mean"] for frame in shown]))
    draw_background(ax, shown[1] if behind else None, "multiplier", styles)
    draw_curves(ax, curves.distances, "multiplier", styles)
    limit_to_means(ax, shown)
    ax.set_title("distance ‖Wₜ − W₀‖ / ‖W₀‖")


def _on_grid(frame: pd.DataFrame, shown: pd.DataFrame) -> pd.DataFrame:
    """Background points beyond the axis' limits would widen it."""
    low, high = shown["multiplier"].min(), shown["multiplier"].max()
    return frame[frame["multiplier"].between(low / 1.2, high * 1.2)]


def _ends(curves: Robustness, behind: Robustness | None, styles: dict[str, Look]) -> list[End]:
    """Every series' right end of its distance, with its name and colour, the ones behind in grey."""
    ends = [
        (*_last(curve), str(series), styles[str(series)].color)
        for series, curve in curves.distances.groupby("series", sort=False)
    ]
    if behind is not None:
        shown = _on_grid(behind.distances, curves.distances)
        ends += [(*_last(curve), str(series), MUTED) for series, curve in shown.groupby("series", sort=False)]
    return ends[::-1]  # those that meet are labelled from above in the legend's order


def _last(curve: pd.DataFrame) -> tuple[float, float]:
    row = curve.sort_values("multiplier").iloc[-1]
    return float(row["multiplier"]), float(row["mean"])
