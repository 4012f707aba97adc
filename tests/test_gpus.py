"""Several GPUs of one machine: each worker process sees its own. Their number is pretended; no GPU is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slurm.estimate.need import Need, Pack
from slurm.store.limits import Limits
from slurm.submit.arrays import plan_arrays
from slurm.submit.clusters import Cluster
from slurm.worker import pool
from slurm.worker.gpus import VISIBLE, choose_gpu, list_gpus
from slurm.worker.pool import choose_workers, start_process
from tests.test_loop import make_cell


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says it has two."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv(VISIBLE, raising=False)


def start_workers(monkeypatch: pytest.MonkeyPatch, device: str) -> list[str]:
    """What each of two worker processes sees."""
    monkeypatch.setattr(pool, "WORKER", (sys.executable, "-c", f"import os; print(os.environ.get('{VISIBLE}'))"))
    team = [start_process((), number, device, os.environ, stdout=subprocess.PIPE, text=True) for number in range(2)]
    return [process.communicate()[0].strip() for process in team]


def test_workers_on_cuda_see_one_gpu_each_and_on_a_cpu_what_they_saw(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start_workers(monkeypatch, "cuda") == ["0", "1"]
    assert VISIBLE not in os.environ
    monkeypatch.setenv(VISIBLE, "5,GPU-8f")
    assert list_gpus() == ["5", "GPU-8f"], "names that a scheduler gave are kept"
    assert start_workers(monkeypatch, "cpu") == ["5,GPU-8f"] * 2
    assert os.environ[VISIBLE] == "5,GPU-8f"


def test_number_of_workers_follows_the_gpus(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_workers(9, "cuda") == (2, 0)
    assert choose_workers(1, "cuda") == (1, 0), "one pack needs one"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_workers(9, "cuda") == (1, 0)
    assert choose_gpu(0, "cuda") is None


def test_more_workers_than_gpus_share_them(two_gpus: None) -> None:
    assert [choose_gpu(worker, "cuda") for worker in range(3)] == ["0", "1", "0"]


def test_every_task_of_a_cluster_asks_for_one_gpu_and_holds_one_pack() -> None:
    packs = [Pack.of(f"p{n}", [make_cell("lora", seed=n)], {"device": "cuda"}) for n in range(3)]
    (request,) = plan_arrays(packs, Cluster(gpus="1"), lambda _: Need(60.0, 1000.0), Limits())
    assert [len(task) for task in request.tasks] == [1, 1, 1]
    assert "--gpus-per-node=1" in request.text("token", Path("private"))
