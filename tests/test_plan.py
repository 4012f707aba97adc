"""A sweep's plan: thousands of cells in seconds, each in one pack whoever plans, sharded, and old plans as they were."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from adapters import BadInput
from benchmarks.operations import count_operations
from slurm.store.layout import SweepFolder, read_contents
from slurm.worker.run import Setting
from sweeps import plan as planning
from sweeps.grid import LabelledCell
from sweeps.plan import Plan
from sweeps.progress import PlanProgress, check_ended
from tests.make_runs import Maker
from training.cell import Cell
from training.pack import list_runs
from training.planned import planned_runs
from training.store import StoreError, find_runs, write_signed

SETTING = Setting("model", "dino", "clip", "subjects", "sks", "a photo", "runs")


def make_cells(count: int, method: str = "lora") -> list[LabelledCell]:
    """Cells of one group."""
    cells = [
        Cell(method=method, options="", rank=4, subject="dog", seed=seed, steps=10, lr=1e-3) for seed in range(count)
    ]
    return [LabelledCell(cell, f"s{cell.seed}", {"multiplier": 1.0}) for cell in cells]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "grid"
    (path / "packs").mkdir(parents=True)
    return path


def test_ten_thousand_cells_are_planned_at_the_pace_of_a_thousand(tmp_path: Path) -> None:
    """Ten times as many cells are about ten times the work, not a hundred times; `benchmarks/scale.py` has the seconds."""

    def time_of(count: int) -> float:
        folder, cells = tmp_path / str(count), make_cells(count)
        (folder / "packs").mkdir(parents=True)
        began = time.process_time()
        plan = Plan.read(folder)
        plan.add(cells, SETTING, 8, 1)
        again = Plan.read(folder)
        todo = PlanProgress.look(again).todo({p.cell.identity(): 0 for p in cells})
        took_s = time.process_time() - began
        assert sorted(todo) == sorted(plan.packs)
        assert len(again.run_ids()) == count
        return took_s

    time_of(1000)  # imports
    assert time_of(10_000) < 40 * time_of(1001)


@pytest.mark.parametrize("count", [200, 400])
def test_operations_grow_with_the_number_of_packs(count: int, folder: Path) -> None:
    """A fixed number of each pack: whatever reads all packs for each of them shows here."""
    plan = Plan.read(folder)
    with count_operations() as counts:
        plan.add(make_cells(count), SETTING, 2, 1)
    assert sum(counts.values()) < 60 + 8 * (count // 2)
    with count_operations() as counts:
        PlanProgress.look(Plan.read(folder))
    assert sum(counts.values()) < 20 + 4 * (count // 2)


def test_ended_runs_are_not_opened_to_find_out_that_they_are_done(folder: Path) -> None:
    plan = Plan.read(folder)
    plan.add(make_cells(40), SETTING, 4, 1)
    for pack, rows in plan.packs.items():
        write_ending(plan, pack, {run_id: "finished" for _, run_id in rows})
    with count_operations() as counts:
        done = PlanProgress.look(plan)
    assert set(done.statuses.values()) == {"finished"}
    assert counts["open"] <= 10, "one ending a pack"


def write_ending(plan: Plan, pack: str, runs: dict[str, str], **more: Any) -> None:
    """The `ended.json` of a pack."""
    path = plan.spec(pack).with_name(f"{pack}.ended.json")
    ending = {"pack": pack, "runs": runs, "turns": 1, "seconds": 1.0, "reason": None, "errors": {}}
    path.write_text(json.dumps(ending | more))


# Numbered folders.


def test_small_sweep_stays_flat(folder: Path) -> None:
    plan = Plan.read(folder)
    plan.add(make_cells(6), SETTING, 3, 1)
    assert {plan.spec(pack).parent for pack in plan.packs} == {folder / "packs"}
    spec = json.loads(plan.spec(next(iter(plan.packs))).read_text())
    assert all("folder" not in row for row in spec["runs"])


def test_large_sweep_is_put_into_numbered_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slurm.store.layout.SHARD", 4)
    Plan.read(folder).add(make_cells(6), SETTING, 1, 1)
    plan = Plan.read(folder)
    plan.add(make_cells(14), SETTING, 1, 1)
    packs = SweepFolder(folder).scan()
    assert len(packs) == 14
    per_folder = [sum(files.folder.name == name for files in packs.values()) for name in ("packs", "001", "002", "003")]
    assert per_folder == [4, 4, 4, 2]
    paths = [plan.run(run_id).path for run_id in plan.run_ids().values()]
    assert [sum(path.parent.name == name for path in paths) for name in ("grid", "001", "002", "003")] == [4, 4, 4, 2]
    for pack in plan.packs:
        (run,) = list_runs(folder, read_contents(plan.spec(pack)))
        assert run.folder.path == plan.run(run.folder.run_id).path, "planner and job mean the same folder"


def test_runs_in_numbered_folders_are_found_and_loaded(tmp_path: Path) -> None:
    from analysis import load

    with mock.patch("os.fsync"):
        made = Maker(tmp_path, multipliers=(1.0, 2.0), subjects=("cat", "dog")).write()
    sweep = made / "lr_robustness"
    (sweep / "packs").mkdir()
    (sweep / "001").mkdir()
    runs = sorted(sweep.glob("delora-*"))
    for path in runs[:2]:
        path.rename(sweep / "001" / path.name)
    (sweep / "001" / f".{runs[3].name}.damaged-1").mkdir()
    (sweep / "001" / f".{runs[3].name}.damaged-1" / "run.json").write_text("{}")
    for root in (made, sweep):
        assert {run.run_id for run in find_runs(root)} >= {path.name for path in runs}
        assert not any(run.run_id.startswith(".") for run in find_runs(root))
    found = load(made)
    assert len(found.runs) == 4
    assert set(found.runs["sweep"]) == {"lr_robustness"}
    assert len(found.scores["run_id"].unique()) == 4
    assert find_runs(tmp_path / "nowhere") == []


# Several planners.


def _plan(folder: Path, counts: tuple[int, ...], gate: Any) -> None:
    gate.wait()
    for count in counts:
        Plan.read(folder).add(make_cells(count), SETTING, 3, 1)


def test_two_planners_at_once_give_each_cell_to_one_pack(folder: Path) -> None:
    """They ask for overlapping cells, so that packs made side by side would differ."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    gate = context.Barrier(2)
    team = [context.Process(target=_plan, args=(folder, counts, gate)) for counts in ((7, 20), (11, 16))]
    for process in team:
        process.start()
    for process in team:
        process.join(60)
        assert process.exitcode == 0
    rows = [run_id for pack in Plan.read(folder).packs.values() for _, run_id in pack]
    assert sorted(rows) == sorted(set(rows))
    assert len(rows) == 20


