"""From run folders to numbers: loading, averaging, the divergence rule, plateaus, compact copies, damage."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from adapters import BadInput
from analysis import (
    base_line,
    distance_curve,
    export_compact,
    find_plateau,
    format_table,
    gauge_curve,
    load,
    paired_curve,
    pictures,
    plateau,
    plateau_sentence,
    robustness,
    score_curve,
    subject_scores,
    summary,
    unfit_subjects,
    weight_norms,
)
from analysis.folders import mean_of_steps
from analysis.results import BASE_KEY
from analysis.series import SETTINGS
from tests.make_runs import BASE_SCORE, GAIN, GRID, MATRICES, Shape, make_runs
from training.cell import Cell
from training.store import RunFolder
from training.task_kinds import metrics

TWO = {"lora": Shape(high=0.0), "delora": Shape()}


def exact(**changes: object) -> dict:
    """Makers whose subjects do not differ, so that means are known exactly."""
    return {"subject_sd": 0.0, "dynamics": False} | changes


def height(frame: pd.DataFrame, **where: object) -> float:
    """The one value of a frame where its columns have these values."""
    for name, value in where.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return float(frame["mean"].iloc[0])


# Loading.


def test_load_finds_every_run_and_names_its_series(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path, shapes=TWO, multipliers=(1, 2)))
    assert len(results.runs) == 2 * 2 * 3
    assert len(results.base_runs) == 3
    assert set(results.runs["series"]) == {"LoRA", "DeLoRA"}
    assert set(results.select(method="delora", subject=["cat", "owl"]).runs["subject"]) == {"cat", "owl"}
    assert set(results.select(method="delora").runs["series"]) == {"DeLoRA"}


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    options = {"delora": "norm=columns,start=zero_b"}
    make_runs(tmp_path, multipliers=(1,), sweep="one")
    make_runs(tmp_path, multipliers=(1,), sweep="two", options={**dict.fromkeys(["lora"], ""), **options})
    make_runs(tmp_path, multipliers=(1,), sweep="three", rank=4)
    series = set(load(tmp_path).runs["series"])
    assert len(series) == 3, series
    assert any("start=zero_b" in name for name in series)
    assert any("rank" in name or "r4" in name or "r=4" in name for name in series), series


def test_names_that_analysis_uses_are_fields_of_a_cell() -> None:
    fields = {field.name for field in dataclasses.fields(Cell)}
    assert set(BASE_KEY) <= fields
    labels = {"base_lr", "base_lr_lambda", "base_lr_magnitude", "scale"}
    assert set(SETTINGS) - labels <= fields


def test_two_models_are_not_mixed_unasked(tmp_path: Path) -> None:
    make_runs(tmp_path, multipliers=(1,), sweep="one")
    make_runs(tmp_path, multipliers=(1,), sweep="two", model_hash="other", model="sd15")
    with pytest.raises(BadInput, match="sd15"):
        load(tmp_path)
    assert set(load(tmp_path, model="sd15").runs["model_hash"]) == {"other"}


def test_scores_of_two_pairs_of_scorers_are_not_mixed(tmp_path: Path) -> None:
    make_runs(tmp_path, multipliers=(1,), sweep="one")
    make_runs(tmp_path, multipliers=(2,), sweep="two", scorer_hash="others")
    with pytest.raises(BadInput, match=r"2 pairs of scorers.*others \(in .*scorers \(in "):
        load(tmp_path)
    assert set(load(tmp_path / "two").runs["scorer_hash"]) == {"others"}


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=str(tmp_path)):
        load(tmp_path)


def first_run(root: Path) -> Path:
    """An adapter's run folder."""
    return sorted((root / "lr_robustness").iterdir())[0]


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    path = first_run(make_runs(tmp_path, multipliers=(1,))) / "scores.parquet"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(BadInput, match=str(path)):
        score_curve(load(tmp_path))


def test_unknown_versions_are_named(tmp_path: Path) -> None:
    run = first_run(make_runs(tmp_path, multipliers=(1,)))
    path = run / "scores.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({"plateau_schema": "7"}), path)
    with pytest.raises(BadInput, match="version 7"):
        score_curve(load(tmp_path))
    RunFolder(run).update(schema=7)
    with pytest.raises(BadInput, match="run.json"):
        load(tmp_path)


# Curves.


