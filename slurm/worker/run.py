"""Run packs from their specifications: everything that a job does, wherever it runs.

    python -m slurm.job runs/<sweep>/packs/<pack>.json ... [--code VERSION]
    python -m slurm.job --sent runs/<sweep>/submissions/<token>.json [TASK]  # a task's packs of an array that was sent
    python -m slurm.job -                                                   # a JSON list of packs comes on standard input

A job that SLURM warns (`--signal=B:URG@90`, or USR2) checkpoints and has itself requeued, whatever its time limit.
SIGTERM or SIGINT: it checkpoints and stops; its runs are `preempted`, and the same command goes on with them.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from adapters.errors import BadInput
from adapters.words import counted
from slurm.store.code_version import code_version
from slurm.store.layout import PackFiles, SweepFolder, read_contents, sweep_of
from slurm.store.leases import BEAT_S, JobGone, Owner, StalenessTracker, take
from slurm.store.outcome import has_failed, read_ended
from slurm.store.queue import Scheduler
from slurm.store.states import Outcome, Sent
from slurm.worker.attempt import N_TRIES, Attempt
from slurm.worker.own_job import is_preempted, is_to_go_on, requeue
from training.loop import Interrupted
from training.pack import Setting, list_runs, make_task
from training.process_setup import keep_freed_memory, quiet_libraries
from training.run import Progress, Run
from training.shared_file_system import SETTLE_S, wait_for_file
from training.stop import STOPPED, WARNINGS, StopSignals
from training.store import StoreError, read_json

__all__ = ["Setting", "make_task", "run_pack", "run_sent", "run_task"]
_WATCH = StalenessTracker()  # what this process has seen of other holders


def run_pack(
    path: Path,
    report: Callable[[Progress], None] = lambda progress: None,
    *,
    stop: Callable[[], bool] | None = None,
    job_gone: JobGone | None = None,
) -> Outcome:
    """Run one pack, once: a pack that another process holds is left to it.

    Args:
        path: the pack's JSON specification, `<runs>/<sweep>/packs/<pack>.json`.
        report: called with the progress.
        stop: asked often whether to stop; None: after a signal.
        job_gone: asks SLURM about other holders.

    Returns:
        `Outcome.DONE`, `HELD` (by another process) or `FAILED` (the traceback is in the run.json).

    Raises:
        BadInput: if the disk is full, a folder cannot be written, or an input changed since the plan.
        Interrupted: when asked to stop, with everything checkpointed.
    """
    contents, files = read_contents(path), PackFiles.of(path)
    runs = list_runs(sweep_of(path).path, contents)
    while (end := read_ended(files)) is None or not _is_final(end, runs):
        claim = take(files, _WATCH, job_gone, code=code_version())
        if claim is None:
            return Outcome.HELD
        Attempt(claim, path, contents, runs, report, stop).play()
    return Outcome.FAILED if has_failed(end) else Outcome.DONE


def _is_final(end: dict, runs: list[Run]) -> bool:
    """Whether what is written down about a pack's end still holds: a damaged run may have been set aside since."""
    return has_failed(end) or all(run.folder.exists() for run in runs)


def run_all(paths: Sequence[Path], run: Callable[[Path], Outcome], stop: Callable[[], bool], pause_s: float) -> None:
    """Run packs in order, then wait for those that other processes hold: should a holder die, its pack is taken over.

    Args:
        paths: the specifications.
        run: runs one, and says `Outcome.HELD` if another process has it.
        stop: says whether to stop.
        pause_s: seconds between two looks at busy packs.

    Raises:
        Interrupted: when asked to stop.
    """
    pending = list(paths)
    while pending:
        for path in list(pending):
            if stop():
                raise Interrupted
            if run(path) != Outcome.HELD:
                pending.remove(path)
        pause(pause_s if pending else 0.0, stop)


def pause(seconds: float, stop: Callable[[], bool]) -> None:
    """Sleep, but not past a request to stop."""
    end = time.monotonic() + seconds
    while not stop() and time.monotonic() < end:
        time.sleep(min(0.1, seconds))


def run_task(
    specs: Sequence[str], code: str = "", job_gone: JobGone | None = None, stop: StopSignals | None = None
) -> None:
    """Run packs as a task of a job does; what a pack cannot do is told on stderr, and the others go on.

    Args:
        specs: paths of the packs' specifications.
        code: the version of the code that was submitted; "" does not ask.
        job_gone: asks SLURM about other holders; None: as a job of it does.
        stop: what listens to signals already; None: it begins here.

    Raises:
        BadInput: if the code is another one; at the end, if packs could not be run.
    """
    if stop is None:
        with StopSignals() as stop:
            return run_task(specs, code, job_gone, stop)
    paths, errors = [Path(spec) for spec in specs], []
    if job_gone is None and Owner.me().job and Scheduler.is_here():
        job_gone = Scheduler().job_gone
    quiet_libraries()
    moves = Moves()
    keep_freed_memory()
    check_code(paths, code, job_gone)

    def run(path: Path) -> Outcome:
        try:
            return run_pack(path, moves.note, stop=stop, job_gone=job_gone)
        except BadInput as error:
            print(error, file=sys.stderr)
            errors.append(error)
            return Outcome.FAILED

    try:
        run_all(paths, run, stop, min(5.0, BEAT_S))
    except Interrupted:
        print(f"stopped by {signal.Signals(stop.received).name}; everything computed is checkpointed", file=sys.stderr)
        me = Owner.me()  # of an array, this task alone
        if me.job and (stop.received in WARNINGS or is_to_go_on(me.job)):
            if not moves.seen and me.restart + 1 >= N_TRIES and not is_preempted(me.job):
                raise BadInput(f"{me.restart + 1} starts of job {me.job} were over before a step was done: its time "
                               "limit is too short, give the same command with a longer --time-min") from None  # fmt: skip
            requeue(me.job)
    if errors:
        raise BadInput(f"{len(errors)} of {counted(len(paths), 'pack')} could not be run; the first: {errors[0]}")


