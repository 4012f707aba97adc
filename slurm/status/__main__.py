"""How sweeps stand: a live table, from run folders, heartbeats and at most one query to SLURM a look.

    python -m slurm.status                     # every sweep in runs/, until nothing is left that can end
    python -m slurm.status runs/lr_robustness  # one sweep
    python -m slurm.status --once --json       # for programs; slurm/status/table.py has the schema
    python -m slurm.status --wait              # exit code 0: all done; 1: something failed; 3: nobody works on what is left;
                                               # meanwhile packs that the cluster had no room for are sent
    python -m slurm.status --retry failed      # failed runs are to be tried again; the sweep's own command sends them
    python -m slurm.status --cancel            # ends jobs and workers; everything computed is checkpointed

Works without accounting and without any SLURM.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from adapters.errors import BadInput, printable
from adapters.words import counted
from slurm.status.monitor import Monitor, exit_code, has_ended
from slurm.status.screen import Screen
from slurm.status.table import draw, plain_lines, to_json
from slurm.store.outcome import reopen_failed
from slurm.store.pack_states import PackState, Surveyor, survey
from slurm.store.queue import Scheduler
from slurm.store.states import PackStatus
from slurm.store.sweep_state import SweepState
from slurm.submit.cancel import cancel
from slurm.submit.resubmit import Resubmitter
from training.command_line import run_program

__all__ = ["PackState", "Surveyor", "survey"]


@dataclass(frozen=True)
class Options:
    """Flags of the status."""

    folder: tyro.conf.Positional[Path] = Path("runs")
    """A runs folder, or one sweep's folder in it."""
    once: bool = False
    """Look once and exit."""
    watch: bool = False
    """Go on looking when nothing is left that can end."""
    json: bool = False
    """Print JSON instead of a table, once, or at the end of --wait."""
    wait: bool = False
    """Exit when nothing is left that can end: 0 all done, 1 something failed, 3 something is left that nobody works on."""
    retry: Literal["failed"] | None = None
    """Have failed runs tried again: the sweep's own command sends them."""
    cancel: bool = False
    """Cancel the sweep's jobs, and stop its workers of this machine."""
    every_s: float = 5.0
    """Seconds between two looks."""


def main(options: Options) -> int:
    """Show, wait, retry or cancel.

    Raises:
        BadInput: if there is no sweep, or if SLURM refuses to cancel.
    """
    if not (math.isfinite(options.every_s) and options.every_s > 0):
        raise BadInput(f"--every-s is {options.every_s}; allowed: a positive number")
    board = Monitor(options.folder, Scheduler() if Scheduler.is_here() else None)
    if options.retry or options.cancel:
        return _act(board, options)
    if options.once or (options.json and not options.wait):
        sweeps = board.look()
        if any(surveyor.doubts for surveyor in board.surveyors.values()):
            sweeps = board.look()
    else:
        sweeps = _follow(board, options)
    _show(board, sweeps, options)
    return exit_code(sweeps) if options.wait else 0


def _act(board: Monitor, options: Options) -> int:
    """Retry and cancel."""
    sweeps, lines = board.look(), []
    for sweep in sweeps:
        surveyor = board.surveyors[sweep.folder]
        if options.retry:
            found = reopen_failed(surveyor.files)
            runs = sum(map(len, found.values()))
            told = f"{counted(runs, 'failed run')} of {counted(len(found), 'pack')} will be tried again"
            others = sum(pack.state == PackStatus.FAILED for pack in sweep.packs)
            told += f"; {counted(others, 'pack')} failed before a run did" if others else ""
            rest = ": give the sweep's own command to send them" if runs or others else ""
            lines.append(f"{printable(sweep.folder.name)}: {told}{rest}")
        if options.cancel:
            scheduler = board.scheduler if isinstance(board.scheduler, Scheduler) else None
            done = cancel(surveyor, sweep.packs, scheduler)
            lines += [f"{printable(sweep.folder.name)}: {line}" for line in done or ["nothing to cancel"]]
    print("\n".join(lines))
    return 0


def _follow(board: Monitor, options: Options) -> list[SweepState]:
    """Look again and again; ends when all has ended, two looks in a row find nothing that can still end, or at Ctrl-C.

    Whoever waits also sends what the cluster had no room for.
    """
    quiet = 0
    later = Resubmitter(board.scheduler) if options.wait and isinstance(board.scheduler, Scheduler) else None
    sweeps = board.look()
    moves = board.may_change(sweeps)
    try:
        with Screen(is_silent=options.json) as screen:
            while options.watch or not (quiet >= 2 or has_ended(sweeps)):
                screen.show(sweeps, board.note)
                if later is not None and (sent := later.send(sweeps, at_once=not moves)):
                    screen.say(sent)
                    quiet = 0
                time.sleep(options.every_s)
                sweeps = board.look()
                moves, full = board.may_change(sweeps), later is not None and bool(later.waiting)
                quiet = 0 if moves or full else quiet + 1
    except KeyboardInterrupt:
        if options.wait:
            raise
    return sweeps


def _show(board: Monitor, sweeps: list[SweepState], options: Options) -> None:
    """The last look."""
    if options.json:
        print(json.dumps(to_json(sweeps, board.note), allow_nan=False))
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(draw(sweeps, board.note, 40))
    else:
        print("\n".join(plain_lines(sweeps, board.note)))


if __name__ == "__main__":
    sys.exit(run_program(Options, main, __doc__ or ""))
