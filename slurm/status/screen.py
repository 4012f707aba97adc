"""Show sweeps while they run: a live table on a terminal; elsewhere a line at each change, or once a minute."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from types import TracebackType

from slurm.status.table import draw
from slurm.store.sweep_state import SweepState

LINE_S = 60.0  # between two lines that say the same, where stdout is no terminal
BELOW = 6  # lines of a terminal that are left to what is said below the table


class Screen:
    """Standard output while something is waited for.

    Args:
        is_silent: whether to show nothing, since what is printed at the end is for programs.
    """

    def __init__(self, is_silent: bool = False) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console, self.is_silent = Console(), is_silent
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self._said, self._said_at = [""], -math.inf

    def __enter__(self) -> Screen:
        if self.console.is_terminal and not self.is_silent:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def show(self, sweeps: Sequence[SweepState], note: str = "") -> None:
        """How sweeps stand now, and a remark."""
        if self.is_silent:
            return
        if self.console.is_terminal:
            self.live.update(draw(sweeps, note, self.console.height - BELOW), refresh=True)
            return
        lines = [*(sweep.line() for sweep in sweeps), *([note] if note else [])]
        words = [line.partition(";")[0] for line in lines]  # the time left is no news
        if words != self._said or time.monotonic() - self._said_at > LINE_S:
            self.say([f"{time.strftime('%H:%M:%S')} {line}" for line in lines])
            self._said, self._said_at = words, time.monotonic()

    def say(self, lines: Sequence[str]) -> None:
        """Print lines that stay."""
        for line in lines:
            self.console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
