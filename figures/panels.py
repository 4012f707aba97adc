"""Parts that several figures share: curves with bands, the base model's line, the plateau's bars, labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from adapters.method_words import BASE_MODEL
from analysis.plateau import doubt
from figures.labels import width_pt, wrap
from figures.looks import Look
from figures.style import ALARM, BACKGROUND, INK, MARGIN_OCTAVES, count_text, pt
from figures.task_in_use import unit, units

BASE_DASHES = (0, (6, 2.2))
LEGEND_ROW_IN = 0.18
LEGEND_EDGES_PT, LEGEND_SAMPLE_PT = 14.0, 46.0  # on the screen: at both sides of a legend; sample and gap of an entry
MOST_BANDS = 8  # beyond so many curves bands hide each other and everything else


def draw_curves(ax: Axes, frame: pd.DataFrame, x: str, styles: Mapping[str, Look], *, markers: bool = True) -> None:
    """One line with its band for every series; a red cross marks the points where some run diverged."""
    alpha = 0.16 if frame["series"].nunique() <= 4 else 0.09
    for series, curve in frame.groupby("series", sort=False):
        look = styles[str(series)]
        curve = curve[np.isfinite(curve["mean"].astype(float))]
        marks: dict[str, Any] = look.marks() if markers else {}
        ax.plot(curve[x], curve["mean"], color=look.color, ls=look.line_style, label=series, zorder=3, **marks)
        _draw_pairs(ax, curve, x, look)
        if has_bands(frame) and (curve["num_subjects"] > 2).any():
            several = curve["num_subjects"] > 2
            low, high = (curve[end].where(several).astype(float).to_numpy() for end in ("low", "high"))
            ax.fill_between(curve[x], low, high, color=look.color, alpha=alpha, lw=0, zorder=2, label=f"_band {series}")
            if len(curve) == 1:  # a band has no width there
                ax.vlines(curve[x], low, high, color=look.color, lw=pt(1.2), zorder=2.8, label=f"_bar {series}")
        lost = curve[curve["num_diverged"] > 0]
        if len(lost) and markers:
            ax.plot(
                lost[x],
                lost["mean"],
                ls="none",
                marker="x",
                ms=pt(9),
                mew=pt(1.8),
                color=ALARM,
                zorder=5,
                label="_diverged",
            )


def _draw_pairs(ax: Axes, curve: pd.DataFrame, x: str, look: Look) -> None:
    """Both subjects of a mean over two, as points: an interval with one degree of freedom says no more than they do."""
    if "least" in curve and len(two := curve[curve["num_subjects"] == 2]):
        points: dict[str, Any] = {
            "marker": ".",
            "ms": pt(4),
            "mew": 0,
            "alpha": 0.6,
            "color": look.color,
            "label": "_subjects",
        }
        for end in ("least", "most"):
            ax.plot(two[x], two[end], ls="none", zorder=2.8, **points)


def interval_ends(frame: pd.DataFrame, end: str) -> pd.Series:
    """What is drawn of an interval's ends: with two subjects these, with one nothing."""
    few = frame["num_subjects"] < 3 if "num_subjects" in frame else pd.Series(False, index=frame.index)
    subject = frame["least" if end == "low" else "most"] if "least" in frame else np.nan
    return frame[end].astype(float).where(~few, subject)


def limit_to_means(ax: Axes, frames: Sequence[pd.DataFrame], base: float = np.nan) -> None:
    """Set the y limits by the means; a band reaches at most half a span of the means beyond them, and is cut there.

    Spans are measured as the axis shows them: in decades on a log axis.
    """
    scale = ax.yaxis.get_transform()
    means = _shown(scale, [base], *(frame["mean"] for frame in frames))
    if not len(means):
        return
    reach = 0.5 * max(float(np.ptp(means)), 1e-2 * float(np.abs(means).max())) or 0.01
    low, high = (
        _shown(scale, *(interval_ends(frame, end) for frame in frames if end in frame and has_bands(frame)))
        for end in ("low", "high")
    )
    bottom = max(min([*low, *means]), float(means.min()) - reach)
    top = min(max([*high, *means]), float(means.max()) + reach)
    room = 0.06 * (top - bottom) or reach
    ax.set_ylim(*scale.inverted().transform([bottom - room, top + room]))


def _shown(scale: Any, *values: Any) -> np.ndarray:
    """Numbers as an axis of that scale places them; what it cannot show is left out."""
    given = np.concatenate([np.empty(0), *(np.asarray(value, dtype=float) for value in values)])
    with np.errstate(divide="ignore", invalid="ignore"):
        placed = scale.transform(given[np.isfinite(given)])
    return placed[np.isfinite(placed) & (placed > -900)]  # a log scale clips zero to -1000


