"""Names at the ends of curves, which keep apart and are told apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from figures.style import pt

MOST_LETTERS = 24


def label_ends(
    ax: Axes, ends: Sequence[tuple[float, float, str, str]], *, gap_pt: float = 10.5, fontsize: float = 8.5
) -> None:
    """Write names at the right ends of curves, moved apart where they would overlap.

    Args:
        ax: the axes, its limits final.
        ends: (x, y, name, colour) of the last point of each curve; none is named if there are more than fit.
        gap_pt: smallest distance between two lines of text.
        fontsize: of the text. Both are what they are on the screen.
    """
    figure = ax.get_figure(root=True)
    if not ends or figure is None:
        return
    gap, size = pt(gap_pt), pt(fontsize)
    figure.draw_without_rendering()  # so that the layout, and with it the place of every point, is final
    scale = 72 / figure.dpi
    height = ax.get_window_extent().height * scale
    bottom = ax.get_window_extent().y0
    if gap * len(ends) > height:
        return  # more names than the panel has lines: they stand in the legend
    places = [(float(ax.transData.transform((x, y))[1]) - bottom) * scale for x, y, _, _ in ends]
    names = shorten([name for _, _, name, _ in ends])
    for place, name, (x, y, _, color) in zip(spread(places, gap, pt(3), height - pt(3)), names, ends, strict=True):
        at = (float(ax.transData.transform((x, y))[1]) - bottom) * scale
        ax.annotate(
            name, (x, y), (pt(9), place - at), textcoords="offset points", fontsize=size, color=color, va="center",
            annotation_clip=False, zorder=6,
            arrowprops={"arrowstyle": "-", "color": color, "lw": pt(0.6), "shrinkA": 0, "shrinkB": pt(3), "relpos": (0, 0.5)},
        )  # fmt: skip


def shorten(names: Sequence[str], letters: int = MOST_LETTERS) -> list[str]:
    """Names that are no longer than that, cut with an ellipsis, at their beginnings where that is what they share.

    The legend has them whole.
    """
    cut = [name if len(name) <= letters else f"{name[: letters - 1]}…" for name in names]
    tails = [name if len(name) <= letters else f"…{name[1 - letters :]}" for name in names]
    return [tail if cut.count(head) > 1 else head for head, tail in zip(cut, tails, strict=True)]


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move numbers apart until neighbours are `gap` away from each other, as little as possible, inside [low, high]."""
    order = np.argsort(places, kind="stable")
    wanted = np.asarray(places, dtype=float)[order]
    shifted = wanted - gap * np.arange(len(wanted))
    groups: list[list[float]] = []
    for value in shifted:  # pool adjacent violators: the least-squares increasing sequence
        groups.append([value])
        while len(groups) > 1 and np.mean(groups[-2]) > np.mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    flat = np.concatenate([np.full(len(group), np.mean(group)) for group in groups])
    flat = np.clip(flat, low, max(low, high - gap * (len(wanted) - 1))) + gap * np.arange(len(wanted))
    result = np.empty(len(wanted))
    result[order] = flat
    return [float(value) for value in result]
