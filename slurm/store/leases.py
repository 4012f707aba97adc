"""Leases on packs: at most one process trains a pack, on any shared file system.

A turn is a file `<pack>.claim-000007.json`, made by a hard link from a finished file: of two processes that want turn 7,
one gets it. Nobody ever removes a claim. A holder that stops writes its outcome into its own claim; then, or when it is
known to be dead, the next process makes the claim of turn 8, and whoever still believes in turn 7 sees that it is over.

A turn taken from a process of another machine begins with `SETTLE_S` of waiting: what that one wrote last becomes visible
here, and the new claim there, so that a holder that was thought dead and wakes up stops before it writes anything.

A holder is known to be dead if it ran on this very machine and its process is gone; if it was an earlier start of our own
SLURM job; if SLURM says that its job is gone; or if its heartbeat has not changed for `STALE_S` seconds of our own clock
(clocks of machines are never compared). Imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import getpass
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from adapters.errors import BadInput
from slurm.store.layout import PackFiles
from slurm.store.states import Outcome
from training import forms
from training.shared_file_system import SETTLE_S
from training.whole_files import (
    StoreError,
    create_json,
    is_running,
    machine,
    read_quietly,
    remove_asides,
    remove_quietly,
    write_json,
)

BEAT_S = float(os.environ.get("PLATEAU_BEAT_S", "10"))
STALE_S = float(os.environ.get("PLATEAU_STALE_S", "90"))

JobGone = Callable[[str], bool | None]
"""Says whether a SLURM job has left the queue; None where that cannot be known."""


@dataclass(frozen=True)
class Owner:
    """A process, so that others can tell whether it still lives.

    Attributes:
        host, user: for people.
        machine: boot and process-id namespace; equal only where process ids mean the same.
        pid, started: the process and when it was started, in clock ticks since the boot (0 where unknown).
        job: SLURM's job (`123`, of an array `123_4`); "" outside SLURM.
        restart: how often SLURM has started that job again.
    """

    host: str
    user: str
    machine: str
    pid: int
    started: int
    job: str = ""
    restart: int = 0

    @classmethod
    def me(cls) -> Owner:
        """This process."""
        task = os.environ.get("SLURM_ARRAY_TASK_ID")
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}" if task else os.environ.get("SLURM_JOB_ID", "")
        restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        return cls(socket.gethostname(), user_name(), machine(), os.getpid(), _started(os.getpid()), job, restart)

    @classmethod
    def of(cls, pid: int) -> Owner:
        """Another process of this machine."""
        return dataclasses.replace(cls.me(), pid=pid, started=_started(pid))

    def is_dead(self, me: Owner, job_gone: JobGone | None = None) -> bool | None:
        """Whether this process is over, as seen from `me`; None if only its heartbeat can tell."""
        if self.machine == me.machine:
            return not _is_alive(self.pid, self.started)
        if self.job and self.job == me.job and self.restart < me.restart:
            return True
        return job_gone(self.job) if self.job and job_gone else None


class LeaseLost(Exception):
    """Another process took over, since this one had shown no sign of life; nothing may be written any more."""


@dataclass(frozen=True)
class Lease:
    """A turn that this process holds.

    Attributes:
        pack: whose turn.
        turn: its number.
        before: contents of the earlier claims, oldest first, each with its `outcome` ("killed" for one that left none).
        contents: what stands in this one.
    """

    pack: PackFiles
    turn: int
    before: tuple[dict, ...]
    contents: dict

    def is_mine(self) -> bool:
        """Whether no later turn has begun."""
        return not self.pack.claim(self.turn + 1).exists()

    def check(self) -> None:
        """To be called before anything is written.

        Raises:
            TurnLost: if a later turn has begun.
        """
        if not self.is_mine():
            raise LeaseLost(f"turn {self.turn} at {self.pack.name} is over")

    def note(self, **more: Any) -> None:
        """Add to what stands in the claim, for the turns after it.

        Raises:
            StoreError: if it cannot be written.
        """
        self.contents.update(more)
        write_json(self.pack.claim(self.turn), self.contents)

    def end(self, outcome: str, **more: Any) -> None:
        """Give the turn up: "done", "stopped", "failed" or "refused"; `more` stands in the claim for the reader.

        Raises:
            StoreError: if it cannot be written.
        """
        _mine.discard(self.pack.claim(self.turn))
        write_json(self.pack.claim(self.turn), self.contents | {"outcome": outcome, **more})

    def end_quietly(self, outcome: str, **more: Any) -> None:
        """Give the turn up, where the disk may be the reason: the heartbeat, which is over, makes room on a full one."""
        try:
            self.end(outcome, **more)
        except StoreError:
            remove_quietly(self.pack.beat)
            with contextlib.suppress(StoreError):
                self.end(outcome, **more)


class StalenessTracker:
    """Remembers when each heartbeat was last seen to change, on this process's own clock."""

    def __init__(self, stale_s: float | None = None) -> None:
        self.stale_s = STALE_S if stale_s is None else stale_s
        self._seen: dict[Path, tuple[object, float, bool]] = {}

    def is_stale(self, pack: PackFiles, turn: int) -> bool:
        """Whether the holder of `turn` has shown no sign of life for `stale_s`, as far as this object has watched."""
        beat = read_beat(pack)
        sign = (turn, beat.get("turn"), beat.get("count"))
        last, since, _ = self._seen.get(pack.spec, (None, 0.0, False))
        now = time.monotonic()
        if sign != last:
            self._seen[pack.spec] = (sign, now, last is not None)
            return False
        return now - since > self.stale_s

    def has_heard(self, pack: PackFiles) -> bool:
        """Whether a pack's heartbeat has ever been seen to change."""
        return self._seen.get(pack.spec, (None, 0.0, False))[2]


