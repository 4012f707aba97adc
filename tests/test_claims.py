"""Turns at a pack: one holder at a time, whatever dies, whatever the clocks say, and whatever is left half done."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm.store import layout, leases
from slurm.store.layout import PackFiles
from slurm.store.leases import (
    Heartbeat,
    Lease,
    LeaseLost,
    Owner,
    StalenessTracker,
    exclusive,
    read_beat,
    read_claims,
    take,
)
from tests.waiting import HANG_S, wait_for
from training import whole_files
from training.whole_files import StoreError, create_json, name_aside, remove_asides, write_json

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "SETTLE_S", 0.0)


@pytest.fixture
def pack(tmp_path: Path) -> PackFiles:
    """A pack that nobody ever held."""
    return PackFiles("pack", tmp_path)


def hold(pack: PackFiles, turn: int, **changes: object) -> Owner:
    """Write a claim as another process would."""
    holder = dataclasses.replace(Owner.me(), **changes)
    write_json(pack.claim(turn), {"holder": dataclasses.asdict(holder), "began": time.time()})
    return holder


def dead_pid() -> int:
    """The id of a process that is over."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def take_many(folder: str, times: int, out: multiprocessing.Queue) -> None:
    """Take turns and note, for each, when it began and ended."""
    watch = StalenessTracker()
    while times:
        claim = take(PackFiles("pack", Path(folder)), watch)
        if claim is None:
            continue
        began = time.monotonic_ns()
        time.sleep(0.002)
        out.put((claim.turn, began, time.monotonic_ns()))
        claim.end("done")
        times -= 1


def test_turns_never_overlap_when_many_processes_want_them(pack: PackFiles) -> None:
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    team = [context.Process(target=take_many, args=(str(pack.folder), 6, out)) for _ in range(4)]
    for process in team:
        process.start()
    turns = sorted(out.get(timeout=HANG_S) for _ in range(24))
    for process in team:
        process.join()
    assert [turn for turn, *_ in turns] == list(range(1, 25))
    assert all(one[2] <= two[1] for one, two in zip(turns, turns[1:]))


def test_living_holder_keeps_its_turn_and_a_dead_one_loses_it(pack: PackFiles) -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    write_json(pack.claim(1), {"holder": dataclasses.asdict(Owner.of(sleeper.pid))})
    watch = StalenessTracker(stale_s=0.0)
    for _ in range(3):
        assert take(pack, watch) is None, "a living process of this machine needs no heartbeat"
    sleeper.kill()
    sleeper.wait()
    claim = take(pack, watch)
    assert claim is not None
    assert claim.turn == 2
    assert claim.before[0]["outcome"] == "killed"


def test_process_id_of_another_start_is_no_sign_of_life(pack: PackFiles) -> None:
    """The id of a dead holder may be given to a new process: here to ourselves."""
    hold(pack, 1, started=Owner.me().started + 1)
    assert take(pack, StalenessTracker()) is not None


def test_dead_process_that_nobody_has_waited_for_loses_its_turn(pack: PackFiles) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:  # waited for when the block ends
        write_json(pack.claim(1), {"holder": dataclasses.asdict(Owner.of(process.pid))})
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert take(pack, StalenessTracker()) is not None


def test_holder_of_a_dead_machine_loses_its_turn_when_its_heart_stops(pack: PackFiles) -> None:
    hold(pack, 1, machine="elsewhere", host="elsewhere")
    watch = StalenessTracker(stale_s=0.2)
    beats = 0
    end = time.monotonic() + 0.6
    while time.monotonic() < end:  # it beats for a while: another host's clock says next to nothing
        beats += 1
        write_json(pack.beat, {"turn": 1, "count": beats, "time": 0.0})
        assert take(pack, watch) is None
        time.sleep(0.02)
    assert take(pack, watch) is None
    time.sleep(0.25)
    claim = take(pack, watch)
    assert claim is not None
    assert claim.before[0]["last"]["count"] == beats


@pytest.mark.parametrize("hours", [-1, 1])
def test_an_hour_of_clock_skew_decides_nothing(hours: int, pack: PackFiles) -> None:
    """Neither the times in files nor those of files: only that a heartbeat changes, on our own clock."""
    skewed = time.time() + 3600 * hours
    hold(pack, 1, machine="elsewhere")
    watch = StalenessTracker(stale_s=0.3)
    for count in range(12):
        write_json(pack.beat, {"turn": 1, "count": count, "time": skewed})
        for path in (pack.beat, pack.claim(1)):
            os.utime(path, (skewed, skewed))
        assert take(pack, watch) is None
        time.sleep(0.05)
    time.sleep(0.35)
    assert take(pack, watch) is not None


