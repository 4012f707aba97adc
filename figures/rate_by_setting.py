"""Where does a method do best, and does its best rate move? Heatmaps of scores by rate and setting, as they are and centred."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from adapters.errors import BadInput
from analysis.metrics import headline_of, sign_of, title_of
from analysis.series import BASE_AXIS
from figures.labels import add_subtitle, fit_text
from figures.plateau_vs_setting import TITLES, in_order, value_name
from figures.style import ALARM, count_text, multiplier_text, new_figure, num_beside, pt, styled

PANEL_IN, ROW_IN = 3.1, 0.34
CELL_IN, MOST_IN = 0.36, 14.0  # width that a cell's number needs, and that four panels may have
CENTRED_AXIS = "multiple of the row's own best rate"


@styled
def draw(frame: pd.DataFrame, metric: str | None = None, xlabel: str = BASE_AXIS) -> Figure:
    """Two heatmaps a setting and series, the setting's values down: mean scores by multiplier, and what the row's best is above.

    On the left every row's best is framed thinly and the best of all thickly; on the right rates are multiples of the row's best.
    A point at which a run diverged is never the best.

    Args:
        frame: `analysis.scores_by_setting(...)` or `analysis.scores_by_step(...)`.
        metric: the score; None: the headline of those in the frame.
        xlabel: what multipliers multiply (`analysis.series.name_multipliers`).

    Raises:
        BadInput: if there is nothing to draw.
    """
    metric = metric or headline_of(frame)
    rows = frame[frame["metric"] == metric]
    if rows.empty:
        raise BadInput("no finished run to draw: run python sweeps/rank_robustness.py first")
    parts = dict(list(rows.groupby(["setting", "series"], sort=False)))
    num_cells = max(part[["multiplier", "over_best"]].nunique().max() for part in parts.values())
    panel_in = max(PANEL_IN, 0.9 + CELL_IN * num_cells)
    wanted = 4 if len(parts) > 1 and 4 * panel_in <= MOST_IN else 2
    beside = max(1, num_beside(wanted, panel_in * wanted, 0.95 * panel_in) // 2 * 2)
    down = -(-2 * len(parts) // beside)
    height = 1.1 + ROW_IN * max(part["value"].nunique() for part in parts.values())
    figure = new_figure(panel_in * wanted, 0.4 + down * height)
    for number, ((setting, series), part) in enumerate(parts.items()):
        for side, draw_side in enumerate((_draw_scores, _draw_centred)):
            ax = figure.add_subplot(down, beside, 2 * number + side + 1)
            ax.set(label=f"{setting} {series}{' centred' * side}")
            draw_side(ax, part, rows, xlabel)
            ax.set_ylabel(TITLES.get(setting, setting.replace("_", " ")))
    fit_text(figure)
    return figure


def _draw_scores(ax: Axes, part: pd.DataFrame, rows: pd.DataFrame, xlabel: str) -> None:
    """Mean scores, every row's best framed; where subjects are missing at some rates, each cell has its number of them."""
    differ, diverged = part["num_subjects"].nunique() > 1, part["num_diverged"] > 0
    words = [f"{mean:.2f}{'×' * lost}" for mean, lost in zip(part["mean"], diverged, strict=True)]
    if differ:
        words = [f"{word}\nn={count}" for word, count in zip(words, part["num_subjects"], strict=True)]
    _draw_heatmap(ax, part.assign(words=words), "multiplier", "mean", (rows["mean"].min(), rows["mean"].max()))
    is_best = part["multiplier"] == part["best_multiplier"]
    metric = str(part["metric"].iloc[0])
    best = part["mean"].where(is_best)
    top = best.max() if sign_of(metric) > 0 else best.min()
    for row in part[is_best].itertuples():
        _frame_cell(ax, part, row.value, row.multiplier, pt(2.4 if row.mean == top else 1.0))
    ax.set(xlabel=xlabel, title=f"{part['series'].iloc[0]}: {title_of(metric)}, {count_text(part)}")
    if diverged.any():
        add_subtitle(ax, "×: some runs diverged")


def _draw_centred(ax: Axes, part: pd.DataFrame, rows: pd.DataFrame, _: str) -> None:
    """What each row's best is better than its other rates, in hundredths, over multiples of that best rate."""
    known = part.dropna(subset=["over_best"])
    metric = str(part["metric"].iloc[0])
    words = f"{title_of(metric)} − row's best" if sign_of(metric) > 0 else f"row's best − {title_of(metric)}"
    ax.set_title(f"100 × ({words})")
    if known.empty:
        ax.set(xticks=[], yticks=[])
        middle: dict[str, Any] = {"ha": "center", "va": "center", "transform": ax.transAxes, "fontsize": pt(8)}
        ax.text(0.5, 0.5, "no rate without divergence", **middle)
        return
    cells = [f"{round(100 * below)}".replace("-", "−") for below in known["below_best"]]
    _draw_heatmap(ax, known.assign(words=cells), "over_best", "below_best", (rows["below_best"].min(), 0.0))
    ax.set_xlabel(CENTRED_AXIS)


def _draw_heatmap(ax: Axes, part: pd.DataFrame, x: str, values: str, limits: tuple[float, float]) -> None:
    """One cell a row of the frame, the setting's values down, with the frame's words in it."""
    setting = str(part["setting"].iloc[0])
    wide = part.pivot(index="value", columns=x, values=[values, "words"])
    wide = wide.loc[in_order(setting, part["value"])]
    table = wide[values].rename(index=lambda value: value_name(setting, value), columns=multiplier_text).astype(float)
    style: dict[str, Any] = {"linewidths": pt(0.5), "annot_kws": {"fontsize": pt(7)}, "cmap": "cividis", "cbar": False}
    low, high = limits
    sns.heatmap(table, ax=ax, annot=wide["words"].fillna("").to_numpy(), fmt="", vmin=low, vmax=high, **style)
    ax.set(xlabel="", ylabel="")
    ax.tick_params(length=0, rotation=0)
    ax.grid(False)


def _frame_cell(ax: Axes, part: pd.DataFrame, value: float, multiplier: float, width: float) -> None:
    row = in_order(str(part["setting"].iloc[0]), part["value"]).index(value)
    column = np.sort(part["multiplier"].unique()).tolist().index(multiplier)
    frame: dict[str, Any] = {"edgecolor": ALARM, "lw": width, "zorder": 4, "label": "_best", "clip_on": False}
    ax.add_patch(Rectangle((column, row), 1, 1, fill=False, **frame))
