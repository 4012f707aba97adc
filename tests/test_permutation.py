"""Sign flips against scipy's permutation test, Holm's correction against the textbook."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.permutation import MOST_EXACT, holm, sign_flip


@pytest.mark.parametrize("size", [1, 2, 5, 8, 12])
def test_exact_p_is_scipys(size: int) -> None:
    values = np.random.default_rng(size).normal(0.5, 1, size)
    found = sign_flip(values)
    if size > 1:
        expected = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert found.p == pytest.approx(min(expected.pvalue, 1.0))
    assert found.exact
    assert found.num_draws == 2**size
    assert found.smallest_p == pytest.approx(2 / 2**size)


def test_smallest_p_is_reached_when_all_differences_have_one_sign() -> None:
    found = sign_flip([0.3, 0.1, 0.2, 0.4, 0.5, 0.1])
    assert found.p == found.smallest_p == 1 / 32, "6 subjects cannot show less"
    assert sign_flip(-np.array([0.3, 0.1, 0.2, 0.4, 0.5, 0.1])).p == found.p


def test_ties_and_zeros_count_as_extreme() -> None:
    assert sign_flip([0.1, -0.1]).p == 1.0
    assert sign_flip(np.zeros(5)).p == 1.0
    assert sign_flip([0.1, 0.2, -0.3]).p == 1.0, "0.1 + 0.2 - 0.3 is not exactly zero"


def test_many_subjects_are_drawn_and_the_drawn_p_is_close_to_the_exact_one() -> None:
    values = np.random.default_rng(4).normal(0.4, 1, MOST_EXACT + 2)
    found = sign_flip(values)
    signs = 1 - 2.0 * ((np.arange(2**16)[:, None] >> np.arange(16)) & 1)
    exact = np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-12)
    assert not found.exact
    assert found.num_draws == 20_000
    assert found.p == pytest.approx(exact, abs=4 * np.sqrt(exact / 20_000))
    assert found.smallest_p == 1 / 20_001
    assert sign_flip(values, seed=1) == sign_flip(values, seed=1)
    assert sign_flip(values, seed=1).p != sign_flip(values, seed=2).p


def test_missing_subjects_are_left_out() -> None:
    assert sign_flip([0.1, np.nan, 0.3]) == sign_flip([0.1, 0.3])
    assert np.isnan(sign_flip([np.nan]).p)


def test_sign_flips_reject_at_their_level_whatever_the_noise() -> None:
    """Symmetric heavy tails, 8 subjects: p <= 0.05 in at most 5 % (of 256 patterns 12 are allowed: 4.7 %)."""
    draw = np.random.default_rng(0)
    p = [sign_flip(draw.standard_t(2, 8)).p for _ in range(2000)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(12 / 256, abs=0.015)


def test_holm_is_the_textbooks() -> None:
    """Holm 1979: p = 0.01, 0.04, 0.03 times 3, 1, 2, made monotone."""
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, np.nan, 0.9]), [1.0, np.nan, 1.0])
    assert len(holm([])) == 0


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 0.2))
def test_holm_rejects_what_the_stepwise_procedure_rejects(p: list[float], level: float) -> None:
    order, rejected = np.argsort(p, kind="stable"), np.zeros(len(p), dtype=bool)
    for step, place in enumerate(order):
        if p[place] * (len(p) - step) > level:
            break
        rejected[place] = True
    np.testing.assert_array_equal(holm(p) <= level, rejected)
