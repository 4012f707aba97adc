"""What several figures draw alike: curves with bands, the base's line, the plateau's bars, labels that keep apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from figures.style import ALARM, BACKGROUND, INK, MUTED, Look, count_text


def draw_curves(ax: Axes, frame: pd.DataFrame, x: str, styles: Mapping[str, Look], *, markers: bool = True) -> None:
    """One line with its band for every series; a red cross marks the points where some run diverged."""
    for series, curve in frame.groupby("series", sort=False):
        look = styles[str(series)]
        curve = curve[np.isfinite(curve["mean"].astype(float))]
        marker = {"marker": look.marker, "markerfacecolor": look.face, "markeredgecolor": look.color} if markers else {}
        ax.plot(curve[x], curve["mean"], color=look.color, ls=look.line_style, label=series, zorder=3, **marker)
        low, high = (curve[end].astype(float).to_numpy() for end in ("low", "high"))
        if ax.get_yscale() == "log":
            low = np.where(low > 0, low, curve["mean"].astype(float) * 1e-3)
        ax.fill_between(curve[x], low, high, color=look.color, alpha=0.16, lw=0, zorder=2)
        lost = curve[curve["num_diverged"] > 0]
        if len(lost) and markers:
            ax.plot(
                lost[x], lost["mean"], ls="none", marker="x", ms=9, mew=1.8, color=ALARM, zorder=5, label="_diverged"
            )


def limit_to_means(ax: Axes, frames: Sequence[pd.DataFrame], base: float = np.nan) -> None:
    """Set the y limits by the means; a band reaches at most one span of the means beyond them, and is cut there."""
    means = np.concatenate([[base], *(frame["mean"].astype(float) for frame in frames)])
    means = means[np.isfinite(means)]
    span = max(float(np.ptp(means)), 1e-3 * float(np.abs(means).max()), 1e-9)
    lows, highs = (
        np.concatenate([means, *(f[end].astype(float) for f in frames if end in f)]) for end in ("low", "high")
    )
    low = max(float(np.nanmin(lows)), float(means.min()) - span)
    high = min(float(np.nanmax(highs)), float(means.max()) + span)
    ax.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def plain_log_axis(ax: Axes) -> None:
    """A log y axis with ticks at 1, 2, 5 written as plain numbers."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))


def draw_background(ax: Axes, frame: pd.DataFrame | None, x: str, styles: Mapping[str, Look]) -> None:
    """Other methods' curves in grey behind, each with its own line style; those already drawn are left out."""
    if frame is None:
        return
    for series, curve in frame.groupby("series", sort=False):
        look = styles[str(series)]
        ax.plot(
            curve[x], curve["mean"], color=BACKGROUND, ls=look.line_style, marker=look.marker, ms=3, lw=1.2, zorder=1.5,
            label=f"_{series}",
        )  # fmt: skip


def draw_base_line(ax: Axes, base: pd.DataFrame, metric: str, *, label: bool = False) -> None:
    """The untouched base's score, dashed, with its band."""
    row = base[base["metric"] == metric]
    if row.empty:
        return
    value, low, high = (float(row[name].iloc[0]) for name in ("mean", "low", "high"))
    ax.axhline(value, color=INK, ls=(0, (4, 2.5)), lw=1.1, zorder=2.5, label="_base")
    if np.isfinite(low):
        ax.axhspan(low, high, color=INK, alpha=0.06, lw=0, zorder=1)
    if label:
        ax.annotate(
            "untouched base", (0, value), (4, 3), xycoords=ax.get_yaxis_transform(), textcoords="offset points", fontsize=8,
            color=MUTED, va="bottom", zorder=4,
        )  # fmt: skip


