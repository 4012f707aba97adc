"""The gain in DINO at the same loss of CLIP-T: fronts that are known, paired differences, what cannot be compared; the figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as PathOf
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import figures
from adapters import BadInput
from analysis import load, matched_prompt
from analysis.card import MEASURES, make_card
from analysis.matched_prompt import find_front
from analysis.statistics import expanded_tail
from figures.registry import draw_lr_robustness
from tests import make_runs
from tests.make_runs import assert_drawn
from tests.test_figures import axes_of, line_of, words_of

BASE = {"dino": 0.2, "clip_t": 0.8, "drift": 0.0}
Path = tuple[Sequence[float], Sequence[float]]  # the gains in DINO and the losses of CLIP-T of a series' rates
STRAIGHT: Path = ((0.2, 0.3), (0.1, 0.2))


def make_scores(
    paths: Mapping[str, Path], subjects: int = 4, sd: float = 0.0, noise: float = 0.0, drift: bool = False
) -> pd.DataFrame:
    """What `subject_scores` returns of rates 1, 2, 4 ...; subjects differ by `sd`, their gains by `noise`."""
    draw, rows = np.random.default_rng(0), []
    offsets = sd * draw.standard_normal(subjects)
    for name, (gains, losses) in paths.items():
        for number, (gain, loss) in enumerate(zip(gains, losses, strict=True)):
            for subject in range(subjects):
                scores = {"dino": 0.2 + offsets[subject] + gain * (1 + noise * draw.standard_normal())}
                scores |= {"clip_t": 0.8 * (1 - loss)} | ({"drift": 0.1 * (number + 1)} if drift else {})
                starts = BASE | {"dino": 0.2 + offsets[subject]}
                rows += [
                    (name, 2.0**number, f"s{subject}", metric, value, starts[metric])
                    for metric, value in scores.items()
                ]
    frame = pd.DataFrame(rows, columns=["series", "multiplier", "subject", "metric", "value", "base"])
    return frame.assign(method=frame["series"].str.lower(), num_seeds=1, num_diverged=0)


def mean_of(table: pd.DataFrame, **options: float) -> float:
    """The mean gain of the only series."""
    return float(matched_prompt(table, num_draws=20, **options).gains["mean"].iloc[0])  # type: ignore[arg-type]


def gain_at(table: pd.DataFrame, loss: float) -> float:
    """The front of the only series at a loss."""
    front = matched_prompt(table, num_draws=20).fronts
    return float(front.loc[np.isclose(front["loss"], loss), "gain"].item())


# Fronts.


def test_mean_of_a_known_front() -> None:
    """From 0 to 0.2 over the first half of the losses, from 0.2 to 0.3 over the second."""
    table = make_scores({"LoRA": STRAIGHT})
    assert mean_of(table) == pytest.approx((0.1 + 0.25) / 2)
    assert mean_of(table, prompt_loss=0.1) == pytest.approx(0.1)
    gains = matched_prompt(table, num_draws=20).gains.set_index("loss")["mean"]
    assert gains.to_dict() == pytest.approx({"0 to 20 %": 0.175, "5 %": 0.1, "10 %": 0.2, "15 %": 0.25, "20 %": 0.3})


def test_front_of_a_rising_path_is_the_interpolated_mean() -> None:
    table = make_scores({"LoRA": ((0.1, 0.25, 0.3), (0.04, 0.11, 0.3))}, subjects=7, sd=0.1, noise=0.1)
    front = matched_prompt(table, num_draws=20).fronts
    means = table[table["metric"] == "dino"].groupby("multiplier")[["value", "base"]].mean()
    expected = np.interp(front["loss"], [0, 0.04, 0.11, 0.3], [0, *(means["value"] - means["base"])])
    np.testing.assert_allclose(front["gain"], expected)


def test_front_never_falls_and_knows_no_loss_below_zero() -> None:
    falling = make_scores({"LoRA": ((0.3, 0.1), (0.1, 0.2))})
    assert gain_at(falling, 0.2) == gain_at(falling, 0.1) == pytest.approx(0.3)
    assert gain_at(make_scores({"LoRA": ((0.2,), (-0.1,))}), 0.0) == pytest.approx(0.2)
    assert gain_at(make_scores({"LoRA": ((-0.2, -0.1), (0.1, 0.2))}), 0.2) == 0, "the base gains nothing, at no loss"


def test_path_that_turns_back_is_read_where_it_lost_least() -> None:
    """At 4x it has as much prompt as at 1x, and more likeness: the front is that of the way back."""
    table = make_scores({"LoRA": ((0.1, 0.2, 0.3), (0.1, 0.2, 0.1))})
    assert gain_at(table, 0.1) == pytest.approx(0.3)
    assert gain_at(table, 0.05) == pytest.approx(0.05)


def test_path_that_never_loses_so_much_stays_at_its_highest() -> None:
    table = make_scores({"LoRA": ((0.1, 0.3), (0.05, 0.1))})
    assert gain_at(table, 0.2) == pytest.approx(0.3)
    row = matched_prompt(table, num_draws=20).gains.iloc[0]
    assert (row["least_tried"], row["most_tried"]) == pytest.approx((0.05, 0.1))
    assert row["mean"] == pytest.approx(0.25 * 0.05 + 0.25 * 0.2 + 0.5 * 0.3)


def test_of_ties_the_higher_counts() -> None:
    table = make_scores({"LoRA": ((0.1, 0.2, 0.2), (0.1, 0.1, 0.1))})
    assert gain_at(table, 0.1) == pytest.approx(0.2)
    assert gain_at(table, 0.05) == pytest.approx(0.05), "the way to a tied rate ends there"
    alike = matched_prompt(make_scores({"LoRA": STRAIGHT, "DoRA": STRAIGHT}), num_draws=20).differences
    assert (alike[["mean", "low", "high"]] == 0).all(axis=None)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-30, 60), st.floats(-0.2, 0.5)), min_size=1, max_size=6))
def test_front_is_that_of_a_path_walked_in_small_steps(points: list[tuple[int, float]]) -> None:
    """The literal twin: the highest gain of all places on the path, 2,000 on each piece, that lose no more."""
    losses, gains = np.transpose([(0.0, 0.0), *((loss / 100, gain) for loss, gain in points)])
    places = np.linspace(0, len(points), 2000 * len(points) + 1)
    walked = [np.interp(places, np.arange(len(losses)), values) for values in (losses, gains)]
    levels = np.linspace(0, 0.2, 11)
    expected = np.array([walked[1][walked[0] <= level + 1e-9].max() for level in levels])
    found = find_front(losses, gains, levels)
    assert (found >= expected - 1e-12).all()
    steps = np.abs(np.diff(gains)).max() / 2000
    assert (found <= expected + steps + 1e-12).all()


# Intervals and differences.


def test_interval_is_the_expanded_percentile_of_drawn_means() -> None:
    """One rate that loses just what may be lost: the mean gain is half of its gain, a plain mean over the subjects."""
    table = make_scores({"LoRA": ((0.3,), (0.2,))}, subjects=9, sd=0.1, noise=0.4)
    rows = table[table["metric"] == "dino"]
    gains = (rows["value"] - rows["base"]).to_numpy() / 2
    means = gains[np.random.default_rng(3).integers(9, size=(200, 9))].mean(axis=1)
    row = matched_prompt(table, num_draws=200, seed=3).gains.iloc[0]
    assert row["mean"] == pytest.approx(gains.mean())
    tail = expanded_tail(9)
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(means, [tail, 1 - tail])))


def test_differences_are_paired_by_subject() -> None:
    """Subjects differ by much, the methods by the same in each: the difference has no spread, the methods' gains have."""
    table = make_scores({"LoRA": ((0.3,), (0.2,)), "DoRA": ((0.4,), (0.2,))}, subjects=8, noise=0.5)
    dino = table["metric"] == "dino"
    own = table[dino & (table["series"] == "LoRA")]["value"].to_numpy()
    table.loc[dino & (table["series"] == "DoRA"), "value"] = own + 0.1
    found = matched_prompt(table, num_draws=50)
    row = found.differences.iloc[0]
    assert (row["a"], row["b"], row["loss"]) == ("LoRA", "DoRA", "0 to 20 %")
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((-0.05, -0.05, -0.05))
    assert found.gains["high"].iloc[0] - found.gains["low"].iloc[0] > 0.05
    at_ten = found.differences.set_index("loss").loc["10 %", "mean"]
    assert at_ten == pytest.approx(-0.05)


