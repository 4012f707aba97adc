"""How packs stand, from files and one scheduler query: nothing false, nothing late, nothing waited for without end."""

from __future__ import annotations

import dataclasses
import subprocess
import threading
from pathlib import Path

import pytest

from slurm.status.table import is_trouble
from slurm.store import leases
from slurm.store import pack_states as surveying
from slurm.store.leases import Owner
from slurm.store.pack_states import PackState, Surveyor, survey
from slurm.store.states import PackStatus
from slurm.store.sweep_state import SweepState
from tests.make_sweep import FAR, Job, Slurm, Sweep


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path / "runs" / "grid")


def states(found: list[PackState]) -> dict[str, str]:
    return {pack.name: pack.state for pack in found}


def dead_here() -> Owner:
    """A process of this machine that is over."""
    process = subprocess.Popen(["true"])
    process.wait()
    return dataclasses.replace(Owner.me(), pid=process.pid)


# States.


def test_pace_hangs_on_no_clock_that_can_be_set(sweep: Sweep) -> None:
    sweep.pack("running")
    sweep.claim("running")
    looks = Surveyor(sweep.folder)
    for time, step, rate in ((1e9, 38, 2.0), (1e9 + 3600, 40, 2.0), (0.0, 120, 2.0), (1.0, 50, -3.0)):
        sweep.beat("running", step, rate=rate, time=time)
        looks.gather()
        (found,) = looks.judge(None)
        assert found.rate == (rate if rate > 0 else None)
        assert SweepState(sweep.path, [found]).time_left() in (
            "31 s left",
            "30 s left",
            "0 s left",
            "time left not measured yet",
        )


def test_time_left_is_what_was_expected_times_how_far_off_that_was() -> None:
    running = [PackState(name, PackStatus.RUNNING, 1, steps=100) for name in ("a", "b")]
    planned, ended = PackState("c", PackStatus.PLANNED, 1), PackState("d", PackStatus.ENDED, 1, seconds=30.0)
    expected = {"a": 60.0, "b": 30.0, "c": 50.0, "d": 15.0}
    assert SweepState(Path("s"), [*running, planned]).seconds_left() is None
    assert SweepState(Path("s"), [*running, planned], expected).seconds_left() == (60 + 30 + 50) / 2
    assert SweepState(Path("s"), [*running, planned, ended], expected).seconds_left() == 60 + 30 + 50
    assert SweepState(Path("s"), running, expected).seconds_left() == 60, "the longest is one worker's"


def test_states_follow_from_files_alone(sweep: Sweep) -> None:
    for name in ("planned", "running", "stopped", "refused", "ended", "fewer"):
        sweep.pack(name)
    sweep.claim("running")
    sweep.beat("running", 40, diverged=1, rate=2.0)
    sweep.claim("stopped", outcome="stopped")
    sweep.claim("refused", outcome="refused", error="code 1 was submitted, code 2 is here")
    sweep.claim("ended", outcome="done")
    sweep.end("ended", ["finished", "failed"], errors={"ended-run1": "ValueError: no"})
    sweep.end("fewer", ["finished", "finished"], reason="out of memory")
    found = {pack.name: pack for pack in survey(sweep.folder)}
    assert states(list(found.values())) == {
        "planned": "planned", "running": "running", "stopped": "preempted", "refused": "failed", "ended": "ended",
        "fewer": "ended",
    }  # fmt: skip
    running = found["running"]
    assert (running.step, running.steps, running.phase, running.rate) == (40, 100, "training", 2.0)
    assert found["refused"].error == "code 1 was submitted, code 2 is here"
    assert found["ended"].counts == {"finished": 1, "failed": 1}
    assert found["ended"].error == "ValueError: no"
    assert found["ended"].log == str(sweep.path / "ended-run1" / "run.json")
    assert found["refused"].log == str(sweep.files("refused").claim(1)), (
        "where no job has a log, the claim has the error"
    )
    assert found["fewer"].error == "with fewer runs at a time: out of memory"
    assert {name for name, pack in found.items() if pack.is_missing} == {"planned", "stopped", "refused"}


def test_pack_is_queued_while_slurm_means_to_run_its_task(sweep: Sweep) -> None:
    for name in ("a", "b", "c"):
        sweep.pack(name)
    sweep.send("12", [["a", "b"], ["c"]])
    slurm = Slurm({"12_0": Job("PENDING", "Priority"), "12_1": Job("CANCELLED")})
    found = survey(sweep.folder, slurm)
    assert states(found) == {"a": "queued", "b": "queued", "c": "planned"}
    assert (found[0].error, found[0].job) == ("Priority", "12_0")
    assert slurm.calls == 1