def test_requeued_job_takes_over_from_its_earlier_start(pack: PackFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    hold(pack, 1, machine="elsewhere", job="17", restart=0)
    assert take(pack, StalenessTracker()) is not None


def test_task_of_an_array_is_called_as_slurm_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_JOB_ID": "21", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "4"}.items():
        monkeypatch.setenv(name, value)
    assert Owner.me().job == "17_4"


@pytest.mark.parametrize(("gone", "taken"), [(True, True), (False, False), (None, False)])
def test_slurm_is_asked_about_a_job_elsewhere(gone: bool | None, taken: bool, pack: PackFiles) -> None:
    hold(pack, 1, machine="elsewhere", job="18_4")
    asked = []
    claim = take(pack, StalenessTracker(), lambda job: asked.append(job) or gone)
    assert asked == ["18_4"]
    assert (claim is not None) == taken


def test_holder_that_was_thought_dead_notices_before_it_writes(pack: PackFiles) -> None:
    claim = take(pack, StalenessTracker())
    assert claim is not None
    with Heartbeat(claim, every_s=0.02) as heart:
        claim.check()
        write_json(pack.claim(2), {})  # somebody took over
        wait_for(lambda: heart.lost, "the notice")
        with pytest.raises(LeaseLost, match="turn 1 at pack"):
            claim.check()


def test_turn_from_another_machine_settles_before_anything_is_read(
    pack: PackFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the holder before wrote last may be seen late, and it may see the new claim late."""
    slept = []
    monkeypatch.setattr(leases, "SETTLE_S", 7.0)
    monkeypatch.setattr(leases.time, "sleep", lambda seconds: slept.append((seconds, pack.claim(2).exists())))
    hold(pack, 1, machine="elsewhere", job="9")
    assert take(pack, StalenessTracker(), lambda job: True) is not None
    assert slept == [(7.0, True)], "it must wait once, after its own claim was made"


@pytest.mark.parametrize("damage", ["{", "[]", "", "\x00\x00"])
def test_damaged_claim_is_told_of_and_taken_over_when_nobody_beats(
    damage: str, pack: PackFiles, capsys: pytest.CaptureFixture
) -> None:
    pack.claim(1).write_text(damage)
    watch = StalenessTracker(stale_s=0.1)
    for count in range(5):
        write_json(pack.beat, {"turn": 1, "count": count})
        assert take(pack, watch) is None, "its holder may live"
    time.sleep(0.15)
    assert take(pack, watch) is not None
    if damage != "[]":
        assert f"damaged file {pack.claim(1)}" in capsys.readouterr().err


def test_damaged_heartbeat_is_no_sign_of_death(pack: PackFiles) -> None:
    hold(pack, 1, machine="elsewhere")
    watch = StalenessTracker(stale_s=0.2)
    pack.beat.write_text('{"turn": 1, "co')
    assert take(pack, watch) is None
    assert read_beat(pack) == {}
    time.sleep(0.15)
    write_json(pack.beat, {"turn": 1, "count": 5})
    assert take(pack, watch) is None
    time.sleep(0.1)
    assert take(pack, watch) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_claim_on_a_full_or_closed_disk_is_one_line_and_leaves_nothing(
    number: int, pack: PackFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", raiser(number))
        with pytest.raises(StoreError, match="no space left|cannot write") as caught:
            take(pack, StalenessTracker())
        assert str(pack.folder) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert list(pack.folder.iterdir()) == []
    assert take(pack, StalenessTracker()) is not None


def test_turn_given_up_on_a_full_disk_is_no_longer_held(pack: PackFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome could not be written, and the process lives on: after space is there it goes on itself."""
    claim = take(pack, StalenessTracker())
    assert claim is not None
    assert take(pack, StalenessTracker()) is None
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", raiser(errno.ENOSPC))
        claim.end_quietly("failed", error="no space left")
    assert "outcome" not in read_claims(pack)[0]
    again = take(pack, StalenessTracker())
    assert again is not None
    assert again.turn == 2


def test_heartbeat_makes_room_for_the_end_on_a_full_disk(pack: PackFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, fsync = take(pack, StalenessTracker()), os.fsync
    assert claim is not None
    write_json(pack.beat, {"turn": 1, "count": 1})

    def no_room(handle: int) -> None:
        fsync(handle) if not pack.beat.exists() else raiser(errno.ENOSPC)()

    monkeypatch.setattr(os, "fsync", no_room)
    claim.end_quietly("failed", error="no space left")
    assert read_claims(pack)[0]["error"] == "no space left"


def test_heart_goes_on_over_a_full_disk(pack: PackFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = take(pack, StalenessTracker())
    assert claim is not None
    with Heartbeat(claim, every_s=0.01) as heart:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", raiser(errno.ENOSPC))
            time.sleep(0.05)
        heart.tell(phase="training", step=3)
        wait_for(lambda: read_beat(pack).get("step") == 3 or not heart._thread.is_alive(), "the beat")
    assert read_beat(pack)["step"] == 3


def raiser(number: int):
    """A function that fails as the system does."""

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_writers_of_two_hosts_with_one_process_id_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    with whole_files.writing(path) as aside:
        aside.write_text("one")
        with monkeypatch.context() as patch:
            patch.setattr(socket, "gethostname", lambda: "another-host")
            write_json(path, "two")
        assert aside.read_text() == "one"
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_dead_writers_left_is_ignored_and_removed(pack: PackFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(pack.beat, {})  # what lay in the folder before this process' first file has gone with it
    with monkeypatch.context() as patch:
        pid = dead_pid()
        patch.setattr(os, "getpid", lambda: pid)
        dead = [name_aside(pack.claim(1)), name_aside(pack.beat), name_aside(pack.claim(1), "-link")]
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        far = name_aside(pack.claim(1))
    living = name_aside(pack.spec)
    for path in (*dead, far, living):
        path.write_text("{")
    assert PackFiles.of(pack.spec).turn == 0
    hold(pack, 1, pid=dead_pid())
    assert take(pack, StalenessTracker()) is not None
    assert not any(path.exists() for path in dead)
    assert far.exists(), "its writer may live on the other machine"
    assert living.exists()
    remove_asides(pack.folder, all_writers=True)
    assert not far.exists()


def test_what_dead_writers_left_goes_with_the_next_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    with monkeypatch.context() as patch:
        pid = dead_pid()
        patch.setattr(os, "getpid", lambda: pid)
        dead = name_aside(tmp_path / "of another file")
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        far, old = name_aside(path), name_aside(path, "-link")
    living = name_aside(path, "-link")
    for aside in (dead, far, old, living):
        aside.write_text("{")
    for aside in (old, living):
        os.utime(aside, (1e9, 1e9))
    write_json(path, {})
    assert set(tmp_path.iterdir()) == {path, far, living}
    far.unlink()
    dead.write_text("{")
    write_json(path, {})
    assert dead.exists(), "a folder is listed once: heartbeats are written every few seconds"


def test_file_is_made_by_one_and_whole(tmp_path: Path) -> None:
    assert create_json(tmp_path / "claim", {"by": "one"})
    assert not create_json(tmp_path / "claim", {"by": "two"})
    assert json.loads((tmp_path / "claim").read_text()) == {"by": "one"}
    assert len(list(tmp_path.iterdir())) == 1


def test_claim_is_ours_when_the_servers_answer_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system asks again, and is told that the name exists: by its own first call."""
    link = os.link

    def link_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    assert create_json(tmp_path / "claim", {"by": "one"})
    assert not create_json(tmp_path / "claim", {"by": "two"})


def test_file_and_its_name_are_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed, path = [], tmp_path / "run.json"
    monkeypatch.setattr(
        os, "fsync", lambda handle: flushed.append((os.readlink(f"/proc/self/fd/{handle}"), path.exists()))
    )
    write_json(path, {})
    assert flushed == [(str(name_aside(path)), False), (str(tmp_path), True)]


def test_newest_turn_is_found_when_the_listing_is_older(pack: PackFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    for turn in (1, 2):
        write_json(pack.claim(turn), {"outcome": "stopped"})
    monkeypatch.setattr(layout, "list_packs", lambda folder: {})
    claim = take(pack, StalenessTracker())
    assert claim is not None
    assert claim.turn == 3


def test_exclusive_frees_the_turn_when_its_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path, "planner"):
        _ = 1 / 0
    with exclusive(tmp_path, "planner", wait_s=0.0):
        pass
    hold(PackFiles("planner", tmp_path), 3, machine="elsewhere", host="host-9", user="ada")
    with pytest.raises(leases.BadInput, match="of ada on host-9 is busy"), exclusive(tmp_path, "planner", wait_s=0.0):
        pass


def test_claim_tells_who_made_it(pack: PackFiles) -> None:
    claim = take(pack, StalenessTracker(), code="abc")
    assert isinstance(claim, Lease)
    (stored,) = read_claims(pack)
    assert Owner(**stored["holder"]) == Owner.me()
    assert stored["code"] == "abc"
