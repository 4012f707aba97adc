"""Does a setting move the plateau? Height, mean gain and half-gain width against rank, lambda's start, weight decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adapters.errors import BadInput
from analysis.metrics import headline_of, title_of
from figures.labels import fit_text
from figures.looks import Look, looks
from figures.panels import BASE_DASHES, draw_legend, limit_to_means
from figures.style import INK, MUTED, new_figure, num_beside, pt, styled
from figures.task_in_use import unit, units

ROWS = {"peak": "peak of {}", "area": "mean gain in {}", "half_width": "half-gain width in octaves"}
TITLES = {
    "rank": "rank",
    "boundary": "λ at the start",
    "adam_weight_decay": "weight decay",
    "num_instance_images": "pictures of the subject",
    "prior_loss_weight": "prior-preservation weight",
    "d_coef": "factor on Prodigy's estimate",
    "steps": "training steps",
}
DODGE = 0.12  # between neighbouring series, in places of the axis


@styled
def draw(frame: pd.DataFrame, metric: str | None = None) -> Figure:
    """One column a setting, its values evenly spaced; rows: peak, mean gain over the grid of rates, half-gain width.

    Args:
        frame: `analysis.plateau_by_setting(...)`.
        metric: the score; None: the headline of those in the frame.

    Raises:
        BadInput: if there is nothing to draw.
    """
    metric = metric or headline_of(frame)
    rows = frame[frame["metric"] == metric]
    if rows.empty:
        raise BadInput("no finished run to draw: run python sweeps/setting_robustness.py first")
    styles, settings, base = looks(rows), list(rows["setting"].unique()), float(rows["base"].mean())
    names = [title.format(title_of(metric)) for title in ROWS.values()]
    figure, columns = _new_panels(len(settings), names)
    for column, setting in zip(columns, settings, strict=True):
        part = rows[rows["setting"] == setting]
        for ax, measure in zip(column, ROWS, strict=True):
            ax.set_label(f"{setting} {measure}")
            _draw_measure(ax, part, measure, styles)
        column[0].axhline(base, color=INK, ls=BASE_DASHES, lw=pt(1.1), zorder=2, label="_base")
        _name_values(column[-1], setting, part["value"])
    peak, area, width = columns[0]
    limit_to_means(peak, [_as_curve(rows, "peak")], base)
    limit_to_means(area, [_as_curve(rows, "area")])
    top = width.get_ylim()[1]
    width.set_ylim(-0.06 * top, 1.06 * top)
    open_mark = Line2D(
        [], [], ls="none", marker="^", ms=pt(7), mfc="none", color=MUTED, label="at least so wide: an end is open"
    )
    most = rows["num_subjects"].max()
    few = f"One {unit()}: no interval" if most < 2 else f"Two {units()}: no interval"
    text = f"Bars: 95 % intervals over {units()}" if most > 2 else few
    draw_legend(
        figure,
        rows,
        styles,
        marks=[open_mark] if rows[["half_open_low", "half_open_high"]].any(axis=None) else [],
        title=text,
    )
    fit_text(figure)
    return figure


def _new_panels(num_settings: int, names: Sequence[str]) -> tuple[Figure, list[list[Axes]]]:
    """The figure and every setting's column of panels; columns that do not fit beside the others stand below them."""
    width_in = max(5.5, 0.9 + 2.7 * num_settings)
    beside = num_beside(num_settings, width_in, 1.75)
    figure = new_figure(width_in, 0.4 + 5.4 * -(-num_settings // beside))
    grid = figure.add_gridspec(len(ROWS) * -(-num_settings // beside), beside)
    columns: list[list[Axes]] = []
    for number in range(num_settings):
        first, shared = columns[0] if columns else [None] * len(ROWS), None
        columns.append([])
        for row, other in enumerate(first):
            place = grid[number // beside * len(ROWS) + row, number % beside]
            shared = figure.add_subplot(place, sharex=shared, sharey=other)
            shared.tick_params(labelleft=number % beside == 0, labelbottom=row == len(ROWS) - 1)
            shared.set_ylabel(names[row] if number % beside == 0 else "")
            columns[-1].append(shared)
    return figure, columns


def _draw_measure(ax: Axes, rows: pd.DataFrame, measure: str, styles: Mapping[str, Look]) -> None:
    """One measure of every series over the values' places, with bars, and a triangle where a width is a lower bound."""
    places = {value: place for place, value in enumerate(in_order(rows["setting"].iloc[0], rows["value"]))}
    names = list(rows["series"].unique())
    for number, name in enumerate(names):
        look, own = styles[name], rows[rows["series"] == name]
        own = own.assign(place=own["value"].map(places) + DODGE * (number - (len(names) - 1) / 2)).sort_values("place")
        y, low, high = (own[column].to_numpy(dtype=float) for column in (measure, f"{measure}_low", f"{measure}_high"))
        ax.plot(own["place"], y, color=look.color, ls=look.line_style, label=name, zorder=3, **look.marks())
        low, high = (np.where(own["num_subjects"] > 2, end, np.nan) for end in (low, high))
        ax.vlines(own["place"], low, high, color=look.color, lw=pt(1.1), zorder=2.5, label=f"_bar {name}")
        is_open = (own["half_open_low"] | own["half_open_high"]).to_numpy(dtype=bool)
        if measure == "half_width" and is_open.any():
            ring: dict[str, Any] = {
                "marker": "^",
                "ms": pt(12),
                "mfc": "none",
                "color": look.color,
                "label": f"_open {name}",
            }
            ax.plot(own["place"][is_open], y[is_open], ls="none", zorder=4, **ring)


def _as_curve(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """A measure and its interval under the names that curves have."""
    return rows[["series"]].assign(mean=rows[measure], low=rows[f"{measure}_low"], high=rows[f"{measure}_high"])


def in_order(setting: str, values: pd.Series) -> list[float]:
    """The values, increasing; no limit on the number of pictures, which is stored as 0, comes last."""
    unlimited = setting == "num_instance_images"
    return sorted(map(float, values.unique()), key=lambda value: np.inf if unlimited and value == 0 else value)


def value_name(setting: str, value: float) -> str:
    """A setting's value in words: all pictures, which are stored as 0, are all."""
    return "all" if setting == "num_instance_images" and value == 0 else f"{value:g}"


def _name_values(ax: Axes, setting: str, values: pd.Series) -> None:
    ordered = in_order(setting, values)
    ax.set_xticks(range(len(ordered)), [value_name(setting, value) for value in ordered])
    ax.set_xlim(-0.5, len(ordered) - 0.5)
    ax.set_xlabel(TITLES.get(setting, setting.replace("_", " ")))
