"""A run's place in a pack, and the progress that a pack reports."""

from __future__ import annotations

from dataclasses import dataclass

from training.cell import Cell
from training.store import RunFolder


@dataclass(frozen=True)
class Run:
    """One replica's place in a pack.

    Attributes:
        cell: what to train.
        folder: where it goes.
        labels: names that do not change the result (multiplier, model's name, sweep), kept for the reader.
    """

    cell: Cell
    folder: RunFolder
    labels: dict


@dataclass(frozen=True)
class Progress:
    """What a progress display needs to know about a pack.

    Attributes:
        pack: the pack's name.
        phase: "training", "scoring" or "done".
        step, steps: where it is.
        losses, distances: last values of each replica.
        diverged: how many replicas have diverged.
    """

    pack: str
    phase: str
    step: int
    steps: int
    losses: list[float]
    distances: list[float]
    diverged: int
