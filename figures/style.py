"""One style for all figures: seaborn's theme, sizes for screen, paper and slides, axes of multipliers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.transforms import Bbox

from adapters.errors import BadInput
from analysis.series import BASE_AXIS
from analysis.tables import rounded

INK = "#262626"  # the theme's
MUTED = "#6b6b6b"
GRID = "#e3e3e3"
BACKGROUND = "#a8a8a8"
ALARM = "#b00020"  # divergence
MARGIN_OCTAVES = 0.35  # between the outermost multipliers and the axis' ends
DPI = 180

RC = sns.axes_style("ticks") | {
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",
    "font.fantasy": ["Plateau"],  # no such font: matplotlib caches what it finds by these lists, and ours stay apart so
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "pdf.fonttype": 42,
    "svg.hashsalt": "plateau",
    "text.parse_math": False,  # a name may hold dollars; what is mathematics says so
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}

POINT_GROUPS = ("axes", "errorbar", "font", "grid", "hatch", "lines", "patch", "xtick", "ytick")  # settings in points


@dataclass(frozen=True)
class Style:
    """What a figure is made for.

    Attributes:
        zoom: of text, lines and gaps, against the screen's.
        widths_in: widths that a figure may have; empty: its own.
        max_height_in: what a page or slide has room for.
    """

    zoom: float = 1.0
    widths_in: tuple[float, ...] = ()
    max_height_in: float = float("inf")


# Paper: one, one and a half and two columns of a journal, text of 7 pt. Slides: a half, two thirds, a whole of 16:9, 13 pt.
STYLES = {
    "screen": Style(),
    "paper": Style(7 / 9, (3.5, 5.2, 7.16), 9.2),
    "slides": Style(13 / 9, (6.5, 9.0, 13.33), 7.5),
}
CROWDING = 0.84  # of its text's size a figure's width may lose against the screen
_style: ContextVar[Style] = ContextVar("style", default=STYLES["screen"])


@contextmanager
def use_style(name: str, width_in: float | None = None) -> Iterator[None]:
    """Draw for "screen", "paper" or "slides".

    Args:
        name: of the style.
        width_in: every figure's width in inches; None lets a figure choose. Panels then stand below each other where they do
            not fit beside, and a figure is as high as they need.

    Raises:
        BadInput: for another name, or a width that is none.
    """
    if name not in STYLES:
        raise BadInput(f"unknown style {name!r}; allowed: {', '.join(STYLES)}")
    if width_in is not None and not 2 <= width_in <= 40:
        raise BadInput(f"the width of figures is {width_in:g} inches; allowed: 2 to 40")
    style = STYLES[name]
    token = _style.set(style if width_in is None else replace(style, widths_in=(width_in,), max_height_in=float("inf")))
    try:
        yield
    finally:
        _style.reset(token)


def pt(length: float) -> float:
    """A length on the screen, in points or inches, as it is in the style in use."""
    return length * _style.get().zoom


P = ParamSpec("P")


@contextmanager
def drawing() -> Iterator[None]:
    """This module's settings and matplotlib's own fonts, whatever the caller's and the machine's are, for as long as it lasts."""
    manager = font_manager.fontManager
    fonts = manager.ttflist
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings())
        manager.ttflist = [*_bundled_fonts(), *fonts]
        try:
            yield
        finally:
            manager.ttflist = fonts


@cache
def _bundled_fonts() -> list[font_manager.FontEntry]:
    """The fonts that come with matplotlib, which are the same everywhere."""
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    return [font_manager.ttfFontProperty(font_manager.get_font(str(path))) for path in sorted(folder.glob("*.ttf"))]


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw rounded numbers under this module's settings, whatever the caller's own are (`analysis.tables.rounded`)."""

    @wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with drawing():
            return draw(*rounded(args), **rounded(kwargs))

    return wrapped


def settings() -> dict[str, Any]:
    """What differs from matplotlib's own settings, in the style in use: this module's, and every length in points."""
    given = {name: value for name, value in {**mpl.rcParamsDefault, **RC}.items() if _is_in_points(name)}
    lengths = {name: pt(value) for name, value in given.items() if isinstance(value, int | float)}
    return RC | lengths


