"""Every pair of series, paired by subject, and rates of divergence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from adapters import BadInput
from analysis import load, subject_scores
from analysis.comparisons import MEASURES, compare, half_widths, power_sentence, subject_measures
from analysis.divergence import divergence_rates
from analysis.grid import subject_grid
from analysis.permutation import holm, sign_flip
from analysis.plateau import plateau
from analysis.statistics import studentised_bootstrap
from benchmarks.simulated import World
from tests.make_runs import GAIN, Shape, make_runs


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Three series of eight subjects."""
    return World().study(np.random.default_rng(5), 8, 1, {"LoRA": "hill", "DoRA": "flat", "DeLoRA": "flat"})


def scores_at(table: pd.DataFrame, series: str, multiplier: float, metric: str = "dino") -> pd.Series:
    """One number a subject."""
    rows = table[(table["series"] == series) & (table["multiplier"] == multiplier) & (table["metric"] == metric)]
    return rows.set_index("subject")["value"]


def test_rows_are_the_plain_paired_statistics(table: pd.DataFrame) -> None:
    found = compare(table, ("at_one",))
    assert list(zip(found["a"], found["b"])) == [("LoRA", "DoRA"), ("LoRA", "DeLoRA"), ("DoRA", "DeLoRA")]
    values = scores_at(table, "LoRA", 1.0) - scores_at(table, "DeLoRA", 1.0)
    row = found.iloc[1]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert row["mean"] == pytest.approx(values.mean())
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert (row["boot_low"], row["boot_high"]) == pytest.approx(studentised_bootstrap(values)[1:3])
    assert row["iqm"] == pytest.approx(stats.trim_mean(values, 0.25))
    assert row["p"] == sign_flip(values).p
    assert row["smallest_p"] == 2 / 2**8
    assert row["num_subjects"] == 8


def test_holm_runs_over_the_whole_table(table: pd.DataFrame) -> None:
    whole, part = compare(table, ("at_one", "area")), compare(table, ("area",))
    assert len(whole) == 6
    np.testing.assert_allclose(whole["p_holm"], holm(whole["p"]))
    assert (whole["p_holm"][3:].to_numpy() >= part["p_holm"].to_numpy()).all()


def test_measures_are_what_they_say(table: pd.DataFrame) -> None:
    rows = table[(table["series"] == "LoRA") & (table["metric"] == "dino")]
    found = subject_measures(rows)
    means = rows.groupby("multiplier")["value"].mean()
    np.testing.assert_allclose(found["at_best"], scores_at(table, "LoRA", means.idxmax()))
    np.testing.assert_allclose(found["worst"], scores_at(table, "LoRA", means.idxmin()))
    np.testing.assert_allclose(found["at_one"], scores_at(table, "LoRA", 1.0))
    gains = (rows["value"] - rows["base"]).to_numpy().reshape(8, 8)
    np.testing.assert_allclose(found["area"], np.trapezoid(gains, axis=1) / 7)
    assert found["width"].between(0, 7).all()
    assert set(found.columns) == set(MEASURES) - {"half_width"}


def test_half_gain_width_is_that_of_the_mean_curves_and_drawn_by_subject(table: pd.DataFrame) -> None:
    """The literal one: `plateau` of each draw's subjects, a subject that is drawn twice under two names."""
    dino = table[table["metric"] == "dino"]
    series = list(dict.fromkeys(dino["series"]))[:2]
    widths = {name: plateau(dino[dino["series"] == name])["half_width"].item() for name in series}
    row = compare(table, ("half_width",), pairs=[tuple(series)]).iloc[0]
    assert row["mean"] == pytest.approx(widths[series[0]] - widths[series[1]])
    draws = np.random.default_rng(3).integers(8, size=(4, 8))
    counts = (draws[:, :, None] == np.arange(8)).sum(axis=1).astype(float)
    for name in series:
        grid = subject_grid(dino[dino["series"] == name], "multiplier")
        assert plateau(dino[dino["series"] == name], 0.5)["width_octaves"].item() == widths[name]
        for draw, found in zip(draws, half_widths(grid, counts), strict=True):
            own = dino[dino["series"] == name]
            drawn = [
                own[own["subject"] == subject].assign(subject=f"{i}")
                for i, subject in enumerate(grid.scores.index[draw])
            ]
            assert found == pytest.approx(plateau(pd.concat(drawn))["half_width"].item())
    assert row["low"] < row["mean"] < row["high"]
    assert (row["p"] < 0.05) == (not row["low"] <= 0 <= row["high"])
    assert row["smallest_p"] <= row["p"] <= 1


