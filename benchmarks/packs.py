"""Packs compared with the same cells alone, in the real training loop; and which pack size is best.

A cell alone is a run of one replica at batch size 1; a pack of K does K cells in one step. The ratio is K times the
step alone over the step of the pack: how many times faster a sweep is done. The cells are the front door's default
(DeLoRA, rank 8), all their dynamics included.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from unittest.mock import patch

import numpy as np

from adapters.words import counted
from benchmarks.rows import Row
from benchmarks.scene import WARMUP, Effort, Place, Scene, threads
from benchmarks.timing import ratio_of
from slurm.estimate.calibrate import calibrate
from slurm.worker.run import Setting

METHOD, RANK = "delora", 8
AIM = 2.0
SEVERAL = len(os.sched_getaffinity(0))  # threads of one process that has the machine to itself


@dataclass(frozen=True)
class Job:
    """A pack to be timed: its size, the CPU threads, the counted steps, and whether priors are preserved."""

    size: int
    threads: int
    steps: int
    prior: bool = False


def time_pack(scene: Scene, job: Job) -> float:
    """Median seconds of one step of a pack."""
    cells = scene.make_cells(METHOD, job.size, rank=RANK, prior=job.prior, steps=job.steps + WARMUP + 1)
    with threads(job.threads):
        return scene.step_s(cells)


def measure(place: Place, device: str, effort: Effort) -> list[Row]:
    """The rows of packs on one device."""
    scene = Scene(place, device)
    one, several = (Job(1, count, effort.steps) for count in ((1, SEVERAL) if device == "cpu" else (SEVERAL, SEVERAL)))
    rows: list[Row] = []
    best: dict[int, int] = {}
    for alone in dict.fromkeys((one, several)):
        sizes = tuple(size for size in effort.sizes if size > 1)
        tried = _against_alone(scene, alone, [dataclasses.replace(alone, size=s) for s in sizes], effort.rounds // 3)
        best[alone.threads] = max(tried, key=lambda job: tried[job].measured.value).size
        if alone == one:
            rows += tried.values()
    jobs = [dataclasses.replace(job, size=best[job.threads]) for job in dict.fromkeys((several, one))]
    for job in jobs:
        row = _against_alone(scene, dataclasses.replace(job, size=1), [job], effort.rounds)[job]
        rows.append(dataclasses.replace(row, name=f"best {row.name}", aim=AIM, sense=">="))
    prior = dataclasses.replace(jobs[0], prior=True)
    rows += _against_alone(scene, dataclasses.replace(prior, size=1), [prior], effort.rounds).values()
    rows.append(_side_by_side(scene, device, jobs[0], jobs[-1], effort.rounds))
    rows.append(_automatic(scene, device, dataclasses.replace(one, size=best[one.threads]), effort.rounds))
    return rows


def _against_alone(scene: Scene, alone: Job, packs: Sequence[Job], rounds: int) -> dict[Job, Row]:
    """One row for each pack; the pack and the lone run take turns."""
    variants = {job: functools.partial(time_pack, scene, job) for job in (alone, *packs)}
    times = _take_turns(variants, max(2, rounds))
    return {job: Row(_name(job), ratio_of(job.size * times[alone], times[job])) for job in packs}


def _take_turns(variants: Mapping[Job, Callable[[], float]], rounds: int) -> dict[Job, np.ndarray]:
    order = random.Random(0)
    times: dict[Job, list[float]] = {job: [] for job in variants}
    for _ in range(rounds):
        for job in order.sample(list(variants), len(variants)):
            times[job].append(variants[job]())
    return {job: np.array(values) for job, values in times.items()}


def _name(job: Job) -> str:
    prior = ", with prior preservation" if job.prior else ""
    return f"pack of {job.size} against its cells alone, {_threads(job)}{prior}"


def _threads(job: Job) -> str:
    return counted(job.threads, "thread")


# Processes side by side.


def _side_by_side(scene: Scene, device: str, whole: Job, part: Job, rounds: int) -> Row:
    """Cells done in a second by one-thread processes on every core, over those of this process with all threads."""
    count = max(2, whole.threads // part.threads)
    together, single = [], []
    with _workers(scene.place, device, count) as team:
        for number in range(max(2, rounds)):
            for side in (True, False) if number % 2 else (False, True):
                if side:
                    together.append(sum(part.size / seconds for seconds in _ask(team, part)))
                else:
                    single.append(whole.size / time_pack(scene, whole))
    name = f"{counted(count, 'process')} ({_threads(part)}, packs of {part.size}) against one ({_threads(whole)}, {whole.size})"
    return Row(name, ratio_of(together, single))


def _ask(team: Sequence[Connection], job: Job) -> list[float]:
    for connection in team:
        connection.send(job)
    return [connection.recv() for connection in team]


@contextmanager
def _workers(place: Place, device: str, count: int) -> Iterator[list[Connection]]:
    """Processes with a loaded scene each, waiting for jobs."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(count)]
    team = [context.Process(target=_serve, args=(theirs, place, device), daemon=True) for _, theirs in pipes]
    try:
        for process, (_, theirs) in zip(team, pipes):
            process.start()
            theirs.close()
        for ours, _ in pipes:
            ours.recv()  # loaded
        yield [ours for ours, _ in pipes]
    finally:
        for (ours, _), process in zip(pipes, team):
            ours.close()
            process.join(timeout=10)
            process.terminate()


def _serve(connection: Connection, place: Place, device: str) -> None:
    scene = Scene(place, device)
    connection.send(True)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(time_pack(scene, job))


# The size that is found automatically.


def _automatic(scene: Scene, device: str, best: Job, rounds: int) -> Row:
    """A cell's cost at the size that calibration picks, over its cost at the best size measured here."""
    part = scene.place.part
    setting = Setting(
        model=part("pipeline"), dino=part("dino"), clip=part("clip"), subjects=part("subjects"), token="sks",
        instance_prompt="", runs="", device=device,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="plateau-bench-") as folder, patch.dict(os.environ, XDG_CACHE_HOME=folder):
        picked = calibrate(setting, scene.make_cells(METHOD, 1, rank=RANK)[0], "auto").pack_size
    job = dataclasses.replace(best, size=picked)
    name = f"a cell's cost at --pack-size auto ({picked}) over that at the best size ({best.size}), {_threads(best)}"
    variants = {j: functools.partial(time_pack, scene, j) for j in (job, best)}
    times = _take_turns(variants, max(2, rounds))
    return Row(name, ratio_of(times[job] / job.size, times[best] / best.size), aim=1.05)