def test_means_are_over_subjects_and_known(tmp_path: Path) -> None:
    curve = score_curve(load(make_runs(tmp_path, **exact())))
    for multiplier in GRID:
        expected = BASE_SCORE["dino"] + GAIN["dino"] * Shape().height(multiplier)
        assert height(curve, metric="dino", multiplier=multiplier) == pytest.approx(expected, abs=1e-6)
    assert set(curve["num_subjects"]) == {3}


def test_seeds_are_averaged_inside_a_subject(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path, multipliers=(1,), seeds=(0, 1, 2, 3), seed_sd=0.1, dynamics=False))
    table = subject_scores(results)
    dino = table[table["metric"] == "dino"]
    assert list(dino["num_seeds"]) == [4, 4, 4]
    scores = results.scores.merge(results.runs[["run_id", "subject"]], on="run_id")
    by_hand = scores[scores["metric"] == "dino"].groupby("subject")["value"].mean()
    np.testing.assert_allclose(dino.set_index("subject")["value"].sort_index(), by_hand.sort_index(), rtol=1e-6)
    curve = score_curve(results)
    row = curve[curve["metric"] == "dino"].iloc[0]
    expected = stats.ttest_1samp(by_hand, 0).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high), rel=1e-5)
    assert row["num_subjects"] == 3


def test_a_diverged_run_scores_the_lower_of_base_and_its_own(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path, **exact(shapes={"lora": Shape(diverges_from=8.0)})))
    curve = score_curve(results)
    own = BASE_SCORE["dino"] - 0.5 * GAIN["dino"]
    assert height(curve, metric="dino", multiplier=8.0) == pytest.approx(own, abs=1e-6)
    assert height(curve, metric="clip_t", multiplier=8.0) == pytest.approx(BASE_SCORE["clip_t"], abs=1e-6)
    assert set(curve.loc[curve["multiplier"] >= 8, "num_diverged"]) == {3}
    (row,) = plateau(subject_scores(results)).query("metric == 'dino'").to_dict("records")
    assert 4.0 <= row["high_edge"] < 8.0
    assert not row["open_high"]


def test_a_diverged_multiplier_is_never_on_the_plateau_however_well_it_scores() -> None:
    grid, scores = np.array([1.0, 2.0, 4.0, 8.0]), np.array([0.5, 0.6, 0.9, 0.6])
    found = find_plateau(grid, scores, 0.4, np.array([False, False, True, False]))
    assert found.peak == 0.6
    assert found.high_edge <= 4.0
    assert found.best_multiplier == 2.0


def test_distances_are_relative_and_geometric_means(tmp_path: Path) -> None:
    curve = distance_curve(load(make_runs(tmp_path, shapes={"lora": Shape()}, multipliers=(1, 4))))
    assert list(curve["mean"]) == pytest.approx([0.05, 0.2], rel=1e-4)
    with pytest.raises(BadInput, match="unknown matrix 'nope'"):
        distance_curve(load(tmp_path), matrix="nope")


def test_gauges_of_a_frozen_run_stay(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path, shapes={"delora": Shape(diverges_from=4.0)}, multipliers=(4,)))
    curve = gauge_curve(results, "lambda").set_index("step")["mean"]
    assert curve[20] == pytest.approx(curve[10])
    assert curve[5] < curve[10]
    one = gauge_curve(results, "distance_rel", matrix=MATRICES[0][0]).set_index("step")["mean"]
    assert one[10] < gauge_curve(results, "distance_rel").set_index("step")["mean"][10]


def test_pairs_take_the_subjects_out(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path, shapes=TWO, subject_sd=0.2, dynamics=False))
    difference = paired_curve(subject_scores(results), "LoRA", "DeLoRA")
    row = difference[(difference["metric"] == "dino") & (difference["multiplier"] == 4.0)].iloc[0]
    assert row["mean"] == pytest.approx(GAIN["dino"] * (TWO["lora"].height(4) - TWO["delora"].height(4)), abs=1e-5)
    assert row["high"] - row["low"] < 1e-4
    assert list(difference["metric"].unique()) == ["dino", "clip_i", "clip_t"]
    assert list(difference.loc[difference["metric"] == "dino", "multiplier"]) == list(GRID)
    with pytest.raises(BadInput, match="no series 'DoRA'"):
        paired_curve(subject_scores(results), "LoRA", "DoRA")


def test_base_line(tmp_path: Path) -> None:
    line = base_line(load(make_runs(tmp_path, **exact(multipliers=(1,))))).set_index("metric")
    assert line["mean"].to_dict() == pytest.approx(BASE_SCORE, abs=1e-6)
    assert set(line["num_subjects"]) == {3}


