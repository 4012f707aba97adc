"""The best of a grid: chosen on some subjects, scored on others; settings varied one at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from adapters import BadInput
from analysis import best_settings, best_table, load, score_curve, tried_settings
from sweeps import best_of_grid, setting_robustness
from tests.make_driver import drive_studio
from tests.make_runs import Shape, make_runs
from tests.make_studio import Studio
from tests.test_figures import axes_of, line_of
from training.cell import Cell

METRICS = ["dino", "clip_i", "clip_t"]


def test_best_setting_has_the_highest_sum_and_no_diverged_run(tmp_path: Path) -> None:
    shapes = {"lora": Shape(low=2.0, high=2.0), "delora": Shape(low=3.0, high=3.0, diverges_from=8.0)}
    results = load(make_runs(tmp_path, shapes=shapes, multipliers=(1.0, 4.0, 8.0), subject_sd=0.0, dynamics=False))
    tried = tried_settings(results)
    means = results.scores.merge(results.runs, on="run_id").groupby(["method", "lr", "metric"], observed=True)["value"]
    wanted = means.mean().unstack()[METRICS].sum(axis=1)
    np.testing.assert_allclose(tried.set_index(["method", "lr"])["sum"].sort_index(), wanted.sort_index(), rtol=1e-6)
    best = best_settings(tried).set_index("method")["lr"]
    assert best.to_dict() == pytest.approx({"lora": 4e-3, "delora": 4e-3}), "DeLoRA at 8x diverged"
    with pytest.raises(BadInput, match="every setting tried diverged"):
        best_settings(tried.assign(diverged=1))


def test_best_table_has_the_scores_and_the_spread_of_the_seeds(tmp_path: Path) -> None:
    shapes = {"lora": Shape(), "delora": Shape()}
    results = load(
        make_runs(tmp_path, shapes=shapes, multipliers=(1.0,), seeds=(0, 1, 2), seed_sd=0.05, dynamics=False)
    )
    table = best_table(results).set_index("series")
    for row in score_curve(results).itertuples():
        found = table.loc[row.series, [row.metric, f"{row.metric}_low", f"{row.metric}_high"]].to_numpy(dtype=float)
        np.testing.assert_allclose(found, [row.mean, row.low, row.high])
    rows = results.scores.merge(results.runs, on="run_id").query("metric == 'dino' and method == 'lora'")
    spread = rows.groupby(["seed", "subject"])["value"].mean().groupby("seed").mean().std()
    assert table["dino_seed_sd"]["LoRA"] == pytest.approx(spread, rel=1e-5)
    assert table[["num_parameters", "num_subjects", "num_seeds"]].to_numpy().tolist() == [[1000, 3, 3]] * 2


def test_grid_chooses_on_some_subjects_and_scores_others(studio: Studio, tmp_path: Path) -> None:
    flags = ("--method", "lora", "delora", "--multipliers", "1", "64", "--seeds", "0", "1")
    driven = drive_studio(studio, best_of_grid, tmp_path, *flags)
    assert driven.code == 0, driven.err
    grid, choice, best = (driven.table(name).set_index("method" if name != "best" else "series") for name in
                          ("grid", "choice", "best"))  # fmt: skip
    assert grid.groupby("method")["lr"].nunique().eq(2).all()
    for method, series in (("lora", "LoRA"), ("delora", "DeLoRA")):
        top = grid.loc[method].set_index("lr")["sum"].idxmax()
        assert choice.loc[method, "lr"] == best.loc[series, "lr"] == top
    runs = load(driven.folder).runs
    few = set(choice["chosen_on"].iloc[0].split(", "))
    reported = set(runs[runs["seed"] == 1]["subject"])
    assert few == {"dog", "dog2"}
    assert len(reported) == 2
    assert not few & reported
    assert best[["num_subjects", "num_seeds"]].to_numpy().tolist() == [[2, 2]] * 2
    assert best["num_parameters"].gt(0).all()
    again = drive_studio(studio, best_of_grid, tmp_path, *flags)
    assert again.out.count(" 0 to train") == 2
    pd.testing.assert_frame_equal(again.table("best").set_index("series"), best)


def test_dry_run_of_a_grid_says_what_comes_after_it(studio: Studio, tmp_path: Path) -> None:
    driven = drive_studio(studio, best_of_grid, tmp_path, "--method", "lora", "--dry-run")
    assert driven.code == 0, driven.err
    assert "8 cells: 0 done, 8 to train" in driven.out, "2 subjects that choose x 4 multipliers"
    assert "then the best setting of each method on cup, cup2: 6 cells" in driven.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--choosing-subjects", "cup"), "subject cup would choose the settings and be reported"),
        (("--scale", "lambda"), "--scale is lambda"),
    ],
)
def test_a_subject_cannot_choose_and_be_reported(
    arguments: tuple[str, ...], said: str, studio: Studio, tmp_path: Path
) -> None:
    named = ("--subjects", str(studio.folder / "subjects"), "cup", "cup2")
    driven = drive_studio(studio, best_of_grid, tmp_path, *named, *arguments)
    assert (driven.code, driven.out) == (2, "")
    assert driven.err.startswith(f"error: {said}")


@pytest.mark.slow
def test_settings_are_varied_one_at_a_time(studio: Studio, tmp_path: Path) -> None:
    driven = drive_studio(
        studio, setting_robustness, tmp_path, "--multipliers", "1", "--boundaries", "2", "--weight-decays", "0.5",
        "--instance-images", "1", "3", "--prior-weights", "1", "--num-class-images", "2",
    )  # fmt: skip
    assert driven.code == 0, driven.err
    table = driven.table("plateau_vs_setting").query("metric == 'dino'")
    values = table.groupby(["setting", "series"])["value"].apply(list).to_dict()
    assert values == {
        ("adam_weight_decay", "LoRA"): [0.01, 0.5], ("adam_weight_decay", "DeLoRA"): [0.01, 0.5],
        ("boundary", "DeLoRA"): [2, 15], ("num_instance_images", "LoRA"): [0, 1],
        ("num_instance_images", "DeLoRA"): [0, 1], ("prior_loss_weight", "LoRA"): [0, 1],
        ("prior_loss_weight", "DeLoRA"): [0, 1],
    }  # fmt: skip
    figure = driven.drawn["plateau_vs_setting"]
    rows = table.query("setting == 'num_instance_images' and series == 'LoRA'").set_index("value")
    ax = axes_of(figure, "num_instance_images peak")
    np.testing.assert_allclose(line_of(ax, "LoRA")[:, 1], rows["peak"][[1, 0]])
    ticks = axes_of(figure, "num_instance_images half_width").get_xticklabels()
    assert [text.get_text() for text in ticks] == ["1", "all"], "3 are all that the subjects have"
    results = load(driven.folder)
    losses = results.steps().merge(results.runs.query("method == 'lora' and prior_loss_weight == 0"), on="run_id")
    last = losses.query("step == 3 and adam_weight_decay == 0.01").groupby("num_instance_images")["loss"].mean()
    assert last[0] != last[1], "another number of pictures is another training"


@pytest.mark.parametrize("decays", [(), ("0.01",)], ids=["no value", "the default's"])
def test_settings_that_vary_nothing_are_refused(decays: tuple[str, ...], studio: Studio, tmp_path: Path) -> None:
    nothing = ("--boundaries", "--weight-decays", *decays, "--instance-images", "--prior-weights")
    driven = drive_studio(studio, setting_robustness, tmp_path, "--method", "lora", *nothing)
    assert (driven.code, driven.out) == (2, "")
    assert driven.err.startswith("error: nothing is varied: give --boundaries, --weight-decays,")


def test_all_pictures_are_no_setting() -> None:
    """Runs from before the field existed keep their names."""
    cell = Cell(method="lora", options="", rank=4, subject="dog", seed=0, steps=10, lr=1e-3)
    assert "num_instance_images" not in cell.to_dict()
    fewer = Cell.from_dict(cell.to_dict() | {"num_instance_images": 2})
    assert fewer.num_instance_images == 2
    assert fewer.identity() != cell.identity()
    assert cell.to_dict()["lr_lambda"] is None