def draw_plateaus(ax: Axes, plateaus: pd.DataFrame, styles: Mapping[str, Look]) -> None:
    """One bar for each series from edge to edge, a dot at its best multiplier, an arrow where the edge is open, its width beside."""
    ax.set_ylim(len(plateaus) - 0.4, -0.6)
    ax.set_yticks([])
    ax.grid(False)
    left, right = ax.get_xlim()
    for place, row in enumerate(plateaus.to_dict("records")):
        look = styles[row["series"]]
        if not row["peak"] > row["base"]:
            text = "never above the base" if np.isfinite(row["peak"]) else "diverged everywhere"
            ax.text(left * 1.05, place, text, color=look.color, fontsize=8, va="center")
            continue
        low, high = row["low_edge"], row["high_edge"]
        ax.plot(
            [low, high],
            [place, place],
            color=look.color,
            lw=5,
            solid_capstyle="butt",
            zorder=3,
            label=f"_{row['series']}",
        )
        ax.plot(
            [row["best_multiplier"]],
            [place],
            marker=look.marker,
            color=look.color,
            mec="white",
            ms=8,
            mew=1.2,
            zorder=5,
        )
        for is_open, edge, tip, head in ((row["open_low"], low, left, "<"), (row["open_high"], high, right, ">")):
            if is_open:
                ax.plot(
                    [edge, (edge * tip) ** 0.5], [place, place], color=look.color, lw=5, solid_capstyle="butt", zorder=3
                )
                ax.plot([(edge * tip) ** 0.5], [place], marker=head, color=look.color, ms=8, mec=look.color, zorder=3)
        ax.text(
            1.015,
            place,
            _width_text(row),
            transform=ax.get_yaxis_transform(),
            color=look.color,
            fontsize=8,
            va="center",
        )


def _width_text(row: Mapping[str, float]) -> str:
    more = "≥ " if row["open_low"] or row["open_high"] else ""
    return f"{more}{row['width_octaves']:.1f} oct."


def label_ends(
    ax: Axes, ends: Sequence[tuple[float, float, str, str]], *, gap_pt: float = 10.5, fontsize: float = 8.5
) -> None:
    """Write names at the right ends of curves, moved apart where they would overlap.

    Args:
        ax: the axes, its limits final.
        ends: (x, y, name, colour) of the last point of each curve.
        gap_pt: smallest distance between two lines of text.
        fontsize: of the text.
    """
    if not ends:
        return
    figure = ax.get_figure()
    figure.draw_without_rendering()  # so that the layout, and with it the place of every point, is final
    scale = 72 / figure.dpi
    height = ax.get_window_extent().height * scale
    bottom = ax.get_window_extent().y0
    places = [(float(ax.transData.transform((x, y))[1]) - bottom) * scale for x, y, _, _ in ends]
    for place, (x, y, name, color) in zip(spread(places, gap_pt, 0.0, height), ends, strict=True):
        at = (float(ax.transData.transform((x, y))[1]) - bottom) * scale
        ax.annotate(
            name, (x, y), (9, place - at), textcoords="offset points", fontsize=fontsize, color=color, va="center",
            annotation_clip=False, zorder=6,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.6, "shrinkA": 0, "shrinkB": 3, "alpha": 0.7},
        )  # fmt: skip


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


def draw_legend(
    figure: Figure,
    frame: pd.DataFrame,
    styles: Mapping[str, Look],
    *,
    behind: pd.DataFrame | None = None,
    base: bool = True,
) -> None:
    """One block above the panels: every series with its n, those behind in grey, the base's line, what bands and crosses mean."""
    groups = [(str(series), curve) for series, curve in frame.groupby("series", sort=False)]
    handles = [series_handle(f"{series} ({count_text(curve)})", styles[series]) for series, curve in groups]
    if base:
        handles.append(Line2D([], [], color=INK, ls=(0, (4, 2.5)), lw=1.1, label="untouched base"))
    if (frame["num_diverged"] > 0).any():
        handles.append(Line2D([], [], ls="none", marker="x", ms=8, mew=1.8, color=ALARM, label="some runs diverged"))
    if behind is not None:
        for series, curve in behind.groupby("series", sort=False):
            look = styles[str(series)]._replace(color=BACKGROUND, face=BACKGROUND)
            handles.append(series_handle(f"{series} (earlier runs, {count_text(curve)})", look, width=1.2))
    figure.legend(
        handles=handles, loc="outside upper left", ncols=min(len(handles), 5), title=band_text(frame), title_fontsize=8.5,
        alignment="left", columnspacing=1.6, handlelength=2.6,
    )  # fmt: skip


def band_text(frame: pd.DataFrame) -> str:
    """What the bands are, or why there are none."""
    if frame["num_subjects"].max() < 2:
        return "One subject: no interval"
    return "Means over subjects, bands: 95 % t intervals (the subject is the unit)"


def series_handle(label: str, look: Look, width: float = 1.8) -> Line2D:
    """A legend entry of one series."""
    marker = {"marker": look.marker, "markerfacecolor": look.face, "markeredgecolor": look.color}
    return Line2D([], [], color=look.color, ls=look.line_style, label=label, lw=width, **marker)