# Plateaus.


def test_width_and_edges_are_those_of_the_trapezoid(tmp_path: Path) -> None:
    """Corners at 2^-1 and 2^2, slope 0.4 an octave: 5 % of the gain is lost 1/8 octave outside them."""
    (row,) = plateau(subject_scores(load(make_runs(tmp_path, **exact())))).query("metric == 'dino'").to_dict("records")
    assert row["peak"] == pytest.approx(BASE_SCORE["dino"] + GAIN["dino"], abs=1e-6)
    assert np.log2(row["low_edge"]) == pytest.approx(-1.125, abs=1e-4)
    assert np.log2(row["high_edge"]) == pytest.approx(2.125, abs=1e-4)
    assert row["width_octaves"] == pytest.approx(3.25, abs=1e-4)
    assert not row["open_low"]
    assert not row["open_high"]
    losses = [GAIN["dino"] * (1 - Shape().height(m)) for m in GRID]
    assert row["sensitivity"] == pytest.approx(np.mean(losses), abs=1e-5)


def test_open_ends_are_said(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path, **exact(multipliers=(0.5, 1, 2, 4))))
    row = plateau(subject_scores(results)).query("metric == 'dino'").iloc[0]
    assert row["open_low"]
    assert row["open_high"]
    assert row["width_octaves"] == pytest.approx(3.0)
    assert "at least 3.0 octaves" in plateau_sentence(row)


def test_no_gain_no_plateau(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path, **exact(shapes={"lora": Shape(gain=-0.5)})))
    row = plateau(subject_scores(results)).query("metric == 'dino'").iloc[0]
    assert row["width_octaves"] == 0
    assert "never exceeds the base model" in plateau_sentence(row)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -1.0])
def test_tolerance_out_of_range(tolerance: float, tmp_path: Path) -> None:
    table = subject_scores(load(make_runs(tmp_path, multipliers=(1, 2), dynamics=False)))
    with pytest.raises(BadInput, match="between 0 and 1"):
        plateau(table, tolerance)


def test_intervals_of_the_width_cover_the_truth(tmp_path: Path) -> None:
    """Eight subjects, noise on every run: the interval holds the true 3.25 octaves."""
    subjects = tuple(f"s{i}" for i in range(8))
    results = load(make_runs(tmp_path, **exact(subjects=subjects, noise_sd=0.005, subject_sd=0.05)))
    row = plateau(subject_scores(results)).query("metric == 'dino'").iloc[0]
    assert row["width_low"] <= 3.25 <= row["width_high"]
    assert row["width_high"] - row["width_low"] < 2


def test_one_subject_no_intervals(tmp_path: Path) -> None:
    curves = robustness(load(make_runs(tmp_path, subjects=("cat",))))
    assert curves.scores["low"].isna().all()
    assert curves.plateaus["width_low"].isna().all()
    table = summary(curves)
    assert not any("[" in text for text in format_table(table).astype(str).to_numpy().ravel())
    assert "one subject, so no interval" in plateau_sentence(curves.plateaus.iloc[0])


# The closing table, compact copies, norms, pictures.


def test_summary_says_divergence_and_n(tmp_path: Path) -> None:
    table = summary(robustness(load(make_runs(tmp_path, shapes={"lora": Shape(diverges_from=16.0)}))))
    assert table["series"].iloc[0] == "base model"
    last = table[table["multiplier"] == 16.0].iloc[0]
    assert last["diverged"] == "3/3"
    assert last["num_subjects"] == 3
    assert {"dino_low", "dino_high", "clip_t", "distance"} <= set(table)


def test_a_compact_copy_gives_the_same_numbers(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path / "runs", shapes=TWO))
    export_compact(results, tmp_path / "docs")
    copy = load(tmp_path / "docs")
    for one, two in zip(robustness(results), robustness(copy), strict=True):
        half = [name for name in one if name.startswith("half_") and name.endswith(("_low", "_high"))]
        half = [
            name for name in half if one[name].dtype.kind == "f"
        ]  # ends of intervals, which lie on steps of 1/32 octave
        rest = [frame.drop(columns=half) for frame in (one, two)]
        pd.testing.assert_frame_equal(*rest, check_exact=False, rtol=1e-6, atol=1e-7, check_dtype=False)
        if half:
            np.testing.assert_allclose(one[half], two[half], rtol=2 ** (1 / 32) - 1, atol=1 / 32)
    whole = gauge_curve(results, "lambda").set_index("step")["mean"]
    kept = gauge_curve(copy, "lambda").set_index("step")["mean"]
    assert kept.iloc[-1] == pytest.approx(whole.iloc[-1], rel=1e-6)
    assert not list((tmp_path / "docs").rglob("*.pkl"))


