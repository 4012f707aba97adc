"""The norms of Fig. 4 as heatmaps, kinds against blocks, and below them what training changed."""

from __future__ import annotations

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adapters.errors import BadInput
from adapters.method_words import BASE_MODEL
from figures.fig4_weight_norms import ATTENTIONS, KINDS, name_multipliers, short_block
from figures.labels import fit_text, wrap
from figures.style import new_figure, pt, room_in, styled

WIDTH_IN = 6.4


@styled
def draw(norms: pd.DataFrame) -> Figure:
    """One heatmap an attention of the base's mean norms, and one of their change by series, mean over kinds.

    Args:
        norms: what `analysis.weight_norms` returned.

    Raises:
        BadInput: if the base's norms are missing.
    """
    before, after = norms[norms["series"] == BASE_MODEL], name_multipliers(norms[norms["series"] != BASE_MODEL])
    if before.empty:
        raise BadInput("no weight norms of the base model: run python sweeps/weight_norms.py first")
    most_pt = 72 * pt(min(2.6, 0.35 * room_in(WIDTH_IN)))
    names = {name: "\n".join(wrap(str(name), most_pt, pt(8.5))) for name in after["series"].unique()}
    lines = 1 + max((name.count("\n") for name in names.values()), default=0)
    before = before.assign(kind=before["kind"].map(lambda kind: KINDS.get(kind, kind)))
    after = after.assign(change=100 * after["change"], row=after["series"].map(names))
    attentions = list(dict.fromkeys(before["attention"]))
    shown = [(BASE_MODEL, before, "kind", "mean"), *([("change in %", after, "row", "change")] if len(after) else [])]
    heights = [
        1.0 + 0.2 * rows[down].nunique() * (lines if down == "row" else 1)
        for _, rows, down, _ in shown
        for _ in attentions
    ]
    figure = new_figure(WIDTH_IN, sum(heights))
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights).ravel()
    reach = float(after["change"].abs().max()) if len(after) else 0.0
    panels = [(*one, name) for one in shown for name in attentions]
    for ax, (title, rows, down, measure, attention) in zip(axes, panels, strict=True):
        ax.set_label(f"{title} {attention}")
        limits = {"cmap": "cividis"} if down == "kind" else {"cmap": "vlag", "vmin": -reach, "vmax": reach}
        _draw_blocks(ax, rows[rows["attention"] == attention], down, measure, limits)
        words = "mean norm, base model" if down == "kind" else "its change by training in %, mean over kinds"
        ax.set_title(f"{ATTENTIONS.get(attention, attention)}: {words}")
    fit_text(figure)
    return figure


def _draw_blocks(ax: Axes, rows: pd.DataFrame, down: str, measure: str, limits: dict[str, Any]) -> None:
    rows = rows.assign(block=rows["block"].map(short_block))
    table = rows.pivot_table(measure, down, "block", sort=False, observed=True)
    sns.heatmap(
        table, ax=ax, annot=True, fmt=".3g", cbar=False, linewidths=pt(0.5), annot_kws={"fontsize": pt(7)}, **limits
    )
    ax.set(xlabel="", ylabel="")
    ax.tick_params(length=0, rotation=0)
    ax.grid(False)
