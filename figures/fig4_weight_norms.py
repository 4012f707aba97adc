"""Fig. 4 of the DeLoRA paper: the mean column norms of the attention matrices differ by block and kind, hence ‖W‖ in DeLoRA.

The paper does not say whether attn1 or attn2, rows or columns: both attentions are shown, the axis is a choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from adapters.errors import BadInput
from adapters.method_words import BASE_MODEL
from adapters.words import counted
from figures.labels import fit_text
from figures.looks import Look, looks
from figures.panels import place_legend, series_handle
from figures.style import INK, MUTED, new_figure, num_beside, pt, styled

KINDS = {
    "to_q": "Q", "to_k": "K", "to_v": "V", "to_out": "Out", "to_out.0": "Out",
    "query": "Q", "key": "K", "value": "V", "out": "Out",
}  # fmt: skip
PROJECTIONS = ("Q", "K", "V", "Out")  # of an attention
ATTENTIONS = {"attn1": "self-attention (attn1)", "attn2": "cross-attention (attn2)"}
WHISKER = "#d1495b"  # seen on the darkest and the brightest bar


@styled
def draw(norms: pd.DataFrame, *, axis: str = "columns") -> Figure:
    """Bars of the base's norms by block and kind; beside them, where runs are, how much training changed each.

    Args:
        norms: what `analysis.weight_norms` returned, for the same axis.
        axis: "columns" or "rows", for the label.

    Raises:
        BadInput: if the base's norms are missing.
    """
    before = norms[norms["series"] == BASE_MODEL]
    after = name_multipliers(norms[norms["series"] != BASE_MODEL])
    if before.empty:
        raise BadInput("no weight norms of the base model: run python sweeps/weight_norms.py first")
    attentions = [
        name for name in dict.fromkeys(["attn1", "attn2", *before["attention"]]) if name in set(before["attention"])
    ]
    parts = 2 if len(after) else 1
    width_in = 10.4 if parts == 2 else 6.2
    beside = num_beside(parts, width_in, 4.2)
    down = parts * len(attentions) // beside
    figure = new_figure(width_in, 1.0 + 2.3 * down)
    grid = figure.add_gridspec(down, beside)
    styles = looks(after) if len(after) else {}
    blocks, kinds = list(dict.fromkeys(before["block"])), list_kinds(before)
    tops = []
    for i, attention in enumerate(attentions):
        bars = figure.add_subplot(grid[divmod(parts * i, beside)], label=f"{attention} before")
        _draw_bars(bars, before[before["attention"] == attention], blocks, kinds)
        bars.set_title(ATTENTIONS.get(attention, attention))
        bars.set_ylabel(f"mean {axis.removesuffix('s')} norm")
        tops.append(bars)
        if len(after):
            dots = figure.add_subplot(grid[divmod(parts * i + 1, beside)], label=f"{attention} after")
            _draw_change(dots, after[after["attention"] == attention], blocks, kinds, styles)
            dots.set_title("change by training" if i == 0 or beside == 1 else "")
    top = max(ax.get_ylim()[1] for ax in tops)
    for ax in tops:
        ax.set_ylim(0, top)
    _place_legend(figure, after, kinds, styles)
    fit_text(figure)
    return figure


def name_multipliers(after: pd.DataFrame) -> pd.DataFrame:
    """Put the multiplier into the series' name where there are several."""
    several = after.groupby("series")["multiplier"].transform("nunique") > 1
    names = after["series"].astype(object) + after["multiplier"].map(", {:g}x".format).astype(object)
    return after.assign(series=after["series"].where(~several, names))


def list_kinds(norms: pd.DataFrame) -> list[str]:
    """What the matrices are: the projections of an attention, then what else there is."""
    return list(dict.fromkeys([*PROJECTIONS, *(KINDS.get(kind, kind) for kind in norms["kind"])]))