@pytest.mark.parametrize(
    ("state", "reason", "stuck"),
    [
        ("PENDING", "JobHeldUser", True),
        ("PENDING", "launch failed requeued held", True),
        ("PENDING", "Resources", False),
        ("RUNNING", "None", False),
    ],
)
def test_held_job_is_stuck(state: str, reason: str, stuck: bool, sweep: Sweep) -> None:
    sweep.pack("a")
    sweep.send("12", [["a"]])
    (found,) = survey(sweep.folder, Slurm({"12": Job(state, reason)}))
    assert (found.state, found.stuck) == ("queued", stuck)


def test_intent_is_found_by_its_name(sweep: Sweep) -> None:
    sweep.pack("a")
    sweep.send(None, [["a"]])
    assert states(survey(sweep.folder, Slurm({"31_0": Job("PENDING", "", "plateau-t1")}))) == {"a": "queued"}
    assert states(survey(sweep.folder, Slurm())) == {"a": "planned"}


def test_damaged_record_hides_no_other(sweep: Sweep) -> None:
    sweep.pack("a")
    sweep.send("12", [["a"]])
    (sweep.folder.submissions / "t2.json").write_text('{"token": "t2", "jo')
    assert states(survey(sweep.folder, Slurm({"12": Job("PENDING")}))) == {"a": "queued"}


def test_scheduler_is_not_asked_when_nothing_depends_on_it(sweep: Sweep) -> None:
    sweep.pack("a")
    sweep.pack("b")
    sweep.send("12", [["b"]])
    sweep.end("b", ["finished", "finished"])
    slurm = Slurm()
    survey(sweep.folder, slurm)
    assert slurm.calls == 0


# Holders that vanish.


def test_cancelled_job_is_preempted_at_the_first_look(sweep: Sweep) -> None:
    sweep.pack("a")
    sweep.claim("a", dataclasses.replace(FAR, job="12_0"))
    surveyor = Surveyor(sweep.folder)
    assert surveyor.gather() == {"12"}
    assert states(surveyor.judge({"12_0": Job("RUNNING")})) == {"a": "running"}
    surveyor.gather()
    (pack,) = surveyor.judge({"12_0": Job("CANCELLED")})
    assert (pack.state, pack.error) == ("preempted", "job 12_0: CANCELLED")


@pytest.mark.parametrize(
    ("word", "state"), [("OUT_OF_MEMORY", "failed"), ("FAILED", "failed"), ("TIMEOUT", "preempted")]
)
def test_job_that_slurm_calls_over_is_over(word: str, state: str, sweep: Sweep) -> None:
    sweep.pack("a")
    sweep.claim("a", dataclasses.replace(FAR, job="12_0"))
    assert states(survey(sweep.folder, Slurm({"12_0": Job(word)}), settle=False)) == {"a": state}


def test_requeued_job_makes_its_pack_queued(sweep: Sweep) -> None:
    sweep.pack("a")
    sweep.send("12", [["a"]])
    sweep.claim("a", dataclasses.replace(FAR, job="12_0"))
    assert states(survey(sweep.folder, Slurm({"12_0": Job("PENDING", "BeginTime")}), settle=False)) == {"a": "queued"}


def test_vanished_job_is_no_failure_while_its_last_files_may_be_on_their_way(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveying, "SETTLE_S", 0.2)
    sweep.pack("a")
    sweep.claim("a", dataclasses.replace(FAR, job="12_0"))
    surveyor = Surveyor(sweep.folder)
    for _ in range(3):
        surveyor.gather()
        assert states(surveyor.judge({})) == {"a": "running"}
    sweep.end("a", ["finished", "finished"])
    assert states(surveyor.judge({})) == {"a": "ended"}, "listed before the file was there, looked up again"


def test_vanished_job_is_preempted_at_a_second_look(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveying, "SETTLE_S", 0.1)
    sweep.pack("a")
    sweep.claim("a", dataclasses.replace(FAR, job="12_0"))
    slurm = Slurm()
    (pack,) = survey(sweep.folder, slurm)
    assert (pack.state, pack.error) == ("preempted", "job 12_0 is gone")
    assert slurm.calls == 1


