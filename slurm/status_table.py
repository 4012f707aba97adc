"""How sweeps stand, for people and for programs: a table, a line, and JSON.

`python -m slurm.status --json` writes {"schema": 1, "time": ISO 8601, "note": why SLURM could not be asked or "", "sweeps":
[{"sweep": name, "folder": path, "cells": {status: number}, "seconds_left": number or null, "packs": [...]}]}. A pack has the
fields of `slurm.survey.PackState`. Fields may be added; those that are there keep their meaning.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from adapters import counted, printable
from slurm.states import PackStatus
from slurm.survey import PackState
from training.states import RunStatus

SCHEMA = 1
STATUSES: tuple[str, ...] = (RunStatus.PLANNED, PackStatus.QUEUED, *list(RunStatus)[1:])  # of cells
COLOURS: dict[str, str] = {
    RunStatus.RUNNING: "cyan", RunStatus.FINISHED: "green", RunStatus.DIVERGED: "yellow", RunStatus.PREEMPTED: "magenta",
    RunStatus.FAILED: "red",
}  # fmt: skip


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


def to_json(sweeps: Iterable[SweepState], note: str) -> dict[str, Any]:
    """Everything, for programs."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"schema": SCHEMA, "time": now, "note": note, "sweeps": [sweep.to_dict() for sweep in sweeps]}


def plain_lines(sweeps: Iterable[SweepState], note: str) -> list[str]:
    """For files and pipes: one line a sweep, and one for each failure."""
    lines = []
    for sweep in sweeps:
        lines.append(sweep.line())
        lines += [f"  {pack.name} {describe(pack)}" for pack in sweep.packs if is_trouble(pack)]
        lines += [f"  {line}" for line in reasons(sweep.packs)]
    return [*lines, *([f"  {note}"] if note else [])]


def is_trouble(pack: PackState) -> bool:
    """Whether a pack needs to be told of: it failed, was stopped or killed, its job died, or it waits for somebody."""
    died = pack.state == PackStatus.PLANNED and pack.log is not None
    return (
        pack.state in (PackStatus.FAILED, PackStatus.PREEMPTED)
        or pack.stuck
        or died
        or bool(pack.counts.get(RunStatus.FAILED))
    )


def describe(pack: PackState) -> str:
    """A pack's state, its error, and where to read about it."""
    state = PackStatus.FAILED if pack.counts.get(RunStatus.FAILED) else pack.state
    log = f" (see {pack.log})" if pack.log else ""
    return printable(f"{state}{': ' if pack.error else ''}{pack.error}{log}")


def draw(sweeps: Sequence[SweepState], note: str, rows: int) -> Any:
    """The live table.

    Args:
        sweeps: what to show.
        note: a remark below.
        rows: how many packs are shown at most, over all sweeps.
    """
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = []
    for sweep in sweeps:
        cells = sweep.cells()
        done = cells[RunStatus.FINISHED] + cells[RunStatus.DIVERGED]
        parts.append(_headline(sweep))
        bar = Table.grid(padding=(0, 2))  # a bar alone does not end its line
        bar.add_row(ProgressBar(total=max(1, sum(cells.values())), completed=done, width=60), sweep.time_left())
        parts.append(bar)
        parts += _packs(sweep.packs, max(4, rows // max(1, len(sweeps))))
    return Group(*parts, *([Text(note, style="yellow")] if note else []))


def _headline(sweep: SweepState) -> Any:
    from rich.text import Text

    head = Text(f"{printable(sweep.folder.name)}  ", style="bold")
    for name, words in sweep.told().items():
        head.append(f"{words}  ", style=f"not bold {COLOURS.get(name, 'default')}")
    return head


def _packs(packs: Sequence[PackState], rows: int) -> list[Any]:
    """Tables of the packs that run and of those in trouble, and why others wait."""
    from rich.table import Table
    from rich.text import Text

    running = [pack for pack in packs if pack.state == PackStatus.RUNNING]
    trouble = [pack for pack in packs if is_trouble(pack)]
    parts: list[Any] = []
    for shown, heads in (
        (running, ("pack", "cells", "where", "doing", "step", "steps/s", "loss", "distance", "")),
        (trouble, ("pack", "")),
    ):
        table = Table(*heads, box=None, pad_edge=False, header_style="dim")
        for pack in shown[:rows]:
            cells = _row(pack) if shown is running else (pack.name, describe(pack))
            table.add_row(*(Text(cell, overflow="fold") for cell in cells))  # as text: a name is no markup
        parts += [table] if shown else []
        if len(shown) > rows:
            parts.append(Text(f"... and {len(shown) - rows} more", style="dim"))
    return [*parts, *(Text(line, style="dim") for line in reasons(packs))]


def reasons(packs: Iterable[PackState]) -> list[str]:
    """Why packs wait, and why some were not seen: the commonest reasons."""
    packs = list(packs)
    waits = Counter(pack.error for pack in packs if pack.state == PackStatus.QUEUED and pack.error and not pack.stuck)
    unseen = Counter((pack.state, pack.unseen) for pack in packs if pack.unseen)
    return [
        *(f"{counted(count, 'pack')} waiting: {printable(reason)}" for reason, count in waits.most_common(3)),
        *(f"{counted(n, 'pack')} {state}, but not seen: {printable(why)}" for (state, why), n in unseen.most_common(3)),
    ]


def _row(pack: PackState) -> tuple[str, ...]:
    where = f"{pack.host} {pack.job}".strip()
    step, rate = f"{pack.step}/{pack.steps}", f"{pack.rate:.2g}" if pack.rate else ""
    remarks = "; ".join(filter(None, (pack.error, pack.unseen)))
    return pack.name, str(pack.num_cells), where, pack.phase, step, rate, pack.loss, pack.distance, remarks


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
