"""Workers on this machine: processes of `slurm.task` that take the packs of a sweep in turn.

Each is given all packs, each from another place on, and takes those that nobody holds. It is told on standard input what to run,
and stops when that is closed, as it is when the program that started it was killed. (`slurm/submit/local.py` has those that
outlive it.)
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from slurm.store.code_version import ROOT
from slurm.store.states import Outcome
from slurm.worker.gpus import VISIBLE, choose_gpu, list_gpus
from training.memory_advice import machine_mib
from training.stop import STOPPED, describe_exit, is_shrugged_off
from training.store import StoreError

WORKER = (sys.executable, "-P", "-m", "slurm.task")
WORKER_MIB = 2048.0  # set aside for a worker whose memory was not measured
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # to the workers, which checkpoint and stop
LOOK_S = 0.5  # between two looks, and between two heartbeats of workers that somebody looks at


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


@dataclass(frozen=True)
class Worker:
    """A worker that stops with this process.

    Attributes:
        process: its process, whose standard input is open as long as it may work.
        said: its standard output, where it leaves the error that ended it.
    """

    process: subprocess.Popen
    said: IO[str]

    @classmethod
    def start(cls, number: int, specs: Sequence[str], device: str, said: IO[str]) -> Worker:
        """Start a worker; it takes the specifications in the order given."""
        beats = {"PLATEAU_BEAT_S": str(LOOK_S)} | os.environ
        process = start_process(("-",), number, device, beats, stdin=subprocess.PIPE, stdout=said)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it was ended meanwhile, as its exit code will say
            process.stdin.write(f"{json.dumps(specs)}\n".encode())
            process.stdin.flush()
        return cls(process, said)

    def close(self) -> None:
        """Ask it to stop, wait until it has ended, and close its standard input."""
        self.process.terminate()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.close()

    def error(self) -> str:
        """The last line that it said."""
        self.said.seek(0)
        return (self.said.read().strip().splitlines() or ["a worker could not go on"])[-1]


def start_process(
    arguments: Sequence[str], number: int, device: str, environment: Mapping[str, str], **more: Any
) -> subprocess.Popen:
    """Start `slurm.task` in a process that sees one GPU, or on a CPU what this process sees."""
    gpu = choose_gpu(number, device)
    seen = {VISIBLE: gpu} if gpu is not None else {}
    path = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    return subprocess.Popen([*WORKER, *arguments], env={**environment, **seen, "PYTHONPATH": path}, **more)


def run_inline(
    specs: Sequence[Path], *, workers: int, device: str = "cpu", look: Callable[[], None] = lambda: None
) -> Outcome:
    """Run packs in worker processes until all have ended.

    Args:
        specs: the packs' JSON specifications.
        workers: number of processes.
        device: "cpu", or "cuda", of which each worker sees one GPU.
        look: called every `LOOK_S` seconds, and once more when all have ended.

    Returns:
        `Outcome.DONE`, or `STOPPED` after a signal; what was computed is checkpointed.

    Raises:
        StoreError: as the worker that met it says; the others have stopped with checkpoints.
    """
    paths, team, heard = [str(path.resolve()) for path in specs], list[Worker](), list[int]()

    def pass_on(number: int, frame: object) -> None:
        heard.append(number)
        for worker in team:
            worker.process.send_signal(number)

    with _handling(pass_on), contextlib.ExitStack() as closing:
        for number in range(workers):
            said = closing.enter_context(open(os.memfd_create("said"), "w+", encoding="utf-8"))  # a pipe could fill up
            team.append(Worker.start(number, [*paths[number:], *paths[:number]], device, said))
            closing.callback(team[-1].close)
        while running := [worker for worker in team if worker.process.poll() is None]:
            look()
            if heard or any(worker.process.returncode == 2 for worker in team):
                for worker in running:  # one that has just been started has heard nothing yet
                    worker.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                running[0].process.wait(LOOK_S)
        look()
        return _outcome(team, bool(heard))


@contextlib.contextmanager
def _handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let a handler hear of the signals that stop a sweep."""
    before = {number: signal.signal(number, handler) for number in PASSED_ON if not is_shrugged_off(number)}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)


def _outcome(team: Sequence[Worker], was_asked: bool) -> Outcome:
    """What the ends of all workers come to; one that did not listen yet ended without a word."""
    codes = [worker.process.returncode for worker in team]
    if 2 in codes:
        raise StoreError(team[codes.index(2)].error())
    killed = [code for code in codes if code not in (0, STOPPED)]
    if killed and not was_asked and STOPPED not in codes:
        smaller = ", with a smaller --pack-size or fewer --workers if it happens again"
        raise StoreError(
            f"a worker {describe_exit(killed[0])}; nothing computed is lost: run the same command again"
            + (smaller if killed[0] == -signal.SIGKILL else "")
        )
    return Outcome.STOPPED if any(codes) else Outcome.DONE
