"""Intervals against scipy and by simulation: the subject is the unit, and 95 % means about 95 %."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.statistics import (
    expanded_tail,
    interquartile_interval,
    log_interval,
    paired_difference,
    rate_interval,
    studentised_bootstrap,
    subject_bootstrap,
    t_interval,
)


@pytest.mark.parametrize("size", [2, 3, 8, 30])
def test_t_interval_is_scipys(size: int) -> None:
    values = np.random.default_rng(size).normal(0.5, 0.1, size)
    found = t_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.num_subjects == size


def test_one_subject_has_a_mean_and_no_interval() -> None:
    found = t_interval([0.3])
    assert found.mean == pytest.approx(0.3)
    assert np.isnan(found.low)
    assert np.isnan(found.high)
    assert all(np.isnan(t_interval([])[:3]))


def test_missing_values_are_not_subjects() -> None:
    assert t_interval([1.0, np.nan, 2.0]) == t_interval([1.0, 2.0])


def test_log_interval_is_the_geometric_mean() -> None:
    values = np.array([0.1, 0.2, 0.8])
    found = log_interval(values)
    assert found.mean == pytest.approx(stats.gmean(values))
    assert found.low < values.min() * 1.5
    assert found.high / found.mean == pytest.approx(found.mean / found.low)


def test_paired_difference_is_scipys_on_the_subjects_that_both_have() -> None:
    draw = np.random.default_rng(1)
    subject = draw.normal(0, 1, 6)
    a = pd.Series(subject + draw.normal(0.1, 0.02, 6), index=list("abcdef"))
    b = pd.Series(subject[:5], index=list("abcde"))
    found = paired_difference(a, b)
    expected = stats.ttest_rel(a[:5], b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.num_subjects == 5
    unpaired = t_interval(a).high - t_interval(a).low
    assert found.high - found.low < unpaired / 5, "pairing by subject must take the subjects' spread out"


def test_coverage_with_the_subject_as_unit_and_with_pictures_as_units() -> None:
    """Eight subjects with eight pictures each: means over subjects cover 95 %, pictures as units far less."""
    draw = np.random.default_rng(0)
    data = draw.normal(0, 1, (2000, 8, 1)) + draw.normal(0, 0.5, (2000, 8, 8))

    def coverage(samples: np.ndarray) -> float:
        return float(np.mean([(i := t_interval(s)).low <= 0 <= i.high for s in samples]))

    assert coverage(data.mean(axis=2)) == pytest.approx(0.95, abs=0.015)
    assert coverage(data.reshape(2000, 64)) < 0.65


def test_bootstrap_intervals_cover() -> None:
    draw = np.random.default_rng(2)
    studentised = expanded = 0
    for _ in range(300):
        values = draw.gamma(2.0, 1.0, 10)
        found = studentised_bootstrap(values, num_draws=400)
        studentised += found.low <= 2.0 <= found.high

        def mean(draws: np.ndarray, values: np.ndarray = values) -> np.ndarray:
            return values[draws].mean(axis=1, keepdims=True)

        low, high = subject_bootstrap(mean, 10, num_draws=400)
        expanded += low[0] <= 2.0 <= high[0]
    assert studentised / 300 > 0.90
    assert expanded / 300 > 0.87


def test_bootstrap_of_few_subjects_gives_no_interval() -> None:
    assert np.isnan(studentised_bootstrap([1.0, 2.0, 3.0]).low)
    low, high = subject_bootstrap(lambda draws: draws.mean(axis=1, keepdims=True), 1)
    assert np.isnan(low).all()
    assert np.isnan(high).all()


@pytest.mark.parametrize("size", [2, 4, 8, 100])
def test_percentiles_are_moved_out_for_few_subjects(size: int) -> None:
    """Hesterberg 2015, doi 10.1080/00031305.2015.1089789: alpha' / 2 = Phi(-sqrt(n / (n - 1)) t_{n-1})."""
    expected = stats.norm.cdf(-np.sqrt(size / (size - 1)) * stats.t.ppf(0.975, size - 1))
    assert expanded_tail(size) == pytest.approx(expected, rel=1e-6)
    assert expanded_tail(size) < 0.025


def test_bootstraps_depend_on_their_seed_only() -> None:
    values = np.random.default_rng(3).normal(0, 1, 9)
    assert studentised_bootstrap(values, seed=1) == studentised_bootstrap(values, seed=1)
    assert studentised_bootstrap(values, seed=1) != studentised_bootstrap(values, seed=2)
    assert studentised_bootstrap(values, 0.99).high > studentised_bootstrap(values, 0.8).high


@pytest.mark.parametrize("size", [4, 8, 16])
def test_interquartile_mean_is_scipys_trimmed_mean(size: int) -> None:
    values = np.random.default_rng(size).normal(0, 1, size)
    found = interquartile_interval(values)
    assert found.mean == pytest.approx(stats.trim_mean(values, 0.25))
    assert found.low < found.mean < found.high
    assert found.num_subjects == size


def test_interquartile_mean_counts_the_ends_of_the_half_in_part() -> None:
    """Six subjects: 1.5 are cut from either side, so the second and the fifth count by half."""
    assert interquartile_interval([0.0, 1.0, 2.0, 4.0, 8.0, 90.0]).mean == pytest.approx((0.5 + 2 + 4 + 4) / 3)
    assert interquartile_interval([3.0]).mean == 3.0
    assert interquartile_interval([]).num_subjects == 0


@pytest.mark.parametrize(("count", "num"), [(0, 8), (2, 8), (8, 8), (5, 12)])
def test_rate_interval_is_wilsons(count: int, num: int) -> None:
    """Wilson 1927: the roots of (p - count / num)^2 = z^2 p (1 - p) / num."""
    found, z = rate_interval(count, num), stats.norm.ppf(0.975)
    assert found.mean == count / num
    for p in found[1:3]:
        assert (p - count / num) ** 2 == pytest.approx(z**2 * p * (1 - p) / num, abs=1e-9)
    assert 0 <= found.low < found.high <= 1
    assert np.isnan(rate_interval(0, 0).mean)
