"""The U-Net of Stable Diffusion 1.5 at its full width on a CPU: two steps of the paper's setting at 512 pixels, in 24 GiB."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.sd15 import NUM_PARAMETERS
from tests.make_rehearsal import make_rehearsal, plan_rehearsal
from training.base_weights import BaseWeights
from training.demand import Cost
from training.store import find_runs

LIMIT_GIB = 24.0
TWO_STEPS = (
    "duck_toy", "--method", "lora", "--multipliers", "1", "--seeds", "0", "--steps", "2", "--eval-steps", "--num-prompts", "1",
    "--num-images", "1", "--num-drift-prompts", "0", "--num-inference-steps", "1", "--num-class-images", "1",
    "--gradient-checkpointing", "--pack-size", "1", "--workers", "1",
)  # fmt: skip


class PeakOfMemory(threading.Thread):
    """The largest resident memory that a process and all its children had together, looked at ten times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process, self.gib = psutil.Process(pid), 0.0

    def run(self) -> None:
        while self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE:
            total = 0
            for one in (self.process, *self.process.children(recursive=True)):
                try:
                    total += one.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.gib = max(self.gib, total / 2**30)
            time.sleep(0.1)


@pytest.mark.slow
def test_two_steps_at_full_width_fit_into_24_gib(tmp_path: Path) -> None:
    rehearsal, runs = make_rehearsal(tmp_path, width=1), tmp_path / "runs"
    assert plan_rehearsal(rehearsal, runs, *TWO_STEPS, costs={1: Cost(60.0, 9000.0)}).code == 0
    began = time.monotonic()
    with rehearsal.start(runs, *TWO_STEPS) as process:
        peak = PeakOfMemory(process.pid)
        peak.start()
        out, errors = process.communicate()
    assert process.returncode == 0, errors
    print(f"{time.monotonic() - began:.0f} s, peak of resident memory {peak.gib:.2f} GiB")  # shown by pytest -s

    (run,) = [run for run in find_runs(runs) if run.read()["cell"]["method"] == "lora"]
    record, steps = run.read(), run.read_steps()
    print(f"seconds of the two steps: {steps['seconds'].round(1).tolist()}, losses {steps['loss'].round(4).tolist()}")
    assert (record["status"], len(record["matrices"]), record["cell"]["resolution"]) == ("finished", 128, 512)
    unet = BaseWeights(rehearsal.folder / "sd15").unet_tensors()
    assert sum(tensor.numel() for tensor in unet.values()) == NUM_PARAMETERS
    sides = sum(row["num_in"] + row["num_out"] for row in record["matrices"])
    assert record["num_parameters"] == 16 * sides == 3_188_736
    assert steps["step"].tolist() == [1, 2]
    assert steps["loss"].between(0.1, 10).all()
    assert 4 < peak.gib < LIMIT_GIB
