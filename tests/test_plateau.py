"""Plateaus of curves small enough to be worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import find_plateau
from analysis.plateau import complete_subjects, find_plateaus
from tests.make_runs import Shape

GRID = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
NONE = np.zeros(5, dtype=bool)
FIVE_SCORES = st.lists(st.floats(0, 1), min_size=5, max_size=5)


def test_edges_are_interpolated_in_octaves() -> None:
    """Peak 0.8 over a base of 0.4: the level is 0.78, half and a quarter of the way down from the peak's neighbours."""
    found = find_plateau(GRID, np.array([0.40, 0.76, 0.80, 0.72, 0.40]), 0.4, NONE)
    assert found.peak == 0.80
    assert found.best_multiplier == 4.0
    assert np.log2(found.low_edge) == pytest.approx(1.5)
    assert np.log2(found.high_edge) == pytest.approx(2.25)
    assert found.width_octaves == pytest.approx(0.75)


def test_sensitivity_counts_no_loss_below_the_base() -> None:
    """Losses 0.4, 0, 0.2, 0.4 and 0.4: the last two scores lie below the base's."""
    found = find_plateau(GRID, np.array([0.4, 0.8, 0.6, 0.3, 0.1]), 0.4, NONE)
    assert found.sensitivity == pytest.approx((0.4 + 0.2 + 0.4 + 0.4) / 5)


def test_a_second_hill_is_not_part_of_the_plateau() -> None:
    found = find_plateau(GRID, np.array([0.8, 0.5, 0.79, 0.8, 0.81]), 0.4, NONE)
    level = 0.81 - 0.05 * (0.81 - 0.4)
    assert np.log2(found.low_edge) == pytest.approx(2 - (0.79 - level) / (0.79 - 0.5))
    assert found.open_high
    assert not found.open_low


def test_plateau_ends_where_a_neighbour_diverged_without_falling() -> None:
    found = find_plateau(GRID, np.array([0.5, 0.8, 0.8, 0.8, 0.5]), 0.4, np.array([0, 0, 0, 1, 0], dtype=bool))
    assert found.high_edge == 4.0
    assert not found.open_high


def test_everything_diverged_has_no_peak() -> None:
    found = find_plateau(GRID, np.full(5, 0.3), 0.4, ~NONE)
    assert np.isnan(found.peak)
    assert np.isnan(found.best_multiplier)
    assert found.width_octaves == 0


@given(st.lists(FIVE_SCORES, min_size=1, max_size=4), st.lists(st.booleans(), min_size=5, max_size=5))
def test_many_curves_at_once_are_each_as_alone(curves: list[list[float]], lost: list[bool]) -> None:
    scores, diverged = np.array(curves), np.array(lost)
    base = np.linspace(0.2, 0.4, len(scores))
    together = find_plateaus(GRID, scores, base, diverged)
    for number, row in enumerate(scores):
        alone = find_plateau(GRID, row, float(base[number]), diverged)
        np.testing.assert_equal([together[name][number] for name in alone._fields], list(alone))
        assert alone.width_octaves >= 0


@given(st.floats(-2, 1), st.floats(0, 3), st.floats(0.2, 2))
def test_width_of_a_trapezoid_is_its_top_and_two_shares_of_its_slopes(low: float, top: float, slope: float) -> None:
    """On a grid as fine as 1/16 octave, for any corners and slope."""
    grid = 2.0 ** np.arange(-5, 9.01, 1 / 16)
    shape = Shape(low, low + top, slope)
    found = find_plateau(
        grid, 0.4 + 0.2 * np.array([shape.height(m) for m in grid]), 0.4, np.zeros(len(grid), dtype=bool)
    )
    lost = 1 - (found.peak - 0.4) / 0.2  # where no point of the grid lies on the top
    assert lost <= slope / 32 + 1e-9
    assert found.width_octaves == pytest.approx(top + 2 * 0.05 / slope, abs=2 * (lost + 0.002) / slope + 1 / 8)


def test_subjects_that_lack_a_point_are_left_out_unless_all_do() -> None:
    table = pd.DataFrame({1.0: [0.1, 0.2], 2.0: [0.3, np.nan]}, index=["cat", "dog"])
    assert list(complete_subjects(table).index) == ["cat"]
    assert list(complete_subjects(table[1:]).index) == ["dog"]
