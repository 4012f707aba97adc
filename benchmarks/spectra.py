"""The cost of the updates' spectra: seconds of a snapshot with and without them, and of counting intruder dimensions.

Weights are moved at random and nothing is trained. A run with `--spectra` takes eleven snapshots and counts intruders once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from adapters import parse_method
from adapters.inject import attach
from adapters.pack import Attached
from benchmarks.rows import Row
from benchmarks.scene import Effort, Place, Scene, threads
from benchmarks.timing import clock, mean_of
from training import spectra
from training.dynamics import Dynamics

PACK, THREADS = 8, 1
METHODS = ("lora", "delora", "dora", "oft", "full")  # factors, a frozen start; gains, blocks, whole weights


def measure(place: Place, device: str, effort: Effort) -> list[Row]:
    """Three rows a method: what spectra add to a snapshot of a pack, and what intruders cost at its end."""
    scene, rows = Scene(place, device), []
    with threads(THREADS):
        for method in METHODS:
            cells = scene.make_cells(method, PACK)
            boundary = [cell.boundary for cell in cells if cell.boundary is not None] or None
            attached = attach(
                scene.pipeline.unet,
                parse_method(method),
                seeds=list(range(PACK)),
                rank=cells[0].rank,
                boundary=boundary,
            )
            try:
                attached.flat.add_(0.01 * torch.randn_like(attached.flat))
                rows += measure_method(attached, f"in a pack of {PACK}, {method}", effort.rounds)
            finally:
                attached.detach()
    return rows


def measure_method(attached: Attached, where: str, rounds: int) -> list[Row]:
    """The rows of one method."""
    without, with_spectra = Dynamics(attached), Dynamics(attached, spectra=True)
    adapters = [stack.adapter for stack in attached.stacks]
    work: dict[str, Callable[[], object]] = {
        "snapshot of the norms alone": lambda: without.snapshot(1),
        "snapshot with the updates' spectra": lambda: with_spectra.snapshot(1),
        "intruder dimensions, once a run": lambda: [spectra.count_intruders(adapter) for adapter in adapters],
    }
    rows = []
    for name, call in work.items():
        call()  # W_0's decomposition is made once in a process
        seconds = []
        for _ in range(rounds):
            began = clock(attached.flat.device)
            call()
            seconds.append(clock(attached.flat.device) - began)
        rows.append(Row(f"{name}, {where}", mean_of(seconds), unit="s"))
    return rows
