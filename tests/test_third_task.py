"""A task of another package (tests/toy_task.py): found by its entry point, and taken from the plan to the page."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from adapters.errors import BadInput
from analysis import load, plateau, subject_scores
from sweeps import judge, lr_robustness
from tests.compare_runs import assert_same_results
from tests.make_driver import drive_here
from tests.toy_task import ToyTask
from training import task_kinds

GRID = ("--task", "toy", "--method", "lora", "dora", "--base-lr", "3e-3", "--multipliers", "1", "4", "64")


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package, as pip leaves it: a folder of metadata that names the task."""
    about = tmp_path / "site" / "toy_task-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-task\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[plateau.tasks]\ntoy = tests.toy_task:KIND\n")
    monkeypatch.syspath_prepend(str(about.parent))
    monkeypatch.setenv("PYTHONPATH", str(about.parent))
    task_kinds.all_kinds.cache_clear()
    yield
    task_kinds.all_kinds.cache_clear()


def drive(runs: Path, *more: str, code: int = 0) -> str:
    """The front door on the toy; returns what it says."""
    words = ["lr_robustness.py", *GRID, "--subjects", "3", "--runs", str(runs), "--rank", "4", "--norms-every", "10"]
    done = drive_here(lr_robustness, [*words, *more], runs)
    assert done.code == code, done.err
    return done.out


def test_it_goes_from_the_plan_to_figures_and_page(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    said = drive(runs)
    folder = runs / "lr_robustness-toy"
    assert "on 3 waves" in said
    assert (folder / "fig2_lr_robustness.png").exists()
    page = (folder / "report.html").read_text()
    assert "Inside the network" in page
    assert "U-Net" not in page
    results = load(folder)
    assert results.kind.name == "toy"
    assert set(results.scores["metric"].astype(str)) == {"error", "drift"}
    assert set(results.matrices["block"]) == {"layer.1", "layer.3"}
    assert drive(runs).count("0 to train") == 1


def test_less_is_better(tmp_path: Path) -> None:
    """The best rate is that of the lowest error, and area is how much of the base model's error goes."""
    drive(tmp_path / "runs")
    scores = subject_scores(load(tmp_path / "runs" / "lr_robustness-toy"))
    found = plateau(scores).set_index(["series", "metric"])
    for series, own in scores[scores["metric"] == "error"].groupby("series"):
        curve = own.groupby("multiplier")["value"].mean()
        gains = own.groupby("multiplier")["base"].mean() - curve
        row = found.loc[(series, "error")]
        assert row["best_multiplier"] == curve.idxmin()
        assert row["peak"] == pytest.approx(curve.min())
        octaves = np.log2(curve.index.to_numpy(dtype=float))
        area = np.trapezoid(gains.to_numpy(), octaves) / (octaves[-1] - octaves[0])
        assert row["area"] == pytest.approx(area)
        assert gains.max() > 0


def test_a_killed_sweep_goes_on_to_the_same_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drive(tmp_path / "whole")
    whole = ToyTask.losses

    def losses(self: ToyTask, step: int, micro: int = 0) -> torch.Tensor:
        if step == 13:
            raise KeyboardInterrupt
        return whole(self, step, micro)

    with monkeypatch.context() as patch:
        patch.setattr(ToyTask, "losses", losses)
        drive(tmp_path / "cut", code=130)
    drive(tmp_path / "cut")
    assert_same_results(tmp_path / "whole", tmp_path / "cut")


def test_it_is_judged(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    words = [
        "judge.py",
        "dora",
        "--task",
        "toy",
        "--against",
        "lora",
        "--base-lr",
        "3e-3",
        "--multipliers",
        "1",
        "4",
        "16",
    ]
    done = drive_here(judge, [*words, "--subjects", "3", "--runs", str(runs), "--rank", "4"], runs)
    assert done.code == 0, done.err
    (card,) = runs.glob("*/card.md")
    assert "error" in card.read_text()
    assert "DINO" not in card.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "tyo"], "error: unknown task 'tyo'; allowed: pictures, text, glue, answers, toy"),
        (["--task", "toy:depth=3"], "error: --task toy has no option 'depth=3'; allowed: width=16"),
        (["--task", "toy:width=many"], "error: --task toy: width is many; allowed: a whole number"),
        (
            ["--task", "toy", "--num-prompts", "3"],
            "error: --num-prompts is 3; allowed: only with --task pictures; this is toy",
        ),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    done = drive_here(lr_robustness, ["lr_robustness.py", *words, "--runs", str(tmp_path)], tmp_path)
    assert (done.code, done.err.strip()) == (2, said)


def test_a_package_that_cannot_be_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site" / "toy_task-1.0.dist-info" / "entry_points.txt").write_text(
        "[plateau.tasks]\ntoy = tests.no_such_module:KIND\n"
    )
    task_kinds.all_kinds.cache_clear()
    with pytest.raises(BadInput, match="task 'toy' .tests.no_such_module:KIND. cannot be loaded"):
        task_kinds.kind_of("toy")


def test_results_of_two_tasks_are_not_mixed(tmp_path: Path) -> None:
    drive(tmp_path / "runs")
    results = load(tmp_path / "runs" / "lr_robustness-toy")
    mixed = pd.concat([results.all_runs, results.all_runs.assign(task="text")])
    with pytest.raises(BadInput, match="two tasks"):
        _ = type(results)(mixed, results.sources).kind


def test_no_task_is_named_where_all_are_trained_and_drawn() -> None:
    root = Path(task_kinds.__file__).resolve().parents[1]
    rooms = [*(root / "analysis").rglob("*.py"), *(root / "figures").rglob("*.py"), *(root / "slurm").rglob("*.py")]
    loops = [
        root / "training" / f"{name}.py" for name in ("loop", "step", "store", "optimizer", "dynamics", "checkpoints")
    ]
    for path in (*rooms, *loops):
        text = path.read_text(encoding="utf-8")
        for name in (
            '"pictures"',
            '"text"',
            "'pictures'",
            "'text'",
            ".PICTURES",
            ".TEXT",
            "tasks.text",
            "tasks.subject",
        ):
            assert f"task == {name}" not in text, path
            assert f"kind.name == {name}" not in text, path
    assert sys.modules  # the import of this module needs no torch: tests/test_house.py