def test_differences_are_over_the_subjects_that_both_have() -> None:
    table = make_scores({"LoRA": STRAIGHT, "DoRA": STRAIGHT}, subjects=6, noise=0.3)
    table = table[(table["series"] == "LoRA") | (table["subject"].isin(["s1", "s2", "s4"]))]
    found = matched_prompt(table, num_draws=20)
    assert found.gains.groupby("series")["num_subjects"].first().to_dict() == {"LoRA": 6, "DoRA": 3}
    assert set(found.differences["num_subjects"]) == {3}
    both = matched_prompt(table[table["subject"].isin(["s1", "s2", "s4"])], num_draws=20)
    pd.testing.assert_frame_equal(found.differences, both.differences)


def test_draws_depend_on_their_seed_and_number_only() -> None:
    table = make_scores({"LoRA": STRAIGHT, "DoRA": ((0.1, 0.3), (0.1, 0.25))}, subjects=6, noise=0.3)
    one, two, other, more = (
        matched_prompt(table, num_draws=n, seed=s) for n, s in ((50, 1), (50, 1), (50, 2), (60, 1))
    )
    for frames in zip(one, two, strict=True):
        pd.testing.assert_frame_equal(*frames)
    for changed in (other, more):
        assert (changed.gains["mean"] == one.gains["mean"]).all()
        assert (changed.gains["low"] != one.gains["low"]).all()


def test_one_subject_has_no_interval() -> None:
    found = matched_prompt(make_scores({"LoRA": STRAIGHT, "DoRA": STRAIGHT}, subjects=1))
    assert found.gains["mean"].iloc[0] == pytest.approx(0.175)
    for frame in (found.gains, found.differences, found.fronts):
        assert frame[["low", "high"]].isna().all(axis=None)
    words = words_of(figures.matched_prompt.draw(found))
    assert "One subject: no interval" in words
    assert "0.175 [" not in words


