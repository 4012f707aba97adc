"""Fig. 6 of the DeLoRA paper: lambda, the saturation of the bound and the distance during training.

The paper's claim: whichever rate is raised, of lambda, of B and A, or of both, training converges.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adapters.errors import BadInput
from figures.labels import fit_text
from figures.looks import shades
from figures.panels import draw_curves, draw_legend, limit_to_means
from figures.style import multiplier_text, new_figure, styled

ROWS = {
    "lambda": "λ",
    "saturation": "saturation of the bound",
    "distance_rel": "distance ‖Wₜ − W₀‖ / ‖W₀‖",
}


@styled
def draw(paths: Mapping[str, pd.DataFrame]) -> Figure:
    """One column a series (which rate is scaled), one row a gauge, one curve a multiplier, against the training step.

    Args:
        paths: `analysis.gauge_curve(results, name, by_multiplier=True)` by name, of those in `ROWS`; empty ones are left out.

    Raises:
        BadInput: if there is nothing to draw.
    """
    rows = {name: _by_multiplier(paths[name]) for name in ROWS if name in paths and len(paths[name])}
    if not rows:
        raise BadInput("no run with a lambda to draw: run python sweeps/boundary_and_angle.py first")
    every = pd.concat(rows.values())
    columns, looks = list(every["column"].unique()), shades(every["series"].unique())
    figure = new_figure(0.9 + 2.9 * len(columns), 0.9 + 1.9 * len(rows))
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey="row")
    for axes, (name, frame) in zip(grid, rows.items(), strict=True):
        axes[0].set_ylabel(ROWS[name])
        for ax, column in zip(axes, columns, strict=True):
            ax.set_label(f"{column} {name}")
            draw_curves(ax, frame[frame["column"] == column], "step", looks, markers=False)
        limit_to_means(axes[0], [frame])
    for ax, column in zip(grid[0], columns, strict=True):
        ax.set_title(column)
    for ax in grid[-1]:
        _name_steps(ax)
    draw_legend(figure, every, looks, base=False)
    fit_text(figure)
    return figure


def _by_multiplier(curve: pd.DataFrame) -> pd.DataFrame:
    """The curves named by their multipliers, in the order of those; what they were called names the column."""
    ordered = curve.sort_values(["multiplier", "step"], kind="stable")
    return ordered.assign(column=ordered["series"], series=ordered["multiplier"].map(multiplier_text) + "×")


def _name_steps(ax: Axes) -> None:
    ax.set_xlabel("training step")
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
