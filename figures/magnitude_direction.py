"""Fig. 2 of the DoRA paper: change of magnitude against change of direction, for each matrix and snapshot.

The paper's claim: LoRA changes both in proportion; DoRA, like full finetuning, changes the one where it changes the other little.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from adapters.errors import BadInput
from figures.labels import add_subtitle, fit_text
from figures.looks import SPARE_MARKERS
from figures.panels import place_legend
from figures.style import INK, new_figure, num_beside, pt, styled
from figures.task_in_use import units

MARKERS = ("o", "s", "^", "D", *SPARE_MARKERS)


@styled
def draw(points: pd.DataFrame, correlations: pd.DataFrame, axis: str = "rows") -> Figure:
    """One panel a series: a point for each matrix and snapshot, mean over subjects; from dark to light as training goes on.

    Args:
        points: `analysis.magnitude_direction(...)`.
        correlations: `analysis.magnitude_direction_correlation(points)`.
        axis: what the magnitudes are of, for the label.

    Raises:
        BadInput: if there is nothing to draw.
    """
    if points.empty:
        raise BadInput("no weight norms to draw: run python sweeps/dora_magnitude.py first")
    names, steps = list(dict.fromkeys(points["series"])), sorted(points["step"].unique())
    shades = dict(zip(steps, colormaps["viridis"](np.linspace(0, 0.88, len(steps))), strict=True))
    marks = dict(zip(steps, MARKERS, strict=False))
    width_in = 0.6 + 2.6 * len(names)
    beside = num_beside(len(names), width_in, 2.1)
    down = -(-len(names) // beside)
    figure = new_figure(width_in, 0.8 + 2.8 * down)
    grid = figure.subplots(down, beside, squeeze=False, sharey=True)
    for ax in grid.ravel()[len(names) :]:
        ax.remove()
    for ax, name in zip(grid.ravel(), names, strict=False):
        ax.set_label(name)
        own = points[points["series"] == name]
        means = own.groupby(["step", "matrix"], observed=True)[["dm", "dd"]].mean().reset_index()
        for step, rows in means.groupby("step"):
            look = {"color": shades[step], "marker": marks.get(step, "o")}
            ax.plot(rows["dd"], rows["dm"], ls="none", ms=pt(4), mew=0, alpha=0.8, label=f"step {step}", **look)
        ax.set_title(name)
        add_subtitle(ax, correlation_text(correlations, name))
        _name_axes(ax)
    for first in grid[:, 0]:
        first.set_ylabel(f"ΔM: mean change of the {axis.removesuffix('s')} norms")
    handles = [
        Line2D([], [], ls="none", color=shades[step], marker=marks.get(step, "o"), ms=pt(5), label=f"step {step}")
        for step in steps
    ]
    subjects = points["subject"].nunique()
    place_legend(figure, handles, f"Points: matrices, means over {units()} (n = {subjects})")
    fit_text(figure)
    return figure


def correlation_text(correlations: pd.DataFrame, series: str) -> str:
    """A series' correlation over all matrices, with its interval where there are several subjects."""
    rows = correlations[(correlations["series"] == series) & (correlations["kind"] == "all")]
    if rows.empty or not np.isfinite(rows["rho"].iloc[0]):
        return "no correlation: one of the two does not change"
    row = rows.iloc[0]
    interval = f" [{row['rho_low']:.2f}, {row['rho_high']:.2f}]" if np.isfinite(row["rho_low"]) else ""
    return f"correlation {row['rho']:.2f}{interval}"


def _name_axes(ax: Axes) -> None:
    ax.set_xlabel("ΔD: mean of 1 − cos")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    for side in (ax.xaxis, ax.yaxis):  # a power of ten at an axis' end would stand in the subtitle
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}".replace("-", "−")))
    ax.margins(0.06)
    ax.axhline(0, color=INK, lw=pt(0.6), zorder=1)
