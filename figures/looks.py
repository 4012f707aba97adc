"""How each series is drawn: Okabe and Ito's palette, marks and line styles that stay distinct in grey print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgb

from adapters import METHODS, Marker

LINE_STYLES = ("-", "--", "-.", ":")
SPARE_COLORS = ("#56B4E9", "#000000", "#8C6D31", "#7A5195", "#999933")
SPARE_MARKERS: tuple[Marker, ...] = ((5, 1, 180), (3, 1, 0), "h", "*", "p")
VARIANT_COLORS = ("#0072B2", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#009E73")


class Look(NamedTuple):
    """How one series is drawn."""

    color: str
    line_style: str
    marker: Marker
    face: str  # marker's face: the colour, or white for a method's further variants

    def marks(self) -> dict[str, Any]:
        """The marker's arguments of matplotlib's `plot`."""
        return {"marker": self.marker, "markerfacecolor": self.face, "markeredgecolor": self.color}


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


def _method_look(method: str, number: int) -> tuple[str, str, Marker]:
    """Colour, line style and marker of a method; a spare set, by its number, for one that is not registered."""
    if method in METHODS:
        registered = METHODS[method]
        return registered.color, registered.line_style, registered.marker
    spare = number % len(SPARE_COLORS)
    return SPARE_COLORS[spare], LINE_STYLES[number % len(LINE_STYLES)], SPARE_MARKERS[spare]


def shades(names: Sequence[str]) -> dict[str, Look]:
    """Looks of what has an order, as multipliers have: from dark to light; line styles and markers differ too."""
    colors = colormaps["viridis"](np.linspace(0.0, 0.88, len(names)))
    return {
        str(name): Look(
            to_hex(color), LINE_STYLES[n % len(LINE_STYLES)], SPARE_MARKERS[n % len(SPARE_MARKERS)], "white"
        )
        for n, (name, color) in enumerate(zip(names, colors, strict=True))
    }
