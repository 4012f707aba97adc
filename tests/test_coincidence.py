"""One curve for all methods: over the axis that explains the scores it fits, over another it does not; and its figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import figures
from adapters import BadInput
from analysis import load, subject_distances, subject_scores
from analysis.distance_collapse import (
    coincidence,
    common_curve,
    left_out_variance,
    linear_spline,
    run_ends,
    score_vs_distance,
)
from tests.make_runs import Shape, assert_drawn, make_runs
from tests.test_figures import axes_of, line_of, words_of


def make_ends(explains: str, subjects: int = 6, noise: float = 0.01) -> pd.DataFrame:
    """Runs of two methods whose scores are one curve of `explains`; the second method moves less at the same multiplier."""
    draw, rows = np.random.default_rng(0), []
    for subject in range(subjects):
        offset = draw.normal(0, 0.2)
        for series, reach in (("LoRA", 0.2), ("DeLoRA", 0.05)):
            for multiplier in 2.0 ** np.arange(-2, 6):
                place = {"multiplier": multiplier, "distance_rel": reach * multiplier * np.exp(draw.normal(0, 0.05))}
                value = offset - 0.03 * (np.log2(place[explains]) + 1) ** 2 + draw.normal(0, noise)
                rows.append({"series": series, "subject": subject, "lr": 1e-3 * multiplier, **place, "value": value})
    return pd.DataFrame(rows)


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(0, 1000))
def test_basis_is_that_of_what_is_linear_between_knots(num_knots: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    knots, x = np.cumsum(draw.uniform(0.1, 2, num_knots)), np.linspace(0, 20, 50)
    wanted = np.interp(x, knots, draw.normal(0, 1, num_knots))
    design = np.column_stack([np.ones(50), linear_spline(x, knots)])
    assert design.shape == (50, num_knots)
    np.testing.assert_allclose(design @ np.linalg.lstsq(design, wanted, rcond=None)[0], wanted, atol=1e-8)


def test_curves_coincide_over_the_axis_that_explains_them() -> None:
    by_distance = coincidence(make_ends("distance_rel")).set_index("axis")
    row = by_distance.loc["distance_rel"]
    assert row["ratio_high"] < 0.3
    assert row["common"] == pytest.approx(row["separate"], rel=0.3)
    assert abs(row["unshared"]) < 0.01
    assert by_distance.loc["multiplier", "unshared"] > 0.2
    assert row["p"] == 2 / 2**6
    by_rate = coincidence(make_ends("multiplier")).set_index("axis")
    assert by_rate.loc["distance_rel", "ratio_low"] > 3
    assert np.isnan(by_rate.loc["multiplier", "p"]), "the reference is not compared with itself"


def test_runs_that_went_far_do_not_bend_the_curve_where_the_others_are() -> None:
    """Most runs lie within an octave, where scores fall; a few far off score nothing: the curve keeps between the scores."""
    draw, rows = np.random.default_rng(0), []
    for subject in range(6):
        for place in (*np.linspace(-1, 0, 40), 4.0, 6.0, 8.0):
            value = 0.6 / (1 + np.exp(20 * (place + 0.5))) + draw.normal(0, 0.01)
            rows.append({"series": "LoRA", "subject": subject, "distance_rel": 2.0**place, "value": value})
    value = common_curve(pd.DataFrame(rows), "distance_rel")["value"]
    assert -0.05 < value.min() < value.max() < 0.65


def test_few_different_rates_need_no_more_knots() -> None:
    runs = make_ends("multiplier")
    for most in (0.25, 0.5, 1.0):
        kept = runs[runs["multiplier"] <= most]
        found = coincidence(kept, ("multiplier",)).iloc[0]
        assert np.isfinite([found["common"], found["separate"]]).all()
        level = kept.groupby("multiplier")["value"].mean()
        curve = common_curve(kept, "multiplier")
        assert np.interp(level.index, curve["x"], curve["value"]) == pytest.approx(level.to_numpy(), abs=1e-3)


def test_a_subject_is_judged_by_a_curve_that_has_not_seen_it() -> None:
    """Changing one subject's scores leaves its own fitted curve alone: only its own residual moves with it."""
    runs = make_ends("distance_rel", noise=0.05)
    changed = runs.assign(
        value=runs["value"].where(runs["subject"] != 2, np.random.default_rng(1).normal(0, 1, len(runs)))
    )
    before, after = left_out_variance(runs, "distance_rel"), left_out_variance(changed, "distance_rel")
    own = changed[changed["subject"] == 2]
    others = runs[runs["subject"] != 2]
    curve = common_curve(others, "distance_rel", num_points=4000)
    fitted = np.interp(np.log2(own["distance_rel"]), np.log2(curve["x"]), curve["value"])
    assert after.loc[2, "common"] == pytest.approx(np.var(own["value"] - fitted), rel=0.05)
    assert (after.drop(index=2)["common"] > before.drop(index=2)["common"]).all()


