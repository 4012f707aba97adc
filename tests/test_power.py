"""What can be seen with so many subjects: against scipy's noncentral t, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.power import detectable_difference, effect_size
from analysis.statistics import t_interval


@pytest.mark.parametrize(
    ("size", "power", "level"), [(4, 0.8, 0.95), (12, 0.8, 0.95), (12, 0.5, 0.99), (50, 0.9, 0.95)]
)
def test_effect_size_has_the_power_by_the_noncentral_t(size: int, power: float, level: float) -> None:
    d = effect_size(size, power, level)
    t = stats.t.ppf((1 + level) / 2, size - 1)
    assert stats.nct.sf(t, size - 1, d * np.sqrt(size)) == pytest.approx(power, abs=1e-3)


def test_a_detectable_difference_is_found_four_times_in_five() -> None:
    draw = np.random.default_rng(0)
    difference = effect_size(8) * 0.1
    found = [t_interval(draw.normal(difference, 0.1, 8)) for _ in range(2000)]
    assert np.mean([i.low > 0 or i.high < 0 for i in found]) == pytest.approx(0.8, abs=0.03)


def test_detectable_difference_scales_with_the_spread_and_shrinks_with_subjects() -> None:
    values = np.random.default_rng(1).normal(0, 0.1, 12)
    found = detectable_difference(values)
    assert found.difference == pytest.approx(effect_size(12) * values.std(ddof=1))
    assert found.low < found.difference < found.high
    assert detectable_difference(10 * values).difference == pytest.approx(10 * found.difference)
    assert detectable_difference(values, num_subjects=48).difference < found.difference / 2
    assert detectable_difference(values, level=1 - 0.05 / 6).difference > found.difference
    assert np.isnan(detectable_difference([0.1]).difference)
