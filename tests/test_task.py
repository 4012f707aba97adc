"""A task of an array that was sent: it listens before it imports anything, and its record says what it runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adapters import BadInput
from slurm.worker import own_job
from slurm.worker import run as job
from slurm.worker.run import run_task
from tests.make_slurm import make_slurm
from tests.make_studio import ROOT, Studio
from tests.test_job import at_step, outcomes, send, store
from training.stop import StopSignals
from training.store import write_json

LISTENER = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *more):
        if name == "torch":
            sys.meta_path.remove(self)
            for number in (signal.SIGURG, signal.SIGTERM):
                os.kill(os.getpid(), number)

sys.meta_path.insert(0, Finder())
from slurm import task
sys.exit(task.main(sys.argv[1:]))
"""


def test_task_hears_a_warning_while_it_imports_torch(studio: Studio, tmp_path: Path, monkeypatch) -> None:
    spec, slurm = store(studio, tmp_path), make_slurm(tmp_path / "fake", monkeypatch)
    environment = os.environ | {"SLURM_JOB_ID": "4711"}
    command = [sys.executable, "-c", LISTENER, str(spec)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "stopped by SIGURG" in done.stderr
    assert slurm.calls()[-1] == "scontrol requeue 4711"
    assert outcomes(spec) == []


@pytest.fixture
def second_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")


def send_record(spec: Path, **more: object) -> Path:
    path = spec.parents[1] / "submissions" / "t0k3n.json"
    record = {"tasks": [["other"], [spec.stem]], "code": job.code_version(), "state": "sent", "error": None}
    write_json(path, record | more)
    return path


@pytest.mark.usefixtures("second_task")
def test_task_runs_what_its_record_names(studio: Studio, tmp_path: Path) -> None:
    """Whether or not the submitter lived to write down the job's id."""
    spec = store(studio, tmp_path)
    assert job.main(["--sent", str(send_record(spec, state="intent"))]) == 0
    assert outcomes(spec) == ["done"]


@pytest.mark.usefixtures("second_task")
def test_task_of_a_submission_that_was_given_up_does_nothing(
    studio: Studio, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Its job came after the queue had been asked for it, and the packs are in another one."""
    spec = store(studio, tmp_path)
    assert job.main(["--sent", str(send_record(spec, state="refused", error="never sent"))]) == 0
    assert "t0k3n was given up (never sent)" in capsys.readouterr().err
    assert outcomes(spec) == []


@pytest.mark.usefixtures("second_task")
@pytest.mark.parametrize("tasks", [[], [["x"], ["../../victim"]], [["x"], "y"], {}, 7])
def test_task_of_a_damaged_record_says_so(
    tasks: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(job, "SETTLE_S", 0.01)
    path = send_record(tmp_path / "packs" / "p.json", tasks=tasks)
    (tmp_path / "victim.json").write_text("{}")
    assert job.main(["--sent", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("restart", "at", "preempted", "ends"),
    [(0, 0, False, False), (2, 0, False, True), (2, 0, True, False), (2, 5, False, False)],
    ids=["first start", "third start without a step", "third start, for others", "third start with steps"],
)
def test_task_whose_time_is_over_before_its_first_step_is_not_started_for_ever(
    restart: int, at: int, preempted: bool, ends: bool, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requeued: list[str] = []
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
    monkeypatch.setattr(job, "requeue", requeued.append)
    monkeypatch.setattr(own_job, "show_job", lambda name: {"PreemptTime": "2026-01-01" if preempted else "None"})
    spec = store(studio, tmp_path)
    with StopSignals(signal.SIGURG) as stop:
        if at:
            at_step(at, send(signal.SIGURG), monkeypatch)
        else:
            os.kill(os.getpid(), signal.SIGURG)
        try:
            run_task([str(spec)], stop=stop)
            said = ""
        except BadInput as error:
            said = str(error)
    assert said == (TOO_SHORT if ends else "")
    assert requeued == ([] if ends else ["4711"])
    assert outcomes(spec) == (["stopped"] if at else [])


TOO_SHORT = (
    "3 starts of job 4711 were over before a step was done: its time limit is too short, give the same command with a "
    "longer --time-min"
)
