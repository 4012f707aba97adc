"""Draw what has ended while the rest of a sweep goes on: whole subjects only, and marked as provisional."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from adapters.errors import BadInput
from adapters.words import counted, plural
from slurm.store.reader import SweepReader
from sweeps.work import Sweep
from training.states import ENDED
from training.store import StoreError

SHARE = 0.05  # of the time that drawing may take from the training
Draw = Callable[[Sequence[str], str], Path]  # of the subjects, and what is said of them; returns the page


class EarlyAnswers:
    """Draws in a thread whenever another subject is whole.

    Args:
        sweep: the sweep.
        draw: draws those subjects, with a sentence that says that they are not all.
    """

    def __init__(self, sweep: Sweep, draw: Draw) -> None:
        self.sweep, self.draw = sweep, draw
        self.lines: list[str] = []
        self._files = SweepReader(sweep.plan.sweep)
        self._thread: threading.Thread | None = None
        self._drawn, self._next_s, self._num_ended = 0, 0.0, 0

    def look(self, num_ended: int) -> list[str]:
        """Begin to draw if there is something new and nothing is being drawn.

        Args:
            num_ended: packs that have ended; only where it has changed the files are looked at.

        Returns:
            What is to be said since the last look.
        """
        said, self.lines = self.lines, []
        is_free = self._thread is None or not self._thread.is_alive()
        if num_ended != self._num_ended and is_free and time.monotonic() >= self._next_s:
            self._num_ended, whole = num_ended, self.find_whole()
            if len(whole) > self._drawn and len(whole) < len(self.sweep.subjects):
                self._drawn = len(whole)
                self._thread = threading.Thread(target=self._draw_timed, args=(whole, "the sweep goes on"), daemon=True)
                self._thread.start()
        return said

    def close(self) -> None:
        """Wait until nothing is being drawn."""
        if self._thread is not None:
            self._thread.join()

    def stop(self) -> str:
        """Draw what there is of a sweep that was stopped; returns the words for it, "" if no subject is whole."""
        self.close()
        if not (whole := self.find_whole()):
            return ""
        self.lines = []
        self._draw(whole, "the sweep was stopped")
        return self.lines[-1] if self.lines else ""

    def find_whole(self) -> list[str]:
        """The subjects of which every cell has ended, the base model's too, in the sweep's order."""
        self._files.refresh()
        ended = {
            run_id
            for ending in self._files.endings.values()
            for run_id, status in ending.get("runs", {}).items()
            if status in ENDED
        }
        return [name for name in self.sweep.subjects if self._runs.get(name, set()) <= ended]

    @functools.cached_property
    def _runs(self) -> dict[str, set[str]]:
        """The runs that this sweep trains, by subject."""
        ids, found = self.sweep.plan.run_ids(), dict[str, set[str]]()
        for p in self.sweep.ours:
            found.setdefault(p.cell.subject, set()).add(ids[p.cell.identity()])
        return found

    def _draw_timed(self, whole: Sequence[str], why: str) -> None:
        began = time.monotonic()
        self._draw(whole, why)
        took_s = time.monotonic() - began
        self._next_s = time.monotonic() + took_s / SHARE

    def _draw(self, whole: Sequence[str], why: str) -> None:
        unit = self.sweep.inputs.kind.unit
        count = f"{len(whole)} of {counted(len(self.sweep.subjects), unit)}"
        try:
            page = self.draw(
                whole,
                f"Provisional, {count}: {why}. More {plural(unit)} narrow the intervals; no verdict yet.",
            )
        except (BadInput, StoreError) as error:
            self.lines.append(f"nothing could be drawn of {count} yet: {error}")
            return
        self.lines.append(f"drawn so far, {count}: {page}")
