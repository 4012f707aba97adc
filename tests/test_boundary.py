"""Fig. 6: which of DeLoRA's rates is scaled, and a run at multiplier 1 that answers all three questions."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import figures
from adapters import BadInput
from analysis import export_compact, gauge_curve, load, robustness, score_curve
from sweeps import boundary_and_angle
from sweeps.driver import relabel
from tests.make_driver import drive_studio
from tests.make_runs import Shape, assert_drawn, make_runs
from tests.make_studio import Studio
from tests.test_figures import axes_of, line_of, words_of

SCALES = ("lambda", "factors", "both")


def three_names(run_id: str) -> list[dict]:
    """At multiplier 1 a run has every scale's name."""
    if run_id.startswith("base"):
        return [{"multiplier": None}]
    multiplier = float(run_id.split("-x")[1].split("-")[0])
    return [{"multiplier": multiplier, "scale": scale} for scale in (SCALES if multiplier == 1 else ("both",))]


def test_a_run_stands_once_under_each_of_its_names(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path / "runs", multipliers=(1.0, 4.0), steps=4))
    named = relabel(results, {run_id: three_names(run_id) for run_id in results.all_runs["run_id"]})
    counts = named.runs.groupby(["scale", "multiplier"])["run_id"].nunique().to_dict()
    assert counts == {("both", 1.0): 3, ("both", 4.0): 3, ("factors", 1.0): 3, ("lambda", 1.0): 3}
    assert len(named.base_runs) == 3
    curve = score_curve(named)
    assert set(curve["num_subjects"]) == {3}
    assert set(curve["num_runs"]) == {3}, "no run counts twice in one curve"
    at_one = curve[curve["multiplier"] == 1].pivot(index="metric", columns="series", values=["mean", "low", "high"])
    for number in ("mean", "low", "high"):
        assert at_one[number].nunique(axis=1).eq(1).all(), "one run, one score, under all three names"
    assert gauge_curve(named)["series"].nunique() == 4
    export_compact(named, tmp_path / "compact")
    pd.testing.assert_frame_equal(score_curve(load(tmp_path / "compact")), curve)


def test_one_name_a_run_leaves_everything_as_it_is(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path, multipliers=(1.0, 4.0), steps=4))
    names = {
        run_id: [{"multiplier": multiplier if multiplier == multiplier else None, "scale": scale}] * 2
        for run_id, multiplier, scale in results.all_runs[["run_id", "multiplier", "scale"]].itertuples(index=False)
    }
    pd.testing.assert_frame_equal(relabel(results, names).all_runs, results.all_runs)


def test_subjects_that_a_call_leaves_out_do_no_harm(tmp_path: Path) -> None:
    """Their base model's runs lie in the same folder: fewer subjects than before used to end in a traceback."""
    results = load(make_runs(tmp_path, multipliers=(1.0,), steps=4))
    fewer = results.runs.loc[results.runs["subject"] != "cat", "run_id"]
    named = relabel(results.select(list(fewer)), {run_id: three_names(run_id) for run_id in fewer})
    assert set(score_curve(named)["num_subjects"]) == {2}


def test_a_diverged_run_under_several_names_keeps_its_gauges(tmp_path: Path) -> None:
    shapes = {"delora": Shape(diverges_from=1.0)}
    results = load(make_runs(tmp_path, shapes=shapes, multipliers=(1.0,), steps=4))
    named = relabel(results, {run_id: three_names(run_id) for run_id in results.all_runs["run_id"]})
    paths = gauge_curve(named, "lambda", by_multiplier=True)
    assert paths["series"].nunique() == 3
    assert set(robustness(named).plateaus["num_diverged"]) == {3}


def test_gauges_have_the_multiplier_beside_the_name(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path, multipliers=(1.0, 4.0), steps=4))
    named, apart = gauge_curve(results, "lambda"), gauge_curve(results, "lambda", by_multiplier=True)
    assert set(apart["series"]) == {"DeLoRA"}
    for multiplier in (1.0, 4.0):
        own = apart[apart["multiplier"] == multiplier].drop(columns=["series", "multiplier"])
        other = named[named["series"] == f"DeLoRA, {multiplier:g}x"].drop(columns="series")
        pd.testing.assert_frame_equal(own.reset_index(drop=True), other.reset_index(drop=True))


def test_paths_have_a_column_for_each_scale_and_a_curve_for_each_multiplier(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path, multipliers=(1.0, 4.0), steps=4))
    named = relabel(results, {run_id: three_names(run_id) for run_id in results.all_runs["run_id"]})
    paths = {name: gauge_curve(named, name, by_multiplier=True) for name in ("lambda", "saturation", "distance_rel")}
    figure = figures.fig6_boundary_paths.draw(paths)
    for name, frame in paths.items():
        for (series, multiplier), rows in frame.groupby(["series", "multiplier"]):
            points = line_of(axes_of(figure, f"{series} {name}"), f"{multiplier:g}×")
            assert_drawn(points, rows[["step", "mean"]].astype(float))
    assert {"1× (n = 3)", "4× (n = 3)"} <= set(words_of(figure).split(" | "))
    with pytest.raises(BadInput, match="no run with a lambda"):
        figures.fig6_boundary_paths.draw({name: frame[:0] for name, frame in paths.items()})


def test_driver_trains_multiplier_1_once_and_draws_it_in_every_curve(studio: Studio, tmp_path: Path) -> None:
    driven = drive_studio(studio, boundary_and_angle, tmp_path, "--multipliers", "1", "4", "--boundaries", "4", "16")
    assert driven.code == 0, driven.err
    assert "16 cells: 0 done, 16 to train" in driven.out, "2 subjects x 2 starts x (1x and three of 4x)"
    summary = driven.table("summary").query("series != 'base model'")
    assert summary.groupby("series")["multiplier"].apply(list).to_list() == [[1, 4]] * 6
    ax = axes_of(driven.drawn["fig6_boundary_and_angle"], "dino")
    at_one = summary[summary["multiplier"] == 1].assign(start=lambda rows: rows["series"].str.split(", ").str[-1])
    assert at_one.groupby("start")["dino"].nunique().eq(1).all()
    for series, rows in summary.groupby("series"):
        assert_drawn(line_of(ax, str(series)), rows[["multiplier", "dino"]])
    runs = load(driven.folder).runs.query("multiplier == 4 and boundary == 4").drop_duplicates("scale")
    base = load(driven.folder).runs.query("multiplier == 1 and boundary == 4").iloc[0]
    times = {row.scale: (row.lr / base["lr"], row.lr_lambda / base["lr_lambda"]) for row in runs.itertuples()}
    assert times == {"lambda": (1, 4), "factors": (4, 1), "both": (4, 4)}
    for start in (4, 16):
        paths = driven.table(f"fig6_boundary_paths_{start}").query("panel == 'lambda' and step == 0")
        assert_drawn(paths["mean"], start)
        assert f"fig6_boundary_paths_{start}" in driven.drawn


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "lora"), "--method has lora, which trains no lambda"),
        (("--boundaries", "4", "-1"), "--boundaries is 4.0 -1.0; allowed: positive numbers"),
    ],
)
def test_what_has_no_boundary_is_refused(arguments: tuple[str, ...], said: str, studio: Studio, tmp_path: Path) -> None:
    driven = drive_studio(studio, boundary_and_angle, tmp_path, *arguments)
    assert (driven.code, driven.out) == (2, "")
    assert driven.err.startswith(f"error: {said}")
