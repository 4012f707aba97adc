"""Plateaus of curves small enough to be worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from adapters import BadInput
from analysis import find_plateau, plateau_sentence
from analysis.grid import complete_subjects
from analysis.plateau import doubt, find_plateaus, joint_plateau, plateau
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


@settings(deadline=None)
@given(st.lists(FIVE_SCORES, min_size=1, max_size=4), st.lists(st.booleans(), min_size=5, max_size=5))
def test_many_curves_at_once_are_each_as_alone(curves: list[list[float]], lost: list[bool]) -> None:
    scores, diverged = np.array(curves), np.array(lost)
    base = np.linspace(0.2, 0.4, len(scores))
    together = find_plateaus(GRID, scores, base, diverged)
    for number, row in enumerate(scores):
        alone = find_plateau(GRID, row, float(base[number]), diverged)
        np.testing.assert_equal([together[name][number] for name in alone._fields], list(alone))
        assert alone.width_octaves >= 0


@settings(deadline=None)  # the first call fills caches
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


def subject_table(shapes: dict[str, Shape], subjects: int = 4, sd: float = 0.0, **metrics: list[float]) -> pd.DataFrame:
    """What `subject_scores` returns, of DINO by shape and of other metrics by their scores on GRID; the base is 0.4."""
    draw = np.random.default_rng(0)
    rows = []
    for name, shape in shapes.items():
        curves = {"dino": [0.4 + 0.2 * shape.height(m) for m in GRID], **metrics}
        for metric, values in curves.items():
            for subject in range(subjects):
                offset = sd * draw.standard_normal()
                rows += [
                    (name, name, m, f"s{subject}", metric, v + offset, 0.4 + offset, 1, 0) for m, v in zip(GRID, values)
                ]
    columns = ["series", "method", "multiplier", "subject", "metric", "value", "base", "num_seeds", "num_diverged"]
    return pd.DataFrame(rows, columns=columns)


def test_area_and_worst_case_are_those_of_the_curve() -> None:
    """Gains 0, 0.4, 0.2, -0.1, -0.3 over four octaves: the trapezoids' mean is (0.2 + 0.3 + 0.05 - 0.2) / 4."""
    found = find_plateau(GRID, np.array([0.4, 0.8, 0.6, 0.3, 0.1]), 0.4, NONE)
    assert found.area == pytest.approx(0.35 / 4)
    assert found.worst == pytest.approx(0.1)
    diverged = find_plateau(GRID, np.array([0.4, 0.8, 0.6, 0.3, 0.1]), 0.4, np.arange(5) == 4)
    assert diverged.worst == pytest.approx(0.1), "diverged points score, though they are never on the plateau"


def test_area_is_the_mean_over_octaves_on_an_uneven_grid() -> None:
    found = find_plateau(np.array([1.0, 2.0, 16.0]), np.array([0.4, 0.8, 0.8]), 0.4, np.zeros(3, dtype=bool))
    assert found.area == pytest.approx((0.2 * 1 + 0.4 * 3) / 4)
    assert find_plateau(np.array([2.0]), np.array([0.7]), 0.4, np.zeros(1, dtype=bool)).area == pytest.approx(0.3)


def test_tolerance_moves_the_edges() -> None:
    table = subject_table({"lora": Shape(low=0.0, high=2.0, slope=0.4)})
    narrow, wide = (plateau(table, tolerance).iloc[0] for tolerance in (0.05, 0.2))
    assert narrow["width_octaves"] == pytest.approx(2.0 + 0.125)
    assert wide["width_octaves"] == pytest.approx(2.0 + 0.5)
    assert narrow["area"] == wide["area"]


def test_area_interval_is_students() -> None:
    table = subject_table({"lora": Shape()}, subjects=8)
    table["value"] += np.random.default_rng(1).normal(0, 0.05, len(table))
    row = plateau(table).iloc[0]
    gains = (table["value"] - table["base"]).to_numpy().reshape(8, 5)
    expected = stats.ttest_1samp(gains @ [0.125, 0.25, 0.25, 0.25, 0.125], 0).confidence_interval(0.95)
    assert (row["area_low"], row["area_high"]) == pytest.approx((expected.low, expected.high))


