"""Daemons of a local cluster: found by their command lines, so that no stale process id can mislead; imports no torch."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import BadInput
from slurm.submit.processes import list_processes

EXEC_S = 1.0  # until a process that was started shows its command line
TERM_S = 10.0  # until a daemon that was asked to end is killed


@dataclass(frozen=True)
class Daemon:
    """A program that runs in the background.

    Attributes:
        name: what it is called, and its log: `<name>.log`.
        command: its whole command line; it stays in the foreground.
        log: where its output goes.
        environment: what it sees besides this process's environment. Command and environment together are unlike those
            of any other process.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    environment: tuple[tuple[str, str], ...] = ()

    def find(self) -> list[int]:
        """The ids of its processes."""
        alike = [pid for pid, command in list_processes() if command == self.command]
        return [pid for pid in alike if set(self.environment) <= set(read_environment(pid))]

    def start(self, is_ready: Callable[[], bool], wait_s: float = 120.0) -> None:
        """Start it, unless it runs, and wait until it is ready.

        Raises:
            BadInput: if it ends, or is not ready in time; with the last line of its log that tells of an error.
        """
        began = time.monotonic()
        if not self.find():
            with open(self.log, "ab") as log:
                subprocess.run(
                    ["setsid", "--fork", *self.command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    env=os.environ | dict(self.environment), cwd=self.log.parent,
                )  # fmt: skip
        while not is_ready():
            running_s = time.monotonic() - began
            if running_s > wait_s or (running_s > EXEC_S and not self.find()):
                raise BadInput(f"{self.name} does not start: {last_error(self.log)} (log: {self.log})")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it, at last by force."""
        end_processes(self.find, TERM_S)


def read_environment(pid: int) -> list[tuple[str, str]]:
    """The environment that a process was started with; empty where that may not be seen."""
    try:
        words = Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
    except OSError:
        return []
    return [(name, value) for name, _, value in (os.fsdecode(word).partition("=") for word in words if b"=" in word)]


def end_processes(find: Callable[[], list[int]], term_s: float) -> None:
    """SIGTERM to what `find` finds, and SIGKILL to what is left after `term_s`."""
    for number, wait_s in ((signal.SIGTERM, term_s), (signal.SIGKILL, 5.0)):
        for pid in find():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if wait_until(lambda: not find(), wait_s):
            return


def wait_until(condition: Callable[[], bool], wait_s: float) -> bool:
    """Whether the condition holds within `wait_s` seconds."""
    end = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def last_error(log: Path) -> str:
    """The last line of a log that tells of an error, or its last line."""
    try:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    errors = [line for line in lines if "error" in line.lower() or "fatal" in line.lower()]
    return (errors or lines or ["it wrote nothing"])[-1].strip()
