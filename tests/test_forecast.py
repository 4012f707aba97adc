"""Seconds and memory that packs are expected to need, and what is decided by them: sizes, workers, memory of tasks."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from adapters import BadInput
from adapters.parameters import COPIES_IN_TRAINING
from slurm import calibrate, inline, measure_packs
from slurm.calibrate import choose_size
from slurm.forecast import NAME, Cost, Forecast, Need, Pack, predict_by, read_costs, to_json
from slurm.measure_packs import Load, measure_or_fit
from slurm.pack import Setting
from slurm.sweep_folder import SweepFolder
from tests.make_process import pretend_process
from tests.make_studio import ROOT, Studio
from tests.test_loop import make_cell
from training.store import write_json

COSTS = {1: Cost(1.0, 500.0), 4: Cost(2.0, 560.0), 8: Cost(3.9, 640.0)}


def test_memory_lies_on_the_line_between_measured_sizes_and_beyond_them() -> None:
    forecast = Forecast(COSTS)
    assert [forecast.peak_mib(size) for size in (1, 2, 4, 6, 8, 16)] == [500, 520, 560, 600, 640, 800]
    assert Forecast({1: Cost(1.0, 500.0)}).peak_mib(8) == 500


def test_own_values_come_on_top(studio: Studio) -> None:
    model = str(studio.folder / "pipeline")

    def need(method: str, rank: int = 4, count: int = 4) -> float:
        cell = dataclasses.replace(make_cell("lora", rank=rank), method=method)
        found = Forecast(COSTS).need(Pack("p", (cell,) * count, 1, "cpu", model)).mib
        assert found is not None
        return found

    assert need("base") == pytest.approx(COSTS[4].peak_mib)
    assert need("peft:ia3") == pytest.approx(COSTS[1].peak_mib), "tuners of HF PEFT run alone"
    assert need("own-method-of-somebody") == need("base"), "its file is not loaded here"
    own = need("lora") - need("base")
    assert own * 2**20 == pytest.approx(4 * 4 * 4 * COPIES_IN_TRAINING * values_of_rank_one(model))
    assert need("lora", 8) - need("base") == pytest.approx(2 * own), "twice the rank, twice the values"
    costs = {size: dataclasses.replace(cost, gpu_mib=100.0 * size) for size, cost in COSTS.items()}
    cell = make_cell("lora", rank=4)
    on_gpu = Forecast(costs).need(Pack("p", (cell,) * 4, 0, "cuda", model))
    assert on_gpu.gpu_mib == pytest.approx(400 + own), "on a GPU they lie there"
    assert on_gpu.mib == COSTS[4].peak_mib


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


def test_size_leaves_room_for_the_methods_own_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert choose_size(COSTS, task_mib=700.0) == 8
    assert choose_size(COSTS, task_mib=700.0, own_mib=20.0) == 4, "8 runs would need 800 MiB"
    on_gpu = {size: dataclasses.replace(cost, gpu_mib=1000.0 * size) for size, cost in COSTS.items()}
    monkeypatch.setattr(calibrate, "gpu_mib", lambda: 9000.0)
    assert choose_size(on_gpu, "cuda") == 8
    assert choose_size(on_gpu, "cuda", own_mib=200.0) == 4


LOAD = Load("model", "cpu", 64)
CELL = make_cell("lora", rank=8, resolution=64)
SETTING = Setting("model", "", "", "subjects", "sks", "a {token} {cls}", "runs")


def pretend_limit(monkeypatch: pytest.MonkeyPatch, limit_mib: float) -> None:
    """Let a run take as many MiB as its picture has thousand pixels, and half of that with checkpointing."""

    def measure(load: Load, sizes: tuple[int, ...] = (1, 2), tell: object = None) -> dict[int, Cost]:
        each = load.resolution**2 / 1000 / (2 if load.checkpointing else 1)
        return {size: Cost(1.0, size * each) for size in sizes if size * each <= limit_mib}

    monkeypatch.setattr(measure_packs, "measure", measure)


def test_what_takes_less_is_tried_when_not_even_one_run_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_limit(monkeypatch, 5.0)
    assert list(measure_or_fit(LOAD)["costs"]) == ["1"]
    assert measure_or_fit(LOAD)["fits"] == {}
    pretend_limit(monkeypatch, 3.0)
    found = measure_or_fit(LOAD)
    assert found["costs"] == {}
    assert found["fits"] == {
        "--gradient-checkpointing": 2.048, "--resolution 32": 1.024, "--gradient-checkpointing --resolution 32": 0.512,
    }  # fmt: skip
    assert list(measure_or_fit(dataclasses.replace(LOAD, resolution=128, checkpointing=True))["fits"]) == [
        "--resolution 64"
    ]


@pytest.mark.parametrize(
    ("code", "out", "line"),
    [
        (0, {"costs": {}, "fits": {"--gradient-checkpointing": 20480.0, "--resolution 32": 8192.0}, "total_gib": 24.0},
         "one run of lora of rank 8 at 64 px does not fit into memory; what does: --gradient-checkpointing (20.0 GiB), "
         "--resolution 32 (8.0 GiB)"),
        (0, {"costs": {}, "fits": {}, "total_gib": 24.0},
         "one run of lora of rank 8 at 64 px does not fit into memory, nor does it with --gradient-checkpointing, "
         "--resolution 32, --gradient-checkpointing --resolution 32: it needs a larger one"),
        (-9, None, "does not fit into this machine's .* GiB; what takes less: --gradient-checkpointing, --resolution 32, "
         "--gradient-checkpointing --resolution 32, --rank 4"),
    ],
)  # fmt: skip
def test_too_little_memory_for_one_run_is_one_line_that_says_what_fits(
    code: int,
    out: dict | None,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretend_process(monkeypatch, "echo packs of 1; " + ("kill -9 $$" if code else f"echo '{json.dumps(out)}'"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BadInput, match=line if code else f"^{re.escape(line)}$"):
        calibrate.calibrate(SETTING, CELL, "auto")
    assert not list(tmp_path.rglob("*.json")), "it is asked again next time"
    first, second = capsys.readouterr().err.splitlines()
    assert second == f"{first}: packs of 1"


def test_what_goes_wrong_while_packs_are_measured_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for script, words in (
        ("echo a warning >&2; echo no such model >&2; exit 1", "no such model"),
        ("kill -15 $$", "the process that measures it "),
    ):
        pretend_process(monkeypatch, script)
        with pytest.raises(BadInput, match=f"cannot measure the model's speed: {words}"):
            calibrate.calibrate(SETTING, CELL, "auto")


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
    names = {
        name: str(studio.folder / folder)
        for name, folder in (("model", "pipeline"), ("dino", "dino"), ("clip", "clip"))
    }
    load = dataclasses.asdict(Load(**names, device="cpu", resolution=32))
    command = [sys.executable, "-m", "slurm.measure_packs", json.dumps(load)]
    done = subprocess.run(command, cwd=ROOT, env=studio.environment(), capture_output=True, text=True, check=True)
    stored = json.loads(done.stdout.splitlines()[-1])["costs"]
    assert list(stored)[:4] == ["1", "2", "4", "8"]
    peaks = [cost["peak_mib"] for cost in stored.values()]
    assert peaks == sorted(peaks)
    assert 100 < peaks[0] < 4000
    assert all(cost["step_s"] > 0 for cost in stored.values())


def check_memory(device: str, sizes: tuple[int, ...]) -> None:
    """Hold what is foreseen against what workers take."""
    from benchmarks import peak
    from training.tasks.pipeline import POCKET

    parts = [peak.Part(str(POCKET), size, device=device) for size in sizes]
    costs = peak.measure_costs(parts[0])
    for part in parts:
        found = peak.run_elsewhere(part)
        measured = found.gpu_mib if device == "cuda" else found.peak_mib
        assert peak.foresee(part, costs) == pytest.approx(measured, rel=0.1), part


@pytest.mark.slow
def test_memory_of_packs_is_foreseen_within_a_tenth() -> None:
    check_memory("cpu", (1, 4, 8))


@pytest.mark.gpu
def test_memory_of_packs_on_a_gpu_is_foreseen_within_a_tenth() -> None:
    check_memory("cuda", (1, 4, 16))
