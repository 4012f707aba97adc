"""The state of a sweep, from its packs' states: cells of each status, and the time left. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.errors import printable
from adapters.words import counted
from slurm.store.pack_states import PackState
from slurm.store.states import PackStatus
from training.states import RunStatus

STATUSES: tuple[str, ...] = (RunStatus.PLANNED, PackStatus.QUEUED, *list(RunStatus)[1:])  # of cells


@dataclass(frozen=True)
class SweepState:
    """One sweep.

    Attributes:
        folder: `<runs>/<sweep>`.
        packs: how each stands.
        expected_s: seconds that packs are expected to take, by name, where that is known.
    """

    folder: Path
    packs: list[PackState]
    expected_s: Mapping[str, float] = field(default_factory=dict)

    def only(self, names: Collection[str], expected_s: Mapping[str, float] | None = None) -> SweepState:
        """Some of the packs."""
        packs = [pack for pack in self.packs if pack.name in names]
        return SweepState(self.folder, packs, self.expected_s if expected_s is None else expected_s)

    def cells(self) -> dict[str, int]:
        """Number of cells of each status, none left out."""
        counts: Counter[str] = Counter(dict.fromkeys(STATUSES, 0))
        for pack in self.packs:
            counts.update(pack.counts)
        return dict(counts)

    def unseen(self) -> dict[str, int]:
        """Number of cells of each status that were not seen to have it."""
        counts: Counter[str] = Counter()
        for pack in self.packs:
            counts[pack.state] += pack.num_cells if pack.unseen else 0
        return dict(+counts)

    def told(self) -> dict[str, str]:
        """Words for the cells of each status that there is: `6 running (2 of them not seen)`."""
        cells, unseen = self.cells(), self.unseen()
        told: dict[str, str] = {name: f"{cells[name]} {name}" for name in STATUSES if cells[name]}
        for name in unseen.keys() & told.keys():
            told[name] += f" ({'' if unseen[name] == cells[name] else f'{unseen[name]} of them '}not seen)"
        return told

    def time_left(self) -> str:
        """`3 min 05 s left`; "" where nobody works."""
        if not any(pack.state == PackStatus.RUNNING for pack in self.packs):
            return ""
        left = self.seconds_left()
        return "time left not measured yet" if left is None else f"{duration(left)} left"

    def seconds_left(self) -> float | None:
        """Expected seconds until all is done by as many workers as there are now; None if unknown.

        A pack takes as long as those that have ended did on average, or, as far as that is known, what was expected of it
        times how far off that was for those.
        """
        running = [pack for pack in self.packs if pack.state == PackStatus.RUNNING]
        waiting = [pack for pack in self.packs if pack.state == PackStatus.QUEUED or pack.is_missing]
        known = [(pack.seconds, pack.name) for pack in self.packs if pack.seconds > 0]
        known = known or [(pack.steps / pack.rate, pack.name) for pack in running if pack.rate]
        took, expected = sum(seconds for seconds, _ in known), sum(self.expected_s.get(name, 0.0) for _, name in known)

        def whole(pack: PackState) -> float | None:
            if own := self.expected_s.get(pack.name):
                return own * (took / expected if expected else 1.0)
            return took / len(known) if known else None

        left = [max(0, p.steps - p.step) / p.rate if p.rate else whole(p) for p in running]
        later = [whole(pack) for pack in waiting]
        if not running or None in (*left, *later):
            return None if running or waiting else 0.0
        rest = [seconds for seconds in (*left, *later) if seconds is not None]
        return max(*rest[: len(running)], sum(rest) / len(running))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "sweep": self.folder.name, "folder": str(self.folder), "cells": self.cells(),
            "seconds_left": self.seconds_left(), "packs": [dataclasses.asdict(pack) for pack in self.packs],
        }  # fmt: skip

    def line(self) -> str:
        """One line: how many cells of each status, and the time left."""
        told = {RunStatus.FINISHED: "0 finished"} | self.told()
        words = ", ".join(told[name] for name in STATUSES if name in told)
        rest = f"; {self.time_left()}" if self.time_left() else ""
        return f"{printable(self.folder.name)}: {counted(sum(self.cells().values()), 'cell')}: {words}{rest}"


def duration(seconds: float | None) -> str:
    """Seconds as `2 min 05 s` or `3 h 10 min`."""
    if seconds is None:
        return "unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