# Ticks of a log axis within a decade, from few to many, and the decades that they suit.
TICKS = (((1.0,), 2.5), ((1.0, 2.0, 5.0), 0.8), ((1.0, 1.5, 2.0, 3.0, 5.0, 7.0), 0.35))
NARROW_TICKS = (1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0, 2.2, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)


def plain_log_axis(ax: Axes, values: pd.Series, side: str = "y") -> None:
    """A log axis with ticks in plain numbers, the more of them in a decade the narrower the values lie."""
    ax.set(**{f"{side}scale": "log"})
    axis = {"x": ax.xaxis, "y": ax.yaxis}[side]
    places = _shown(axis.get_transform(), values)
    span = float(np.ptp(places)) if len(places) else 1.0
    subs = next((ticks for ticks, least in TICKS if span > least), NARROW_TICKS)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}" if value < 1e5 else f"{value:.0e}"))


def draw_background(ax: Axes, frame: pd.DataFrame | None, x: str, styles: Mapping[str, Look]) -> None:
    """Other methods' curves in grey behind, each with its own line style; those already drawn are left out."""
    if frame is None:
        return
    for series, curve in frame.groupby("series", sort=False):
        look = styles[str(series)]
        ax.plot(
            curve[x], curve["mean"], color=BACKGROUND, ls=look.line_style, marker=look.marker, ms=pt(3), lw=pt(1.2), zorder=1.5,
            label=f"_{series}",
        )  # fmt: skip


def draw_base_line(ax: Axes, base: pd.DataFrame, metric: str) -> None:
    """The base model's score, dashed, with its band; the legend names it, since a name in the panel meets the curves."""
    row = base[base["metric"] == metric]
    if row.empty:
        return
    value, low, high = (float(row[name].iloc[0]) for name in ("mean", "low", "high"))
    ax.axhline(value, color=INK, ls=BASE_DASHES, lw=pt(1.1), zorder=2.5, label="_base")
    if np.isfinite(low) and row["num_subjects"].iloc[0] > 2:
        ax.axhspan(low, high, color=INK, alpha=0.06, lw=0, zorder=1)


def draw_plateaus(ax: Axes, plateaus: pd.DataFrame, styles: Mapping[str, Look]) -> None:
    """One bar a series from edge to edge, a dot at its best multiplier, an arrow where the edge is open, its width beside."""
    ax.set_ylim(len(plateaus) - 0.4, -0.6)
    ax.set_yticks([])
    ax.grid(False)
    for place, row in enumerate(plateaus.to_dict("records")):
        look = styles[row["series"]]
        if why := doubt(row, unit()):
            ax.text(0.01, place, why, transform=ax.get_yaxis_transform(), color=look.color, fontsize=pt(8), va="center")
        else:
            _draw_bar(ax, place, row, look)


def _draw_bar(ax: Axes, place: int, row: Mapping[Any, Any], look: Look) -> None:
    """One plateau; an open end runs on a little beyond the last multiplier that was tried and ends there in an arrow."""
    ends = [row["low_edge"], row["high_edge"]]
    for side, (name, head) in enumerate((("open_low", "<"), ("open_high", ">"))):
        if row[name]:
            ends[side] *= 2 ** (MARGIN_OCTAVES if side else -MARGIN_OCTAVES)
            ax.plot([ends[side]], [place], marker=head, color=look.color, ms=pt(9), mew=0, clip_on=False, zorder=4)
    color: dict[str, Any] = {"color": look.color}
    ax.plot(ends, [place, place], lw=pt(5), solid_capstyle="butt", zorder=3, label=f"_{row['series']}", **color)
    ax.plot(
        [row["best_multiplier"]], [place], marker=look.marker, mec="white", ms=pt(8), mew=pt(1.2), zorder=5, **color
    )
    ax.text(1.03, place, width_text(row), transform=ax.get_yaxis_transform(), fontsize=pt(7.5), va="center", **color)


def width_text(row: Mapping[Any, Any]) -> str:
    """A plateau's width in octaves, a lower bound where an end is open, and its interval: `≥ 3.1 [2.8, 3.2]`."""
    more = "≥ " if row["open_low"] or row["open_high"] else ""
    interval = f" [{row['width_low']:.1f}, {row['width_high']:.1f}]" if np.isfinite(row["width_low"]) else ""
    return f"{more}{row['width_octaves']:.1f}{interval}"


