"""Seconds and memory that packs are expected to need, and what is decided by them: sizes, workers, memory of tasks."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.parameters import COPIES_IN_TRAINING
from slurm import calibrate, inline
from slurm.calibrate import choose_size
from slurm.forecast import NAME, Cost, Forecast, Need, Pack, folder_mib, predict_by, read_costs, to_json
from slurm.sweep_folder import SweepFolder
from tests.make_studio import ROOT, Studio
from tests.test_loop import make_cell
from training.store import write_json

COSTS = {1: Cost(1.0, 500.0), 4: Cost(2.0, 560.0), 8: Cost(3.9, 640.0)}


def test_memory_lies_on_the_line_between_measured_sizes_and_beyond_them() -> None:
    forecast = Forecast(COSTS)
    assert [forecast.peak_mib(size) for size in (1, 2, 4, 6, 8, 16)] == [500, 520, 560, 600, 640, 800]
    assert Forecast({1: Cost(1.0, 500.0)}).peak_mib(8) == 500


def test_own_values_and_scorers_come_on_top(studio: Studio) -> None:
    model, scorers = str(studio.folder / "pipeline"), (str(studio.folder / "dino"), str(studio.folder / "clip"))

    def need(method: str, rank: int = 4, count: int = 4) -> float:
        cell = dataclasses.replace(make_cell("lora", rank=rank), method=method)
        found = Forecast(COSTS).need(Pack("p", (cell,) * count, 1, "cpu", model, scorers)).mib
        assert found is not None
        return found

    weights = sum(map(folder_mib, scorers))
    assert weights > 0
    assert need("base") == pytest.approx(COSTS[4].peak_mib + weights)
    assert need("peft:ia3") == pytest.approx(COSTS[1].peak_mib + weights), "tuners of HF PEFT run alone"
    assert need("own-method-of-somebody") == need("base"), "its file is not loaded here"
    own = need("lora") - need("base")
    assert own * 2**20 == pytest.approx(4 * 4 * 4 * COPIES_IN_TRAINING * values_of_rank_one(model))
    assert need("lora", 8) - need("base") == pytest.approx(2 * own), "twice the rank, twice the values"


def values_of_rank_one(model: str) -> int:
    from training.tasks.pipeline import attention_shapes

    return sum(num_out + num_in for num_out, num_in in attention_shapes(Path(model)).values())


def test_nothing_is_foreseen_where_nothing_was_measured() -> None:
    assert Forecast({}).need(Pack("p", (make_cell("lora"),))) == Need(None, None)
    assert Forecast({}).seconds([make_cell("lora")], 4) is None


def test_size_is_the_smallest_that_is_as_good_as_the_best_in_the_memory_there_is(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(calibrate, "num_workers", inline.num_workers)
    monkeypatch.setattr(inline, "machine_mib", lambda: 1e6)
    assert choose_size(COSTS) == 8
    assert choose_size(COSTS | {16: Cost(7.7, 700.0)}) == 8, "within 2 % of the best"
    monkeypatch.setattr(inline, "machine_mib", lambda: 2300.0)
    assert inline.choose_workers(9, "cpu", 560.0) == (4, 1)
    assert inline.choose_workers(9, "cpu", 640.0) == (3, 1)
    assert choose_size(COSTS) == 4, "four workers with packs of 4 beat three with packs of 8"
    monkeypatch.setattr(inline, "machine_mib", lambda: 100.0)
    assert inline.choose_workers(9, "cpu", 500.0) == (1, 4)
    assert choose_size(COSTS, "cuda") == 8
    assert choose_size(COSTS, task_mib=600.0) == 4
    assert choose_size(COSTS, task_mib=100.0) == 1, "none fits; the smallest is tried"


def test_control_groups_limit_the_memory_of_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = inline.machine_mib()
    assert whole > 100
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    monkeypatch.setattr(inline, "MEMORY_LIMIT", tmp_path / "memory.max")
    assert inline.machine_mib() == pytest.approx(inline.USABLE * 1024)
    (tmp_path / "memory.max").write_text("max\n")
    assert inline.machine_mib() >= whole


def test_sweep_foresees_by_what_it_was_planned_with(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path)
    pack = Pack("p", (make_cell("lora", resolution=64),))
    assert predict_by(sweep.path)(pack) == Need()
    write_json(tmp_path / NAME, {"cpu-64-no-0": to_json(COSTS)})
    assert predict_by(sweep.path)(pack).mib == COSTS[1].peak_mib
    assert predict_by(sweep.path)(Pack("q", (make_cell("lora", resolution=128),))) == Need(), "another shape"


@pytest.mark.parametrize("text", ["{", "[]", '{"cpu-64-no-0": {"1": 0.5}}', '{"cpu-64-no-0": {"x": {}}}', "3"])
def test_damaged_or_older_calibrations_are_measured_again(text: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(text)
    assert read_costs(tmp_path / NAME) == {}


@pytest.mark.slow
def test_measured_costs_grow_with_the_pack(studio: Studio) -> None:
    command = [sys.executable, "-m", "slurm.calibrate", str(studio.folder / "pipeline"), "cpu", "32", "1", "no"]
    done = subprocess.run(command, cwd=ROOT, env=studio.environment(), capture_output=True, text=True, check=True)
    stored = json.loads(done.stdout.splitlines()[-1])
    assert list(stored)[:4] == ["1", "2", "4", "8"]
    peaks = [cost["peak_mib"] for cost in stored.values()]
    assert peaks == sorted(peaks)
    assert 100 < peaks[0] < 4000
    assert all(cost["step_s"] > 0 for cost in stored.values())
