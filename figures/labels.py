"""Place labels: names at the ends of curves, and lines no longer than what they describe."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator

from figures.style import MUTED, lay_out, pt

MOST_LETTERS, LEAST_LETTERS = 24, 12
HINTING = 1.05  # what rounding to pixels may add to a width
MOST_ROUNDS = 4  # of laying a figure out; two are enough but where a broken line moves others
SUBTITLE = "subtitle"  # what marks it
SPARE = 0.8  # of a panel's height may be the label at its side, for one title more to change nothing
SHARE = 0.3  # of a figure's width that names at its right may take

End = tuple[float, float, str, str]  # of a curve: x, y, name, colour


def label_ends(ax: Axes, ends: Sequence[End], *, gap_pt: float = 10.5, fontsize: float = 8.5) -> list[Text]:
    """Write names at the right ends of curves, moved apart where they would overlap; returns what was written.

    Args:
        ax: the axes, its limits final and its figure laid out.
        ends: (x, y, name, colour) of the last point of each curve; none is named if there are more than fit.
        gap_pt: smallest distance between two lines of text.
        fontsize: of the text. Both are what they are on the screen.
    """
    figure = ax.get_figure(root=True)
    if not ends or figure is None:
        return []
    gap, size = pt(gap_pt), pt(fontsize)
    scale = 72 / figure.dpi
    height = ax.get_window_extent().height * scale
    bottom = ax.get_window_extent().y0
    if gap * len(ends) > height:
        return []  # more names than the panel has lines: they stand in the legend
    places = [(float(ax.transData.transform((x, y))[1]) - bottom) * scale for x, y, _, _ in ends]
    letters = min(MOST_LETTERS, int(SHARE * figure.get_figwidth() * 72 / (0.6 * size)))
    if letters < LEAST_LETTERS:
        return []  # the panel would be all names
    names = shorten([name for _, _, name, _ in ends], letters)
    written: list[Text] = []
    for place, name, (x, y, _, color) in zip(spread(places, gap, pt(3), height - pt(3)), names, ends, strict=True):
        at = (float(ax.transData.transform((x, y))[1]) - bottom) * scale
        mark = ax.annotate(
            name, (x, y), (pt(9), place - at), textcoords="offset points", fontsize=size, color=color, va="center",
            annotation_clip=False, zorder=6,
            arrowprops={"arrowstyle": "-", "color": color, "lw": pt(0.6), "shrinkA": 0, "shrinkB": pt(3), "relpos": (0, 0.5)},
        )  # fmt: skip
        written.append(mark)
    return written


def shorten(names: Sequence[str], letters: int = MOST_LETTERS) -> list[str]:
    """Names that are no longer than that, cut with an ellipsis, at their beginnings where that is what they share.

    The legend has them whole.
    """
    cut = [name if len(name) <= letters else f"{name[: letters - 1]}…" for name in names]
    tails = [name if len(name) <= letters else f"…{name[1 - letters :]}" for name in names]
    return [tail if cut.count(head) > 1 else head for head, tail in zip(cut, tails, strict=True)]


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move numbers apart until neighbours are `gap` away from each other, as little as possible, inside [low, high]."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(order))
    flat = isotonic_regression(np.asarray(places, dtype=float)[order] - steps).x
    result = np.empty(len(order))
    result[order] = np.clip(flat, low, max(low, high - gap * (len(order) - 1))) + steps
    return [float(value) for value in result]


def width_pt(text: str, size_pt: float, *, bold: bool = False) -> float:
    """How wide a line of text is, in points: its words and the spaces between."""
    words = text.split(" ")
    return HINTING * size_pt * (sum(_width_em(word, bold) for word in words) + (len(words) - 1) * _width_em(" ", bold))


@lru_cache(2**16)
def _width_em(word: str, bold: bool) -> float:
    font = font_manager.get_font(_font(bold))
    font.set_size(100, 72)
    font.set_text(word, 0.0)
    return float(font.get_width_height()[0]) / 64 / 100


def _font(bold: bool) -> str:
    return os.path.join(mpl.get_data_path(), "fonts", "ttf", f"DejaVuSans{'-Bold' if bold else ''}.ttf")


def wrap(text: str, most_pt: float, size_pt: float, *, bold: bool = False) -> list[str]:
    """Text in lines no wider than that, broken between words, and inside a word only where it is wider itself."""
    lines = [""]
    for piece in [piece for word in text.split() for piece in _pieces(word, most_pt, size_pt, bold)]:
        longer = f"{lines[-1]} {piece}".strip()
        if lines[-1] and width_pt(longer, size_pt, bold=bold) > most_pt:
            lines.append(piece)
        else:
            lines[-1] = longer
    return lines


def _pieces(word: str, most_pt: float, size_pt: float, bold: bool) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and width_pt(pieces[-1] + letter, size_pt, bold=bold) > most_pt:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def fit_text(figure: Figure, ends: Mapping[Axes, Sequence[End]] | None = None) -> None:
    """Break titles and axis labels that are wider than their panels, leave out tick labels that would touch, name curves.

    Call it when everything else is drawn: it lays the figure out to know the panels' widths.

    Args:
        figure: the figure.
        ends: the curves' ends to be named at the right of some panels (`label_ends`); None for none.
    """
    written = {
        text: text.get_text() for ax in figure.axes for text in (*_titles(ax), *_subtitles(ax), *_axis_labels(ax))
    }
    for title in (title for ax in figure.axes for title in _titles(ax)):
        title.set_text("")  # a long one would make its panel narrow before it is broken
    if ends:
        lay_out(figure)
    named = [
        mark for ax, own in (ends or {}).items() for mark in label_ends(ax, own)
    ]  # as would names that are missing
    before: list[str] = []
    for _ in range(MOST_ROUNDS):  # broken lines make panels a little narrower or wider
        lay_out(figure)
        for ax in figure.axes:
            width, height = (72 / figure.dpi * size for size in ax.get_window_extent().size)
            for text in (*_titles(ax), *_subtitles(ax), ax.xaxis.label):
                _break(text, written[text], width)
            _break(ax.yaxis.label, written[ax.yaxis.label], height)
            for text in _subtitles(ax):
                ax.set_title(ax.get_title("left"), pad=pt(6) + text.get_window_extent().height * 72 / figure.dpi)
            _thin_ticks(ax, 72 / figure.dpi)
        now = [text.get_text() for text in written]
        if before == now or (not ends and now == [*written.values()] and _have_room(figure)):
            break
        before = now
    for mark in named:
        mark.remove()
    for ax, own in (ends or {}).items():
        label_ends(ax, own)  # again, where the curves end now: the names left the layout as it is


def _have_room(figure: Figure) -> bool:
    """Whether panels that lose a line to their titles still have room for the labels at their sides."""
    return all(
        width_pt(line, float(ax.yaxis.label.get_fontsize())) < SPARE * ax.get_window_extent().height * 72 / figure.dpi
        for ax in figure.axes
        for line in ax.yaxis.label.get_text().split("\n")
    )


def _titles(ax: Axes) -> list[Text]:
    return [text for text in ax.get_children() if isinstance(text, Text) and text not in ax.texts]


def _subtitles(ax: Axes) -> list[Text]:
    return [text for text in ax.texts if text.get_gid() == SUBTITLE]


def _axis_labels(ax: Axes) -> tuple[Text, Text]:
    return ax.xaxis.label, ax.yaxis.label


def _break(text: Text, words: str, most_pt: float) -> None:
    """Write words into a text, every line of theirs broken where it is wider than that."""
    size, bold = float(text.get_fontsize()), text.get_fontweight() == "bold"
    lines = [line for given in words.split("\n") for line in wrap(given, most_pt, size, bold=bold)]
    text.set_text("\n".join(lines))


def add_subtitle(ax: Axes, text: str) -> None:
    """Write a small grey text between a panel and its title; `fit_text` breaks it and lifts the title above it."""
    ax.annotate(
        text, (0, 1), (0, pt(3)), xycoords="axes fraction", textcoords="offset points", fontsize=pt(7.5), color=MUTED,
        va="bottom", annotation_clip=False, gid=SUBTITLE, in_layout=False,  # the title above it is
    )  # fmt: skip


def _thin_ticks(ax: Axes, pt_per_px: float) -> None:
    """Keep every n-th label of an axis whose ticks were set by hand, so that none touches the next."""
    if not isinstance(ax.xaxis.get_major_locator(), FixedLocator):
        return
    texts = ax.get_xticklabels()
    labels = [text.get_text() for text in texts]
    if not any(labels):
        return
    size = max(float(text.get_fontsize()) for text in texts)
    centres = [pt_per_px * float(ax.transData.transform((x, 0))[0]) for x in ax.get_xticks()]
    halves = [width_pt(label, size) / 2 + 0.2 * size for label in labels]
    step = next(n for n in range(1, len(labels) + 1) if _stand_apart(centres[::n], halves[::n]))
    if step > 1:
        ax.set_xticklabels([label if number % step == 0 else "" for number, label in enumerate(labels)])


def _stand_apart(centres: Sequence[float], halves: Sequence[float]) -> bool:
    """Whether boxes with those centres and half widths leave their neighbours alone."""
    rights = [centre + half for centre, half in zip(centres, halves, strict=True)]
    lefts = [centre - half for centre, half in zip(centres, halves, strict=True)]
    return all(right <= left for right, left in zip(rights, lefts[1:], strict=False))


def from_zero(ax: Axes) -> None:
    """Let a y axis begin at 0 where it is above: what hardly moves is to look so."""
    low, high = ax.get_ylim()
    ax.set_ylim(min(0, low), high + 0.08 * abs(high))