def run_fed(stop: Callable[[], bool]) -> int:
    """Run the packs that stand on standard input, as a worker of the program that feeds it: without that, it stops.

    Returns:
        The exit code: `STOPPED` when asked to stop, with everything checkpointed.

    Raises:
        BadInput: as `run_pack`.
    """
    words = sys.stdin.readline()

    def stopped() -> bool:
        return stop() or bool(select.select([sys.stdin], [], [], 0)[0])  # closed: nobody looks at what is trained

    quiet_libraries()
    keep_freed_memory()
    try:
        run_all(
            [Path(spec) for spec in json.loads(words or "[]")],
            partial(run_pack, stop=stopped),
            stopped,
            min(0.5, BEAT_S),
        )
    except (Interrupted, KeyboardInterrupt):
        return STOPPED
    return 0


def run_sent(path: Path, number: str, stop: StopSignals | None = None) -> None:
    """Run the packs of a task of an array that was sent, as its record says.

    A submission that was given up, since its job was not in the queue, has been sent anew: a job that comes all the same
    does nothing.

    Raises:
        BadInput: as `run_task`; if the record is damaged, or has no such task.
    """
    wait_for_file(path)
    record = read_json(path)
    try:
        names, code, state = record["tasks"][int(number)], str(record["code"]), record["state"]
    except (TypeError, KeyError, IndexError, ValueError):
        raise BadInput(f"{path} has no task {number}: give the sweep's own command again") from None
    if state == Sent.REFUSED:
        print(f"{path.stem} was given up ({record.get('error')}): its packs are another job's", file=sys.stderr)
        return
    run_task(find_specs(SweepFolder(path.resolve().parents[1]), names), code, stop=stop)


def find_specs(sweep: SweepFolder, names: Sequence[str]) -> list[str]:
    """Paths of packs' specifications, which may not yet be visible on this machine.

    Raises:
        StoreError: if one has not come after a while.
    """
    end = time.monotonic() + SETTLE_S
    while lost := [name for name in names if name not in (found := sweep.scan())]:
        if time.monotonic() > end:
            raise StoreError(f"no pack {lost[0]} in {sweep.packs}")
        time.sleep(SETTLE_S / 50)
    return [str(found[name].spec) for name in names]


def check_code(paths: Sequence[Path], code: str, job_gone: JobGone | None = None) -> None:
    """Refuse packs that were submitted with other code.

    Raises:
        BadInput: naming both versions, which also stands in the packs' claims.
    """
    if code in ("", code_version()):
        return
    error = (
        f"submitted with code {code}, but the checkout is now {code_version()}: nothing was run; give the same command "
        "again to run it with the present code"
    )
    for files in map(PackFiles.of, paths):
        if not files.has_ended and (claim := take(files, _WATCH, job_gone, code=code_version())):
            claim.end(Outcome.REFUSED, error=error)
    raise BadInput(error)


class Moves:
    """Whether this process has brought a pack further: a step of training, pictures of another step, or its end."""

    def __init__(self) -> None:
        self.seen = False
        self._first: dict[str, tuple[str, int]] = {}

    def note(self, progress: Progress) -> None:
        """Take in one report."""
        place = (progress.phase, progress.step)
        self.seen = self.seen or progress.phase == "done" or self._first.setdefault(progress.pack, place) != place


def main(arguments: Sequence[str], stop: StopSignals | None = None) -> int:
    """The command line; 2 if a pack could not be run."""
    words, code = list(arguments), ""
    if "--code" in words:
        at = words.index("--code")
        code = words[at + 1] if at + 1 < len(words) else "?"
        del words[at : at + 2]
    try:
        match words:
            case ["-"] if stop is not None:
                return run_fed(stop)
            case ["--sent", record, *task] if len(task) <= 1:
                number = task[0] if task else os.environ.get("SLURM_ARRAY_TASK_ID", "0")
                run_sent(Path(record), number, stop)
            case [_, *_] if not any(word.startswith("-") for word in words):
                run_task(words, code, stop=stop)
            case _:
                usage = "usage: python -m slurm.job SPEC.json ... [--code VERSION], or --sent RECORD.json [TASK]"
                print(usage, file=sys.stderr)
                return 2
    except BadInput as error:
        print(error, file=sys.stdout if words == ["-"] else sys.stderr)
        return 2
    return 0
