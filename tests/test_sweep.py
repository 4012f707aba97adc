"""The front door as a user runs it: whole programs on a tiny pipeline, killed, stopped, doubled and repeated."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from sweeps import lr_robustness
from tests.compare_runs import assert_same_results
from tests.make_driver import drive_here
from tests.make_studio import Studio
from tests.waiting import HANG_S, wait_for
from training.store import RunFolder, find_runs
from training.tasks.pipeline import attention_shapes

TWO_CELLS = (
    "--method",
    "delora",
    "--multipliers",
    "1",
    "2",
    "--base-lr",
    "1e-2",
    "--base-lr-for-all",
    "--lr-lambda",
    "1e-2",
    "--boundary",
    "1",
)


@pytest.fixture(scope="module")
def undisturbed(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a sweep of 80 steps that nothing disturbed."""
    runs = tmp_path_factory.mktemp("undisturbed")
    drive(studio, runs, *LONG)
    return runs


LONG = (*TWO_CELLS, "--steps", "80", "--eval-steps", "20", "--norms-every", "20", "--pack-size", "4", "--workers", "2")


def drive(studio: Studio, runs: Path, *more: str) -> str:
    """The command in this process, which costs a third of a program with workers; returns what it says."""
    done = drive_here(lr_robustness, studio.arguments(runs, *more)[1:], runs)
    assert done.code == 0, done.err
    return done.out


def trained(runs: Path) -> dict[str, RunFolder]:
    """Ended or unfinished runs by name."""
    return {run.run_id: run for run in find_runs(runs)}


def wait_for_end_of_group(leader: int) -> None:
    """Wait until no process lives any more that a program has started: its workers notice that it is gone, and stop."""

    def has_ended() -> bool:
        try:
            os.killpg(leader, 0)
        except ProcessLookupError:
            return True
        return False

    wait_for(has_ended, "the end of its workers")


def some_steps_done(runs: Path) -> bool:
    """Whether a checkpoint lies there."""
    return any(run.checkpoints() for run in trained(runs).values())


def test_first_call_leaves_table_sentence_figure_and_sheet(studio: Studio, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    done = studio.run(runs, *TWO_CELLS, "--workers", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "8 cells" not in done.stdout.splitlines()[0]
    assert "6 cells: 0 done, 6 to train, 6 steps each" in done.stdout
    assert "base model" in done.stdout
    assert "n = 3 subjects" in done.stdout
    assert "DeLoRA: DINO" in done.stdout
    for stem in ("fig2_lr_robustness", "pictures_delora"):
        for suffix in (".png", ".pdf"):
            path = runs / "lr_robustness" / f"{stem}{suffix}"
            assert str(path) in done.stdout
            assert path.stat().st_size > 2000
    table = pd.read_csv(runs / "lr_robustness" / "summary.csv")
    assert list(table["multiplier"].dropna()) == [1, 2]
    assert table["dino_low"].notna().all()

    before = {run.path: run.read()["provenance"] for run in find_runs(runs)}
    assert "6 cells: 6 done, 0 to train" in drive(studio, runs, *TWO_CELLS)
    assert {run.path: run.read()["provenance"] for run in find_runs(runs)} == before, "something was trained again"

    assert "9 cells: 6 done, 3 to train" in drive(studio, runs, *TWO_CELLS, "--multipliers", "1", "2", "4")
    assert {run.path: run.read()["provenance"] for run in find_runs(runs) if run.path in before} == before


def test_dry_run_shows_the_plan_and_leaves_nothing_to_find(studio: Studio, tmp_path: Path) -> None:
    assert "6 cells: 0 done, 6 to train" in drive(studio, tmp_path / "runs", *TWO_CELLS, "--dry-run")
    assert not find_runs(tmp_path / "runs")


def test_plan_says_what_full_finetuning_keeps_in_memory(studio: Studio, tmp_path: Path) -> None:
    """Six float32 values for each weight of the adapted matrices, in every one of three runs."""
    shapes = attention_shapes(studio.folder / "pipeline")
    count = sum(num_out * num_in for num_out, num_in in shapes.values())
    said = drive(
        studio, tmp_path / "runs", "--method", "full", "lora", "--base-lr", "1e-3", "--base-lr-for-all", "--pack-size",
        "3", "--dry-run",
    )  # fmt: skip
    (line,) = [line for line in said.splitlines() if " trained values a run" in line]
    assert line.startswith(f"full: {count:,} trained values a run")
    assert f"{count * 24 / 2**20:,.0f} MiB, {3 * count * 24 / 2**20:,.0f} MiB in a pack of 3" in line


@pytest.mark.parametrize("victims", [pytest.param("everything", marks=pytest.mark.slow), "parent"])
def test_kill_9_and_the_same_command_again(victims: str, studio: Studio, undisturbed: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with studio.start(runs, *LONG) as process:
        wait_for(lambda: some_steps_done(runs), "a checkpoint", process)
        time.sleep(0.3)
        if victims == "everything":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
            process.wait()
            wait_for_end_of_group(process.pid)
    assert not all(run.status() == "finished" for run in trained(runs).values()), "killed too late to test anything"
    drive(studio, runs, *LONG)
    assert_same_results(undisturbed, runs)


def test_ctrl_c_says_how_to_go_on(studio: Studio, undisturbed: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with studio.start(runs, *LONG) as process:
        wait_for(lambda: some_steps_done(runs), "a checkpoint", process)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=HANG_S)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1].startswith("stopped; everything computed is checkpointed: the same command")
    assert "Traceback" not in errors
    assert "preempted" in {run.status() for run in trained(runs).values()}
    drive(studio, runs, *LONG)
    assert_same_results(undisturbed, runs)


def test_two_at_once_share_the_work(studio: Studio, undisturbed: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    both = [studio.start(runs, *LONG) for _ in range(2)]
    for process in both:
        out, errors = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, errors
        assert "fig2_lr_robustness.png" in out
    assert_same_results(undisturbed, runs)