def draw_legend(
    figure: Figure,
    frame: pd.DataFrame,
    styles: Mapping[str, Look],
    *,
    behind: pd.DataFrame | None = None,
    marks: Sequence[Line2D] = (),
    title: str | None = None,
    base: bool = True,
) -> None:
    """One block above the panels: every series with its n, those behind in grey, the base's line, what bands and crosses mean.

    Args:
        figure: where it goes.
        frame: the curves' rows, with series, num_subjects and num_diverged.
        styles: the look of every series.
        behind: the same of the series in grey, None for none.
        marks: more entries.
        title: what stands above the entries, on bars; None says what the bands are.
        base: whether the base's line is drawn.
    """
    handles = [
        series_handle(f"{series} ({count_text(curve)})", styles[str(series)])
        for series, curve in frame.groupby("series", sort=False)
    ]
    if base:
        handles.append(Line2D([], [], color=INK, ls=BASE_DASHES, lw=pt(1.1), label=BASE_MODEL))
    if (frame["num_diverged"] > 0).any():
        handles.append(
            Line2D([], [], ls="none", marker="x", ms=pt(8), mew=pt(1.8), color=ALARM, label="some runs diverged")
        )
    handles += marks
    if behind is not None:
        for series, curve in behind.groupby("series", sort=False):
            look = styles[str(series)]._replace(color=BACKGROUND, face=BACKGROUND)
            handles.append(series_handle(f"{series} ({count_text(curve)})", look, width=1.2))
    kind = "bars" if title else "bands"
    cut = f"; {kind} end at a panel's edge" if any(cuts_a_band(ax) for ax in figure.axes) else ""
    text = (title or band_text(frame)) + cut + ("; grey: earlier runs" if behind is not None else "")
    place_legend(figure, handles, text)


def place_legend(figure: Figure, handles: Sequence[Artist], title: str) -> None:
    """Put entries above the panels in as many columns as fit; what is wider than the figure is broken into lines."""
    size, title_size = pt(8.5), pt(8.5)
    room = figure.get_figwidth() * 72 - pt(LEGEND_EDGES_PT)
    columns = legend_columns([str(handle.get_label()) for handle in handles], figure.get_figwidth())
    for handle in handles:
        if columns == 1:
            handle.set_label("\n".join(wrap(str(handle.get_label()), room - pt(LEGEND_SAMPLE_PT), size)))
    title_lines = wrap(title, room, title_size)
    num_lines = [str(handle.get_label()).count("\n") + 1 for handle in handles]
    rows = sum(num_lines) if columns == 1 else -(-len(handles) // columns)
    make_room(figure, rows + len(title_lines) - 1, 1)
    figure.legend(
        handles=by_row(handles, columns), loc="outside upper left", ncols=columns, title="\n".join(title_lines),
        title_fontsize=title_size, alignment="left", columnspacing=1.6, handlelength=2.6,
    )  # fmt: skip


def legend_columns(labels: Sequence[str], width_in: float) -> int:
    """As few columns as the rows need that fit beside each other, with samples and gaps: no row has a single entry over."""
    room = width_in * 72 - pt(LEGEND_EDGES_PT)
    widths = [width_pt(label, pt(8.5)) + pt(LEGEND_SAMPLE_PT) for label in labels]
    fits = [
        columns for columns in range(1, len(labels) + 1)
        if columns == 1 or sum(max(widths[start::columns]) for start in range(columns)) <= room
    ]  # fmt: skip
    rows = [-(-len(labels) // columns) for columns in fits]
    return fits[rows.index(min(rows))] if fits else 1


def make_room(figure: Figure, num_entries: int, columns: int) -> None:
    """Make a figure higher by what a legend has beyond two rows, so that its panels keep their height."""
    rows = -(-num_entries // columns)
    figure.set_figheight(figure.get_figheight() + pt(LEGEND_ROW_IN) * max(rows - 2, 0))


def by_row(items: Sequence[Any], columns: int) -> list[Any]:
    """Order items so that a legend, which fills its columns from the left, shows them row by row."""
    return [item for start in range(columns) for item in items[start::columns]]


def has_bands(frame: pd.DataFrame) -> bool:
    """Whether the curves are few enough to be drawn with their bands."""
    return bool(frame["series"].nunique() <= MOST_BANDS)


def band_text(frame: pd.DataFrame) -> str:
    """What the bands are, or why there are none."""
    most = frame["num_subjects"].max()
    if most < 3:
        two = f"Means of two {units()}, and both as points: no interval"
        return f"One {unit()}: no interval" if most < 2 else two
    if not has_bands(frame):
        return f"Means over {units()}; bands are left out beyond {MOST_BANDS} curves, the tables have the intervals"
    return f"Means over {units()}, bands: 95 % t intervals (the {unit()} is the unit)"


def cuts_a_band(ax: Axes) -> bool:
    """Whether a band or bar runs on beyond the panel (`limit_to_means`)."""
    low, high = ax.get_ylim()
    bands = [c for c in ax.collections if str(c.get_label()).startswith(("_band", "_bar"))]
    heights = [np.asarray(path.vertices, dtype=float)[:, 1] for band in bands for path in band.get_paths()]
    return any(bool(((height < low) | (height > high)).any()) for height in heights)


def series_handle(label: str, look: Look, width: float = 1.8) -> Line2D:
    """A legend entry of one series."""
    label = f"\u200a{label}" if label.startswith("_") else label  # matplotlib leaves out what begins so
    return Line2D([], [], color=look.color, ls=look.line_style, label=label, lw=pt(width), **look.marks())