_mine: set[Path] = set()  # claims that this process holds


def take(pack: PackFiles, watch: StalenessTracker, job_gone: JobGone | None = None, **more: Any) -> Lease | None:
    """Take the next turn at a pack, if nobody has it.

    Args:
        pack: the pack, freshly looked up.
        watch: what this process has seen of other holders; keep it between calls.
        job_gone: asks SLURM, where there is one.
        more: stands in the claim, such as the version of the code.

    Returns:
        The turn, or None while another process holds the pack.

    Raises:
        StoreError: if the claim cannot be written.
    """
    me, turn = Owner.me(), pack.newest_turn()
    held = _read_claim(pack, turn) if turn else None
    holder = owner_of(held) if held is not None else None
    if held is not None and "outcome" not in held:
        dead = holder.is_dead(me, job_gone) if holder else None
        if holder == me and pack.claim(turn) not in _mine:
            dead = True  # we gave it up, but the disk did not take the outcome
        if dead is False or (dead is None and not watch.is_stale(pack, turn)):
            return None
    contents = {"holder": dataclasses.asdict(me), "began": time.time(), **more}
    if not create_json(pack.claim(turn + 1), contents):
        return None
    _mine.add(pack.claim(turn + 1))
    if held is not None and (holder is None or holder.machine != me.machine):
        time.sleep(SETTLE_S)
        held = _read_claim(pack, turn)
    if held is not None and "outcome" not in held:
        _write_quietly(pack.claim(turn), held | {"outcome": Outcome.KILLED, "last": read_beat(pack)})
        remove_asides(pack.folder)
    return Lease(pack, turn + 1, tuple(_read_claim(pack, n) for n in range(1, turn + 1)), contents)


@contextlib.contextmanager
def exclusive(folder: Path, name: str, wait_s: float = 60.0) -> Iterator[None]:
    """Do something that only one process of all machines may do at a time, such as planning or submitting.

    Raises:
        BadInput: if another process has been at it for `wait_s`; the message names it.
        StoreError: if the folder cannot be written.
    """
    pack, watch, began = PackFiles(name, folder), StalenessTracker(), time.monotonic()
    while (claim := take(pack, watch)) is None:
        if time.monotonic() - began > wait_s:
            holder = owner_of(_read_claim(pack, pack.newest_turn()))
            who = f"process {holder.pid} of {holder.user} on {holder.host}" if holder else "another process"
            raise BadInput(f"{who} is busy with {folder / name}: wait for it to end")
        time.sleep(0.2)
    try:
        with Heartbeat(claim):
            yield
    except BaseException:
        claim.end_quietly(Outcome.DONE)
        raise
    claim.end(Outcome.DONE)


class Heartbeat:
    """Writes a holder's heartbeat from a thread of its own, with the progress last reported.

    Args:
        claim: the turn.
        every_s: seconds between beats.
    """

    def __init__(self, claim: Lease, every_s: float | None = None) -> None:
        self.claim, self.every_s = claim, BEAT_S if every_s is None else every_s
        self.lost = False
        self._count, self._fields = 0, {"phase": "starting"}
        self._wake, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="heartbeat")

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._wake.set()
        self._thread.join()

    def tell(self, **fields: Any) -> None:
        """What the next beat says; a change of phase is written at once."""
        at_once = fields.get("phase") != self._fields.get("phase")
        self._fields = fields
        if at_once:
            self._wake.set()

    def _run(self) -> None:
        while not self._over.is_set():
            self._wake.clear()
            with contextlib.suppress(OSError):
                self.lost = self.lost or not self.claim.is_mine()
            self._count += 1
            beat = {"turn": self.claim.turn, "count": self._count, "time": time.time(), **self._fields}
            _write_quietly(self.claim.pack.beat, beat)
            self._wake.wait(self.every_s)


def read_beat(pack: PackFiles) -> dict:
    """The newest heartbeat; empty if there is none to be read."""
    return read_quietly(pack.beat, forms.BEAT)


def read_claims(pack: PackFiles) -> list[dict]:
    """Every turn's claim, oldest first; empty dictionaries for those that cannot be read."""
    return [_read_claim(pack, turn) for turn in range(1, pack.newest_turn() + 1)]


def _read_claim(pack: PackFiles, turn: int) -> dict:
    return read_quietly(pack.claim(turn), forms.CLAIM)


def _write_quietly(path: Path, value: dict) -> None:
    with contextlib.suppress(StoreError):  # a full disk: training's own writes say so
        write_json(path, value)


def owner_of(claim: dict) -> Owner | None:
    """The process that made a claim; None if the claim does not tell."""
    try:
        return Owner(**claim["holder"])
    except (KeyError, TypeError):
        return None


@functools.cache
def user_name() -> str:
    """Who this process belongs to."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def read_stat(pid: int) -> list[str]:
    """What Linux says of a process, from its state on; empty where there is none, or nobody says."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _started(pid: int) -> int:
    return int((read_stat(pid) or ["0"] * 20)[19])


def _is_alive(pid: int, started: int) -> bool:
    return is_running(pid) and _started(pid) == started and not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    return read_stat(pid)[:1] == ["Z"]
