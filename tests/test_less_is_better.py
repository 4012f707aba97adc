"""A score of which less is better: its table with the sign turned gives the same areas, widths, rates, and turned scores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

from analysis import (
    Results,
    best_settings,
    centre_on_best,
    compare,
    joint_plateau,
    load,
    matched_prompt,
    plateau,
    plateau_sentence,
    run_scores,
    score_curve,
    scores_by_step,
    sharpness_vs_rate,
    subject_scores,
    trial_scores,
    tried_settings,
)
from analysis.card import make_card
from analysis.early_warning import lost_scores
from analysis.measures import MEASURES
from analysis.tables import clearly_best
from figures.scores_by_subject import at_best
from tests.make_runs import Shape, make_runs
from tests.make_tasks import ERROR, TURNED, installed, make_down, turn, unchanged

SHAPES = {"lora": Shape(low=0.0, high=1.0, diverges_from=16.0), "delora": Shape(high=3.0, gain=0.8)}
GAINS = ("area", "half_width", "width", "sensitivity")  # what is the same whichever way is better
SCORES = ("at_best", "at_one", "worst")  # what is turned


@pytest.fixture(scope="module")
def upright(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two methods on five subjects, one of which diverges at the largest rate."""
    made = {"subjects": ("cat", "dog", "owl", "elk", "ant"), "noise_sd": 0.01, "drift": True, "eval_steps": (10, 20)}
    runs = make_runs(tmp_path_factory.mktemp("runs"), shapes=SHAPES, sharpness={"lora": 1.0, "delora": 2.0}, **made)
    return unchanged(load(runs))


@pytest.fixture
def turned(upright: Results) -> Iterator[Results]:
    """The same with the headline's sign turned."""
    with installed(make_down()):
        yield turn(upright)


