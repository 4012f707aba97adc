"""Records of submitted job arrays, one file for each: `<sweep>/submissions/<token>.json`.

A record: {"token", "number", "user", "host", "made", "cluster", "executor": "slurm" | "local" | "export", "code", "folder",
"job", "tasks": [[pack names of task 0], ...], "time_min", "state": "intent" | "sent" | "refused", "error"}, and "workers",
the processes, for `local`. Its number says which of a sweep's records is the newest: clocks are set back. It is written as
an intent before `sbatch`, whose job is called `plateau-<token>`, and gets its job's id afterwards. Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from slurm.store.layout import SweepFolder
from slurm.store.leases import Owner, owner_of
from slurm.store.states import Sent
from training.forms import SUBMISSION
from training.whole_files import is_inside, list_files, read_quietly

# States in which SLURM still means to do something about a job, and those of them in which its processes may live.
HOLDING = frozenset(("RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STAGE_OUT", "RESIZING", "STOPPED"))
ACTIVE = HOLDING | {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}
# Ends that no process of the job has written down itself.
ABRUPT = frozenset(
    ("CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "DEADLINE", "BOOT_FAIL", "REVOKED")
)
FAILURES = ("FAILED", "OUT_OF_MEMORY")  # those of them that mean an error
UNWANTED = ABRUPT - {"CANCELLED"}  # those of them that nobody wished for
# Reasons for which SLURM lets a job wait until somebody steps in.
STUCK = ("Held", "held", "NeverSatisfied", "BadConstraints", "Invalid", "PartitionTimeLimit")
TAIL_BYTES = 4096  # of a log, in which its last line is


class JobState(Protocol):
    """What SLURM says about one job: `RUNNING`, why it waits, and what it is called."""

    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def name(self) -> str: ...


Jobs = Mapping[str, JobState]
"""SLURM's answer: job (`123`, of an array `123_4`) -> its state."""


@dataclass(frozen=True)
class Task:
    """One task of a job array that was sent.

    Attributes:
        job: SLURM's name for it, `123_4`; "" where the array got no id.
        name: what the array is called, `plateau-<token>`.
        executor, host, user: of the record.
        folder: where the scheduler's own files and logs are.
        workers: processes of a local submission, of which each is given all packs.
        works: whether one of them lives.
    """

    job: str
    name: str
    executor: str
    host: str
    user: str
    folder: Path | None
    workers: tuple[Owner, ...] = ()
    works: bool = False

    def find(self, jobs: Jobs) -> JobState | None:
        """The task in SLURM's answer."""
        return jobs.get(self.job) or jobs.get(self.job.partition("_")[0]) or jobs.get(f"{self.job}_0")

    def is_live(self, jobs: Jobs | None) -> bool:
        """Whether it will still be run, as far as anybody knows."""
        if self.executor == "slurm":
            return jobs is None or state_of(self.find(jobs)) in ACTIVE
        return self.works

    def log(self) -> Path | None:
        """Where its errors go, if the file is there."""
        names = [f"{self.job}_0_log.err", *(f"worker-{number}.log" for number in range(len(self.workers)))]
        found = (self.folder / name for name in names if self.folder is not None)
        return next((path for path in found if path.exists()), None)

    def last_words(self, state: str) -> str:
        """SLURM's word for how it ended, with the last line of its log, if there is any."""
        said = b""
        with contextlib.suppress(OSError):
            if path := self.log():
                with open(path, "rb") as file:
                    file.seek(-min(path.stat().st_size, TAIL_BYTES), os.SEEK_END)
                    said = (file.read().strip().splitlines() or [b""])[-1]
        return ": ".join(filter(None, (f"job {self.job}", state, said.decode(errors="replace"))))


class Submissions:
    """The records of one sweep; files that did not change are not read again."""

    def __init__(self, sweep: SweepFolder) -> None:
        self.sweep = sweep
        self.records: list[dict] = []
        self._read: dict[Path, tuple[tuple[int, int], dict]] = {}

    def refresh(self) -> None:
        """Read what is new."""
        self._read = {
            path: entry for path in list_files(self.sweep.submissions, "[!.]*.json") if (entry := self._look(path))
        }
        self.records = sorted((record for _, record in self._read.values()), key=_age)

    def _look(self, path: Path) -> tuple[tuple[int, int], dict] | None:
        """A record with the time and inode of its file; None if it cannot be read now."""
        try:
            stat = path.stat()
            sign, known = (stat.st_mtime_ns, stat.st_ino), self._read.get(path)
        except OSError:
            return None
        if known is not None and known[0] == sign:
            return known
        return (sign, record) if (record := read_quietly(path, SUBMISSION)) else None

    def tasks(self, jobs: Jobs | None) -> dict[str, Task]:
        """The newest task that each pack was sent in, by the pack's name."""
        named = {state.name: job for job, state in (jobs or {}).items()}
        found, me = {}, Owner.me()
        for record in self.records:
            if record.get("state") == Sent.REFUSED:
                continue
            name = f"plateau-{record.get('token')}"
            job = str(record.get("job") or named.get(name, "").partition("_")[0])
            folder = self._place_of_logs(record)
            workers = workers_of(record)
            works, sent = any(worker.is_dead(me) is False for worker in workers), record.get("tasks", [])
            for number, packs in enumerate(sent):
                place = f"{job}_{number}" if job and len(sent) > 1 else job  # one task alone is sent as no array
                task = Task(place, name, record.get("executor", ""), record.get("host", ""), record.get("user", ""),
                            folder, tuple(workers), works)  # fmt: skip
                found.update(dict.fromkeys(packs, task))
        return found

    def _place_of_logs(self, record: dict) -> Path | None:
        """The folder that a record names, where it lies in the sweep's folder, or did before that was copied."""
        named = Path(record.get("folder") or "none")
        places = (named, self.sweep.submissions / named.name)
        return next((place for place in places if is_inside(place, self.sweep.path)), None)

    def arrays(self, packs: set[str]) -> set[str]:
        """Ids, or names where there is no id yet, of SLURM's arrays that hold one of the packs."""
        sent = [r for r in self.records if r.get("executor") == "slurm" and r.get("state") != Sent.REFUSED]
        holding = [r for r in sent if any(not packs.isdisjoint(task) for task in r.get("tasks", []))]
        return {str(r.get("job") or f"plateau-{r.get('token')}") for r in holding}


def _age(record: dict) -> tuple[int, str]:
    """What sorts records, the oldest first; those from before they were numbered by their clocks."""
    return record.get("number") or 0, str(record.get("made", ""))


def workers_of(record: dict) -> list[Owner]:
    """The processes of a record that tells all of each."""
    found = (owner_of({"holder": worker}) for worker in record.get("workers") or [])
    return [holder for holder in found if holder is not None]


def state_of(job: JobState | None) -> str:
    """SLURM's word for a job's state, without what may follow it (`CANCELLED by 0`); "" for an unknown job."""
    return job.state.split()[0].rstrip("+") if job is not None and job.state else ""
