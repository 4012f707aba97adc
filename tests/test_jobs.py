"""Drivers send packs to a cluster, to workers that outlive them, or into files; bad input ends in one line and exit code 2."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.store.leases import Owner
from tests.make_slurm import FakeSlurm, make_slurm
from tests.make_studio import ROOT, Studio
from tests.waiting import wait_for
from tests.warm_program import run_warm
from training.store import find_runs

TWO_CELLS = (
    "--method", "delora", "--multipliers", "1", "2", "--base-lr", "1e-2", "--base-lr-for-all", "--lr-lambda", "1e-2",
    "--boundary", "1", "--pack-size", "4",
)  # fmt: skip
SECRET = "hf_thisTokenMustNotReachAnyDisk"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.setenv("PLATEAU_SETTLE_S", "0.1")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    return make_slurm(tmp_path, monkeypatch)


def specs(runs: Path) -> list[str]:
    return [str(path) for path in sorted((runs / "lr_robustness" / "packs").glob("*.json")) if "." not in path.stem]


def statuses(runs: Path) -> set[str]:
    return {run.status() for run in find_runs(runs)}


def assert_no_secret(runs: Path) -> None:
    assert not [path for path in runs.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_slurm_comes_back_at_once_and_draws_when_all_has_ended(
    slurm: FakeSlurm, studio: Studio, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    first = studio.run(runs, *TWO_CELLS, "--cluster", "slurm", "--time-min", "5")
    assert first.returncode == 0, first.stderr
    assert re.search(
        r"submitted job 101 to slurm: 3 tasks of 5 min on 1 core with [\d.]+ GiB: 3 packs, 9 cells", first.stdout
    )
    assert "packs: 3 queued" in first.stdout
    assert "watch: python -m slurm.status" in first.stdout
    again = studio.run(runs, *TWO_CELLS, "--cluster", "slurm", "--multipliers", "1", "2", "4")
    assert again.returncode == 0, again.stderr
    assert "submitted job 102 to slurm: 1 task of" in again.stdout
    assert "packs: 4 queued" in again.stdout
    assert len(slurm.jobs()) == 4
    assert_no_secret(runs)

    slurm.forget()
    by_hand = [sys.executable, "-m", "slurm.job", *specs(runs)]
    done = subprocess.run(by_hand, cwd=ROOT, env=studio.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    drawn = studio.run(runs, *TWO_CELLS, "--cluster", "slurm")
    assert drawn.returncode == 0, drawn.stderr
    assert "fig2_lr_robustness.png" in drawn.stdout
    assert not slurm.jobs()


def test_dry_run_shows_arrays_cost_and_the_exact_text(slurm: FakeSlurm, studio: Studio, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shown = studio.run(runs, *TWO_CELLS, "--cluster", "slurm", "--partition", "gpu", "--time-min", "5", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "6 cells: 0 done, 6 to train" in shown.stdout
    assert re.search(r"3 tasks of 5 min on 1 core with [\d.]+ GiB in gpu: 3 packs, 9 cells", shown.stdout)
    assert "if every task starts now, done in" in shown.stdout
    assert not specs(runs)
    assert not slurm.jobs()
    sent = studio.run(runs, *TWO_CELLS, "--cluster", "slurm", "--partition", "gpu", "--time-min", "5")
    assert sent.returncode == 0, sent.stderr
    (record,) = (json.loads(path.read_text()) for path in (runs / "lr_robustness" / "submissions").glob("*.json"))
    text = next(slurm.home.glob("sbatch-*.sh")).read_text().replace(record["token"], "TOKEN")
    assert text in shown.stdout


def test_local_workers_outlive_the_driver(slurm: FakeSlurm, studio: Studio, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    started = studio.run(runs, *TWO_CELLS, "--steps", "60", "--cluster", "local", "--workers", "2")
    assert started.returncode == 0, started.stderr
    assert "started 2 workers, which outlive this process" in started.stdout
    (record,) = (json.loads(path.read_text()) for path in (runs / "lr_robustness" / "submissions").glob("*.json"))
    workers = [Owner(**worker) for worker in record["workers"]]
    assert len(workers) == 2
    wait_for(lambda: all(worker.is_dead(Owner.me()) for worker in workers), "the end of its workers")
    assert statuses(runs) == {"finished"}
    assert_no_secret(runs)
    assert not slurm.jobs()


def test_waiting_ends_with_the_figure(studio: Studio, tmp_path: Path) -> None:
    done = studio.run(tmp_path / "runs", *TWO_CELLS, "--cluster", "local", "--workers", "1", "--wait")
    assert done.returncode == 0, done.stderr
    assert "fig2_lr_robustness.png" in done.stdout


def test_exported_files_run_by_hand_from_wherever_the_runs_folder_is(studio: Studio, tmp_path: Path) -> None:
    runs, elsewhere = tmp_path / "runs", tmp_path / "else where"
    made = studio.run(runs, *TWO_CELLS, "--cluster", "export", "--gpus", "0", "--account", "lab")
    assert made.returncode == 0, made.stderr
    runs.rename(elsewhere)
    folder = elsewhere / "lr_robustness" / "export"
    assert "sbatch lr_robustness/export/array-001.sh" in (folder / "README.md").read_text()
    script = folder / "array-001.sh"
    assert "#SBATCH --account=lab" in script.read_text()
    for task in range(len((folder / "array-001.txt").read_text().splitlines())):
        environment = studio.environment() | {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task)}
        done = subprocess.run(["bash", str(script)], cwd=elsewhere, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert statuses(elsewhere) == {"finished"}
    lost = subprocess.run(["bash", str(script)], cwd=tmp_path, env=studio.environment(), capture_output=True, text=True)
    assert (lost.returncode, lost.stderr) == (1, "submit this from the runs folder\n")


# Bad input: before any work, one line, exit code 2.


def refusal(folder: Path, *arguments: str) -> str:
    words = [str(ROOT / "sweeps" / "lr_robustness.py"), "--runs", str(folder / "runs"), *arguments]
    environment = os.environ | {"XDG_CONFIG_HOME": str(folder / "config"), "COLUMNS": "200"}
    done = run_warm(words, folder, environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert not (folder / "runs").exists()
    return done.stderr


def test_unknown_cluster_lists_the_known_ones(slurm: FakeSlurm, tmp_path: Path) -> None:
    (tmp_path / "clusters.toml").write_text('[here]\npartition = "gpu"\ngpus = 1\naccount = "lab"\n')
    assert "--cluster is there; known: inline, local, slurm, export, here" in refusal(tmp_path, "--cluster", "there")


def test_broken_clusters_file_is_named_with_its_line(slurm: FakeSlurm, tmp_path: Path) -> None:
    (tmp_path / "clusters.toml").write_text('[here]\npartition = "gpu\n')
    assert "clusters.toml cannot be read as TOML: Illegal character '\\n' (at line 2" in refusal(
        tmp_path, "--cluster", "here"
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--partition", "gpus"), "--partition is gpus; partitions of fake: debug (at most 60 min), gpu (at most"),
        (("--time-min", "61"), "--time-min is 61; partition debug allows at most 60 minutes"),
        (("--account", "a b"), "--account is 'a b'; allowed: a name without blanks"),
        (("--gpus", "many"), "--gpus is 'many'; allowed: a number, or a type and a number"),
    ],
)
def test_flags_that_the_cluster_does_not_allow_are_refused(slurm, tmp_path: Path, flags, words: str) -> None:
    assert words in refusal(tmp_path, "--cluster", "slurm", *flags)


def test_flags_of_jobs_are_refused_where_there_are_none(tmp_path: Path) -> None:
    assert "--partition is gpu; allowed: only with --cluster slurm" in refusal(tmp_path, "--partition", "gpu")


def test_machine_without_sbatch_says_what_else_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    message = refusal(tmp_path, "--cluster", "slurm")
    assert "no sbatch on the PATH" in message
    assert "--cluster local" in message
    assert "--cluster export" in message


def test_refusal_by_sbatch_is_told_in_its_own_words(slurm: FakeSlurm, studio: Studio, tmp_path: Path) -> None:
    slurm.refusal = "Invalid account or account/partition combination specified"
    slurm.write()
    done = studio.run(tmp_path / "runs", *TWO_CELLS, "--cluster", "slurm")
    assert done.returncode == 2
    said = done.stderr.splitlines()  # before it, where the speed was not known yet, how it was measured
    assert said[-1] == f"error: sbatch refused: Batch job submission failed: {slurm.refusal}"
