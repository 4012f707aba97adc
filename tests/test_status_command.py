"""`python -m slurm.status` as users and programs run it."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from adapters import BadInput
from slurm.status import monitor as boards
from slurm.status.__main__ import Options, main
from slurm.status.screen import Screen
from slurm.status.table import draw
from slurm.store import pack_states as surveying
from slurm.store.leases import Owner
from slurm.store.outcome import reopen
from slurm.store.pack_states import PackState
from slurm.store.sweep_state import SweepState
from tests.make_slurm import FakeSlurm, make_slurm
from tests.make_sweep import FAR, Sweep

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A sweep where two looks may follow each other closely."""
    monkeypatch.setattr(surveying, "SETTLE_S", 0.05)
    return Sweep(tmp_path / "runs" / "grid")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return make_slurm(tmp_path, monkeypatch)


def options(sweep: Sweep, **changes: object) -> Options:
    """Looks follow each other every tenth of a second."""
    return dataclasses.replace(Options(sweep.path.parent, every_s=0.1), **changes)  # type: ignore[arg-type]


def fill(sweep: Sweep) -> None:
    """A pack of every kind, two cells each."""
    for name in ("done", "queued", "running", "spoilt"):
        sweep.pack(name)
    sweep.end("done", ["finished", "diverged"])
    sweep.end("spoilt", ["finished", "failed"], errors={"spoilt-run1": "ValueError: no"})
    sweep.send("12", [["queued"], ["running"]])
    sweep.claim("running", dataclasses.replace(FAR, job="12_1"))
    sweep.beat("running", 40, rate=2.0)


# Looking.


