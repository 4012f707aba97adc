"""Packs run in worker processes of this machine, which take turns at them."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters import BadInput
from slurm.claims import Holder
from slurm.gpus import choose_gpu, list_gpus, showing
from training.memory_advice import machine_mib
from training.stop import Interrupted, StopSignals, describe_exit, is_shrugged_off
from training.store import StoreError

WORKER_MIB = 2048.0  # set aside for a worker whose memory was not measured
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # to the workers, which checkpoint and stop
POLL_S = 0.5  # between two looks at packs that other processes hold


@dataclass(frozen=True)
class Event:
    """One thing that a worker says.

    Attributes:
        kind: "progress", "done", "failed", "error" (stops everything) or "stopped".
        worker: number of the worker.
        value: a `training.run.Progress`, a pack's name, or a text.
    """

    kind: str
    worker: int
    value: object


def choose_workers(num_packs: int, device: str, each_mib: float = WORKER_MIB) -> tuple[int, int]:
    """How many worker processes, and threads for each.

    On a CPU, one-thread processes side by side beat one process with many threads (`benchmarks/packs.py`); memory
    and the number of packs limit them. Each GPU has one.
    """
    workers = max(1, min(num_packs, num_workers(device, each_mib)))
    if device != "cpu":
        return workers, 0
    return workers, max(1, len(os.sched_getaffinity(0)) // workers)


def num_workers(device: str, each_mib: float) -> int:
    """How many workers of a size this machine holds: one a core as far as memory goes, or one for each GPU."""
    count = min(len(os.sched_getaffinity(0)), int(machine_mib() / each_mib)) if device == "cpu" else len(list_gpus())
    return max(1, count)


def run_inline(specs: Sequence[Path], *, workers: int, listen: Callable[[Event], None], device: str = "cpu") -> str:
    """Run packs in worker processes until all have ended.

    Args:
        specs: the packs' JSON specifications.
        workers: number of processes.
        listen: called with every event.
        device: "cpu", or "cuda", of which each worker sees one GPU.

    Returns:
        "done", or "stopped" after a signal; what was computed is checkpointed.

    Raises:
        StoreError: as the worker that met it says; the others have stopped with checkpoints.
    """
    context = multiprocessing.get_context("spawn")
    events = context.Queue()
    paths = [str(path) for path in specs]
    team = [context.Process(target=work, args=(paths, n, events, Holder.me()), daemon=False) for n in range(workers)]
    outcome, error = "done", None
    heeded = [number for number in PASSED_ON if not is_shrugged_off(number)]
    heard: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        heard.append(number)
        _pass_on(team, number)

    before = {number: signal.signal(number, pass_on) for number in heeded}
    try:
        for number, process in enumerate(team):
            with showing(choose_gpu(number, device)):
                process.start()
        while any(process.is_alive() for process in team) or not events.empty():
            try:
                event = events.get(timeout=0.1)
            except queue.Empty:
                continue
            listen(event)
            if event.kind == "stopped":
                outcome = "stopped"
            if event.kind == "error":
                error = str(event.value)
                _pass_on(team, signal.SIGTERM)
    finally:
        _pass_on(team, signal.SIGTERM)
        for process in team:
            process.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    if error:
        raise StoreError(error)
    killed = [process.exitcode for process in team if process.exitcode]
    if killed and outcome == "done" and not heard:
        smaller = ", with a smaller --pack-size or fewer --workers if it happens again"
        raise StoreError(
            f"a worker {describe_exit(killed[0])}; nothing computed is lost: run the same command again"
            + (smaller if killed[0] == -signal.SIGKILL else "")
        )
    return "stopped" if killed else outcome  # a worker that did not listen yet ended without a word


def _pass_on(team: Sequence[multiprocessing.process.BaseProcess], number: int) -> None:
    for process in team:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, number)


def work(paths: Sequence[str], worker: int, events: multiprocessing.Queue, driver: Holder) -> None:
    """A worker process: take every pack that nobody holds, then wait for those that others hold.

    Args:
        paths: the specifications.
        worker: number of the worker.
        events: where it tells of what it does.
        driver: who started it, as that process says; while this one started it may have died.
    """
    with StopSignals() as stop:
        if os.getppid() != driver.pid or driver.is_dead(Holder.me()):
            return
        try:
            _work([Path(path) for path in (*paths[worker:], *paths[:worker])], worker, events, stop, driver.pid)
        except (Interrupted, KeyboardInterrupt):
            events.put(Event("stopped", worker, ""))
        except BadInput as error:
            events.put(Event("error", worker, str(error)))
        finally:
            events.close()
            if os.getppid() == driver.pid:
                events.join_thread()
            else:
                events.cancel_join_thread()


def _work(
    paths: Sequence[Path], worker: int, events: multiprocessing.Queue, stop: Callable[[], bool], parent: int
) -> None:
    from slurm.job import run_all, run_pack
    from training.process_setup import keep_freed_memory, quiet_libraries

    quiet_libraries()
    keep_freed_memory()

    def stopped() -> bool:
        return stop() or os.getppid() != parent  # the sweep was killed: its workers must not train on unseen

    def run(path: Path) -> str:
        outcome = run_pack(path, lambda progress: events.put(Event("progress", worker, progress)), stop=stopped)
        if outcome != "busy":
            events.put(Event(outcome, worker, path.stem))
        return outcome

    run_all(paths, run, stopped, POLL_S)
