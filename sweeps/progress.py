"""A live table of a sweep: what is done, what each worker does, and how long the rest will take."""

from __future__ import annotations

import sys
import time
from typing import Any

from adapters import counted
from slurm.inline import Event
from slurm.status_table import duration


class ProgressDisplay:
    """Shows a sweep's progress; on a terminal as a live table, elsewhere as a line every so often.

    Args:
        num_done: cells that were done before.
        pack_cells: cells of each pack that is to run.
        pack_work: expected relative cost of each pack, for the time left.
        estimate_s: expected seconds in all, for the time left before anything was measured; None if unknown.
    """

    def __init__(
        self, num_done: int, pack_cells: dict[str, int], pack_work: dict[str, float], estimate_s: float | None
    ) -> None:
        from rich.console import Console
        from rich.live import Live

        self.num_done, self.cells, self.work = num_done, pack_cells, pack_work
        self.estimate_s, self.began = estimate_s, time.monotonic()
        self.doing: dict[int, Any] = {}
        self.fraction = dict.fromkeys(pack_cells, 0.0)
        self.failed: list[str] = []
        self.console = Console(file=sys.stdout)
        self.live = Live(self, console=self.console, refresh_per_second=4, transient=True)
        self.last_line = 0.0

    def __enter__(self) -> ProgressDisplay:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def listen(self, event: Event) -> None:
        """Take in one event of a worker."""
        if event.kind == "progress":
            progress: Any = event.value
            self.doing[event.worker] = progress
            share = progress.step / progress.steps if progress.steps else 0.0
            self.fraction[progress.pack] = max(self.fraction.get(progress.pack, 0.0), 0.9 * share)
        elif event.kind in ("done", "failed"):
            self.fraction[str(event.value)] = 1.0
            self.doing.pop(event.worker, None)
            if event.kind == "failed":
                self.failed.append(str(event.value))
        if not self.console.is_terminal and time.monotonic() - self.last_line > 10:
            self.last_line = time.monotonic()
            self.console.print(self._headline(), highlight=False, markup=False, emoji=False, soft_wrap=True)

    def cells_done(self) -> int:
        """Cells that have ended so far."""
        return self.num_done + sum(n for pack, n in self.cells.items() if self.fraction.get(pack, 0.0) >= 1)

    def seconds_left(self) -> float | None:
        """Expected seconds until the end: the rate so far, blended with the estimate while little is known."""
        total = sum(self.work.values())
        share = sum(self.work[pack] * self.fraction[pack] for pack in self.work) / total if total else 1.0
        spent = time.monotonic() - self.began
        measured = spent * (1 - share) / share if share > 0.02 else None
        planned = max(0.0, self.estimate_s - spent) if self.estimate_s else None
        if measured is None or planned is None:
            return planned if measured is None else measured
        weight = min(1.0, share / 0.3)
        return weight * measured + (1 - weight) * planned

    def _headline(self) -> str:
        total = self.num_done + sum(self.cells.values())
        left = self.seconds_left()
        rows = [f"pack {p.pack} {p.phase} {p.step}/{p.steps}" for p in self.doing.values()]
        return f"{self.cells_done()}/{counted(total, 'cell')}, {duration(left)} left; {'; '.join(rows)}"

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        total = self.num_done + sum(self.cells.values())
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name, justify in (("worker", "right"), ("pack", "left"), ("cells", "right"), ("doing", "left"), ("step", "right"),
                              ("loss", "right"), ("distance", "right"), ("diverged", "right")):  # fmt: skip
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for worker, p in sorted(self.doing.items()):
            table.add_row(
                str(worker + 1), Text(p.pack), str(self.cells.get(p.pack, "")), p.phase, f"{p.step}/{p.steps}",
                span(p.losses, "{:.3f}"), span(p.distances, "{:.3g}"), str(p.diverged or ""),
            )  # fmt: skip
        head = Text(f"{self.cells_done()} of {counted(total, 'cell')}   {duration(time.monotonic() - self.began)} spent   "
                    f"{duration(self.seconds_left())} left")  # fmt: skip
        return Group(head, ProgressBar(total=1.0, completed=self._share(), width=60), table)

    def _share(self) -> float:
        total = sum(self.work.values())
        return sum(self.work[pack] * self.fraction[pack] for pack in self.work) / total if total else 1.0


def span(values: list[float], form: str) -> str:
    """The smallest and the largest of a pack's values."""
    finite = [v for v in values if v == v and abs(v) != float("inf")]
    if not finite:
        return "" if not values else "not finite"
    low, high = form.format(min(finite)), form.format(max(finite))
    return low if low == high else f"{low} to {high}"
