"""Processes that end otherwise than they should: each end has its own words, and a driver that was asked to stop says so."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.worker import pool
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


def play_worker(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Let workers be a program of a few lines."""
    monkeypatch.setattr(pool, "WORKER", (sys.executable, "-c", "\n".join(("import os, signal, time", *lines))))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_worker_that_ends_by_a_signal_is_told_by_its_name(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    play_worker(monkeypatch, f"os.kill(os.getpid(), {number:d})")
    with pytest.raises(StoreError) as caught:
        pool.run_inline([Path("p.json")], workers=1)
    assert str(caught.value).startswith(f"a worker {describe_exit(-number)}; nothing computed is lost")
    assert ("--pack-size" in str(caught.value)) == (number == signal.SIGKILL)


def test_driver_that_is_asked_to_end_while_its_workers_start_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    play_worker(monkeypatch, "os.kill(os.getppid(), signal.SIGTERM)", "time.sleep(600)")
    assert pool.run_inline([Path("p.json")], workers=1) == "stopped"


def test_worker_that_cannot_go_on_stops_the_others_and_its_last_line_is_the_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waits = f"open({str(tmp_path)!r} + '/waits', 'w'); time.sleep(600)"
    fails = f"while not os.path.exists({str(tmp_path)!r} + '/waits'): time.sleep(0.01)"
    play_worker(
        monkeypatch, "import json, sys", "if json.loads(input())[0].endswith('a.json'):", f"    {waits}", fails,
        "print('noise')", "print('the disk is full')", "sys.exit(2)",
    )  # fmt: skip
    with pytest.raises(StoreError, match="^the disk is full$"):
        pool.run_inline([Path("a.json"), Path("b.json")], workers=2)
