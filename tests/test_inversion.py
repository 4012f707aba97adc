"""Intervals of peaks and edges: against tables, and around every estimate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.plateau import find_plateaus
from analysis.plateau_intervals import dunnett_quantile, edge_intervals, max_interval

OCTAVES = np.arange(5.0)
ALIVE = np.ones(5, dtype=bool)


@pytest.mark.parametrize(
    ("num", "degrees", "expected"), [(1, 20, 1.72), (2, 20, 2.03), (7, 20, 2.51), (3, 10, 2.34), (5, 60, 2.28)]
)
def test_dunnett_quantiles_are_those_of_the_table(num: int, degrees: int, expected: float) -> None:
    """Dunnett 1955, Table 1a: one-sided, 95 %."""
    assert dunnett_quantile(num, degrees) == pytest.approx(expected, abs=0.006)


def test_max_interval_of_one_point_is_two_one_sided_t_tests() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, (8, 1))
    expected = stats.ttest_1samp(values[:, 0], 0).confidence_interval(0.9)
    assert max_interval(values) == pytest.approx((expected.low, expected.high), rel=2e-3)


def test_max_interval_allows_for_the_choice() -> None:
    """Four equal means: the low end lies further below the highest mean than that of one t test."""
    values = np.random.default_rng(1).normal(0.5, 0.1, (8, 4))
    best = values[:, values.mean(axis=0).argmax()]
    alone = stats.ttest_1samp(best, 0).confidence_interval(0.9)
    assert max_interval(values)[0] < alone.low
    assert np.isnan(max_interval(values[:1])).all()


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.sampled_from([0.01, 0.1, 1.0]), st.sampled_from([0.05, 0.3]))
def test_every_estimate_lies_in_its_interval(seed: int, subjects: int, noise: float, tolerance: float) -> None:
    draw = np.random.default_rng(seed)
    scores = 0.2 + draw.uniform(-0.1, 0.4, 5) + draw.normal(0, noise, (subjects, 5))
    base = 0.2 + draw.normal(0, noise, subjects)
    found = find_plateaus(np.exp2(OCTAVES), scores.mean(axis=0)[None], base.mean(keepdims=True), ~ALIVE, tolerance)
    edges = edge_intervals(OCTAVES, scores, base, ALIVE, tolerance)
    assert edges.width_low - 1e-9 <= found["width_octaves"][0] <= edges.width_high + 1e-9
    if found["width_octaves"][0] > 0:
        assert edges.low_edge_low - 1e-9 <= np.log2(found["low_edge"][0]) <= edges.low_edge_high + 1e-9
        assert edges.high_edge_low - 1e-9 <= np.log2(found["high_edge"][0]) <= edges.high_edge_high + 1e-9


def test_intervals_close_around_the_truth_without_noise() -> None:
    """Peak 0.8 over a base of 0.4 at octave 2: 0.78 is crossed at 1.5 and 2.25."""
    scores = np.tile([0.40, 0.76, 0.80, 0.72, 0.40], (4, 1))
    edges = edge_intervals(OCTAVES, scores, np.full(4, 0.4), ALIVE, 0.05)
    assert edges == pytest.approx((0.75, 0.75, 1.5, 1.5, 2.25, 2.25), abs=0.07)


def test_a_plateau_ends_at_a_diverged_point_and_where_the_second_score_falls() -> None:
    scores = np.tile([0.80, 0.80, 0.80, 0.80, 0.80], (4, 1)) + np.array([0, 1e-4, 2e-4, 1e-4, 0])
    base = np.full(4, 0.4)
    lost = np.array([True, True, True, False, True])
    assert edge_intervals(OCTAVES, scores, base, lost, 0.05).high_edge_high == 2.0
    spare = np.tile([0.1, 0.1, 0.1, 0.1, -0.1], (4, 1))
    assert edge_intervals(OCTAVES, scores, base, ALIVE, 0.05, spare).high_edge_high == pytest.approx(3.5, abs=0.07)


def test_nothing_above_the_base_is_no_plateau() -> None:
    scores = np.random.default_rng(2).normal(0.1, 0.01, (8, 5))
    edges = edge_intervals(OCTAVES, scores, np.full(8, 0.5), ALIVE, 0.05)
    assert edges[:2] == (0.0, 0.0)
    assert np.isnan(edges[2:]).all()
    assert np.isnan(edge_intervals(OCTAVES, scores[:1], np.full(1, 0.0), ALIVE, 0.05)).all(), "one subject, no interval"