def _is_in_points(name: str) -> bool:
    """Whether a setting is a length in points: sizes of text, marks and ticks, widths of lines, distances of labels."""
    group = name.split(".")[0]
    return name == "legend.fontsize" or (group in POINT_GROUPS and name.endswith(("size", "width", "pad")))


class SteadyLayout(ConstrainedLayoutEngine):
    """Constrained layout with places of 9 digits: the solver's order, and with it the last bits, hang on places in memory."""

    def execute(self, fig: Figure) -> None:
        super().execute(fig)
        for ax in fig.axes:
            laid_out = ax.get_in_layout()
            for which in ("original", "active"):
                place = ax.get_position(original=which == "original")
                ax.set_position(Bbox(np.round(place.get_points(), 9)), which=which)
            ax.set_in_layout(laid_out)  # set_position takes it out


def lay_out(figure: Figure) -> None:
    """Find the places of panels, and so of every point, without drawing what is in them."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)


def new_figure(width_in: float, height_in: float, wspace: float = 0.03) -> Figure:
    """An empty figure that lays itself out, of that size on the screen; `wspace` is the gap between columns as a share of one."""
    engine = SteadyLayout(w_pad=pt(0.05), h_pad=pt(0.05), wspace=wspace, hspace=0.03)
    return Figure(figsize=fit_size(width_in, height_in), layout=engine)


def fit_size(width_in: float, height_in: float) -> tuple[float, float]:
    """Width and height in the style in use, in inches: one of its widths, the smallest that does not crowd the text."""
    style = _style.get()
    if style.widths_in:
        enough = [width for width in style.widths_in if width >= 0.95 * CROWDING * style.zoom * width_in]
        width_in = min(enough, default=style.widths_in[-1])
    return width_in, min(style.zoom * height_in, style.max_height_in)


def room_in(width_in: float) -> float:
    """How wide a figure of that width on the screen is in the style in use, in the screen's inches: what its text leaves it."""
    return fit_size(width_in, 1.0)[0] / _style.get().zoom


def num_beside(wanted: int, width_in: float, least_in: float) -> int:
    """How many of the panels stand beside each other in a figure of that width on the screen, each with at least so much."""
    return max(1, min(wanted, int(room_in(width_in) / least_in)))


def forced_width_in() -> float | None:
    """The width that every figure is to have; None where each chooses."""
    style = _style.get()
    return style.widths_in[0] if len(style.widths_in) == 1 else None


def multiplier_text(value: float) -> str:
    """A multiplier as people write it: 1/4, 1/2, 1, 2, ... 32."""
    inverse = 1 / value
    if value < 1 and abs(inverse - round(inverse)) < 1e-9 * inverse:
        return f"1/{round(inverse)}"
    return f"{value:.3g}"


def multiplier_axis(ax: Axes, values: Sequence[float], label: str = BASE_AXIS) -> None:
    """A log2 axis with a tick at every multiplier that was tried (every second one if there are many)."""
    grid = sorted({float(value) for value in values})
    ax.set_xscale("log", base=2)
    ax.set_xticks(grid[:: 1 + (len(grid) - 1) // 12], [multiplier_text(v) for v in grid[:: 1 + (len(grid) - 1) // 12]])
    ax.minorticks_off()
    ax.set_xlim(grid[0] / 2**MARGIN_OCTAVES, grid[-1] * 2**MARGIN_OCTAVES)
    ax.set_xlabel(label)


def count_text(frame: pd.DataFrame) -> str:
    """The number of subjects behind a curve: `n = 8`, or `n = 6 to 8` where points differ."""
    low, high = int(frame["num_subjects"].min()), int(frame["num_subjects"].max())
    return f"n = {high}" if low == high else f"n = {low} to {high}"


def text_color(background: Sequence[float]) -> str:
    """Black or white, whichever reads better on an RGB colour."""
    return "white" if float(np.dot(background[:3], (0.299, 0.587, 0.114))) < 0.55 else INK
