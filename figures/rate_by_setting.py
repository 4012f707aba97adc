"""Where does a method do best? A heatmap of scores by rate and setting for each method, its best cell framed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from adapters.errors import BadInput
from analysis.series import BASE_AXIS
from figures.labels import fit_text
from figures.plateau_vs_setting import TITLES, in_order, value_name
from figures.style import ALARM, METRIC_TITLES, multiplier_text, new_figure, num_beside, pt, styled

PANEL_IN, ROW_IN = 4.2, 0.34


@styled
def draw(frame: pd.DataFrame, metric: str = "dino", xlabel: str = BASE_AXIS) -> Figure:
    """One heatmap a setting and series: its values down, multipliers across, every cell with its mean score.

    Args:
        frame: `analysis.scores_by_setting(...)`.
        metric: the score.
        xlabel: what multipliers multiply (`analysis.series.name_multipliers`).

    Raises:
        BadInput: if there is nothing to draw.
    """
    rows = frame[frame["metric"] == metric]
    if rows.empty:
        raise BadInput("no finished run to draw: run python sweeps/rank_robustness.py first")
    tables = {key: _table(part) for key, part in rows.groupby(["setting", "series"], sort=False)}
    wanted = min(3, len(tables))
    beside = num_beside(wanted, PANEL_IN * wanted, 3.6)
    down = -(-len(tables) // beside)
    figure = new_figure(PANEL_IN * wanted, 0.5 + down * (1.0 + ROW_IN * max(map(len, tables.values()))))
    axes = figure.subplots(down, beside, squeeze=False).ravel()
    limits = {"vmin": float(rows["mean"].min()), "vmax": float(rows["mean"].max())}
    for ax, ((setting, series), table) in zip(axes, tables.items(), strict=False):
        ax.set_label(f"{setting} {series}")
        _draw_table(ax, table, limits)
        ax.set(xlabel=xlabel, ylabel=TITLES.get(setting, setting.replace("_", " ")))
        ax.set_title(f"{series}: {METRIC_TITLES.get(metric, metric)}")
    for ax in axes[len(tables) :]:
        ax.remove()
    fit_text(figure)
    return figure


def _table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means, the setting's values down as words, multipliers across as words."""
    setting = str(rows["setting"].iloc[0])
    table = rows.pivot_table("mean", "value", "multiplier", observed=True).loc[in_order(setting, rows["value"])]
    return table.rename(index=lambda value: value_name(setting, value), columns=multiplier_text)


def _draw_table(ax: Axes, table: pd.DataFrame, limits: dict[str, float]) -> None:
    sns.heatmap(table, ax=ax, annot=True, fmt=".2f", cmap="cividis", cbar=False, linewidths=pt(0.5),
                annot_kws={"fontsize": pt(7)}, **limits)  # fmt: skip
    ax.tick_params(length=0, rotation=0)
    ax.grid(False)
    row, column = np.unravel_index(np.nanargmax(table.to_numpy(dtype=float)), table.shape)
    frame: dict[str, Any] = {
        "fill": False,
        "edgecolor": ALARM,
        "lw": pt(2.2),
        "zorder": 4,
        "label": "_best",
        "clip_on": False,
    }
    ax.add_patch(Rectangle((int(column), int(row)), 1, 1, **frame))