def of(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of a score, without its name."""
    return frame[frame["metric"] == metric].drop(columns="metric").reset_index(drop=True)


def assert_turned(found: pd.DataFrame, wanted: pd.DataFrame, name: str) -> None:
    """Whether a number and its interval are those of the other table with the sign turned."""
    low, high = ("low", "high") if name == "mean" else (f"{name}_low", f"{name}_high")
    for own, other in ((name, name), (low, high), (high, low)):
        np.testing.assert_allclose(found[own].astype(float), -wanted[other].astype(float), rtol=1e-9, atol=1e-9)


def test_diverged_runs_score_the_higher_of_their_own_and_the_bases(upright: Results, turned: Results) -> None:
    runs = run_scores(turned)
    lost = of(runs[runs["diverged"]], "error")
    assert len(lost) == 5
    own = turned.scores[
        turned.scores["step"] == turned.scores.groupby("run_id", observed=True)["step"].transform("max")
    ]
    own = own[own["metric"] == "error"].groupby("run_id", observed=True)["value"].mean()
    assert (lost["value"] > lost["base"]).all()
    np.testing.assert_allclose(lost["value"], lost["run_id"].map(own).astype(float))
    for up, down in TURNED.items():
        np.testing.assert_allclose(of(runs, down)["value"], -of(run_scores(upright), up)["value"])


def test_plateaus_are_the_same_and_their_scores_are_turned(upright: Results, turned: Results) -> None:
    up, down = plateau(subject_scores(upright)), plateau(subject_scores(turned))
    assert set(down["metric"]) == {"error", "blur", "clip_t"}
    for old, new in TURNED.items():
        wanted, found = of(up, old), of(down, new)
        for name in ("peak", "worst"):
            assert_turned(found, wanted, name)
        np.testing.assert_allclose(found["base"], -wanted["base"])
        ends = ("peak", "peak_low", "peak_high", "worst", "worst_low", "worst_high", "base")
        pd.testing.assert_frame_equal(found.drop(columns=list(ends)), wanted.drop(columns=list(ends)))
    pd.testing.assert_frame_equal(of(down, "clip_t"), of(up, "clip_t"))


def test_differences_of_gains_are_the_same_and_those_of_scores_are_turned(upright: Results, turned: Results) -> None:
    up, down = (compare(subject_scores(results), (*GAINS, *SCORES)) for results in (upright, turned))
    same = up["measure"].isin(GAINS)
    pd.testing.assert_frame_equal(down[same], up[same])
    assert_turned(down[~same], up[~same], "mean")
    np.testing.assert_allclose(down["p"].astype(float), up["p"].astype(float))


def test_the_best_rate_is_the_one_with_the_lowest_mean(upright: Results, turned: Results) -> None:
    up, down = score_curve(upright), score_curve(turned)
    pd.testing.assert_series_equal(centre_on_best(down, down)["over_best"], centre_on_best(up, up)["over_best"])
    tables = [
        of(subject_scores(results), name).assign(metric=name)
        for results, name in ((upright, "dino"), (turned, "error"))
    ]
    assert list(at_best(tables[1])["multiplier"]) == list(at_best(tables[0])["multiplier"])
    points = [sharpness_vs_rate(results).points for results in (upright, turned)]
    pd.testing.assert_frame_equal(points[1], points[0])


def test_losses_against_the_best_are_the_same(upright: Results, turned: Results) -> None:
    pd.testing.assert_frame_equal(lost_scores(turned), lost_scores(upright))
    up, down = (of(scores_by_step(results), name) for results, name in ((upright, "dino"), (turned, "error")))
    for name in ("best_multiplier", "over_best", "below_best"):
        np.testing.assert_allclose(down[name], up[name], rtol=1e-9, atol=1e-7)
    assert down["below_best"].max() == 0


def test_gains_at_matched_prompt_are_the_same(upright: Results, turned: Results) -> None:
    up, down = matched_prompt(subject_scores(upright)), matched_prompt(subject_scores(turned))
    for name in ("fronts", "gains", "differences"):
        pd.testing.assert_frame_equal(getattr(down, name), getattr(up, name))
    np.testing.assert_allclose(down.paths["error"], -up.paths["dino"], rtol=1e-9)
    np.testing.assert_allclose(
        down.paths[["clip_t", "loss", "drift"]], up.paths[["clip_t", "loss", "drift"]], rtol=1e-9
    )
    joint = [joint_plateau(subject_scores(results)) for results in (upright, turned)]
    np.testing.assert_allclose(joint[1]["width_octaves"], joint[0]["width_octaves"])
    np.testing.assert_allclose(joint[1]["peak"], -joint[0]["peak"])


def test_measures_of_claims_know_which_way_is_better(upright: Results, turned: Results) -> None:
    same = {
        "gain": ("LoRA", 2.0), "loss_at": ("LoRA", 8.0), "half_width": ("LoRA",), "difference": ("LoRA", "DeLoRA", "area"),
        "gain_at_matched_prompt": ("LoRA",), "loss_at_end": ("LoRA, 2x",),
    }  # fmt: skip
    for measure, arguments in same.items():
        up, down = (MEASURES[measure](results, *arguments) for results in (upright, turned))
        assert down == pytest.approx(up), measure
    for measure, arguments in {"score": ("LoRA", 2.0), "difference_at": ("LoRA", "DeLoRA", 4.0)}.items():
        up, down = (MEASURES[measure](results, *arguments) for results in (upright, turned))
        assert (down.mean, down.low, down.high) == pytest.approx((-up.mean, -up.high, -up.low)), measure


def test_a_card_says_how_low_and_gains_as_much(upright: Results, turned: Results) -> None:
    up, down = (make_card(results, "DeLoRA", ["LoRA"]) for results in (upright, turned))
    assert down.verdict[0] == up.verdict[0].replace("DINO", "error").replace("subjects", "puzzles")
    np.testing.assert_allclose(down.facts["peak"], -up.facts["peak"])
    assert list(down.facts["best_multiplier"]) == list(up.facts["best_multiplier"])
    assert "error at the best rate" in down.to_markdown()
    row = of(plateau(subject_scores(turned)), "error").iloc[0].copy()
    row["metric"] = "error"
    assert "error is lowest" in plateau_sentence(row, unfit=["cat"], unit="puzzle")


def test_the_same_settings_are_chosen(upright: Results, turned: Results) -> None:
    for rule in ("dino", "matched-prompt", "sum"):
        up = best_settings(tried_settings(trial_scores(upright)), rule)
        tried = tried_settings(trial_scores(turned))
        down = best_settings(tried, "error" if rule == "dino" else rule)
        assert list(down["lr"]) == list(up["lr"])
    np.testing.assert_allclose(tried["sum"], tried["clip_t"] - tried["error"] - tried["blur"])


def test_the_lowest_is_bold() -> None:
    frame = pd.DataFrame({"error": [0.5, 0.2], "error_low": [0.4, 0.1], "error_high": [0.6, 0.3]})
    with installed(make_down()):
        assert clearly_best(frame, ERROR.name) == 1
