"""Count file system operations as they are made, and extrapolate them to many GPUs.

Counted are calls that a file server hears of: open, stat, list, make, flush, rename, link and remove.
"""

from __future__ import annotations

import builtins
import io
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

RUNS = 8  # in a pack
CALLS = (
    "open",
    "stat",
    "lstat",
    "scandir",
    "listdir",
    "mkdir",
    "fsync",
    "replace",
    "rename",
    "link",
    "unlink",
    "rmdir",
)


@contextmanager
def count_operations() -> Iterator[Counter[str]]:
    """Count the calls that are made inside the block, by name."""
    counts: Counter[str] = Counter()

    def counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **more: Any) -> Any:
            counts[name] += 1
            return call(*args, **more)

        return counted

    with ExitStack() as stack:
        for name in CALLS:
            stack.enter_context(mock.patch.object(os, name, counting(name, getattr(os, name))))
        for module in (io, builtins):
            stack.enter_context(mock.patch.object(module, "open", counting("open", io.open)))
        yield counts


@dataclass(frozen=True)
class ViewerRates:
    """Operations of one refresh of the status: fixed ones, and those for each running pack."""

    fixed: int
    pack: int


@dataclass(frozen=True)
class JobRates:
    """Operations of jobs: of one heartbeat, of one run's checkpoint with its rows, of taking and ending a pack."""

    beat: int
    checkpoint: int
    turn: int

    def rows(self, viewer: ViewerRates, beat_s: float = 10.0, checkpoint_s: float = 30.0, look_s: float = 5.0) -> dict:
        """Rows of the table: name -> what stands under a number of GPUs."""
        return {
            "heartbeats, operations a second": lambda n: f"{n * self.beat / beat_s:,.0f}",
            "checkpoints and rows, operations a second": lambda n: f"{n * RUNS * self.checkpoint / checkpoint_s:,.0f}",
            "one viewer, operations a second": lambda n: f"{(viewer.fixed + n * viewer.pack) / look_s:,.0f}",
            "packs of 10 minutes taken and ended, operations a second": lambda n: f"{n * self.turn / 600:,.1f}",
            "scheduler calls a minute: jobs": lambda n: "0",
            "scheduler calls a minute: one viewer": lambda n: f"{60 / look_s:.0f}",
        }


def count_rates() -> JobRates:
    """Count what a job does, by the very functions that it calls."""
    from slurm.store.layout import PackFiles
    from slurm.store.leases import Heartbeat, StalenessTracker, take
    from slurm.store.outcome import write_ended
    from training.store import RunFolder, writing

    with tempfile.TemporaryDirectory(prefix="plateau-scale-") as scratch:
        runs = [RunFolder(Path(scratch) / "grid" / f"run{n}") for n in range(RUNS)]
        for run in runs:
            run.write({"cell": {}, "labels": {}, "status": "finished", "error": None})
        pack = PackFiles("pack", Path(scratch) / "grid" / "packs")
        pack.folder.mkdir()
        with count_operations() as turn:
            claim = take(pack, StalenessTracker())
            assert claim is not None
            claim.check()
            write_ended(pack, runs, claim.turn)
            claim.end("done")
        claim = take(pack, StalenessTracker())
        assert claim is not None
        with Heartbeat(claim, every_s=0.02) as heart, count_operations() as beats:
            first = heart._count
            time.sleep(0.5)
        num_beats = max(1, heart._count - first)
        for step in (1, 2, 3):
            with count_operations() as checkpoint:
                for kind in ("dynamics", "steps"):
                    runs[0].append(kind, {"step": [step]}, step)
                with writing(runs[0].checkpoint(step)) as aside:
                    aside.write_bytes(b"state")
                runs[0].keep_checkpoints(2)
    opened_by_arrow = 2  # tables, out of sight of the wrappers
    return JobRates(
        round(sum(beats.values()) / num_beats), sum(checkpoint.values()) + opened_by_arrow, sum(turn.values())
    )


def watch_rates() -> ViewerRates:
    """Count what a refresh costs with no pack running, and what each running pack adds."""
    from slurm.store.pack_states import Surveyor
    from tests.make_sweep import Sweep

    totals = []
    with tempfile.TemporaryDirectory(prefix="plateau-scale-") as scratch:
        sweep = Sweep(Path(scratch) / "grid")
        for running in (0, 8):
            for number in range(running):
                sweep.pack(f"pack{number}")
                sweep.claim(f"pack{number}")
                sweep.beat(f"pack{number}", 10)
            surveyor = Surveyor(sweep.folder)
            for _ in range(2):
                with count_operations() as counts:
                    surveyor.gather()
                    surveyor.judge({})
            totals.append(sum(counts.values()))
    return ViewerRates(totals[0], (totals[1] - totals[0]) // 8)
