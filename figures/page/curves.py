"""Curves as the page draws them: numbers and words by series, so that page.js only hands them to plotly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from adapters import Marker
from analysis import Robustness
from analysis.metrics import describe_metric, in_table_order
from figures.looks import Look
from figures.style import multiplier_text
from figures.task_in_use import task_of
from training.task_kinds import Metric, metrics

DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
# plotly's marks that come nearest to matplotlib's; what is not here is a circle.
SYMBOLS: dict[Marker, str] = {
    "s": "square", "^": "triangle-up", "v": "triangle-down", "D": "diamond", "d": "diamond-tall", "P": "cross", "X": "x",
    "p": "pentagon", "h": "hexagon", "*": "star", "<": "triangle-left", ">": "triangle-right", "8": "octagon",
    "H": "hexagon2", "x": "x-thin", ".": "circle-open",
    (4, 1, 0): "star-diamond", (6, 1, 0): "hexagram", (8, 1, 0): "star",
    (5, 1, 180): "star-triangle-down", (3, 1, 0): "star-triangle-up",
}  # fmt: skip
DISTANCE, DISTANCE_TITLE = "distance", "Distance ‖Wₜ − W₀‖ / ‖W₀‖: how far the weights moved"


def describe_looks(looks: Mapping[str, Look]) -> list[dict[str, str]]:
    """Name, colour, dash and symbol of every series, in their order."""
    return [
        {
            "name": name,
            "color": look.color,
            "dash": DASHES.get(look.line_style, "solid"),
            "symbol": SYMBOLS.get(look.marker, "circle") + ("-open" if look.face == "white" else ""),
        }
        for name, look in looks.items()
    ]


def rate_charts(curves: Robustness, names: Sequence[str], xlabel: str) -> dict[str, dict[str, Any]]:
    """Scores and distance against the multiplier, by metric.

    Args:
        curves: what `analysis.robustness` returned.
        names: of the series, whose places stand for them.
        xlabel: what multipliers multiply.
    """
    base = curves.base.set_index("metric")
    shared = {"xlabel": xlabel, "log": True, "ticks": ticks(curves.scores["multiplier"])}
    charts = {}
    for metric in in_table_order(curves.scores["metric"].unique()):
        line = numbers(base.loc[metric, ["mean", "low", "high"]]) if metric in base.index else None
        charts[metric] = {"title": _title(metrics()[metric]), "base": line, **shared}
        charts[metric]["curves"] = by_series(curves.scores[curves.scores["metric"] == metric], names, "multiplier")
    if len(curves.distances):
        charts[DISTANCE] = {"title": DISTANCE_TITLE, "logy": True, **shared}
        charts[DISTANCE]["curves"] = by_series(curves.distances, names, "multiplier")
    return charts


def _title(metric: Metric) -> str:
    """A score with what it tells, and that less is better where it is."""
    words = describe_metric(metric.name, task_of([metric.name]))
    return words + (", the lower the better" if metric.lower_is_better else "")


def ticks(values: Sequence[float]) -> list[tuple[float, str]]:
    """Multipliers with their words."""
    return [(float(value), multiplier_text(value)) for value in sorted(set(map(float, values)))]


def by_series(rows: pd.DataFrame, names: Sequence[str], x: str) -> list[dict[str, Any]]:
    """The curves of rows series, x, mean, low, high, num_subjects, num_diverged, num_runs."""
    return [
        {
            "series": names.index(str(series)),
            "x": numbers(own[x]),
            **{end: numbers(own[end]) for end in ("mean", "low", "high")},
            "note": list(map(_note, own["num_subjects"], own["num_diverged"], own["num_runs"])),
        }
        for series, own in rows.groupby("series", sort=False)
    ]


def _note(num_subjects: int, num_diverged: int, num_runs: int) -> str:
    """What is said of a point beside its numbers."""
    return f"n = {num_subjects}" + (f", diverged: {num_diverged} of {num_runs}" if num_diverged else "")


def numbers(values: Sequence[float] | pd.Series) -> list[float | None]:
    """Numbers of four digits; what is not finite becomes null, which JSON has."""
    found = [float(f"{float(value):.4g}") for value in values]
    return [value if abs(value) < float("inf") else None for value in found]