def test_json_has_its_schema(sweep: Sweep, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    fill(sweep)
    slurm.add("12_0", "PENDING", "plateau-t1")
    slurm.add("12_1", "RUNNING", "plateau-t1")
    assert main(options(sweep, json=True)) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == {"schema", "time", "note", "sweeps"}
    assert (told["schema"], told["note"]) == (1, "")
    (found,) = told["sweeps"]
    assert found.keys() == {"sweep", "folder", "cells", "seconds_left", "packs"}
    assert found["cells"] == {
        "planned": 0, "queued": 2, "running": 2, "finished": 2, "diverged": 1, "preempted": 0, "failed": 1,
    }  # fmt: skip
    assert found["seconds_left"] == pytest.approx(60 / 2 + 10)
    assert found["packs"][0].keys() == {field.name for field in dataclasses.fields(PackState)}


def test_each_look_asks_slurm_once_for_all_sweeps(sweep: Sweep, slurm: FakeSlurm) -> None:
    fill(sweep)
    other = Sweep(sweep.path.parent / "other")
    fill(other)
    board = boards.Monitor(sweep.path.parent, boards_scheduler())
    for look in (1, 2, 3):
        assert len(board.look()) == 2
        assert len(slurm.calls()) == look
        assert slurm.calls()[-1].startswith("squeue ")


def boards_scheduler():
    """This machine's SLURM, which is the pretended one."""
    from slurm.store.queue import Scheduler

    return Scheduler()


def test_silent_scheduler_leaves_what_folders_tell(
    sweep: Sweep, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(sweep)
    slurm.fail("squeue", "slurm_load_jobs error: Unable to contact slurm controller")
    assert main(options(sweep, once=True)) == 0
    told = capsys.readouterr().out
    assert "8 cells: 2 queued (not seen), 2 running (not seen), 2 finished, 1 diverged, 1 failed" in told
    assert "1 pack queued, but not seen: SLURM was not heard" in told
    assert "1 pack running, but not seen: no sign of life yet; the last heartbeat is of 20" in told
    assert re.search(r"SLURM does not answer, since 20[-\d: ]+ at the latest: squeue: .*Unable to contact slurm", told)


def test_silence_is_dated_from_its_beginning(sweep: Sweep, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(sweep)
    board, clock, notes = boards.Monitor(sweep.path, boards_scheduler()), iter(("noon", "one")), []
    monkeypatch.setattr(boards.time, "strftime", lambda form: next(clock))
    for fails in (False, True, True, False, True):
        slurm.failures = {"squeue": "down"} if fails else {}
        slurm.write()
        board.look()
        notes.append(board.note)
    words = "SLURM does not answer, since {} at the latest: squeue: down"
    assert notes == ["", words.format("noon"), words.format("noon"), "", words.format("one")]


def test_plain_lines_name_error_and_log(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    fill(sweep)
    main(options(sweep, once=True))
    lines = capsys.readouterr().out.splitlines()
    log = sweep.path / "spoilt-run1" / "run.json"
    assert f"  spoilt ended, 1 run failed: ValueError: no (see {log})" in lines


def test_table_shows_every_state_and_limits_its_rows(sweep: Sweep) -> None:
    from rich.console import Console

    packs = [PackState(f"p{n}", "running", 2, {"running": 2}, "training", n, 100, 1.5, host="node") for n in range(30)]
    packs += [PackState("bad", "preempted", 2, {"preempted": 2}, error="job 3_1: CANCELLED")]
    console = Console(width=120, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    console.print(draw([SweepState(sweep.path, packs)], "a note", 10))
    console.file.close()
    text = console.export_text()
    assert not [line for line in text.splitlines() if "━" in line and "pack" in line], "a bar runs into a header"
    assert "time left not measured yet" not in text
    for words in ("60 running", "2 preempted", "7/100", "1.5", "... and 20 more", "job 3_1: CANCELLED", "a note"):
        assert words in text


def test_line_is_said_when_something_has_changed_and_not_for_the_time_left(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    running = PackState("p", "running", 2, {"running": 2}, "training", 10, 100, 1.0)
    looks = [running, dataclasses.replace(running, step=20), PackState("p", "ended", 2, {"finished": 2})]
    with Screen() as screen:
        for look in looks:
            screen.show([SweepState(sweep.path, [look])])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[2] for line in lines] == [
        "grid: 2 cells: 2 running, 0 finished; 1 min 30 s left", "grid: 2 cells: 2 finished",
    ]  # fmt: skip


def test_sweeps_are_found_below_a_runs_folder_or_named(sweep: Sweep, tmp_path: Path) -> None:
    fill(sweep)
    assert boards.find_sweeps(sweep.path) == boards.find_sweeps(sweep.path.parent) == [sweep.path]
    with pytest.raises(BadInput, match="no sweep in"):
        main(Options(tmp_path / "nowhere"))


def test_program_imports_no_torch_and_refuses_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "slurm.status", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        done.stderr.splitlines()[-1] == f"error: no sweep in {tmp_path}: give a runs folder, or a sweep's folder in it"
    )
    assert " torch\n" not in done.stderr


# Waiting.


@pytest.mark.parametrize(("statuses", "code"), [(["finished", "diverged"], 0), (["finished", "failed"], 1), (None, 3)])
def test_wait_ends_with_the_right_code(statuses: list[str] | None, code: int, sweep: Sweep) -> None:
    sweep.pack("a")
    if statuses:
        sweep.end("a", statuses)
    assert main(options(sweep, wait=True)) == code


def test_nobody_waits_where_all_has_ended(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep.pack("a")
    sweep.end("a", ["finished", "failed"])
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    assert main(options(sweep)) == 0
    assert waits == [], "everything is known at the first look"


def test_wait_waits_for_what_runs(sweep: Sweep) -> None:
    sweep.pack("a")
    sweep.claim("a", Owner.me())
    timer = threading.Timer(0.8, lambda: sweep.end("a", ["finished", "finished"]))
    began = time.monotonic()
    timer.start()
    assert main(options(sweep, wait=True)) == 0
    assert time.monotonic() - began >= 0.8


def test_wait_ends_when_a_holder_elsewhere_falls_silent(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slurm.store.leases.STALE_S", 0.3)
    sweep.pack("a")
    sweep.claim("a", FAR)
    assert main(options(sweep, wait=True)) == 3


def test_wait_ends_when_jobs_are_held_or_nobody_answers(
    sweep: Sweep, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep.pack("a")
    sweep.send("12", [["a"], ["b"]])
    slurm.fail("squeue", "down")
    monkeypatch.setattr(boards, "SILENCE_S", 0.2)
    look, looks = boards.Monitor.look, []

    def limited(self: boards.Monitor) -> list[SweepState]:
        looks.append(self.note)
        assert len(looks) < 100, "it waits for ever"
        return look(self)

    monkeypatch.setattr(boards.Monitor, "look", limited)
    assert main(options(sweep, wait=True)) == 3
    held = PackState("a", "queued", 2, error="JobHeldUser", stuck=True)
    board = boards.Monitor(sweep.path, None)
    assert not board.may_change([SweepState(sweep.path, [held])])
    assert board.may_change([SweepState(sweep.path, [dataclasses.replace(held, stuck=False)])])


# Acting.


def test_retry_reopens_failed_packs_and_leaves_the_others(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    fill(sweep)
    sweep.claim("spoilt", outcome="failed", error="ValueError: no")
    sweep.pack("refused")
    sweep.claim("refused", outcome="refused", error="code 1 was submitted, code 2 is here")
    assert main(options(sweep, retry="failed")) == 0
    told = "1 failed run of 1 pack will be tried again; 1 pack failed before a run did: give the sweep's own command"
    assert told in capsys.readouterr().out
    assert not sweep.files("spoilt").has_ended
    assert sweep.files("done").has_ended
    main(options(sweep, retry="failed"))
    assert "0 failed runs of 0 packs" in capsys.readouterr().out


def test_pack_that_was_taken_meanwhile_is_not_reopened(sweep: Sweep) -> None:
    sweep.pack("a")
    sweep.end("a", ["failed", "failed"])
    listed = sweep.files("a")
    sweep.claim("a")
    assert not reopen(listed)
    assert sweep.files("a").has_ended


def test_cancel_ends_jobs_and_stops_workers_of_this_machine(
    sweep: Sweep, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(sweep)
    slurm.add("12_0", "PENDING", "plateau-t1")
    slurm.add("12_1", "RUNNING", "plateau-t1")
    sweep.pack("here")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as worker:
        sweep.claim("here", Owner.of(worker.pid))
        assert main(options(sweep, cancel=True)) == 0
        assert worker.wait(10) == -15
    told = capsys.readouterr().out
    assert "cancelled 2 jobs: 12_0, 12_1" in told
    assert f"process {worker.pid} was asked to stop" in told
    assert {state for state, _ in slurm.jobs().values()} == {"CANCELLED"}
    main(options(sweep, once=True))
    assert "running preempted: job 12_1: CANCELLED" in capsys.readouterr().out
    assert main(options(sweep, wait=True)) == 1


def test_unreadable_flags_are_refused(sweep: Sweep) -> None:
    fill(sweep)
    with pytest.raises(BadInput, match="--every-s is 0"):
        main(options(sweep, every_s=0.0))
