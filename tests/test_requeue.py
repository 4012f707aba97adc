"""A task that is warned goes back to the queue alone, and goes on at its last checkpoint, wherever that lies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from slurm import job
from training.cell import Cell
from training.checkpoints import expected_rows
from training.loop import Interrupted
from training.store import DamagedFile, RunFolder


def test_only_the_warned_task_of_an_array_is_requeued(monkeypatch: pytest.MonkeyPatch) -> None:
    """One task of every array has the array's own number: SLURM would requeue all tasks by it, finished ones too."""
    for name, value in {"SLURM_JOB_ID": "23", "SLURM_ARRAY_JOB_ID": "23", "SLURM_ARRAY_TASK_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    requeued: list[str] = []
    monkeypatch.setattr(job, "requeue", requeued.append)

    def warned(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
        raise Interrupted

    monkeypatch.setattr(job, "run_all", warned)
    job.run_task([])
    assert requeued == ["23_1"]


def test_checkpoint_counts_when_it_lies_between_two_readings(tmp_path: Path) -> None:
    cell, run = Cell("lora", "", 4, "dog", 0, 500, 1e-3, gauge_every=20, norms_every=50), RunFolder(tmp_path / "run")
    expected = expected_rows(cell, 57)
    for kind in ("steps", "dynamics", "norms"):
        run.append(kind, {"step": np.array(sorted(expected[kind]), dtype=np.int32)}, 57)
    run.check_rows(expected, set())
    run.append("dynamics", {"step": np.array([80], dtype=np.int32)}, 90)  # of a later part, which a resume drops
    run.check_rows(expected, set())
    run.append("dynamics", {"step": np.array([40], dtype=np.int32)}, 50)
    with pytest.raises(DamagedFile, match="rows are missing or doubled"):
        run.check_rows(expected, set())
