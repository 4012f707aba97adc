"""Seconds and memory that packs are expected to need, and what is decided by them: sizes, workers, memory of tasks."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adapters import BadInput
from adapters.parameters import COPIES_IN_TRAINING
from slurm.estimate import calibrate
from slurm.estimate.calibrate import choose_size
from slurm.estimate.need import NAME, START_S, Estimate, Need, Pack, Paid, learn, makespan, predict_by
from slurm.estimate.telling import telling
from slurm.store.layout import PackFiles, SweepFolder
from slurm.store.outcome import read_ended, write_ended
from slurm.worker import pool
from tests.make_process import pretend_process
from tests.make_studio import ROOT, Studio
from tests.test_loop import make_cell
from training import memory_advice, probe
from training.cell import Cell
from training.demand import PASSES, Cost, Demand, read_costs, row_s, to_json
from training.pack import Setting
from training.probe import Load, measure_or_fit
from training.store import RunFolder, write_json
from training.tasks.task import MeasuredModel

COSTS = {1: Cost(1.0, 500.0), 4: Cost(2.0, 560.0), 8: Cost(3.9, 640.0)}


def pack_of(name: str, size: int = 4, method: str = "lora", **changes: object) -> Pack:
    return Pack.of(name, [make_cell(method, seed=seed, **changes) for seed in range(size)], {})


@pytest.mark.parametrize(
    ("durations", "workers", "seconds"),
    [
        ([10, 1, 1, 1], 2, 10),  # the second takes the three short ones meanwhile
        ([4, 3, 2], 2, 5),  # the second begins at 3 and goes on with 2
        ([1, 1, 6], 2, 7),
        ([4, 3, 2], 1, 9),
        ([4, 3, 2], 7, 4),
        ([], 2, 0),
    ],
)
def test_last_worker_to_end_decides(durations: list[float], workers: int, seconds: float) -> None:
    assert makespan(durations, workers, 0.0) == seconds
    assert makespan(durations, workers, 5.0) == (seconds + 5 if durations else 0)


PICTURES = {"num_prompts": 3, "num_images": 2, "num_drift_prompts": 2, "num_inference_steps": 10, "guidance_scale": 4.0}


def test_pack_asks_for_the_rows_of_its_steps_and_pictures() -> None:
    demand = pack_of("p", 4, steps=100, eval_steps=(50,), prior_loss_weight=1.0, **PICTURES).demand
    assert (demand.num_cells, demand.size, demand.rows) == (4, 4, 4 * 100 * 2)
    assert demand.passes == 4 * 2 * (3 * 2 + 2) * 10 * 2, "two evaluations, and two rows a picture with guidance"
    assert pack_of("p", 4, steps=100, **PICTURES | {"guidance_scale": 1.0}).demand.passes == 4 * 8 * 10
    assert pack_of("p", 4, "peft:oft").demand.size == 1, "some of HF PEFT's tuners train alone"
    base = Demand.of([make_cell("lora", **PICTURES).base()])
    assert (base.rows, base.passes) == (0, 8 * 10 * 2)


def test_before_any_pack_has_ended_all_cost_what_lora_was_measured_to() -> None:
    pack = pack_of("p", 6, "dora", steps=100, **PICTURES)
    each = COSTS[4].step_s / 4
    assert row_s(COSTS, 6) == each, "that of the largest size below"
    expected = each * (6 * 100 + 6 * 8 * 10 * 2 / PASSES)
    assert Estimate(COSTS).pack_s(pack.demand) == pytest.approx(expected)
    assert Estimate(COSTS).need(pack).seconds == pytest.approx(START_S + expected)
    assert Estimate(COSTS, workers=2).seconds([pack] * 3) == pytest.approx(START_S + 2 * expected)


def test_ended_packs_correct_what_is_expected_of_their_kind_and_of_others() -> None:
    def ending(pack: Pack, slower: float, pictures_slower: float) -> dict:
        demand, each = pack.demand, row_s(COSTS, pack.demand.size)
        names = {"kind": demand.kind, "size": demand.size, "rows": demand.rows, "passes": demand.passes}
        took = {
            "training_s": slower * each * demand.rows,
            "pictures_s": pictures_slower * each * demand.passes / PASSES,
        }
        return {"cost": names | took}

    dora, oft, ether = (pack_of("p", 4, method, steps=100, **PICTURES) for method in ("dora", "oft", "ether"))
    longer = pack_of("q", 2, "dora", steps=700, **PICTURES)
    paid = learn(COSTS, [ending(dora, 2.0, 1.0), ending(oft, 4.0, 3.0), {"runs": {}}])
    assert paid[dora.demand.kind] == Paid(pytest.approx(2.0), pytest.approx(1.0))
    estimate, plain = Estimate(COSTS, paid=paid), Estimate(COSTS)
    each = COSTS[1].step_s
    assert estimate.pack_s(longer.demand) == pytest.approx(each * (2.0 * 1400 + 2 * 8 * 10 * 2 / PASSES))
    assert estimate.pack_s(oft.demand) > 3 * plain.pack_s(oft.demand)
    training, pictures = 0.5 * 400, 0.5 * 4 * 160 / PASSES
    assert estimate.pack_s(ether.demand) == pytest.approx(3.0 * training + 2.0 * pictures), "the median of the others"
    assert learn({}, [ending(dora, 2.0, 1.0)]) == {}
    base = Demand.of([make_cell("lora", **PICTURES).base()])
    seen = learn(
        COSTS,
        [{"cost": {"kind": base.kind, "size": 1, "rows": 0, "passes": 120, "training_s": 3.0, "pictures_s": 80.0}}],
    )
    assert seen == {base.kind: Paid(None, pytest.approx(2.0))}, "nothing was trained"


def test_ending_tells_what_the_pack_asked_for_and_took(tmp_path: Path) -> None:
    cells = [make_cell("delora", seed=seed, steps=10, **PICTURES) for seed in range(2)]
    runs = [RunFolder(tmp_path / "sweep" / f"run-{n}") for n in range(2)]
    files = PackFiles("p", tmp_path / "sweep" / "packs")

    def end(**changes: object) -> dict | None:
        for run, cell in zip(runs, cells):
            record = {"status": "finished", "cell": cell.to_dict(), "seconds": 25.0, "picture_seconds": 20.0}
            run.write(record | changes)
        write_ended(files, runs, 1)
        return read_ended(files).get("cost")

    demand = Demand.of([Cell.from_dict(cell.to_dict()) for cell in cells])
    asked = {"kind": demand.kind, "size": 2, "rows": demand.rows, "passes": demand.passes}
    assert end() == asked | {"training_s": 30.0, "pictures_s": 20.0}
    assert end(status="failed") is None
    assert end(picture_seconds=None) is None, "of an earlier version"


def test_memory_lies_on_the_line_between_measured_sizes_and_beyond_them() -> None:
    estimate = Estimate(COSTS)
    assert [estimate.peak_mib(size) for size in (1, 2, 4, 6, 8, 16)] == [500, 520, 560, 600, 640, 800]
    assert Estimate({1: Cost(1.0, 500.0)}).peak_mib(8) == 500


def test_own_values_come_on_top(studio: Studio) -> None:
    model = str(studio.folder / "pipeline")

    def need(method: str, rank: int = 4, count: int = 4) -> float:
        cell = dataclasses.replace(make_cell("lora", rank=rank), method=method)
        found = Estimate(COSTS).need(Pack.of("p", (cell,) * count, {"model": model})).mib
        assert found is not None
        return found

    assert need("base") == pytest.approx(COSTS[4].peak_mib)
    assert need("peft:oft") == pytest.approx(COSTS[1].peak_mib), "some of HF PEFT's tuners run alone"
    assert need("own-method-of-somebody") == need("base"), "its file is not loaded here"
    own = need("lora") - need("base")
    assert own * 2**20 == pytest.approx(4 * 4 * 4 * COPIES_IN_TRAINING * values_of_rank_one(model))
    assert need("lora", 8) - need("base") == pytest.approx(2 * own), "twice the rank, twice the values"
    costs = {size: dataclasses.replace(cost, gpu_mib=100.0 * size) for size, cost in COSTS.items()}
    cell = make_cell("lora", rank=4)
    on_gpu = Estimate(costs).need(Pack.of("p", (cell,) * 4, {"device": "cuda", "model": model}))
    assert on_gpu.gpu_mib == pytest.approx(400 + own), "on a GPU they lie there"
    assert on_gpu.mib == COSTS[4].peak_mib


def values_of_rank_one(model: str) -> int:
    from training.tasks.pipeline import attention_shapes

    return sum(num_out + num_in for num_out, num_in in attention_shapes(Path(model)).values())


def test_nothing_is_foreseen_where_nothing_was_measured() -> None:
    assert Estimate({}).need(pack_of("p")) == Need(None, None)
    assert Estimate({}).seconds([pack_of("p")]) is None


def test_size_is_the_smallest_that_is_as_good_as_the_best_in_the_memory_there_is(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(calibrate, "num_workers", pool.num_workers)
    monkeypatch.setattr(pool, "machine_mib", lambda: 1e6)
    assert choose_size(COSTS) == 8
    assert choose_size(COSTS | {16: Cost(7.7, 700.0)}) == 8, "within 2 % of the best"
    monkeypatch.setattr(pool, "machine_mib", lambda: 2300.0)
    assert pool.choose_workers(9, "cpu", 560.0) == (4, 1)
    assert pool.choose_workers(9, "cpu", 640.0) == (3, 1)
    assert choose_size(COSTS) == 4, "four workers with packs of 4 beat three with packs of 8"
    monkeypatch.setattr(pool, "machine_mib", lambda: 100.0)
    assert pool.choose_workers(9, "cpu", 500.0) == (1, 4)
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

    monkeypatch.setattr(probe, "measure", measure)


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


def test_packs_are_measured_by_this_checkout_installed_or_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`python -m` finds its module in the folder where it starts, whatever the environment holds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pretend_process(monkeypatch, "ls training/probe.py >&2; exit 1")
    with pytest.raises(BadInput, match=r"^cannot measure the model's speed: training/probe\.py$"):
        calibrate.calibrate(SETTING, CELL, "auto")


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
    whole = memory_advice.machine_mib()
    assert whole > 100
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    monkeypatch.setattr(memory_advice, "MEMORY_LIMIT", tmp_path / "memory.max")
    assert memory_advice.machine_mib() == pytest.approx(memory_advice.USABLE * 1024)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_advice.machine_mib() >= whole


def test_sweep_foresees_by_what_it_was_planned_with(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path)
    pack = pack_of("p", 1, resolution=64)
    assert predict_by(sweep.path)(pack) == Need()
    write_json(tmp_path / NAME, {"cpu-64-no-0": to_json(COSTS)})
    assert predict_by(sweep.path)(pack).mib == COSTS[1].peak_mib
    assert predict_by(sweep.path)(pack_of("q", 1, resolution=128)) == Need(), "another shape"


@pytest.mark.parametrize("text", ["{", "[]", '{"cpu-64-no-0": {"1": 0.5}}', '{"cpu-64-no-0": {"x": {}}}', "3"])
def test_damaged_or_older_calibrations_are_measured_again(text: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(text)
    assert read_costs(tmp_path / NAME) == {}


@pytest.mark.parametrize("rows", [1, 16])
def test_a_cost_is_that_of_one_row_of_each_run(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine on which every row takes a second, whatever a run's batch is."""
    clock = [0.0]

    class Model(MeasuredModel):
        def __init__(self) -> None:
            self.model = torch.nn.Sequential(torch.nn.Linear(8, 8))
            self.targets = {"0": self.model[0]}

        def train(self, rows: int) -> torch.Tensor:
            clock[0] += rows
            found: torch.Tensor = self.model(torch.ones(rows, 8))
            return found

        def evaluate(self, size: int, row_s: float) -> None:
            assert row_s == 1.0

    class Kind:
        def open(self) -> Kind:
            return self

        def bench(self, load: Load) -> Model:
            return Model()

    monkeypatch.setattr(probe, "kind_of", lambda name: Kind())
    monkeypatch.setattr(probe.time, "process_time", lambda: clock[0])
    costs = probe.measure(Load("any", "cpu", 64, rows), sizes=(1, 2, 4))
    assert {size: cost.step_s for size, cost in costs.items()} == {1: 1.0, 2: 2.0, 4: 4.0}


@pytest.mark.slow
def test_measured_costs_grow_with_the_pack(studio: Studio) -> None:
    names = {
        name: str(studio.folder / folder)
        for name, folder in (("model", "pipeline"), ("dino", "dino"), ("clip", "clip"))
    }
    load = dataclasses.asdict(Load(**names, device="cpu", resolution=32))
    command = [sys.executable, "-m", "training.probe", json.dumps(load)]
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


def test_long_work_tells_in_one_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with telling() as tell:
        tell("[first]")
        tell("second")
    written = terminal.getvalue()
    assert "[first]" in written
    assert "second" in written
    assert written.count("\n") == 1, "the end of the last line, which is then erased"
    assert written.count("\x1b[2K") >= 2