def test_what_was_not_seen_is_told_apart_while_slurm_is_silent(sweep: Sweep) -> None:
    names = ("alive", "dead", "elsewhere", "queued")
    for name in names:
        sweep.pack(name)
    sweep.send("12", [[name] for name in names])
    sweep.claim("alive", dataclasses.replace(Owner.me(), job="12_0"))
    sweep.claim("dead", dataclasses.replace(dead_here(), job="12_1"))
    sweep.claim("elsewhere", dataclasses.replace(FAR, job="12_2"))
    sweep.beat("elsewhere", 1, time=0.0)
    surveyor = Surveyor(sweep.folder)

    def look() -> dict[str, tuple[str, str]]:
        surveyor.gather()
        return {pack.name: (pack.state, pack.unseen) for pack in surveyor.judge(None)}

    first, second = look(), look()
    assert first["alive"] == second["alive"] == ("running", "")
    assert first["dead"][0] == "running"
    assert "is gone; its last files may be on their way" in first["dead"][1]
    assert second["dead"][0] == "queued", "its job may have been requeued"
    assert second["dead"][1].endswith("is gone; SLURM was not heard")
    assert first["queued"] == ("queued", "SLURM was not heard")
    assert first["elsewhere"][0] == "running"
    assert "no sign of life yet; the last heartbeat is of 19" in first["elsewhere"][1]
    sweep.beat("elsewhere", 2)
    assert look()["elsewhere"] == ("running", "")


def test_killed_process_of_this_machine_is_preempted(sweep: Sweep) -> None:
    sweep.pack("a")
    sweep.claim("a", dead_here())
    (pack,) = survey(sweep.folder)
    assert pack.state == "preempted"
    assert pack.error.endswith("is gone")


def test_holder_elsewhere_is_believed_as_long_as_its_heart_beats(sweep: Sweep) -> None:
    sweep.pack("a")
    sweep.claim("a", FAR)
    surveyor = Surveyor(sweep.folder)
    surveyor._watch.stale_s = 0.0
    for step in (1, 2, 3):
        sweep.beat("a", step)
        surveyor.gather()
        assert states(surveyor.judge(None)) == {"a": "running"}
    surveyor.gather()
    assert states(surveyor.judge(None)) == {"a": "preempted"}


@pytest.mark.parametrize(("beats", "state"), [(True, "running"), (False, "preempted")])
def test_silent_holder_elsewhere_is_listened_to_before_a_pack_is_called_missing(
    beats: bool, state: str, sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(leases, "STALE_S", 0.3)
    monkeypatch.setattr(surveying, "BEAT_S", 0.05)
    sweep.pack("a")
    sweep.claim("a", FAR)
    sweep.beat("a", 1)
    timer = threading.Timer(0.1, sweep.beat, ("a", 2)) if beats else threading.Timer(0, int)
    timer.start()
    (pack,) = survey(sweep.folder)
    timer.join()
    assert pack.state == state
    assert capsys.readouterr().err.endswith("for a sign of life of 1 holders elsewhere\n")


@pytest.mark.parametrize("claimed", [True, False])
def test_job_that_died_before_it_could_say_why_is_quoted_from_its_log(claimed: bool, sweep: Sweep) -> None:
    sweep.pack("a")
    sweep.send("12", [["a"], ["b"]])
    log = sweep.path / "logs" / "12_0_0_log.err"
    log.parent.mkdir()
    log.write_text("Traceback (most recent call last):\n  ...\nImportError: no module named torch\n\n")
    if claimed:
        sweep.claim("a", dataclasses.replace(FAR, job="12_0"))
    (pack,) = survey(sweep.folder, Slurm({"12_0": Job("FAILED"), "12_1": Job("FAILED")}))
    assert (pack.state, pack.log) == ("failed" if claimed else "planned", str(log))
    assert pack.error == "job 12_0: FAILED: ImportError: no module named torch"
    assert is_trouble(pack)
    if not claimed:
        (pack,) = survey(sweep.folder, Slurm())
        assert pack.error == "job 12_0: gone: ImportError: no module named torch", "SLURM has forgotten it"
    log.unlink()
    assert survey(sweep.folder, Slurm({"12_0": Job("FAILED")}))[0].error == "job 12_0: FAILED"


def test_job_whose_time_was_over_before_it_began_its_pack_is_told(sweep: Sweep) -> None:
    sweep.pack("a")
    sweep.send("12", [["a"], ["b"]])
    (pack,) = survey(sweep.folder, Slurm({"12_0": Job("TIMEOUT")}))
    assert (pack.state, pack.error) == ("planned", "job 12_0: TIMEOUT")
    (pack,) = survey(sweep.folder, Slurm({"12_0": Job("CANCELLED")}))
    assert (pack.state, pack.error) == ("planned", "")


def test_pack_whose_ending_was_taken_away_is_to_be_done_again(sweep: Sweep) -> None:
    sweep.pack("a")
    sweep.claim("a", outcome="done")
    sweep.end("a", ["finished", "failed"])
    assert states(survey(sweep.folder)) == {"a": "ended"}
    sweep.files("a").ended.unlink()
    assert states(survey(sweep.folder)) == {"a": "planned"}
