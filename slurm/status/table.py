"""How sweeps stand as a table, a line and JSON.

`python -m slurm.status --json` writes {"schema": 1, "time": ISO 8601, "note": why SLURM could not be asked or "", "sweeps":
[{"sweep": name, "folder": path, "cells": {status: number}, "seconds_left": number or null, "packs": [...]}]}. A pack has the
fields of `slurm.store.pack_states.PackState`. Fields may be added; those that are there keep their meaning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from adapters.errors import printable
from adapters.words import counted
from slurm.store.pack_states import PackState
from slurm.store.states import PackStatus
from slurm.store.sweep_state import SweepState
from training.states import RunStatus

SCHEMA = 1
COLOURS: dict[str, str] = {
    RunStatus.RUNNING: "cyan", RunStatus.FINISHED: "green", RunStatus.DIVERGED: "yellow", RunStatus.PREEMPTED: "magenta",
    RunStatus.FAILED: "red",
}  # fmt: skip


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
    failed = pack.counts.get(RunStatus.FAILED) if pack.state == PackStatus.ENDED else None
    state = f"{pack.state}, {counted(failed, 'run')} failed" if failed else pack.state
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