def test_training_length_is_measured_in_octaves_without_step_zero() -> None:
    table = subject_table({"lora": Shape(low=0.0, high=2.0)}).rename(columns={"multiplier": "step"})
    start = table[table["step"] == 1].assign(step=0, value=0.4)
    table = pd.concat([start, table.assign(step=200 * table["step"])])
    row = plateau(table, x="step").iloc[0]
    assert row["best_multiplier"] == 200
    assert row["high_edge"] == pytest.approx(200 * 2**2.125)
    assert row["open_low"]


def test_joint_plateau_ends_where_the_prompt_is_lost() -> None:
    """CLIP-T's base is 0.4, so 0.32 may be reached: between 4x and 8x, half way."""
    table = subject_table({"lora": Shape(low=0.0, high=3.0)}, clip_t=[0.40, 0.38, 0.34, 0.30, 0.10])
    alone, joint = plateau(table).iloc[0], joint_plateau(table).iloc[0]
    assert np.log2(alone["high_edge"]) == pytest.approx(3.125)
    assert np.log2(joint["high_edge"]) == pytest.approx(2.5)
    assert joint["low_edge"] == alone["low_edge"]
    assert np.log2(joint_plateau(table, prompt_loss=0.3).iloc[0]["high_edge"]) == pytest.approx(3.1)
    assert "sensitivity" not in joint
    assert "peak_low" not in joint


def test_joint_plateau_peaks_where_the_prompt_is_kept() -> None:
    rising = Shape(low=4.0, high=5.0, slope=0.1)
    table = subject_table({"lora": rising}, clip_t=[0.40, 0.38, 0.34, 0.30, 0.10])
    row = joint_plateau(table).iloc[0]
    assert row["best_multiplier"] == 4.0
    assert row["peak"] == pytest.approx(0.4 + 0.2 * rising.height(4.0))
    none = joint_plateau(subject_table({"lora": rising}, clip_t=[0.1] * 5)).iloc[0]
    assert none["width_octaves"] == 0
    assert np.isnan(none["peak"])


def test_joint_plateau_refuses_what_it_cannot_join() -> None:
    table = subject_table({"lora": Shape()})
    with pytest.raises(BadInput, match="no scores of clip_t"):
        joint_plateau(table)
    with pytest.raises(BadInput, match=r"loss of CLIP-T 1\.5"):
        joint_plateau(table, prompt_loss=1.5)


# No plateau from nothing, no interval beyond what can be.


def noisy_table(subjects: int, sd: float, gain: float, seed: int) -> pd.DataFrame:
    """What `subject_scores` returns, of a DINO hill with noise on every score, over a base of 0.2."""
    noise = sd * np.random.default_rng(seed).standard_normal((subjects, 5))
    scores = pd.DataFrame(np.clip(0.2 + gain * np.hanning(5) + noise, -1, 1), columns=GRID)
    rows = scores.rename_axis("subject").melt(ignore_index=False, var_name="multiplier").reset_index()
    return rows.assign(series="LoRA", method="lora", metric="dino", base=0.2, num_seeds=1, num_diverged=0)


def test_no_plateau_is_named_where_the_data_carry_none() -> None:
    few, some, noise = (
        plateau(noisy_table(*study, seed=0)).iloc[0] for study in ((2, 0.01, 0.3), (6, 0.01, 0.3), (6, 0.5, 0.02))
    )
    assert "keeps 95 % of its gain" in plateau_sentence(some)
    assert "No plateau is named from fewer than 3 subjects" in plateau_sentence(few)
    assert "cannot be told from nothing" in plateau_sentence(noise)
    assert "know nothing like cat, dog" in plateau_sentence(some, unfit=["cat", "dog"])
    for row in (few, noise):
        assert "octaves" not in plateau_sentence(row)
        assert doubt(row)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.floats(0.0, 1.0), st.floats(-1.0, 1.0), st.integers(0, 2**16))
def test_intervals_stay_in_range_and_the_right_way_up(subjects: int, sd: float, gain: float, seed: int) -> None:
    (row,) = plateau(noisy_table(subjects, sd, gain, seed)).to_dict("records")
    for name in ("peak", "gain", "sensitivity", "area", "worst", "width"):
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        assert low <= high or (np.isnan(low) and np.isnan(high)), name
    for name in ("peak", "worst"):
        assert not row[f"{name}_low"] < -1
        assert not row[f"{name}_high"] > 1
    if not row["peak"] > row["base"]:
        assert np.isnan([row["sensitivity"], row["sensitivity_low"], row["sensitivity_high"]]).all()