def test_plan_made_meanwhile_is_read_before_planning(folder: Path) -> None:
    first, second = Plan.read(folder), Plan.read(folder)
    first.add(make_cells(4), SETTING, 2, 1)
    second.add(make_cells(6), SETTING, 4, 1)
    assert second.packs.keys() > first.packs.keys()
    assert len(second.run_ids()) == 6


def test_planner_waits_for_packs_that_are_not_visible_yet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Plan.read(folder).add(make_cells(4), SETTING, 2, 1)
    whole = SweepFolder(folder).scan()
    shown = [{}, {}, whole]
    monkeypatch.setattr(SweepFolder, "scan", lambda self: shown.pop(0) if shown else whole)
    assert Plan.read(folder).packs.keys() == whole.keys()
    assert not shown
    monkeypatch.setattr(SweepFolder, "scan", lambda self: {})
    monkeypatch.setattr(planning, "SETTLE_S", 0.1)
    with pytest.raises(BadInput, match="shows 0 of 2 packs"):
        Plan.read(folder)


def test_plan_on_a_full_disk_is_one_line_and_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk says so when a specification is flushed, and not before."""
    fsync = os.fsync

    def fail(handle: int) -> None:
        if ".lora-" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(BadInput, match="^no space left to write .*lora-"):
            Plan.read(folder).add(make_cells(4), SETTING, 2, 1)
    assert list((folder / "packs").iterdir()) == []
    Plan.read(folder).add(make_cells(4), SETTING, 2, 1)
    assert len(Plan.read(folder).packs) == 2


# What is stored.


def test_old_plan_stays_as_it_is(folder: Path) -> None:
    """Specifications from before: indented, in one folder, without identities; and the tally that counts packs."""
    cells = make_cells(4)
    rows = [{"run_id": p.cell.run_id(p.label), "cell": p.cell.to_dict(), "labels": p.labels} for p in cells]
    old = {"schema": 1, "pack": "lora-old", "setting": dataclasses.asdict(SETTING), "runs": rows[:3]}
    (folder / "packs" / "lora-old.json").write_text(json.dumps(old, indent=1))
    plan = Plan.read(folder)
    plan.add(cells, SETTING, 8, 1)
    assert len(plan.packs) == 2
    assert plan.run_ids() == {p.cell.identity(): p.cell.run_id(p.label) for p in cells}
    assert json.loads((folder / "packs" / "lora-old.json").read_text()) == old


def test_refresh_rewrites_only_what_moved(folder: Path) -> None:
    plan = Plan.read(folder)
    plan.add(make_cells(4), SETTING, 2, 1)
    before = {pack: plan.spec(pack).stat().st_ino for pack in plan.packs}
    plan.refresh(SETTING, plan.packs)
    assert {pack: plan.spec(pack).stat().st_ino for pack in plan.packs} == before
    plan.refresh(dataclasses.replace(SETTING, model="elsewhere", threads=7), plan.packs)
    for pack in plan.packs:
        setting = read_contents(plan.spec(pack))["setting"]
        assert (setting["model"], setting["threads"]) == ("elsewhere", 0), "threads stay as planned"


def test_identity_is_that_of_earlier_versions() -> None:
    cell = Cell(method="lora", options="alpha=2r,init=kaiming", rank=8, subject="dog", seed=0, steps=500, lr=1e-3)
    assert cell.identity() == "7d4df59365ec393b736959b1da69fea988bc35d31791fb26fd3fbea65f6c787c"
    assert dataclasses.replace(cell, seed=1).identity() != cell.identity(), "a copy has an identity of its own"


# What is done.


def test_failed_runs_are_tried_again_when_asked_for(folder: Path) -> None:
    plan = Plan.read(folder)
    cells = make_cells(4)
    plan.add(cells, SETTING, 2, 1)
    for pack, rows in plan.packs.items():
        write_ending(plan, pack, {run_id: "failed" for _, run_id in rows})
    (first, *_), wanted = plan.packs.values(), {plan.packs[next(iter(plan.packs))][0][0]: 0}
    done = PlanProgress.look(plan)
    assert len(done.todo(wanted)) == 1
    done.reopen_failed(wanted)
    assert [line.split()[1] for line in done.lines] == [run_id for _, run_id in first]
    found = PlanProgress.look(Plan.read(folder))
    assert sorted(found.statuses.values()) == ["failed", "failed", "planned", "planned"]


def test_run_that_is_gone_is_trained_again(folder: Path) -> None:
    plan = Plan.read(folder)
    cells = make_cells(2)
    plan.add(cells, SETTING, 2, 1)
    ((pack, rows),) = plan.packs.items()
    write_ending(plan, pack, {run_id: "finished" for _, run_id in rows})
    wanted = {p.cell.identity(): 0 for p in cells}
    done = PlanProgress.look(plan)
    assert done.todo(wanted) == []
    check_ended(done, wanted)
    assert len(done.lines) == 2
    assert PlanProgress.look(plan).todo(wanted) == [pack], "the pack's ending was taken away"


@pytest.mark.parametrize("shard", ["", "001"])
def test_damaged_specification_says_what_to_remove_and_nothing_is_trained_again(shard: str, folder: Path) -> None:
    plan, cells = Plan.read(folder), make_cells(4)
    for half in (cells[:2], cells[2:]):
        if shard:
            write_signed(folder / "plan.json", {"packs": 0, "runs": 1000})  # what comes next goes to 001/
        plan.add(half, SETTING, 2, 1)
    for rows in plan.packs.values():
        for _, run_id in rows:
            plan.run(run_id).write({"status": "finished"})
    where, broken = {run_id: plan.run(run_id).path for run_id in plan.run_ids().values()}, plan.spec(min(plan.packs))
    assert {path.parent.name for path in where.values()} == {shard or folder.name}
    broken.write_text(broken.read_text()[:50])
    told = rf"damaged file {broken}: .*; remove it and {folder / 'plan.json'}, and give the sweep's command again"
    for read in (lambda: Plan.read(folder), lambda: planned_runs(folder)):
        with pytest.raises(StoreError, match=told):
            read()
    broken.unlink()
    (folder / "plan.json").unlink()
    again = Plan.read(folder)
    again.add(cells, SETTING, 1, 1)  # of another size, as when it was measured anew
    assert {run_id: again.run(run_id).path for run_id in again.run_ids().values()} == where
    assert PlanProgress.look(Plan.read(folder)).todo({p.cell.identity(): 0 for p in cells}) == []
