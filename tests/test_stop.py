"""Processes that end otherwise than they should: each end has its own words, and a driver that was asked to stop says so."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
from pathlib import Path

import pytest

from slurm import inline
from training.stop import describe_exit
from training.store import StoreError


def listen_to_none(number: int) -> None:
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "was killed (SIGKILL; out of memory?)"),
        (signal.SIGTERM, "was asked to end (SIGTERM)"),
        (signal.SIGINT, "was interrupted (SIGINT)"),
        (signal.SIGHUP, "lost its terminal (SIGHUP)"),
        (signal.SIGXCPU, "used up the CPU time that it was allowed (SIGXCPU; ulimit -t)"),
        (signal.SIGSEGV, "crashed (SIGSEGV)"),
        (signal.SIGUSR1, "was ended by SIGUSR1"),
        (signal.SIGRTMIN + 2, f"was ended by signal {signal.SIGRTMIN + 2}"),
    ],
)
def test_end_of_a_process_has_its_own_words(number: int, words: str) -> None:
    process = subprocess.Popen(["sleep", "60"], preexec_fn=lambda: listen_to_none(number))
    process.send_signal(number)
    assert describe_exit(process.wait()) == words
    assert describe_exit(3) == "ended with exit code 3"


def end(number: int) -> None:
    """As a process that listens to nothing yet."""
    listen_to_none(number)
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_worker_that_ends_by_a_signal_is_told_by_its_name(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(inline.multiprocessing, "get_context", lambda kind: fork)
    monkeypatch.setattr(inline, "work", lambda *about: end(number))
    with pytest.raises(StoreError) as caught:
        inline.run_inline([Path("p.json")], workers=1, listen=lambda event: None)
    assert str(caught.value).startswith(f"a worker {describe_exit(-number)}; nothing computed is lost")
    assert ("--pack-size" in str(caught.value)) == (number == signal.SIGKILL)


def test_driver_that_is_asked_to_end_while_its_workers_start_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    fork, driver = multiprocessing.get_context("fork"), os.getpid()

    def start(*about: object) -> None:
        listen_to_none(signal.SIGTERM)
        os.kill(driver, signal.SIGTERM)
        signal.pause()

    monkeypatch.setattr(inline.multiprocessing, "get_context", lambda kind: fork)
    monkeypatch.setattr(inline, "work", start)
    assert inline.run_inline([Path("p.json")], workers=1, listen=lambda event: None) == "stopped"
