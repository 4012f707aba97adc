"""Requests to stop: note a signal, and stop the pack after the present step with everything checkpointed."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
WARNINGS = (signal.SIGUSR2, signal.SIGURG)  # of a scheduler that will end the job soon
STOPPED = 128 + signal.SIGINT  # exit code of a program that has stopped as it was asked to
IMPATIENT_S = 1.0  # a terminal's Ctrl-C may arrive twice, once by way of the parent


def is_shrugged_off(number: int) -> bool:
    """Whether this is the end of a terminal, started under `nohup`: then it stops nothing."""
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS, signal.SIGTRAP)
_ENDS = {
    signal.SIGKILL: "was killed (SIGKILL; out of memory?)",
    signal.SIGTERM: "was asked to end (SIGTERM)",
    signal.SIGINT: "was interrupted (SIGINT)",
    signal.SIGQUIT: "was interrupted (SIGQUIT)",
    signal.SIGHUP: "lost its terminal (SIGHUP)",
    signal.SIGXCPU: "used up the CPU time that it was allowed (SIGXCPU; ulimit -t)",
    signal.SIGXFSZ: "wrote a larger file than it was allowed (SIGXFSZ; ulimit -f)",
    **{number: f"crashed ({number.name})" for number in _CRASHES},
}


def describe_exit(code: int) -> str:
    """How a process ended, as the end of a sentence.

    Args:
        code: its exit code; of a signal the negative number, as `subprocess` and `multiprocessing` have it.
    """
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        number = signal.Signals(-code)
    except ValueError:
        return f"was ended by signal {-code}"
    return _ENDS.get(number, f"was ended by {number.name}")


class Interrupted(Exception):
    """The pack was asked to stop; everything is checkpointed."""


class StopSignals:
    """While entered, turns the first signal into a request; calling it says whether there is one.

    A Ctrl-C a second after the first signal, or later, raises KeyboardInterrupt. Outside the main thread nothing is
    changed: its owner handles signals.

    Args:
        more: signals that it listens to besides `SIGNALS`.

    Attributes:
        received: the first signal's number, 0 before.
    """

    def __init__(self, *more: signal.Signals) -> None:
        self.received, self._at = 0, 0.0
        self._numbers = (*SIGNALS, *more)
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return bool(self.received)

    def __enter__(self) -> StopSignals:
        try:
            self._before = {
                number: signal.signal(number, self._note) for number in self._numbers if not is_shrugged_off(number)
            }
        except ValueError:  # not the main thread
            self._before = {}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._at > IMPATIENT_S:
            raise KeyboardInterrupt