def test_subjects_that_lack_a_rate_are_left_out_of_both_scores() -> None:
    table = make_scores({"LoRA": STRAIGHT}, subjects=4, noise=0.5)
    gone = (table["subject"] == "s2") & (table["multiplier"] == 2) & (table["metric"] == "clip_t")
    pd.testing.assert_frame_equal(
        matched_prompt(table[~gone], num_draws=20).fronts,
        matched_prompt(table[table["subject"] != "s2"], num_draws=20).fronts,
    )


def test_what_cannot_be_compared_is_refused() -> None:
    table = make_scores({"LoRA": STRAIGHT, "DoRA": STRAIGHT})
    prompts = table["metric"] == "clip_t"
    for kept in (~prompts, ~(prompts & (table["series"] == "LoRA"))):
        with pytest.raises(BadInput, match="no scores of clip_t of LoRA: matched prompt needs dino and clip_t"):
            matched_prompt(table[kept])
    with pytest.raises(BadInput, match="no score of the base model for subject s3"):
        matched_prompt(table.assign(base=table["base"].where(table["subject"] != "s3")))
    with pytest.raises(BadInput, match=r"the base model's CLIP-T is -0\.1"):
        matched_prompt(table.assign(base=table["base"].mask(prompts, -0.1)))
    with pytest.raises(BadInput, match=r"loss of CLIP-T 1\.2: allowed are numbers between 0 and 1"):
        matched_prompt(table, 1.2)
    apart = table[prompts & (table["subject"] == "s0") | ~prompts & (table["subject"] == "s1")]
    with pytest.raises(BadInput, match="no multiplier of LoRA has DINO and CLIP-T of the same subjects"):
        matched_prompt(apart)


# The figure.


def test_a_sweep_goes_on_without_it_and_says_why(tmp_path: PathOf) -> None:
    with mock.patch.dict(make_runs.BASE_SCORE, clip_t=-0.1):
        make_runs.Maker(tmp_path, {"lora": make_runs.Shape(), "delora": make_runs.Shape()}, multipliers=(1, 2)).write()
    results, why = load(tmp_path), "Nothing is compared at the same loss of prompt: the base model's CLIP-T is -0."
    drawn = draw_lr_robustness(results)
    assert "matched_prompt" not in drawn.figures
    assert "fig2_lr_robustness" in drawn.figures
    assert any(note.startswith(why) for note in drawn.notes)
    card = make_card(results, "DeLoRA", ["LoRA"])
    assert any(text.startswith(why) for text in card.caveats)
    assert card.facts["at_prompt"].isna().all()
    assert set(card.differences["measure"]) == set(MEASURES)


def test_figure_draws_paths_fronts_and_differences() -> None:
    paths = {"LoRA": ((0.2, 0.3, 0.1), (0.1, 0.25, 0.5)), "DeLoRA": ((0.1, 0.2, 0.2), (0.05, 0.1, 0.15))}
    data = matched_prompt(make_scores(paths, subjects=5, noise=0.1, drift=True), num_draws=50)
    figure = figures.matched_prompt.draw(data)
    for series in paths:
        path = data.paths[data.paths["series"] == series]
        assert_drawn(line_of(axes_of(figure, "loss"), series), path.assign(loss=100 * path["loss"])[["loss", "dino"]])
        assert_drawn(line_of(axes_of(figure, "drift"), series), path[["drift", "dino"]])
        front = data.fronts[data.fronts["series"] == series]
        assert_drawn(
            line_of(axes_of(figure, "front"), series), front.assign(loss=100 * front["loss"])[["loss", "gain"]]
        )
        tried = line_of(axes_of(figure, "front"), f"_tried {series}")
        row = data.gains[data.gains["series"] == series].iloc[0]
        shown = tried[~np.isnan(tried[:, 1]), 0]
        assert (shown.min(), shown.max()) == pytest.approx((100 * row["least_tried"], min(20, 100 * row["most_tried"])))
        assert line_of(axes_of(figure, "gain"), series)[0, 0] == pytest.approx(row["mean"], rel=1e-5)
    row = data.differences.iloc[0]
    assert list(line_of(axes_of(figure, "difference"), "_DeLoRA")[:, 0]) == pytest.approx(
        [-row["high"], -row["low"]], rel=1e-5
    )
    words = words_of(figure)
    assert "LoRA (n = 5)" in words
    assert "base model" in words
    assert "95 % bootstrap intervals over subjects" in words
    assert "mean gain in DINO minus that of LoRA" in words


def test_figure_leaves_out_what_was_not_measured() -> None:
    data = matched_prompt(make_scores({"LoRA": STRAIGHT}), num_draws=20)
    names = [ax.get_label() for ax in figures.matched_prompt.draw(data).axes]
    assert names == ["loss", "front", "gain"]
    with pytest.raises(BadInput, match="lr_robustness"):
        figures.matched_prompt.draw(data._replace(paths=data.paths[:0]))