def test_half_gain_widths_of_no_subject_in_common_have_no_difference(table: pd.DataFrame) -> None:
    dino = table[table["metric"] == "dino"]
    a, b = list(dict.fromkeys(dino["series"]))[:2]
    first = sorted(dino["subject"].unique())[:4]
    kept = dino[
        ((dino["series"] == a) & dino["subject"].isin(first)) | ((dino["series"] == b) & ~dino["subject"].isin(first))
    ]
    row = compare(kept, ("half_width",), pairs=[(a, b)]).iloc[0]
    assert row["num_subjects"] == 0
    assert row[["mean", "low", "high", "p", "detectable"]].isna().all()


def test_half_gain_width_leads_and_the_five_percent_width_comes_later(table: pd.DataFrame) -> None:
    found = plateau(table[table["metric"] == "dino"])
    columns = list(found.columns)
    assert columns.index("area") < columns.index("half_width") < columns.index("peak") < columns.index("width_octaves")
    assert (found["half_width"] > found["width_octaves"]).all()
    assert ((found["half_width_low"] <= found["half_width"]) & (found["half_width"] <= found["half_width_high"])).all()


def test_diverged_multipliers_are_no_best_and_still_a_worst(tmp_path: Path) -> None:
    shapes = {"lora": Shape(diverges_from=2.0), "delora": Shape()}
    table = subject_scores(load(make_runs(tmp_path, shapes=shapes, subject_sd=0.0, dynamics=False)))
    found = compare(table, ("at_best", "worst")).set_index("measure")
    assert found.loc["at_best", "mean"] == pytest.approx(0, abs=1e-6)
    assert found.loc["worst", "mean"] < -0.5 * GAIN["dino"]


def test_a_series_without_the_base_rate_has_no_row_to_read(tmp_path: Path) -> None:
    make_runs(tmp_path, shapes={"lora": Shape()}, dynamics=False)
    make_runs(tmp_path, shapes={"delora": Shape()}, multipliers=(2, 4), sweep="two", dynamics=False)
    row = compare(subject_scores(load(tmp_path)), ("at_one",)).iloc[0]
    assert row["num_subjects"] == 0
    assert np.isnan(row["p_holm"])


def test_what_cannot_be_seen_is_said(table: pd.DataFrame) -> None:
    sentence = power_sentence(compare(table, ("at_best",)))
    assert "with 8 subjects a difference below 0." in sentence
    assert "p cannot be below 0.0078" in sentence
    assert "more than 6 rows" in sentence
    few = table[table["subject"] < 4]
    assert "no sign-flip test of so few subjects" in power_sentence(compare(few, ("at_best",)))
    assert "fewer than 2 subjects" in power_sentence(compare(table[table["subject"] == 0], ("at_best",)))


def test_wrong_names_and_single_series_are_refused(table: pd.DataFrame) -> None:
    with pytest.raises(BadInput, match="unknown measure 'best'; allowed: area"):
        compare(table, ("best",))
    with pytest.raises(BadInput, match="no scores of metric 'fid'; allowed: dino"):
        compare(table, metric="fid")
    with pytest.raises(BadInput, match="one series, LoRA"):
        compare(table[table["series"] == "LoRA"])


def test_divergence_counts_subjects_not_runs(tmp_path: Path) -> None:
    shapes = {"lora": Shape(diverges_from=4.0)}
    table = divergence_rates(load(make_runs(tmp_path, shapes=shapes, multipliers=(1, 4), seeds=(0, 1, 2))))
    assert list(table["rate"]) == [0.0, 1.0]
    assert list(table["num_diverged"]) == [0, 3]
    assert list(table["num_subjects"]) == [3, 3]
    assert list(table["num_runs"]) == [9, 9]
    low, high = table["high"].iloc[0], table["low"].iloc[1]
    assert 0.5 < low < 0.6, "three of three say little"
    assert low == pytest.approx(1 - high)
    late = divergence_rates(load(tmp_path), "step")
    assert late.loc[late["series"].str.contains("4x"), "rate"].iloc[-1] == 1.0