def test_weight_norms_before_and_after(tmp_path: Path) -> None:
    norms = weight_norms(load(make_runs(tmp_path, multipliers=(4,))))
    after = norms[norms["series"] != "base model"]
    assert after["change"].to_numpy(dtype=float) == pytest.approx(0.04, rel=1e-4)
    before = norms[norms["series"] == "base model"]
    assert set(before["kind"]) == {"to_q", "to_k", "to_v", "to_out"}
    rows = weight_norms(load(tmp_path), "rows")
    ratio = rows["mean"].to_numpy(dtype=float) / norms["mean"].to_numpy(dtype=float)
    np.testing.assert_allclose(ratio, 2.0, rtol=1e-5)


def test_pictures_carry_their_scores(tmp_path: Path) -> None:
    frame = pictures(load(make_runs(tmp_path, multipliers=(1, 16), pictures=True)))
    assert all(Path(file).exists() for file in frame["file"])
    by = frame.groupby("multiplier")["value"].mean()
    assert by[1.0] > by[16.0]
    assert "base model" in set(frame["series"])


def test_every_scalar_of_a_matrix_is_stored_exactly(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    exact = (generator.standard_normal(1000) * 10.0 ** generator.uniform(-30, 30, 1000)).astype(np.float32)
    exact[:5] = [0.0, np.nan, np.inf, -np.inf, np.finfo(np.float32).max]
    names = pa.DictionaryArray.from_arrays(np.arange(1000, dtype=np.int32) % 4, ["c", "a", "b", "d"])
    steps = np.arange(1000, dtype=np.int32) // 4
    run = RunFolder(tmp_path / "run")
    run.append("dynamics", {"step": steps, "matrix": names, "distance": exact, "norm_a": exact}, 249)
    frame = run.read_dynamics().sort_values(["step", "matrix"])
    frame["row"] = frame["step"] * 4 + frame["matrix"].map({"c": 0, "a": 1, "b": 2, "d": 3}).astype(int)
    frame = frame.sort_values("row")
    np.testing.assert_array_equal(frame["distance"], exact)
    np.testing.assert_array_equal(frame["norm_a"], exact)
    assert frame["norm_b"].isna().all()
    assert list(run.read_dynamics()["matrix"][:250].astype(str)) == ["c"] * 250, "matrix by matrix"


def test_means_of_steps_are_those_of_groupby() -> None:
    generator = np.random.default_rng(1)
    frame = pd.DataFrame(
        {"step": generator.choice([5, 7, 20], 600), "matrix": "m", "lambda": generator.normal(size=600)}
    )
    frame["distance"] = frame["lambda"].where(generator.random(600) > 0.3).astype("float32")
    frame["bound"] = frame["distance"].where(frame["step"] != 7)
    expected = frame.groupby("step").mean(numeric_only=True).reset_index()
    pd.testing.assert_frame_equal(mean_of_steps(frame), expected, check_dtype=False, rtol=1e-5)
    assert mean_of_steps(frame.iloc[:0]).empty


def test_curves_of_two_subjects_stay_in_the_range_of_the_score(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path, subjects=("cat", "dog"), subject_sd=0.4))
    curve = score_curve(results)
    for metric in metrics().values():
        rows = curve[curve["metric"] == metric.name]
        assert rows["low"].ge(metric.low).all()
        assert rows["high"].le(metric.high).all()
    assert (curve["low"] < curve["least"]).any()
    assert base_line(results)[["low", "high"]].abs().max(axis=None) <= 1


def test_subjects_that_model_or_scorers_do_not_know_are_unfit(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path, subjects=("cat", "dog")))
    known = dataclasses.replace(results, all_runs=results.all_runs.assign(model="pocket", split="evidence"))
    assert unfit_subjects(known) == []
    photographs = known.all_runs["split"].where(known.all_runs["subject"] != "dog", "")
    assert unfit_subjects(dataclasses.replace(known, all_runs=known.all_runs.assign(split=photographs))) == ["dog"]
