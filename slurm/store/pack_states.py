"""The state of every pack of a sweep, from one listing, the heartbeats and the scheduler's jobs.

The files are the truth; SLURM is only asked who still lives, once a look. A pack is *ended*; or *running* (its holder
lives); or *queued* (in a job that is still meant to run); else *failed* (its last holder refused it or met an error),
*preempted* (stopped or killed) or *planned*. A pack whose run has failed has *ended*, with that run in its counts. A holder
whose job or process has vanished counts as running until a second look, `SETTLE_S` later, since its last files may not be
visible yet; one that SLURM calls cancelled, timed out or failed does not. One that only its heartbeat can tell of counts as
running until it was silent for `STALE_S`. What runs or is queued and was not seen to (`PackState.unseen`) is told apart from
what was. Imports no torch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from adapters.errors import printable
from slurm.store.layout import PackFiles, SweepFolder
from slurm.store.leases import BEAT_S, STALE_S, Owner, StalenessTracker, owner_of, read_beat
from slurm.store.reader import SweepReader
from slurm.store.states import MISSING, Outcome, PackStatus
from slurm.store.submissions import ABRUPT, ACTIVE, FAILURES, HOLDING, STUCK, UNWANTED, Jobs, JobState, Task, state_of
from training.shared_file_system import SETTLE_S
from training.states import RunStatus


class QueueReader(Protocol):
    """What is asked of a scheduler: the states of some jobs, in one query."""

    def jobs(self, wanted: Iterable[str]) -> Jobs: ...


@dataclass(frozen=True)
class PackState:
    """How one pack stands.

    Attributes:
        name: the pack's name.
        state: how it stands.
        num_cells: its cells.
        counts: its cells by their statuses (`RunStatus`), and "queued".
        phase, step, steps: where its holder is.
        rate: measured steps a second; None if unknown.
        error: the last line of what went wrong, or why it waits; "" if nothing did.
        log: the file to read about it; None if there is none.
        job: SLURM's job, `123_4`; "" elsewhere.
        host: where it is held, or was last.
        seconds: what it cost, if it has ended.
        stuck: whether SLURM lets it wait until somebody steps in.
        loss, distance: the smallest and the largest of its runs' last losses and relative distances; "" where unknown.
        unseen: why it is not certain that it runs or is queued: that stands in its files, and nobody was seen; "" if it is.
    """

    name: str
    state: PackStatus
    num_cells: int
    counts: dict[str, int] = field(default_factory=dict)
    phase: str = ""
    step: int = 0
    steps: int = 0
    rate: float | None = None
    error: str = ""
    log: str | None = None
    job: str = ""
    host: str = ""
    seconds: float = 0.0
    stuck: bool = False
    loss: str = ""
    distance: str = ""
    unseen: str = ""

    def __post_init__(self) -> None:
        for name in ("phase", "error", "job", "host", "loss", "distance"):  # others wrote it, and terminals show it
            object.__setattr__(self, name, printable(getattr(self, name)))

    @property
    def is_missing(self) -> bool:
        """Whether it is not done, and nobody works on it or means to."""
        return self.state in MISSING


def survey(folder: SweepFolder, scheduler: QueueReader | None = None, *, settle: bool = True) -> list[PackState]:
    """How every pack of a sweep stands now, in the order of their names.

    Args:
        folder: the sweep.
        scheduler: asked once, or not at all where no pack depends on it; None where there is none.
        settle: whether to look a second time if a holder has vanished: at once on this machine, else `SETTLE_S` later;
            and again and again while a holder is silent of which nothing but its heartbeat can tell.

    Raises:
        BadInput: if SLURM refuses to answer, in its own words; if a specification is damaged.
    """
    surveyor = Surveyor(folder)
    states, jobs = _look(surveyor, scheduler)
    if settle and surveyor.silent:
        print(
            f"waiting up to {STALE_S:g} s for a sign of life of {len(surveyor.silent)} holders elsewhere",
            file=sys.stderr,
        )
        while surveyor.silent:
            time.sleep(min(1.0, BEAT_S))
            surveyor.gather()
            surveyor.judge(jobs)
        states, jobs = _look(surveyor, scheduler)
    if settle and surveyor.doubts:
        time.sleep(SETTLE_S if surveyor.has_far_doubts() else 0)
        surveyor.gather()
        states = surveyor.judge(jobs, sure=True)
    return states


def _look(surveyor: Surveyor, scheduler: QueueReader | None) -> tuple[list[PackState], Jobs | None]:
    """How the packs stand, and SLURM's answer."""
    wanted = surveyor.gather()
    jobs = scheduler.jobs(sorted(wanted)) if scheduler is not None and wanted else None
    return surveyor.judge(jobs), jobs


