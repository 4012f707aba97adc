"""What training does to each block of the U-Net, against the step: lambda, distance, spread of column norms; or spectra.

The DeLoRA paper shows means over all matrices (Fig. 3) and says that blocks differ in their norms (Fig. 4); here both meet.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adapters.errors import BadInput
from analysis.norms import block_order
from figures.fig4_weight_norms import short_block
from figures.labels import fit_text, from_zero
from figures.looks import Look, looks, shades
from figures.panels import draw_curves, draw_legend, limit_to_means, plain_log_axis
from figures.style import multiplier_text, new_figure, num_beside, styled

ROWS = {
    "lambda": "λ",
    "distance_rel": "distance\n‖Wₜ − W₀‖ / ‖W₀‖",
    "distance": "distance\n‖Wₜ − W₀‖",
    "colnorm_spread": "column norms:\ns.d. / mean",
    "effective_rank": "effective rank\nof Wₜ − W₀",
    "energy_1": "energy in the\nfirst direction",
    "energy_2": "energy in the\nfirst 2 directions",
    "energy_4": "energy in the\nfirst 4 directions",
    "intruders": "intruder dimensions\nof the first 10",
}
PANEL_IN = 1.55  # width and height of a panel
MOST_MARKED = 6  # points of a curve that are marked each
LOG_FROM = 30.0  # ratio of the ends of curves from which an axis is logarithmic


@styled
def draw(curves: pd.DataFrame) -> Figure:
    """One column a block, one row a quantity, one line a series, or a multiplier of the one series there is.

    Args:
        curves: `analysis.block_curves(results)`, or of other quantities (`SPECTRA`), or of one series with `by_multiplier=True`.

    Raises:
        BadInput: if there is nothing to draw.
    """
    if curves.empty:
        raise BadInput("no run that has left its dynamics by block: run python sweeps/prolonged_training.py first")
    curves, styles = name_lines(curves)
    blocks = sorted(curves["block"].unique(), key=lambda name: (*block_order(name), name))
    names = [name for name in ROWS if name in set(curves["quantity"])]
    width_in = 1.1 + PANEL_IN * max(len(blocks), 3)
    beside = num_beside(len(blocks), width_in, PANEL_IN)
    strips = [blocks[start : start + beside] for start in range(0, len(blocks), beside)]
    figure = new_figure(width_in, 0.9 + len(strips) * (0.3 + len(names) * 0.9 * PANEL_IN))
    grid = figure.add_gridspec(len(strips) * len(names), beside)
    for down, name in enumerate(names):
        frame = curves[curves["quantity"] == name]
        axes = {}
        for place, block in enumerate(blocks):
            strip, column = divmod(place, beside)
            axes[block] = figure.add_subplot(grid[strip * len(names) + down, column], label=f"{name} {block}")
            draw_curves(axes[block], frame[frame["block"] == block], "step", styles, markers=is_marked(frame))
        _share_limits(list(axes.values()), frame)
        for place, (block, ax) in enumerate(axes.items()):
            if down == 0:
                ax.set_title(short_block(block))
            label = ROWS[name] + ("\n(last step only)" if frame["step"].nunique() == 1 else "")
            _name_axes(ax, label, is_first=place % beside == 0, is_last=down == len(names) - 1)
    last = float(curves["step"].max()) or 1.0
    for ax in figure.axes:
        ax.set_xlim(-0.05 * last, 1.05 * last)
    draw_legend(figure, curves, styles, base=False)
    fit_text(figure)
    return figure


def name_lines(curves: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Look]]:
    """The curves with the names of their lines, and each line's look: the series', or shades of multipliers."""
    if "multiplier" not in curves:
        return curves, looks(curves)
    ordered = curves.sort_values(["multiplier", "step"], kind="stable")
    named = ordered.assign(series=ordered["series"] + ", " + ordered["multiplier"].map(multiplier_text) + "×")
    return named, shades(named["series"].unique())


def is_marked(frame: pd.DataFrame) -> bool:
    """Whether curves have so few points that each is marked: what lies between them is not known."""
    return frame["step"].nunique() <= MOST_MARKED


def _share_limits(axes: list[Axes], frame: pd.DataFrame) -> None:
    """The same y axis in every panel of a quantity, logarithmic where the ends of its curves lie far apart."""
    ends = frame[frame["step"] == frame["step"].max()]["mean"].astype(float)
    above = ends[ends > 0]
    for ax in axes:
        if len(above) and (ends >= 0).all() and above.max() > LOG_FROM * above.min():
            plain_log_axis(ax, above)
        limit_to_means(ax, [frame])
        if (frame["quantity"] == "lambda").all() and ax.get_yscale() == "linear":
            from_zero(ax)


def _name_axes(ax: Axes, label: str, *, is_first: bool, is_last: bool) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    ax.tick_params(labelleft=is_first, labelbottom=is_last)
    if is_first:
        ax.set_ylabel(label)
    if is_last:
        ax.set_xlabel("training step")
