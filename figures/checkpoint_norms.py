"""How far an adapter moves each matrix of the U-Net, block by block: one dot for each matrix, one bar for each block.

    python -m figures.checkpoint_norms TABLE.csv PICTURE.png TITLE

The table is what `python -m training.export --inspect` writes; that command draws the picture with this one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from adapters.errors import BadInput
from figures.fig4_weight_norms import KINDS, kind_colors
from figures.panels import by_row, legend_columns
from figures.style import DPI, INK, MUTED, new_figure, pt, styled
from training.command_line import end_well
from training.store import writing

BAR = "#dcdcdc"


@styled
def draw(rows: pd.DataFrame, title: str) -> Figure:
    """Dots for matrices by kind of projection, bars for each block's median; relative to W0 where that is known.

    A text encoder's matrices are drawn only where the adapter has no others.

    Args:
        rows: columns component, block, kind, distance, distance_rel, one row a matrix.
        title: of the figure.

    Raises:
        BadInput: no distance is known.
    """
    rows = rows[rows["distance"].notna()]
    if rows.empty:
        raise BadInput("the table holds no distance: name the base model when it is made")
    rows = rows[rows["component"] == "unet"] if "unet" in set(rows["component"]) else rows
    relative = bool(rows["distance_rel"].notna().all())
    values = rows["distance_rel"] * 100 if relative else rows["distance"]
    blocks = sorted(dict.fromkeys(rows["block"]), key=_depth)
    figure = new_figure(max(5.5, 0.62 * len(blocks) + 1.8), 3.6)
    ax = figure.add_subplot()
    position = rows["block"].map(blocks.index).to_numpy(dtype=float)
    medians = values.groupby(position).median()
    ax.bar(medians.index, medians, width=0.8, color=BAR, zorder=1, label="median of the block")
    names = rows["kind"].map(lambda kind: KINDS.get(kind, "other"))
    colors = {**kind_colors(), "other": "#b00020"}
    for number, (name, color) in enumerate(colors.items()):
        chosen = (names == name).to_numpy()
        if chosen.any():
            ax.plot(
                position[chosen] + 0.13 * (number - 2), values[chosen], ls="none", marker="o", ms=pt(4.5), color=color,
                mec=INK, mew=pt(0.4), zorder=3, label=f"{name} (n = {chosen.sum()})",
            )  # fmt: skip
    ax.set_ylim(bottom=0)
    ax.set_ylabel("‖ΔW‖ in % of ‖W0‖" if relative else "‖ΔW‖")
    labels = [name.replace("_blocks", "").replace("_block", "") for name in blocks]
    ax.set_xticks(range(len(blocks)), labels)
    ax.set_xlim(-0.6, len(blocks) - 0.4)
    ax.grid(False, axis="x")
    ax.tick_params(axis="x", length=0)
    ax.set_title(title)
    handles, labels = ax.get_legend_handles_labels()
    columns = legend_columns(labels, figure.get_figwidth())
    figure.legend(
        by_row(handles, columns), by_row(labels, columns), loc="outside lower center", ncols=columns, labelcolor=MUTED
    )
    return figure


def _depth(block: str) -> tuple[int, int]:
    """Down, mid and up blocks in the order in which the U-Net runs through them; a text encoder's layers by number."""
    side, _, number = block.partition(".")
    order = ["down_blocks", "mid_block", "up_blocks"]
    return order.index(side) if side in order else len(order), int(number or 0) if number.isdigit() or not number else 0


def main(arguments: list[str]) -> int:
    """Draw a table; returns the exit code.

    Raises:
        BadInput: for another number of arguments.
    """
    if len(arguments) != 3:
        raise BadInput(f"checkpoint_norms takes TABLE PICTURE TITLE, not {' '.join(arguments) or 'nothing'}")
    table, picture, title = arguments
    rows = pd.read_csv(table, keep_default_na=True).replace({"attention": {np.nan: ""}})
    with writing(Path(picture)) as aside:
        draw(rows, title).savefig(aside, format="png", dpi=DPI)
    return 0


if __name__ == "__main__":
    sys.exit(end_well(lambda: main(sys.argv[1:])))
