"""Names of curves, and runs that are out of the ordinary: renamed, diverged half-way, unfinished, with many pictures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy import stats

from adapters import METHODS, BadInput
from analysis import distance_curve, gauge_curve, load, pictures, score_curve, subject_distances, subject_scores
from analysis.series import base_rates, method_label
from tests.make_runs import BASE_SCORE, GAIN, Shape, make_runs
from training.store import RunFolder


def test_label_is_bare_when_options_are_the_defaults() -> None:
    for name, method in METHODS.items():
        defaults = {option: str(allowed[0]) for option, allowed in method.options.items()}
        assert method_label(name, defaults) == method_label(name) == method.label


def test_label_names_the_options_that_are_changed() -> None:
    assert method_label("delora", "norm=columns,start=live") == "DeLoRA (start=live)"
    assert method_label("delora", "norm=scalar,start=live") == "DeLoRA (norm=scalar, start=live)"
    assert method_label("new-method", "a=1") == "new-method"


def test_line_styles_keep_methods_of_one_figure_apart() -> None:
    styles = {(method.color, method.line_style, method.marker) for method in METHODS.values()}
    assert len(styles) == len({method.marker for method in METHODS.values()}) == len(METHODS)
    assert {method.line_style for method in METHODS.values()} == {"-", "--", "-.", ":"}
    assert METHODS["dora"].line_style != METHODS["dora-fixed"].line_style


def test_numbers_in_names_stand_in_their_order(tmp_path: Path) -> None:
    multipliers = (0.25, 2.0, 4.0, 16.0, 32.0)
    curve = gauge_curve(load(make_runs(tmp_path, shapes={"lora": Shape()}, multipliers=multipliers)))
    assert list(curve["series"].unique()) == ["LoRA, 0.25x", "LoRA, 2x", "LoRA, 4x", "LoRA, 16x", "LoRA, 32x"]


def make_row(**changes: object) -> pd.DataFrame:
    """One run at 4 times its base rates 1e-3, 1e-2 and 1e-3."""
    rates = {"lr": 4e-3, "lr_lambda": 4e-2, "lr_magnitude": 4e-3}
    return pd.DataFrame([{"method": "delora", "options": "", "scale": "both", "multiplier": 4.0, **rates, **changes}])


@pytest.mark.parametrize(
    ("scale", "rates"),
    [
        ("both", {"lr": 4e-3, "lr_lambda": 4e-2, "lr_magnitude": 4e-3}),
        ("lambda", {"lr": 1e-3, "lr_lambda": 4e-2, "lr_magnitude": 1e-3}),
        ("factors", {"lr": 4e-3, "lr_lambda": 1e-2, "lr_magnitude": 4e-3}),
    ],
)
def test_base_rates_are_those_at_one_whatever_is_scaled(scale: str, rates: dict[str, float]) -> None:
    found = base_rates(make_row(scale=scale, **rates)).iloc[0]
    assert found.to_dict() == pytest.approx({"base_lr": 1e-3, "base_lr_lambda": 1e-2, "base_lr_magnitude": 1e-3})


@pytest.mark.parametrize("rate", [2**-10, 1 / 3000, 7e-4, 123456.5e-9])
def test_rates_that_a_cell_keeps_to_six_digits_are_of_one_base_rate(rate: float) -> None:
    """2^-10 is 0.0009765625, which six digits cannot hold: 1x, 2x and 3x of it come back as three numbers."""
    rows = [make_row(multiplier=m, lr=float(f"{rate * m:.6g}")) for m in (0.25, 0.7, 1.0, 2.0, 3.0, 10.0)]
    other = make_row(multiplier=1.0, lr=rate * 1.001)
    found = base_rates(pd.concat([*rows, other], ignore_index=True))["base_lr"]
    assert found[:6].nunique() == 1
    assert found[0] == pytest.approx(rate, rel=1e-5)
    assert found[6] != found[0]


def test_methods_without_a_rate_have_none() -> None:
    assert base_rates(make_row(lr_magnitude=None))["base_lr_magnitude"].isna().all()


def test_a_run_is_renamed_when_it_goes_by_another_multiplier(tmp_path: Path) -> None:
    """A cell at 1x of 2e-3 is the cell at 2x of 1e-3: relabelled, both belong to one curve."""
    root = make_runs(tmp_path, multipliers=(1.0, 2.0), dynamics=False)
    for path in root.glob("lr_robustness/*-x2-*/run.json"):
        run = RunFolder(path.parent)
        run.update(labels=run.read()["labels"] | {"multiplier": 1.0, "base_lr": 2e-3})
    results = load(root)
    assert len(set(results.runs["series"])) == 2
    assert all("base rate" in name for name in results.runs["series"])
    runs = results.all_runs.copy()
    runs["multiplier"] = runs["lr"] / 1e-3
    again = dataclasses.replace(results, all_runs=runs)
    assert set(again.runs["series"]) == {"DeLoRA"}


def test_seconds_of_a_run_are_read(tmp_path: Path) -> None:
    runs = load(make_runs(tmp_path, multipliers=(1.0,), dynamics=False)).runs
    assert runs["seconds"].to_list() == [1.5] * 3


def make_diverging(root: Path, **changes: object) -> Path:
    """Runs of 20 steps, scored at 5, 10, 15 and 20, that diverge at step 10."""
    shapes = {"lora": Shape(diverges_from=1.0)}
    return make_runs(
        root, **{"shapes": shapes, "multipliers": (1.0,), "eval_steps": (5, 10, 15), "subject_sd": 0.0} | changes
    )


def test_a_run_counts_as_any_other_before_the_step_at_which_it_diverged(tmp_path: Path) -> None:
    curve = score_curve(load(make_diverging(tmp_path)), "step")
    dino = curve[curve["metric"] == "dino"].set_index("step")
    assert dino["mean"][5] == pytest.approx(BASE_SCORE["dino"] + 0.5 * GAIN["dino"], abs=1e-6)
    assert dino["num_diverged"].to_dict() == {5: 0, 10: 3, 15: 3, 20: 3}
    assert dino["mean"][20] == pytest.approx(BASE_SCORE["dino"] - 0.5 * GAIN["dino"], abs=1e-6)
    gauge = gauge_curve(load(tmp_path)).set_index("step")
    assert gauge["num_diverged"][9] == 0
    assert gauge["num_diverged"][10] == 3


def test_gauges_of_a_run_that_wrote_nothing_more_stay(tmp_path: Path) -> None:
    root = make_runs(tmp_path, shapes={"lora": Shape(diverges_from=4.0)}, multipliers=(1.0, 4.0), subjects=("cat",))
    (part,) = root.glob("lr_robustness/*-x4-*/dynamics/*.parquet")
    table = pq.read_table(part)
    pq.write_table(table.filter(pc.less_equal(table["step"], 10)), part)
    curve = gauge_curve(load(root)).query("series == 'LoRA, 4x'").set_index("step")["mean"]
    assert curve.index.max() == 20
    assert curve[20] == curve[10] > curve[5]


def test_a_diverged_run_without_pictures_scores_as_the_base(tmp_path: Path) -> None:
    for path in make_diverging(tmp_path, dynamics=False).glob("lr_robustness/*/scores.parquet"):
        path.unlink()
    table = subject_scores(load(tmp_path))
    assert table["value"].to_list() == pytest.approx(table["base"].to_list())
    assert set(table["metric"]) == set(BASE_SCORE)
    assert table["num_diverged"].to_list() == [1] * 9


def test_unfinished_runs_are_left_out_and_the_count_says_so(tmp_path: Path) -> None:
    root = make_runs(tmp_path, multipliers=(1.0, 2.0), dynamics=False)
    RunFolder(sorted(root.glob("lr_robustness/*-x2-*"))[0]).update(status="running")
    curve = score_curve(load(root))
    assert curve.groupby("multiplier")["num_subjects"].unique().map(list).to_dict() == {1.0: [3], 2.0: [2]}


@pytest.mark.parametrize(
    ("statuses", "read"),
    [(("planned", "finished", "running"), 1), (("planned", "running"), 0), (("finished", "finished"), 0)],
)
def test_of_a_run_in_several_sweeps_the_first_that_ended_is_read(
    statuses: tuple[str, ...], read: int, tmp_path: Path
) -> None:
    for sweep, status in zip("abc", statuses):
        make_runs(tmp_path, multipliers=(1.0,), sweep=sweep, status=status)
    results = load(tmp_path)
    assert results.runs[["sweep", "status"]].drop_duplicates().to_numpy().tolist() == [["abc"[read], statuses[read]]]
    if "finished" in statuses:
        assert set(distance_curve(results)["num_subjects"]) == {3}


def test_distances_of_subjects_are_averaged_by_their_logarithms(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path, multipliers=(1.0,)))
    frame, subjects = results.final_dynamics, results.runs.set_index("run_id")["subject"]
    times = frame["run_id"].astype(str).map(subjects).map({"cat": 1.0, "dog": 10.0, "owl": 100.0})
    results.__dict__["final_dynamics"] = frame.assign(distance_rel=frame["distance_rel"] * times)
    (row,) = distance_curve(results).to_dict("records")
    each = subject_distances(results)["value"]
    assert row["mean"] == pytest.approx(stats.gmean(each), rel=1e-5)
    assert row["low"] > 0


def test_one_picture_of_several_is_taken_by_its_number(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path, multipliers=(1.0,), subjects=("cat",), pictures=True))
    for path in results.all_runs["path"]:
        index = Path(path) / "images" / "index.json"
        rows = RunFolder(path).images()
        again = [row | {"file": row["file"].replace(".png", "-again.png")} for row in rows]
        index.write_text(json.dumps([row for pair in zip(rows, again, strict=True) for row in pair]))
    names = [[Path(file).name for file in pictures(results, prompt=1, image=image)["file"]] for image in (0, 1)]
    assert names == [["001.png"] * 2, ["001-again.png"] * 2]
    with pytest.raises(BadInput, match="picture 2 of prompt 1"):
        pictures(results, prompt=1, image=2)
