"""The norms of Fig. 4 as heatmaps, kinds down and blocks across, and beside them what training changed."""

from __future__ import annotations

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adapters import BadInput
from figures.fig4_weight_norms import ATTENTIONS, BEFORE, KINDS, name_multipliers, short_block
from figures.labels import fit_text
from figures.style import new_figure, pt, room_in, styled

PANEL_IN = 4.2


@styled
def draw(norms: pd.DataFrame) -> Figure:
    """One heatmap an attention of the base's mean norms, and one for every series of their change in percent.

    Args:
        norms: what `analysis.weight_norms` returned.

    Raises:
        BadInput: if the base's norms are missing.
    """
    before, after = norms[norms["series"] == BEFORE], name_multipliers(norms[norms["series"] != BEFORE])
    if before.empty:
        raise BadInput("no weight norms of the untouched base: run python sweeps/weight_norms.py first")
    after = after.assign(change=100 * after["change"])
    panels = [(BEFORE, *part) for part in before.groupby("attention", sort=False)]
    panels += [
        (name, *part) for name, rows in after.groupby("series", sort=False) for part in rows.groupby("attention")
    ]
    beside = max(1, min(2, int(room_in(2 * PANEL_IN) / 3.4)))
    down = -(-len(panels) // beside)
    figure = new_figure(2 * PANEL_IN, 0.3 + 1.9 * down)
    axes = figure.subplots(down, beside, squeeze=False).ravel()
    reach = float(after["change"].abs().max()) if len(after) else 0.0
    for ax, (series, attention, rows) in zip(axes, panels, strict=False):
        ax.set_label(f"{series} {attention}")
        is_base = series == BEFORE
        limits = {"cmap": "cividis"} if is_base else {"cmap": "vlag", "vmin": -reach, "vmax": reach}
        _draw_blocks(ax, rows, "mean" if is_base else "change", limits)
        where = ATTENTIONS.get(attention, attention)
        ax.set_title(f"{where}: mean norm, {series}" if is_base else f"{where}: change in %, {series}")
    for ax in axes[len(panels) :]:
        ax.remove()
    fit_text(figure)
    return figure


def _draw_blocks(ax: Axes, rows: pd.DataFrame, measure: str, limits: dict[str, Any]) -> None:
    rows = rows.assign(kind=rows["kind"].map(lambda kind: KINDS.get(kind, kind)), block=rows["block"].map(short_block))
    table = rows.pivot_table(measure, "kind", "block", sort=False, observed=True)
    sns.heatmap(
        table, ax=ax, annot=True, fmt=".3g", cbar=False, linewidths=pt(0.5), annot_kws={"fontsize": pt(7)}, **limits
    )
    ax.set(xlabel="", ylabel="")
    ax.tick_params(length=0, rotation=0)
    ax.grid(False)