def test_offsets_of_subjects_do_not_matter() -> None:
    runs = make_ends("distance_rel")
    moved = runs.assign(value=runs["value"] + 10.0 * runs["subject"])
    numbers = ["common", "separate", "ratio", "unshared"]
    np.testing.assert_allclose(coincidence(runs)[numbers], coincidence(moved)[numbers], rtol=1e-6, atol=1e-9)


def test_run_ends_are_the_scores_and_distances(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path, shapes={"lora": Shape(high=0.0), "delora": Shape()}, multipliers=(1, 4)))
    ends = run_ends(results)
    assert len(ends) == 2 * 2 * 3
    scores, distances = subject_scores(results), subject_distances(results)
    keys = ["series", "multiplier", "subject"]
    expected = scores[scores["metric"] == "dino"].set_index(keys)["value"]
    assert_drawn(ends.set_index(keys)["value"].sort_index(), expected.sort_index())
    expected = distances.set_index(keys)["value"].sort_index()
    assert_drawn(ends.set_index(keys)["distance_rel"].sort_index(), expected)
    assert_drawn(ends["lr"], 1e-3 * ends["multiplier"])
    with pytest.raises(BadInput, match="no scores of metric 'fid'"):
        run_ends(results, "fid")


def test_too_few_subjects_or_series_are_refused() -> None:
    runs = make_ends("multiplier")
    with pytest.raises(BadInput, match="2 subjects and 2 series"):
        coincidence(runs[runs["subject"] < 2])
    with pytest.raises(BadInput, match="6 subjects and 1 series"):
        coincidence(runs[runs["series"] == "LoRA"])


def test_figure_draws_the_same_scores_over_rate_and_distance(tmp_path: Path) -> None:
    shapes = {"lora": Shape(high=0.0), "delora": Shape()}
    data = score_vs_distance(load(make_runs(tmp_path, shapes=shapes, noise_sd=0.01)))
    figure = figures.score_vs_distance.draw(data)
    for metric in ("dino", "clip_t"):
        scores = data.curves.scores[data.curves.scores["metric"] == metric]
        for series in ("LoRA", "DeLoRA"):
            own = scores[scores["series"] == series]
            distance = data.curves.distances[data.curves.distances["series"] == series]
            left, right = (
                line_of(axes_of(figure, f"{metric} {axis}"), series) for axis in ("multiplier", "distance_rel")
            )
            assert_drawn(left, own[["multiplier", "mean"]].astype(float))
            assert_drawn(right, np.column_stack([distance["mean"], own["mean"]]).astype(float))
            dots = line_of(axes_of(figure, f"{metric} distance_rel"), f"_runs {series}")
            assert len(dots) == 3 * 7
    common = line_of(axes_of(figure, "dino distance_rel"), "_common")
    expected = data.common[(data.common["metric"] == "dino") & (data.common["axis"] == "distance_rel")]
    assert_drawn(common, expected[["x", "value"]])
    row = data.coincidences.query("metric == 'dino' and axis == 'distance_rel'").iloc[0]
    words = words_of(figure)
    assert f"{row['common']:.3f} with one curve, {row['separate']:.3f} with one a method" in words
    assert f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]" in words
    assert "LoRA (n = 3)" in words
    assert axes_of(figure, "clip_t distance_rel").get_xscale() == "log"


def test_figure_refuses_nothing(tmp_path: Path) -> None:
    shapes = {"lora": Shape(), "delora": Shape()}
    data = score_vs_distance(load(make_runs(tmp_path, shapes=shapes)))
    with pytest.raises(BadInput, match="lr_robustness"):
        figures.score_vs_distance.draw(data._replace(runs=data.runs[:0]))
