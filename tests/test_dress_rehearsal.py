"""The dress rehearsal: Stable Diffusion 1.5 but for its weights and width, from the preset to Fig. 2 and to other programs.

Names, depth, formats and every step of the way are the real ones. What cannot be seen here: whether anything is learned.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from matplotlib.colors import to_hex
from peft import PeftModel

from adapters import METHODS
from analysis import load, robustness
from analysis.curves import subject_scores
from tests.compare_runs import assert_same_results
from tests.make_adapters import relative_error
from tests.make_checkpoints import load_unet, predict
from tests.make_dreambench import REAL
from tests.make_driver import Driven
from tests.make_rehearsal import Rehearsal, drive_rehearsal, make_rehearsal, plan_rehearsal
from tests.make_runs import assert_drawn
from tests.test_export import export, open_pipeline
from tests.test_figures import axes_of, line_of, words_of
from tests.waiting import wait_for
from training.demand import Cost
from training.store import RunFolder, find_runs

SUBJECTS = ("dog6", "duck_toy")  # a live one and an object
GRID = (
    *SUBJECTS, "--method", "lora", "delora", "--multipliers", "1", "4", "--seeds", "0", "--steps", "6", "--eval-steps", "3",
    "--resolution", "64", "--num-prompts", "2", "--num-images", "1", "--num-drift-prompts", "1", "--num-inference-steps", "2",
    "--num-class-images", "2", "--norms-every", "3", "--pack-size", "4", "--workers", "2",
)  # fmt: skip


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    """A tenth of the width: 10 million parameters in the U-Net, at the real depth."""
    return make_rehearsal(tmp_path_factory.mktemp("rehearsal"), Fraction(1, 10))


@pytest.fixture(scope="module")
def drawn(rehearsal: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> Driven:
    """A sweep that got SIGKILL after its first checkpoints, and was given again."""
    runs = tmp_path_factory.mktemp("killed")
    planned = plan_rehearsal(rehearsal, runs, *GRID, costs={n: Cost(0.1 * n, 500.0 + 50 * n) for n in (1, 4)})
    assert planned.code == 0, planned.err
    assert "8 cells: 0 done, 8 to train, 6 steps each" in planned.out
    with rehearsal.start(runs, *GRID) as process:
        wait_for(lambda: is_half_done(runs), "checkpoints", process)
        os.killpg(process.pid, signal.SIGKILL)
    again = drive_rehearsal(rehearsal, runs, *GRID)
    assert again.code == 0, again.err
    assert 3 in {run.read()["provenance"].get("resumed_at") for run in find_runs(runs)}, (
        "killed too late to test anything"
    )
    return again


@pytest.fixture(scope="module")
def killed(drawn: Driven) -> Path:
    """The runs folder of that sweep."""
    return drawn.folder.parent


def is_half_done(runs: Path) -> bool:
    """Whether two runs of a method have a checkpoint: a pack of its first subject each, or one of the second."""
    return 2 in Counter(run.read()["cell"]["method"] for run in find_runs(runs) if run.checkpoints()).values()


def trained(runs: Path) -> list[RunFolder]:
    """The runs of methods."""
    return [run for run in find_runs(runs) if run.read()["cell"]["method"] != "base"]


def test_every_run_has_the_papers_setting_and_all_128_matrices(killed: Path) -> None:
    for run in trained(killed):
        record = run.read()
        cell, dynamics, scores = record["cell"], run.read_dynamics(), run.read_scores()
        assert record["status"] == "finished", record["error"]
        assert (cell["rank"], cell["prior_loss_weight"], cell["guidance_scale"]) == (16, 1.0, 7.5)
        assert len(record["matrices"]) == dynamics["matrix"].nunique() == 128
        assert len(dynamics) == 128 * 7, "at every step from 0 to 6"
        assert dynamics.loc[dynamics["step"] == 6, "distance"].gt(0).all()
        assert sorted(scores["step"].unique()) == [3, 6]
        assert set(scores["metric"]) == {"dino", "clip_i", "clip_t", "drift"}
        assert scores["value"].between(-1, 1).all()
        assert all("qwe" in row["prompt"] for row in run.images())
        assert len(run.images()) == 4, "two prompts, twice"
    rates = {(run.read()["cell"]["method"], run.read()["cell"]["lr"]) for run in trained(killed)}
    assert rates == {("lora", 6e-4), ("lora", 24e-4), ("delora", 6e-3), ("delora", 24e-3)}


def test_prompts_are_those_of_the_kind(killed: Path) -> None:
    said = {run.read()["cell"]["subject"]: {row["prompt"] for row in run.images()} for run in trained(killed)}
    expected = {
        "dog6": {"a qwe dog in the jungle", "a qwe dog in the snow"},
        "duck_toy": {"a qwe toy in the jungle", "a qwe toy in the snow"},
    }
    if not REAL.is_dir():
        expected = {
            "dog6": {"a qwe dog in the snow 0", "a qwe dog in the snow 1"},
            "duck_toy": {"a qwe toy on a table 0", "a qwe toy on a table 1"},
        }
    assert said == expected


def test_killed_and_resumed_it_is_as_if_nothing_had_happened(
    rehearsal: Rehearsal, killed: Path, tmp_path: Path
) -> None:
    undisturbed = drive_rehearsal(rehearsal, tmp_path / "undisturbed", *GRID)
    assert undisturbed.code == 0, undisturbed.err
    assert_same_results(tmp_path / "undisturbed", killed)


def test_figure_2_shows_what_was_measured(killed: Path, drawn: Driven) -> None:
    results = load(killed)
    curves, figure = robustness(results), drawn.drawn["fig2_lr_robustness"]
    by_hand = subject_scores(results)
    for metric in ("dino", "clip_i", "clip_t", "drift"):
        for method, label in (("lora", "LoRA"), ("delora", "DeLoRA")):
            points = line_of(axes_of(figure, metric), label)
            rows = by_hand[(by_hand["series"] == label) & (by_hand["metric"] == metric)]
            means = rows.groupby("multiplier")["value"].mean()
            assert_drawn(points, np.column_stack([means.index, means]))
            (line,) = [line for line in axes_of(figure, metric).lines if line.get_label() == label]
            assert to_hex(line.get_color()) == METHODS[method].color.lower()
    for label in ("LoRA", "DeLoRA"):
        rows = curves.distances[curves.distances["series"] == label]
        assert_drawn(line_of(axes_of(figure, "distance"), label), rows[["multiplier", "mean"]])
        assert rows["mean"].is_monotonic_increasing, "four times the rate goes further in six steps"
    assert "n = 2" in words_of(figure)
    assert "base model" in words_of(figure)
    for name in ("fig2_lr_robustness", "pictures_lora", "pictures_delora"):
        for suffix in (".png", ".pdf"):
            assert (drawn.folder / f"{name}{suffix}").stat().st_size > 5000
        assert name in drawn.drawn


def test_adapters_open_in_other_programs(rehearsal: Rehearsal, killed: Path, tmp_path: Path) -> None:
    (run,) = [run for run in trained(killed) if run.run_id.startswith("lora-r16-x4-s0-dog6")]
    model = rehearsal.folder / "sd15"
    merged = export(run.path, "merged", tmp_path / "merged")
    answer = predict(UNet2DConditionModel.from_pretrained(merged))
    assert relative_error(predict(load_unet(model)), answer) > 1e-3, "the adapter does something"
    assert (
        relative_error(
            predict(PeftModel.from_pretrained(load_unet(model), export(run.path, "peft", tmp_path / "peft"))), answer
        )
        < 1e-5
    )
    for layout in ("diffusers", "kohya"):
        file = export(run.path, layout, tmp_path / f"{layout}.safetensors")
        assert relative_error(predict(open_pipeline(model, file).unet), answer) < 1e-5


def test_merged_matrices_have_moved_as_far_as_was_recorded(rehearsal: Rehearsal, killed: Path, tmp_path: Path) -> None:
    (run,) = [run for run in trained(killed) if run.run_id.startswith("delora-r16-x4-s0-duck_toy")]
    merged = UNet2DConditionModel.from_pretrained(export(run.path, "merged", tmp_path / "merged"))
    base, dynamics = load_unet(rehearsal.folder / "sd15"), run.read_dynamics()
    ends = dynamics[dynamics["step"] == 6].set_index("matrix")["distance"]
    for path, distance in ends.items():
        moved = merged.get_parameter(f"{path}.weight").data - base.get_parameter(f"{path}.weight").data
        assert float(torch.linalg.norm(moved.double())) == pytest.approx(distance, rel=1e-3)
