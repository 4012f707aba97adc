"""One look for all figures: Okabe and Ito's palette, markers and line styles that stay apart in grey print."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from adapters import METHODS
from training.store import writing

INK = "#222222"
MUTED = "#6b6b6b"
GRID = "#e3e3e3"
BACKGROUND = "#a8a8a8"
ALARM = "#b00020"  # divergence
METRIC_TITLES = {"dino": "DINO", "clip_i": "CLIP-I", "clip_t": "CLIP-T"}
LINE_STYLES = ("-", "--", "-.", ":")
SPARE_COLORS = ("#56B4E9", "#000000", "#8C6D31", "#7A5195", "#999933")
SPARE_MARKERS = ("P", "X", "h", "*", "p")
VARIANT_COLORS = ("#0072B2", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#009E73")
MARGIN_OCTAVES = 0.35  # between the outermost multipliers and the axis' ends
DPI = 180

RC = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "pdf.fonttype": 42,
    "svg.hashsalt": "plateau",
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": INK,
    "ytick.labelsize": 8.5,
}

P = ParamSpec("P")


def prefer_bundled_fonts() -> None:
    """Put matplotlib's own fonts first, so that every machine draws the same bytes, whatever its fonts and caches are."""
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    bundled = [font_manager.ttfFontProperty(font_manager.get_font(str(path))) for path in sorted(folder.glob("*.ttf"))]
    others = [font for font in font_manager.fontManager.ttflist if Path(font.fname).parent != folder]
    font_manager.fontManager.ttflist = [*bundled, *others]


prefer_bundled_fonts()


class Look(NamedTuple):
    """How one series is drawn."""

    color: str
    line_style: str
    marker: str
    face: str  # marker's face: the colour, or white for a method's further variants

    def marks(self) -> dict[str, Any]:
        """The marker's arguments of matplotlib's `plot`."""
        return {"marker": self.marker, "markerfacecolor": self.face, "markeredgecolor": self.color}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw under this module's settings, whatever the caller's own are."""

    @wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(RC)
            return draw(*args, **kwargs)

    return wrapped


def looks(frame: pd.DataFrame) -> dict[str, Look]:
    """The look of every series of a frame with the columns series and method.

    A method has the colour, line style and marker of `METHODS`, a name that is not registered there spare ones. Further
    series of one method (options, ranks) take hollow markers, the next line styles, and lighter tints of its colour, or
    colours of their own where the frame has no other method.
    """
    result: dict[str, Look] = {}
    seen: dict[str, int] = {}
    pairs = frame[["series", "method"]].drop_duplicates()
    counts = pairs["method"].value_counts()
    for series, method in pairs.itertuples(index=False):
        variant = seen[method] = seen.get(method, -1) + 1
        color, line_style, marker = _method_look(method, len(seen) - 1)
        style = LINE_STYLES[(LINE_STYLES.index(line_style) + variant) % len(LINE_STYLES)]
        marker = marker if variant < 2 else SPARE_MARKERS[variant % len(SPARE_MARKERS)]
        if variant:
            color = _variant_color(color, variant) if len(counts) == 1 else _tint(color, variant / counts[method])
        result[series] = Look(color, style, marker, "white" if variant else color)
    return result


def _variant_color(color: str, variant: int) -> str:
    """One of the palette's other colours."""
    others = [other for other in VARIANT_COLORS if other != color]
    return others[(variant - 1) % len(others)]


def _tint(color: str, share: float) -> str:
    """A colour mixed with white, up to 70 % of it."""
    return to_hex([1 - (1 - part) * (1 - 0.7 * share) for part in to_rgb(color)])


def _method_look(method: str, number: int) -> tuple[str, str, str]:
    """Colour, line style and marker of a method; a spare set, by its number, for one that is not registered."""
    if method in METHODS:
        registered = METHODS[method]
        return registered.color, registered.line_style, registered.marker
    spare = number % len(SPARE_COLORS)
    return SPARE_COLORS[spare], LINE_STYLES[number % len(LINE_STYLES)], SPARE_MARKERS[spare]


def new_figure(width_in: float, height_in: float, wspace: float = 0.03) -> Figure:
    """An empty figure that lays itself out; `wspace` is the gap between columns as a share of a column."""
    engine = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05, wspace=wspace, hspace=0.03)
    return Figure(figsize=(width_in, height_in), layout=engine)


def multiplier_text(value: float) -> str:
    """A multiplier as people write it: 1/4, 1/2, 1, 2, ... 32."""
    inverse = 1 / value
    if value < 1 and abs(inverse - round(inverse)) < 1e-9 * inverse:
        return f"1/{round(inverse)}"
    return f"{value:.3g}"


def multiplier_axis(ax: Axes, values: Sequence[float], label: str = "multiple of the base learning rate") -> None:
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


def save(figure: Figure, stem: Path | str) -> list[Path]:
    """Write `<stem>.png` and `<stem>.pdf`, each whole or not at all, with the same bytes whenever the figure is the same.

    Returns:
        The two paths, the PNG first.

    Raises:
        StoreError: if the folder cannot be written.
    """
    paths = []
    for suffix, metadata in ((".png", {"Software": "Plateau"}), (".pdf", {"Creator": "Plateau", "CreationDate": None})):
        path = Path(f"{os.fspath(stem)}{suffix}")
        content = io.BytesIO()
        with mpl.rc_context(RC):
            figure.savefig(content, format=suffix[1:], dpi=DPI, metadata=metadata)
        with writing(path) as aside:
            aside.write_bytes(content.getvalue())
        paths.append(path)
    return paths
