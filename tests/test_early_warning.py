"""Gauges of the first steps against the score lost at the end, on runs made so that the answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from adapters import BadInput
from analysis import load
from analysis.early_warning import (
    ALL,
    CHOSEN,
    early_gauges,
    early_warning,
    left_out_choice,
    lost_scores,
    subject_correlations,
)
from analysis.results import Results
from tests.make_runs import BASE_SCORE, GAIN, Shape, make_runs

SUBJECTS = ("ant", "bee", "cat", "dog", "owl")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """LoRA falls beyond 1x and its distance grows; DeLoRA falls beyond 4x."""
    shapes = {"lora": Shape(low=-2, high=0.0, slope=0.2), "delora": Shape(low=-2, high=1.0, slope=0.2)}
    return load(make_runs(tmp_path_factory.mktemp("runs"), shapes=shapes, subjects=SUBJECTS, noise_sd=0.004))


def test_gauges_are_read_after_a_tenth_of_the_steps(results: Results) -> None:
    """20 steps: step 2 is read, and step 1 is half way there."""
    gauges = early_gauges(results)
    run = results.runs[(results.runs["method"] == "lora") & (results.runs["multiplier"] == 4)].iloc[0]
    frame = results.trajectories("mean", ["distance_rel"])
    own = frame[frame["run_id"] == run["run_id"]].set_index("step")["distance_rel"]
    assert gauges.loc[run["run_id"], "distance_rel"] == pytest.approx(own[2])
    assert gauges.loc[run["run_id"], "growth"] == pytest.approx(1.0, abs=1e-3), "a straight path"
    assert gauges.loc[run["run_id"], "lr"] == pytest.approx(4e-3)
    assert early_gauges(results, 0.5).loc[run["run_id"], "distance_rel"] == pytest.approx(own[10])


def test_what_is_lost_is_counted_from_the_others_best_rate_on(results: Results) -> None:
    lost = lost_scores(results).merge(results.runs[["run_id", "multiplier"]], on="run_id")
    assert lost.groupby(["series", "subject"])["multiplier"].min().between(0.25, 4).all()
    shape = Shape(low=-2, high=0.0, slope=0.2)
    rows = lost[(lost["series"] == "LoRA") & (lost["multiplier"] == 16)]
    assert rows["lost"].mean() == pytest.approx(GAIN["dino"] * (1 - shape.height(16)), abs=0.01)
    assert BASE_SCORE["dino"] > 0


def test_correlations_are_spearmans() -> None:
    draw = np.random.default_rng(0)
    group = pd.DataFrame(
        {"subject": np.repeat(["a", "b"], 6), "lost": draw.normal(0, 1, 12), "gauge": draw.normal(0, 1, 12)}
    )
    found = subject_correlations(group, ["gauge"])
    for subject, own in group.groupby("subject"):
        assert found.loc[subject, "gauge"] == pytest.approx(stats.spearmanr(own["gauge"], own["lost"]).statistic)
    assert subject_correlations(group[group["subject"] == "a"][:3], ["gauge"]).empty, "three runs say nothing"


def test_the_distance_warns_where_it_grows_with_the_rate(results: Results) -> None:
    found = early_warning(results).set_index(["series", "gauge"])
    assert found.loc[("LoRA", "distance_rel"), "rho"] > 0.85
    assert found.loc[("LoRA", "distance_rel"), "low"] > 0.5
    assert found.loc[("LoRA", "distance_rel"), "over_rate"] == pytest.approx(0, abs=1e-9), (
        "the same ranks as the rate's"
    )
    assert np.isnan(found.loc[("LoRA", "multiplier"), "over_rate"])
    assert found.loc[("LoRA", CHOSEN), "rho"] > 0.85
    assert set(found["num_subjects"]) == {5}
    assert "lambda" in found.loc["DeLoRA"].index
    assert "lambda" not in found.loc[ALL].index, "not every method has one"
    assert set(early_warning(results, series=["LoRA"])["series"]) == {"LoRA"}


def test_the_choice_is_judged_on_the_subject_left_out() -> None:
    """One subject's own best gauge is not chosen by the others, so it gets theirs."""
    rho = pd.DataFrame({"a": [0.9, 0.8, 0.9, -0.5], "b": [0.1, 0.0, 0.1, 1.0]}, index=list("wxyz"))
    assert left_out_choice(rho)["z"] == -0.5
    assert left_out_choice(-rho)["w"] == left_out_choice(rho)["w"], "a sign is learned with the gauge"


def test_a_gauge_of_noise_warns_of_nothing() -> None:
    draw = np.random.default_rng(1)
    chosen = [left_out_choice(pd.DataFrame(draw.uniform(-1, 1, (8, 5)))).mean() for _ in range(300)]
    assert np.mean(chosen) == pytest.approx(0, abs=0.06), "choosing and judging on the same subjects would give 0.3"


def test_wrong_arguments_are_refused(results: Results) -> None:
    with pytest.raises(BadInput, match="share 0 of the steps"):
        early_warning(results, share=0)
    with pytest.raises(BadInput, match="no scores of metric 'fid'"):
        early_warning(results, metric="fid")
