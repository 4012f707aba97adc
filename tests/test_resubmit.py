"""Whoever waits sends what the cluster had no room for; nothing else is sent by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.estimate.need import Need
from slurm.status.monitor import Monitor
from slurm.store.queue import Scheduler
from slurm.submit.clusters import Cluster
from slurm.submit.resubmit import MOST_SENT, Resubmitter
from slurm.submit.send import submit_missing
from tests.make_slurm import FakeSlurm, make_slurm
from tests.make_sweep import Sweep


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.setattr("slurm.store.leases.SETTLE_S", 0.01)
    monkeypatch.setattr("slurm.store.pack_states.SETTLE_S", 0.01)
    return make_slurm(tmp_path, monkeypatch)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Four planned packs."""
    made = Sweep(tmp_path / "runs" / "wide")
    for number in range(4):
        made.pack(f"p{number}")
    return made


def waiting(sweep: Sweep, every_s: float = 0.0) -> tuple[Monitor, Resubmitter]:
    scheduler = Scheduler()
    return Monitor(sweep.folder.path, scheduler), Resubmitter(scheduler, every_s=every_s)


def test_rest_is_sent_when_the_queue_has_room(sweep: Sweep, slurm: FakeSlurm) -> None:
    slurm.most = 2
    slurm.write()
    first = submit_missing(sweep.folder, Cluster(), lambda pack: Need(60.0))
    assert first.later
    board, later = waiting(sweep)
    assert not any("as job" in line for line in later.send(board.look())), "there is no room yet"
    assert later.waiting == {sweep.folder.path}, "whoever waits does not give up"
    slurm.most = None
    slurm.write()
    (line,) = later.send(board.look())
    assert "sent 2 packs as job" in line
    assert len([name for state, name in slurm.jobs().values() if state == "PENDING"]) == 4
    assert later.send(board.look()) == [], "nothing goes twice"
    assert not later.waiting


def test_asks_no_more_often_than_told(sweep: Sweep, slurm: FakeSlurm) -> None:
    slurm.most = 2
    slurm.write()
    submit_missing(sweep.folder, Cluster(), lambda pack: Need(60.0))
    board, later = waiting(sweep, every_s=60.0)
    later.send(board.look())
    before = sum("sbatch" in call for call in slurm.calls())
    later.send(board.look())
    assert sum("sbatch" in call for call in slurm.calls()) == before
    slurm.most = None
    slurm.write()
    assert len(later.send(board.look(), at_once=True)) == 1, "nothing else is left to wait for"


def test_sweep_that_never_went_to_slurm_is_left_alone(sweep: Sweep, slurm: FakeSlurm) -> None:
    board, later = waiting(sweep)
    assert later.send(board.look()) == []
    assert not slurm.jobs()


def test_cancelled_packs_are_left_alone(sweep: Sweep, slurm: FakeSlurm) -> None:
    submit_missing(sweep.folder, Cluster(), lambda pack: Need(60.0))
    for job, (_, name) in list(slurm.jobs().items()):
        slurm.add(job, "CANCELLED", name)
    board, later = waiting(sweep)
    board.look()
    assert later.send(board.look()) == []


def test_own_command_sends_what_died_again_a_few_times(sweep: Sweep, slurm: FakeSlurm) -> None:
    submit_missing(sweep.folder, Cluster(), lambda pack: Need(60.0))
    scheduler = Scheduler()
    board, others = Monitor(sweep.folder.path, scheduler), Resubmitter(scheduler, every_s=0.0)
    own = Resubmitter(scheduler, Cluster(), every_s=0.0)
    for _ in range(MOST_SENT + 2):
        for job, (now, name) in list(slurm.jobs().items()):
            if now == "PENDING":
                slurm.add(job, "NODE_FAIL", name)
        board.look()
        assert others.send(board.look()) == [], "that is for the sweep's own command"
        own.send(board.look())
    assert len({job.partition("_")[0] for job in slurm.jobs()}) == 1 + MOST_SENT
