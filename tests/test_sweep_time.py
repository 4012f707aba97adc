"""Seconds that a whole sweep is expected to take: from pretended costs that are known exactly, never from a clock."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from adapters import counted
from slurm import expect as expecting
from slurm import rehearse as rehearsing
from slurm.calibrate import Calibration
from slurm.expect import CLOCKS, Expected, expect, read_costs
from slurm.forecast import START_S, Cost, Pack
from slurm.pack import Setting, read_spec
from slurm.rehearse import Watch, _rehearse, shorten
from slurm.sweep_time import STEPS, Kind, KindCost, choose_kinds, find_cost, makespan
from slurm.telling import telling
from tests.make_process import pretend_process
from tests.make_studio import Studio, make_pack
from tests.test_loop import make_cell
from training.cell import Cell

COARSE = Calibration({1: Cost(0.1, 500.0), 4: Cost(0.2, 560.0), 8: Cost(0.4, 640.0)}, 4)
SETTING = Setting("model", "dino", "clip", "subjects", "sks", "a {token} {cls}", "runs", threads=1)
TRUE = KindCost(start_s=10.0, fixed_s=3.0, step_s=0.5, pass_s=0.25, picture_s=2.0)


def pack_of(name: str, size: int = 4, **changes: object) -> Pack:
    return Pack(name, tuple(make_cell("lora", seed=seed, **changes) for seed in range(size)))


def true_cost(kind: Kind) -> KindCost:
    """A step costs more with the rank, and in proportion to the step of `COARSE`."""
    step = (1 + kind.rank / 8) * COARSE.step_s(kind.size) * (3.0 if kind.method == "dora" else 1.0)
    return dataclasses.replace(TRUE, step_s=step)


@pytest.fixture
def rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Kind]:
    """Rehearsals that know the true cost; the list tells what they were asked for."""
    asked: list[Kind] = []

    def pretend(packs: Sequence[Pack], setting: Setting, team: int) -> dict[str, dict[Kind, KindCost]]:
        kinds = [Kind.of(pack) for pack in packs]
        asked.extend(kinds)
        return {clock: {kind: true_cost(kind) for kind in kinds} for clock in CLOCKS}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(expecting, "rehearse", pretend)
    return asked


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


def test_pack_costs_its_steps_its_pictures_and_a_fixed_part() -> None:
    pack = pack_of("p", 4, steps=100, eval_steps=(50,), num_prompts=3, num_images=2, num_drift_prompts=2,
                   num_inference_steps=10, guidance_scale=4.0)  # fmt: skip
    pictures = 2 * 4 * (3 * 2 + 2) + 2  # two evaluations of four runs; and two of the untouched model
    assert TRUE.seconds(pack) == 3 + 100 * 0.5 + pictures * (2 * 10 * 0.25 + 2)
    unguided = Pack("q", tuple(dataclasses.replace(cell, guidance_scale=1.0) for cell in pack.cells))
    assert TRUE.seconds(unguided) == 3 + 100 * 0.5 + pictures * (10 * 0.25 + 2)
    base = Pack("b", (make_cell("lora", num_prompts=3, num_images=2, num_inference_steps=10).base(),))
    assert TRUE.seconds(base) == 3 + 6 * (2 * 10 * 0.25 + 2)


def test_forecast_of_known_costs_is_exact(rehearsed: list[Kind]) -> None:
    packs = [pack_of(f"r{rank}", 4, rank=rank, steps=1000) for rank in (2, 4, 8, 64)]
    packs += [pack_of("small", 3, rank=64, steps=1000), pack_of("other", 4, rank=2, steps=500, mixed_precision="bf16")]
    expected = expect(packs, SETTING, COARSE, workers=2)
    each = [true_cost(Kind.of(pack)).seconds(pack) for pack in packs]
    assert expected.seconds(packs) == pytest.approx(makespan(each, 2, 10.0))
    assert expected.processor_s(packs) == pytest.approx(2 * 10 + sum(each))
    assert expected.need(packs[1]).seconds == pytest.approx(10 + each[1])
    assert {(kind.rank, kind.size) for kind in rehearsed} == {(2, 4), (64, 4)}, "what lies between is not measured"
    again = expect(packs, SETTING, COARSE, workers=2)
    assert again.seconds(packs) == expected.seconds(packs)
    assert len(rehearsed) == 3


def test_other_workers_and_other_settings_are_measured_anew(rehearsed: list[Kind]) -> None:
    packs = [pack_of("p", steps=10_000)]
    expect(packs, SETTING, COARSE, workers=2)
    expect(packs, SETTING, COARSE, workers=3)
    expect(packs, dataclasses.replace(SETTING, gradient_checkpointing=True), COARSE, workers=2)
    assert len(rehearsed) == 3


def test_short_sweeps_and_failed_rehearsals_are_foreseen_coarsely(
    rehearsed: list[Kind], monkeypatch: pytest.MonkeyPatch
) -> None:
    packs = [pack_of("p", steps=10), pack_of("q", steps=10)]
    coarse = COARSE.seconds([cell for pack in packs for cell in pack.cells], 4, 2)
    assert coarse is not None
    assert START_S < coarse < expecting.WORTH_S
    assert expect(packs, SETTING, COARSE, workers=2).seconds(packs) == coarse
    assert not rehearsed
    monkeypatch.setattr(expecting, "rehearse", lambda *_: {})
    assert expect(packs, SETTING, COARSE, workers=2, worth_s=None).seconds(packs) == coarse
    assert np.isnan(expect(packs, SETTING, COARSE, workers=2, worth_s=None).processor_s(packs))
    assert Expected(COARSE, 2).need(packs[0]) == COARSE.need(packs[0])


def test_rehearsal_tells_what_it_measures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = json.dumps([{clock: dataclasses.asdict(TRUE) for clock in CLOCKS}] * 2)
    pretend_process(monkeypatch, f"echo 0; echo 1; echo '{said}'")
    packs = [pack_of("p", steps=10), pack_of("q", rank=16, steps=10)]
    found = expecting.rehearse(packs, SETTING, team=2)
    assert found["wall"] == {Kind.of(pack): TRUE for pack in packs}
    what = "measuring 2 kinds of packs on this machine, once, for a better forecast"
    words = [f": {n}/2, {counted(len(pack.cells), 'run')} of lora" for n, pack in enumerate(packs, 1)]
    assert capsys.readouterr().err.splitlines() == [what, *(f"{what}{word}" for word in words)], (
        "one process tells for all"
    )


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


def test_rehearsal_is_left_out_where_it_would_take_long(rehearsed: list[Kind]) -> None:
    slow = Calibration({size: Cost(1000 * cost.step_s, cost.peak_mib) for size, cost in COARSE.costs.items()}, 4)
    packs = [pack_of("p", steps=100)]
    assert expecting.rehearsal_s([Kind.of(packs[0])], slow) == pytest.approx(6 * 200 + 4 * 128 * 200 / 4 / 3)
    expect(packs, SETTING, slow, workers=1)
    assert not rehearsed
    longer = [dataclasses.replace(packs[0], name=str(n)) for n in range(40)]
    expect(longer, SETTING, slow, workers=1)
    assert len(rehearsed) == 1, "short beside a sweep of days"


def test_kinds_that_lie_between_measured_ones_need_no_measurement() -> None:
    def kind(rank: int, size: int) -> Kind:
        return Kind("lora", "", rank, size, 1, 1, 64, "no")

    known = {kind(4, 8): TRUE, kind(16, 8): dataclasses.replace(TRUE, step_s=1.5)}
    found = find_cost(kind(10, 8), known, COARSE.step_s)
    assert found is not None
    assert found.step_s == pytest.approx(1.0)
    halves = find_cost(kind(4, 5), known, COARSE.step_s)
    assert halves is not None
    assert halves.step_s == pytest.approx(0.5 * 2.5 / 4), "in proportion to the measured step"
    wanted = [kind(4, 4), kind(32, 8), kind(8, 6), kind(2, 9)]
    assert choose_kinds(wanted, known) == [kind(2, 9), kind(32, 8), kind(4, 4)]


def test_damaged_costs_are_measured_again(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"costs": [{"kind": {}}]}', '{"costs": [1]}'):
        (tmp_path / "costs.json").write_text(text)
        assert read_costs(tmp_path / "costs.json") == {"wall": {}, "processor": {}}


def test_watch_splits_seconds_into_their_parts() -> None:
    def at(seconds: float) -> np.ndarray:
        return np.array([seconds, seconds / 2])

    watch = Watch(type("Task", (), {"shared": make_cell("lora")})())
    watch.steps = [at(t) for t in (10, 20, 23, 26, 30)]  # the first is slow, and an evaluation follows it
    watch.evaluations = [(at(12), at(18)), (at(33), at(38))]
    watch.passes = [at(t) for t in (33, 34, 34, 36)]
    watch.num_pictures = 4
    fixed, step, row_pass, picture = watch.split(at(40))
    assert step.tolist() == [3, 1.5]
    assert row_pass[0] == 2 / (2 * 4), "the last pass, of four pictures with guidance"
    assert picture[0] == ((38 - 33) - 3 + (20 - 18)) / 4, "what is left of the evaluation, and storing"
    assert fixed[0] == 40 - 5 * 3 - 2 * (5 + 2)


def test_rehearsed_pack_is_the_real_one_made_shorter(studio: Studio, tmp_path: Path) -> None:
    cells: list[Cell] = [make_cell("lora", lr=lr, steps=40, num_drift_prompts=1) for lr in (1e-3, 2e-3)]
    spec = make_pack(studio, tmp_path / "runs" / "sweep", cells)
    _, setting, _ = read_spec(spec)
    runs = shorten(spec, "short")
    assert [run.cell.steps for run in runs] == [STEPS, STEPS]
    assert runs[0].cell.evaluated_steps() == [1, STEPS]
    parts = _rehearse(setting, runs)
    assert all((part >= 0).all() for part in parts)
    assert all(part[0] > 0 for part in parts[1:])


def test_start_of_a_worker_hangs_on_no_clock_that_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(expecting.subprocess, "Popen", lambda command, **_: called.append(command))
    before = time.monotonic()
    expecting._start(tmp_path / "rehearsal", [], Setting("model", "dino", "clip", "subjects", "sks", "", str(tmp_path)))
    ((*_, began),) = called
    assert before <= float(began) <= time.monotonic()
    for name in ("quiet_libraries", "keep_freed_memory"):
        monkeypatch.setattr(rehearsing, name, lambda: None)
    monkeypatch.setattr(rehearsing, "read_spec_file", lambda spec: {})
    monkeypatch.setattr(rehearsing.Setting, "read", lambda *_: SimpleNamespace(threads=0))
    monkeypatch.setattr(rehearsing, "make_task", lambda *_: None)
    monkeypatch.setattr(rehearsing, "shorten", lambda *_: [])
    monkeypatch.setattr(rehearsing, "_rehearse", lambda *_: np.zeros((4, 2)))
    (cost,) = rehearsing.measure([Path("spec")], float(began))
    assert 0 <= cost["wall"]["start_s"] <= time.monotonic() - before
