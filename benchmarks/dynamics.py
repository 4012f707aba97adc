"""The cost of reading the weights: the dynamics' share of a step in the real training loop.

A run reads its weights after every second step: its even steps do what a default run does, its odd steps the same
without dynamics, and neighbours are compared. To their difference come a step's part of a snapshot (one in fifty steps)
and of a flush to Parquet with fsync (at every checkpoint, and at the end of a default run). On a CPU all of it runs on
one thread, as in the front door's worker processes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.rows import Row
from benchmarks.scene import WARMUP, Effort, Place, Scene, threads
from benchmarks.timing import clock, mean_of
from slurm.worker.run import Setting
from sweeps.options import Options
from training.dynamics import Dynamics

NORMS_EVERY = Options().norms_every
CHECKPOINT_EVERY_S = Setting.checkpoint_every_s
BLOCK = 20  # pairs of steps in one repetition
PACK, THREADS = 8, 1
RUNS = 2
CASES = (("lora", 8, 0.03, ""), ("delora:start=eq9", 16, 0.06, " with a frozen start"))


def measure(place: Place, device: str, effort: Effort) -> list[Row]:
    """The rows of dynamics on one device: in a pack, and alone."""
    scene = Scene(place, device)
    rows = []
    for method, rank, aim, note in CASES:
        for size in (PACK, 1):
            shares = np.concatenate([measure_share(scene, method, rank, size, effort.read_steps) for _ in range(RUNS)])
            where = f"in a pack of {size}" if size > 1 else "alone"
            name = f"dynamics, share of a step {where}, {method.partition(':')[0]} at rank {rank}{note}"
            rows.append(Row(name, mean_of(shares), aim, unit="%"))
    return rows


def measure_share(scene: Scene, method: str, rank: int, size: int, steps: int) -> np.ndarray:
    """One run; the dynamics' time over a step's time without them, one value for each block of pairs."""
    # The last step is not counted, and it must not read anything that the pairs do not.
    cells = scene.make_cells(
        method, size, rank=rank, steps=steps + WARMUP + 1, gauge_every=2, norms_every=2 * NORMS_EVERY
    )
    with stopwatches("snapshot", "flush") as spent, threads(THREADS):
        times = np.array(scene.time_steps(cells))
    first = WARMUP + 1  # number of the first counted step
    numbers = np.arange(first, first + len(times))
    without, read = times[numbers % 2 == 1], times[numbers % 2 == 0]
    snapshot_s = float(np.median(spent["snapshot"])) / NORMS_EVERY
    steps_of_a_flush = min(Options().steps, CHECKPOINT_EVERY_S / float(np.median(without)))
    flush_s = float(np.median(spent["flush"])) / steps_of_a_flush
    shares = []
    for start in range(0, min(len(without), len(read)), BLOCK):
        plain, gauged = (np.median(part[start : start + BLOCK]) for part in (without, read))
        shares.append((gauged - plain + snapshot_s + flush_s) / plain)
    return np.array(shares)


@contextmanager
def stopwatches(*names: str) -> Iterator[dict[str, list[float]]]:
    """Note the seconds of every call of some methods of `Dynamics`."""
    spent: dict[str, list[float]] = {name: [] for name in names}

    def timed(name: str, method: Callable) -> Callable:
        @functools.wraps(method)
        def call(self: Dynamics, *given: Any, **named: Any) -> None:
            device = self.attached.flat.device
            began = clock(device)
            method(self, *given, **named)
            spent[name].append(clock(device) - began)

        return call

    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(patch.object(Dynamics, name, timed(name, getattr(Dynamics, name))))
        yield spent
