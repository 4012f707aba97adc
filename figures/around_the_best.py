"""Beyond the papers: how scores fall off around each curve's own optimum, and whether the training loss shows where it is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adapters.errors import BadInput
from analysis import Robustness, centre_on_best
from analysis.metrics import headline_of, main_scores, title_of
from analysis.series import BASE_AXIS
from figures.labels import add_subtitle, fit_text
from figures.looks import Look, looks
from figures.panels import draw_base_line, draw_curves, draw_legend, limit_to_means
from figures.style import multiplier_axis, new_figure, num_beside, styled
from figures.task_in_use import task_of

WIDTH_IN = 9.0
CENTRED_AXIS = "multiple of the curve's own best rate"
LOSS_TITLE = "training loss, last fifth of the steps"


class Panel(NamedTuple):
    """A curve over one axis.

    Attributes:
        name: a score's ("dino", "clip_t") or "loss", with " centred" where x is.
        x: "over_best" or "multiplier".
        frame: its rows.
    """

    name: str
    x: str
    frame: pd.DataFrame


def panels(curves: Robustness, losses: pd.DataFrame) -> list[Panel]:
    """What is drawn: the task's two main scores around the rate of each series' best headline, and the loss, over both axes.

    Args:
        curves: what `analysis.robustness` returned.
        losses: what `analysis.loss_curve` returned; may be empty.
    """
    scores = curves.scores
    found = [
        Panel(f"{metric} centred", "over_best", centre_on_best(scores[scores["metric"] == metric], scores))
        for metric in main_scores(task_of(scores["metric"].unique()))
        if metric in set(scores["metric"])
    ]
    if len(losses):
        found.append(Panel("loss", "multiplier", losses))
        found.append(Panel("loss centred", "over_best", centre_on_best(losses, scores)))
    return [panel for panel in found if len(panel.frame)]


@styled
def draw(curves: Robustness, losses: pd.DataFrame, xlabel: str = BASE_AXIS) -> Figure:
    """Panels as `panels` says; on centred axes 1 is where the curve's mean headline is best among rates without divergence.

    Args:
        curves: what `analysis.robustness` returned.
        losses: what `analysis.loss_curve` returned; may be empty.
        xlabel: what multipliers multiply (`analysis.series.name_multipliers`).

    Raises:
        BadInput: if there is nothing to draw.
    """
    shown = panels(curves, losses)
    if not shown:
        raise BadInput("no finished run to draw: run python sweeps/lr_robustness.py first")
    styles = looks(curves.scores)
    beside = num_beside(2, WIDTH_IN, 3.0)
    down = -(-len(shown) // beside)
    figure = new_figure(WIDTH_IN, 0.6 + 2.9 * down, wspace=0.05)
    grid = figure.add_gridspec(down, beside)
    for place, panel in enumerate(shown):
        ax = figure.add_subplot(grid[place // beside, place % beside], label=panel.name)
        _draw_panel(ax, panel, curves, styles, xlabel)
    draw_legend(figure, curves.scores, styles)
    fit_text(figure)
    return figure


def _draw_panel(ax: Axes, panel: Panel, curves: Robustness, styles: dict[str, Look], xlabel: str) -> None:
    centred = panel.x == "over_best"
    multiplier_axis(ax, panel.frame[panel.x], CENTRED_AXIS if centred else xlabel)
    draw_curves(ax, panel.frame, panel.x, styles)
    metric = panel.name.removesuffix(" centred")
    if metric != "loss":
        draw_base_line(ax, curves.base, metric)
    base = float(curves.base.set_index("metric")["mean"].get(metric, np.nan))
    limit_to_means(ax, [panel.frame], base)
    ax.set_title(LOSS_TITLE if metric == "loss" else title_of(metric))
    if centred and metric == headline_of(curves.scores):
        edges = panel.frame.loc[panel.frame["at_edge"], "series"].unique()
        if len(edges):
            add_subtitle(ax, f"best at an end of the rates tried: {', '.join(edges)}")