def kind_colors(kinds: Sequence[str] = PROJECTIONS) -> dict[str, tuple[float, float, float]]:
    """Shades that grey print keeps apart."""
    return dict(zip(kinds, sns.color_palette("cividis", len(kinds)), strict=True))


def short_block(block: str) -> str:
    """`down_blocks.0` as `down.0`."""
    return block.replace("_blocks", "").replace("_block", "")


def _slots(frame: pd.DataFrame, blocks: list[str], kinds: list[str]) -> np.ndarray:
    """Where the bars of rows stand: block number plus the kind's place in the block's group."""
    return np.array(
        [blocks.index(block) + _shift(kinds.index(KINDS.get(kind, kind)), len(kinds))
         for block, kind in zip(frame["block"], frame["kind"], strict=True)]
    )  # fmt: skip


def _shift(place: int, count: int) -> float:
    """How far from a block's middle the bar at a place of a group of `count` stands."""
    return 0.2 * 4 / count * (place - (count - 1) / 2)


def _draw_bars(ax: Axes, before: pd.DataFrame, blocks: list[str], kinds: list[str]) -> None:
    width = 0.19 * 4 / len(kinds)
    for kind, color in kind_colors(kinds).items():
        rows = before[before["kind"].map(lambda name: KINDS.get(name, name)) == kind]
        x = _slots(rows, blocks, kinds)
        ax.bar(x, rows["mean"], width=width, color=color, edgecolor=INK, linewidth=pt(0.5), label=kind, zorder=3)
        ax.errorbar(x, rows["mean"], yerr=rows["sd"], fmt="none", ecolor=WHISKER, elinewidth=pt(1.2), zorder=4)
    _name_blocks(ax, blocks)


def _draw_change(ax: Axes, after: pd.DataFrame, blocks: list[str], kinds: list[str], styles: dict[str, Look]) -> None:
    names = list(dict.fromkeys(after["series"]))
    for number, series in enumerate(names):
        look, shift = styles[series], min(0.045, 0.13 / len(names)) * (number - (len(names) - 1) / 2)
        rows = after[after["series"] == series]
        ax.plot(
            _slots(rows, blocks, kinds) + shift, 100 * rows["change"], ls="none", ms=pt(4.5), zorder=3, **look.marks()
        )
    ax.axhline(0, color=INK, lw=pt(0.9))
    ax.set_ylabel("change of the mean norm (%)")
    _name_blocks(ax, blocks)
    for place in range(len(blocks)):
        for slot, kind in enumerate(kinds):
            ax.text(
                place + _shift(slot, len(kinds)),
                0.985,
                kind,
                transform=ax.get_xaxis_transform(),
                fontsize=pt(6),
                color=MUTED,
                ha="center",
                va="top",
            )
    ax.margins(y=0.14)


def _name_blocks(ax: Axes, blocks: list[str]) -> None:
    ax.set_xticks(range(len(blocks)), [short_block(block) for block in blocks])
    ax.set_xlim(-0.6, len(blocks) - 0.4)
    ax.grid(False, axis="x")
    ax.tick_params(axis="x", length=0)
    for edge in range(1, len(blocks)):
        ax.axvline(edge - 0.5, color="#eeeeee", lw=pt(0.8), zorder=0)


def _place_legend(figure: Figure, after: pd.DataFrame, kinds: list[str], styles: dict[str, Look]) -> None:
    handles: list[Artist] = [
        Patch(facecolor=color, edgecolor=INK, linewidth=pt(0.5), label=kind)
        for kind, color in kind_colors(kinds).items()
    ]
    for series, rows in after.groupby("series", sort=False):
        label = f"{series} (n = {counted(int(rows['num_runs'].max()), 'run')})"
        handles.append(series_handle(label, styles[str(series)]._replace(line_style="none")))
    place_legend(figure, handles, "Bars: base model; whiskers: s.d. inside a matrix, mean over the block's matrices")