class Surveyor:
    """Looks at one sweep again and again: `gather` reads its folder, `judge` says how its packs stand.

    Attributes:
        doubts: packs whose holder has vanished: (turn, when that was first seen).
        silent: packs of which only the holder's heartbeat can tell, which has not been seen to change yet.
    """

    def __init__(self, sweep: SweepFolder) -> None:
        self.files = SweepReader(sweep)
        self.me = Owner.me()
        self.doubts: dict[str, tuple[int, float]] = {}
        self.silent: set[str] = set()
        self._watch = StalenessTracker()

    def gather(self) -> set[str]:
        """List the sweep and read what is new; returns the SLURM jobs (or names of arrays) that its packs depend on."""
        self.files.refresh()
        claims = self.files.claims
        holders = [owner_of(claim) for claim in claims.values() if "outcome" not in claim]
        jobs = {holder.job.partition("_")[0] for holder in holders if holder is not None and holder.job}
        return self.files.submissions.arrays(set(claims)) | jobs

    def judge(self, jobs: Jobs | None, sure: bool = False) -> list[PackState]:
        """How every pack stands.

        Args:
            jobs: SLURM's answer; None if there was none: then heartbeats and processes of this machine have to do.
            sure: whether this look settles every doubt of the one before.
        """
        tasks, self.silent = self.files.submissions.tasks(jobs), set()
        return [self._judge(pack, tasks.get(name), jobs, sure) for name, pack in self.files.packs.items()]

    def has_far_doubts(self) -> bool:
        """Whether a holder that has vanished ran on another machine, whose last files may come late."""
        return any(self._is_far(self.files.claims.get(name, {})) for name in self.doubts)

    def _is_far(self, claim: dict) -> bool:
        return (holder := owner_of(claim)) is None or holder.machine != self.me.machine

    def _judge(self, pack: PackFiles, task: Task | None, jobs: Jobs | None, sure: bool) -> PackState:
        if pack.name in self.files.endings:
            return self._ended(pack)
        claim = self.files.claims[pack.name]
        outcome, error = claim.get("outcome"), str(claim.get("error") or "")
        if pack.turn and outcome in (None, Outcome.DONE):
            outcome, error = self._verdict(pack, claim, jobs, sure)
        if pack.name in self.files.endings:
            return self._ended(pack)
        if outcome == Outcome.HELD:
            return self._running(pack, claim, error)
        return self._waiting(pack, outcome, error, task, jobs)

    def _waiting(
        self, pack: PackFiles, outcome: str | None, error: str, task: Task | None, jobs: Jobs | None
    ) -> PackState:
        """A pack that nobody holds, and how its last holder ended."""
        spec, claim = self.files.spec(pack), self.files.claims[pack.name]
        holder = owner_of(claim)
        job, failed = holder.job if holder else "", outcome in (Outcome.FAILED, Outcome.REFUSED)
        found = task.find(jobs or {}) if task else None
        given_up = failed and task is not None and job == task.job
        live = task is not None and not given_up and task.is_live(jobs)
        stopped = outcome in (Outcome.STOPPED, Outcome.KILLED)
        last = PackStatus.FAILED if failed else PackStatus.PREEMPTED if stopped else PackStatus.PLANNED
        state = PackStatus.QUEUED if live else last
        unheard = ["SLURM was not heard"] if live and task and task.executor == "slurm" and jobs is None else []
        reason = found.reason if found is not None and live and state_of(found) == "PENDING" else ""
        log = task.log() if task is not None and state in (PackStatus.FAILED, PackStatus.PREEMPTED) else None
        log = pack.claim(pack.turn) if log is None and state == PackStatus.FAILED else log  # it holds the error
        if task is not None and not live and self._died_silently(task, claim, found, jobs):
            error, log = task.last_words(state_of(found) or "gone"), task.log()
        return PackState(
            pack.name, state, len(spec.runs), {state: len(spec.runs)}, steps=spec.steps, error=error or reason,
            log=str(log) if log else None, job=task.job if task and live else job, host=holder.host if holder else "",
            stuck=any(word in reason for word in STUCK), unseen="; ".join([error, *unheard] if unheard and error else unheard),
        )  # fmt: skip

    @staticmethod
    def _died_silently(task: Task, claim: dict, found: JobState | None, jobs: Jobs | None) -> bool:
        """Whether a task's job, which SLURM may have forgotten, came to an unwanted end before it could write down why."""
        holder = owner_of(claim)
        has_held = holder is not None and holder.job == task.job
        if found is not None:
            return state_of(found) in UNWANTED and not (has_held and "outcome" in claim)
        log = task.log() if task.executor == "slurm" and jobs is not None and not has_held else None
        return log is not None and log.stat().st_size > 0

    def _running(self, pack: PackFiles, claim: dict, unseen: str) -> PackState:
        spec, holder, beat = self.files.spec(pack), owner_of(claim), read_beat(pack)
        beat = beat if beat.get("turn") == pack.turn else {}
        diverged, rate = int(beat.get("diverged") or 0), beat.get("rate") or 0.0
        return PackState(
            pack.name, PackStatus.RUNNING, len(spec.runs), {RunStatus.RUNNING: len(spec.runs)},
            str(beat.get("phase", "starting")), int(beat.get("step") or 0), int(beat.get("steps") or spec.steps),
            rate if rate > 0 else None, f"{diverged} diverged" if diverged else "", job=holder.job if holder else "",
            host=holder.host if holder else "", loss=str(beat.get("loss", "")), distance=str(beat.get("distance", "")),
            unseen=unseen,
        )  # fmt: skip

    def _ended(self, pack: PackFiles) -> PackState:
        ending = self.files.endings[pack.name]
        statuses, errors = list(ending.get("runs", {}).values()), ending.get("errors") or {}
        if reason := ending.get("reason"):
            errors = errors or {pack.name: f"with fewer runs at a time: {reason}"}
        counts = {status: statuses.count(status) for status in dict.fromkeys(statuses)}
        runs = [
            self.files.run(pack, run_id)
            for run_id, status in ending.get("runs", {}).items()
            if status == RunStatus.FAILED
        ]
        log = str(runs[0].path / "run.json") if runs else None
        return PackState(
            pack.name, PackStatus.ENDED, len(statuses), counts, error=next(iter(errors.values()), ""), log=log,
            seconds=float(ending.get("seconds") or 0.0),
        )  # fmt: skip

    # Who still lives.

    def _verdict(self, pack: PackFiles, claim: dict, jobs: Jobs | None, sure: bool) -> tuple[str | None, str]:
        """(outcome, error, or why a holder was not seen) of a pack that tells no end, or one that has no file."""
        alive, error, certain = self._examine(pack, claim, jobs)
        if alive or self.files.has_moved_on(pack):
            return Outcome.HELD, error * alive
        if not (certain or self._is_settled(pack, claim, sure)):
            return Outcome.HELD, f"{error or 'it is done'}; its last files may be on their way"
        if "outcome" in claim:  # done, and its ending was taken away: it is to be done again
            return None, ""
        return (Outcome.FAILED if error.endswith(FAILURES) else Outcome.KILLED), error

    def _examine(self, pack: PackFiles, claim: dict, jobs: Jobs | None) -> tuple[bool, str, bool]:
        """(whether its holder lives, as far as anybody knows; why not, or why that is not sure; whether it is over for sure)."""
        if "outcome" in claim:
            return False, "", bool(claim.get("reopened"))
        holder = owner_of(claim)
        state = state_of(jobs.get(holder.job)) if holder is not None and jobs is not None else ""
        gone = None if jobs is None else state not in HOLDING
        dead = holder.is_dead(self.me, lambda job: gone) if holder is not None else None
        if dead is None:
            if self._watch.is_stale(pack, pack.turn):
                return False, f"no sign of life for {STALE_S:g} s", True
            if self._watch.has_heard(pack):
                return True, "", True
            self.silent.add(pack.name)
            return True, f"no sign of life yet; the last heartbeat is {_when(read_beat(pack))}", True
        where = f"job {holder.job}" if holder and holder.job else f"process {holder.pid if holder else 0}"
        error = f"{where}: {state}" if state in ABRUPT else f"{where} is gone" if dead else ""
        return not dead, error, state in ABRUPT or state in ACTIVE - HOLDING

    def _is_settled(self, pack: PackFiles, claim: dict, sure: bool) -> bool:
        """Whether this is the second look at a holder that has vanished, late enough after the first for its files."""
        turn, since = self.doubts.get(pack.name, (0, 0.0))
        if turn != pack.turn:
            self.doubts[pack.name] = (pack.turn, time.monotonic())
            return False
        return sure or not self._is_far(claim) or time.monotonic() - since >= SETTLE_S


def _when(beat: dict) -> str:
    """When a heartbeat was written, by its holder's clock."""
    try:
        return f"of {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(float(beat['time'])))}"
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return "not there"
