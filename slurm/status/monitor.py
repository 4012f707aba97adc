"""Look at all sweeps of a runs folder repeatedly, with at most one query to SLURM each time.

Without SLURM, and while it does not answer, heartbeats and the processes of this machine tell what they can.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from adapters.errors import BadInput
from adapters.words import counted
from slurm.store.layout import SweepFolder
from slurm.store.pack_states import QueueReader, Surveyor
from slurm.store.states import PackStatus
from slurm.store.sweep_state import SweepState
from training.states import RunStatus

SILENCE_S = 600.0  # after which a scheduler that does not answer is not waited for


class Monitor:
    """A runs folder, or one sweep's.

    Args:
        root: the folder.
        scheduler: asked once a look; None where there is none.

    Attributes:
        note: that SLURM could not be asked, since when, and why; "" if it answered or was not needed.

    Raises:
        BadInput: if there is no sweep.
    """

    def __init__(self, root: Path, scheduler: QueueReader | None) -> None:
        self.root, self.scheduler, self.note = root, scheduler, ""
        self.surveyors: dict[Path, Surveyor] = {}
        self._heard, self._silent_since = time.monotonic(), ""
        if not find_sweeps(root):
            raise BadInput(f"no sweep in {root}: give a runs folder, or a sweep's folder in it")

    def look(self) -> list[SweepState]:
        """How every sweep stands now."""
        for folder in find_sweeps(self.root):
            self.surveyors.setdefault(folder, Surveyor(SweepFolder(folder)))
        wanted = set().union(*(surveyor.gather() for surveyor in self.surveyors.values()))
        jobs, self.note = None, ""
        if wanted and self.scheduler is None:
            self.note = f"no squeue on this machine: {counted(len(wanted), 'job')} known by their heartbeats only"
        elif wanted and self.scheduler is not None:
            try:
                jobs = self.scheduler.jobs(sorted(wanted))
            except BadInput as error:
                self._silent_since = self._silent_since or time.strftime("%Y-%m-%d %H:%M:%S")
                self.note = f"SLURM does not answer, since {self._silent_since} at the latest: {error}"
        if not self.note:
            self._heard, self._silent_since = time.monotonic(), ""
        return [SweepState(folder, surveyor.judge(jobs)) for folder, surveyor in sorted(self.surveyors.items())]

    def may_change(self, sweeps: list[SweepState]) -> bool:
        """Whether anything is left that can still end: a pack runs, or waits in a queue that is known to move."""
        hears = time.monotonic() - self._heard < SILENCE_S
        packs = [pack for sweep in sweeps for pack in sweep.packs]
        return any(
            pack.state == PackStatus.RUNNING or (pack.state == PackStatus.QUEUED and hears and not pack.stuck)
            for pack in packs
        )


def find_sweeps(root: Path) -> list[Path]:
    """The folders of sweeps: `root` itself, or those in it.

    Raises:
        BadInput: if one of them cannot be read.
    """
    try:
        if (root / "packs").is_dir():
            return [root]
        with os.scandir(root) as entries:
            folders = [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        return sorted(folder for folder in folders if (folder / "packs").is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise BadInput(f"{error.filename or root} cannot be read: {error.strerror}") from None


def has_ended(sweeps: list[SweepState]) -> bool:
    """Whether every pack has ended, so that only a new command changes anything."""
    return all(pack.state == PackStatus.ENDED for sweep in sweeps for pack in sweep.packs)


def exit_code(sweeps: list[SweepState]) -> int:
    """0 if every cell has finished or diverged, 1 if something failed, 3 if something is left that nobody works on."""
    packs = [pack for sweep in sweeps for pack in sweep.packs]
    if any(pack.state == PackStatus.FAILED or pack.counts.get(RunStatus.FAILED) for pack in packs):
        return 1
    return 0 if all(pack.state == PackStatus.ENDED for pack in packs) else 3
