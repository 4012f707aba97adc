"""Labels and legends: they keep apart, stay inside, and are read row by row."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from figures.labels import shorten, spread
from figures.looks import looks
from figures.panels import (
    MOST_BANDS,
    band_text,
    by_row,
    cuts_a_band,
    draw_curves,
    legend_columns,
    limit_to_means,
)
from figures.style import multiplier_text


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9))
def test_labels_keep_apart_in_order_and_inside(places: list[float]) -> None:
    moved = np.array(spread(places, 10.0, 0.0, 100.0))
    order = np.argsort(places, kind="stable")
    assert (np.diff(moved[order]) >= 10.0 - 1e-9).all()
    assert moved.min() >= -1e-9
    assert moved.max() <= 100.0 + 1e-9


def test_labels_that_are_apart_stay() -> None:
    assert spread([50.0, 10.0, 80.0], 10.0, 0.0, 100.0) == pytest.approx([50.0, 10.0, 80.0])


def test_names_are_cut_where_they_are_alike() -> None:
    names = [
        "LoRA",
        "DeLoRA, factors scaled, lambda 4",
        "DeLoRA, factors scaled, lambda 16",
        "ETHER+ with boundary, rank, relaxed",
    ]
    cut = shorten(names)
    assert cut == ["LoRA", "…actors scaled, lambda 4", "…ctors scaled, lambda 16", "ETHER+ with boundary, r…"]
    assert max(map(len, cut)) == 24


def test_legend_is_read_row_by_row() -> None:
    """matplotlib fills columns from the left, the longer ones first."""
    items = list("abcdefg")
    columns = np.array_split(by_row(items, 3), 3)
    assert ["".join(column) for column in columns] == ["adg", "be", "cf"]
    assert legend_columns(["x" * 60] * 4, 11.0) == 2
    assert legend_columns(["LoRA (n = 8)"] * 5, 11.0) == 5


@pytest.mark.parametrize(("value", "text"), [(0.25, "1/4"), (0.3, "0.3"), (1.0, "1"), (32.0, "32"), (1 / 3, "1/3")])
def test_multipliers_are_written_as_people_write_them(value: float, text: str) -> None:
    assert multiplier_text(value) == text


def make_curve(half: float, points: int = 3) -> pd.DataFrame:
    """A curve of one method from 0.4 to 0.6 with bands of that half width."""
    mean = np.linspace(0.4, 0.6, points) if points > 1 else np.array([1.0])
    frame = pd.DataFrame({"x": 2.0 ** np.arange(points), "mean": mean, "low": mean - half, "high": mean + half})
    return frame.assign(series="LoRA", method="lora", num_subjects=3, num_diverged=0)


@pytest.mark.parametrize(("half", "cut"), [(0.0, False), (0.09, False), (0.5, True)])
def test_a_band_reaches_half_a_span_beyond_the_means_and_is_cut_there(half: float, cut: bool) -> None:
    curve, ax = make_curve(half), Figure().add_subplot()
    draw_curves(ax, curve, "x", looks(curve))
    limit_to_means(ax, [curve])
    low, high = ax.get_ylim()
    assert cuts_a_band(ax) == cut
    reach = min(half, 0.1)
    assert (0.4 - low, high - 0.6) == pytest.approx((reach, reach), abs=0.06 * (high - low))
    assert low < 0.4 - reach < 0.6 + reach < high


@pytest.mark.parametrize("end", ["low", "high"])
def test_a_band_that_is_cut_at_one_side_only_is_cut(end: str) -> None:
    curve, ax = make_curve(0.0), Figure().add_subplot()
    curve[end] += -0.5 if end == "low" else 0.5
    draw_curves(ax, curve, "x", looks(curve))
    limit_to_means(ax, [curve])
    assert cuts_a_band(ax)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_one_point_without_an_interval_stands_in_the_middle(scale: str) -> None:
    """At 1, whose logarithm is 0: matplotlib warns of limits that are equal, and warnings are errors."""
    curve, ax = make_curve(0.0, points=1), Figure().add_subplot()
    ax.set_yscale(scale)
    limit_to_means(ax, [curve])
    low, high = ax.get_ylim()
    assert low < 1 < high
    assert 1 - low == pytest.approx(high - 1, rel=0.05)


@pytest.mark.parametrize("more", [0, 1])
def test_bands_are_left_out_where_they_would_hide_each_other(more: int) -> None:
    curve, ax = make_curve(5.0), Figure().add_subplot()
    names = [f"series {number}" for number in range(MOST_BANDS + more)]
    frame = pd.concat([curve.assign(series=name) for name in names])
    draw_curves(ax, frame, "x", dict.fromkeys(names, looks(curve)["LoRA"]))
    bands = [part for part in ax.collections if str(part.get_label()).startswith("_band")]
    assert len(bands) == (0 if more else MOST_BANDS)
    assert ("left out" in band_text(frame)) == bool(more)


def test_two_subjects_are_points_and_no_band() -> None:
    curve, ax = make_curve(5.0).assign(num_subjects=2), Figure().add_subplot()
    curve = curve.assign(least=curve["mean"] - 0.1, most=curve["mean"] + 0.1)
    draw_curves(ax, curve, "x", looks(curve))
    limit_to_means(ax, [curve])
    points = [line for line in ax.lines if line.get_label() == "_subjects"]
    assert np.stack([line.get_ydata() for line in points]) == pytest.approx(curve[["least", "most"]].to_numpy().T)
    assert not ax.collections
    assert not cuts_a_band(ax)
    assert "no interval" in band_text(curve)
