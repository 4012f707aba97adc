"""Every program ends with an exit code and at most one line, whatever becomes of its streams, or it is told."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from slurm.worker import pool
from tests.test_house import ROOMS, list_modules
from tests.waiting import HANG_S

ROOT = Path(__file__).resolve().parents[1]
CHILDREN = {
    "benchmarks/peak.py",
    "training/probe.py",
    "training/step_price.py",
}  # nobody types them
PROGRAM = """
import signal, sys, time
from adapters import BadInput
from adapters.ending import end_well

def endless():
    for n in range(10**6):
        print("line", n)

def waits():
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        open("unwound", "w").close()

def opens():
    with open("mine", "w") as file:
        print("said")
        print("said", file=sys.stderr)
        print(file.fileno(), sys.stdin.read(), file=file)

def speaks():
    print("‖W0‖")

def climbs():
    import pathlib
    pathlib.Path("a\\nlink").symlink_to("a\\nlink")
    open("a\\nlink")

def refuses():
    raise BadInput("no ‖W0‖")

sys.exit(end_well(lambda: globals()[sys.argv[1]]() or 0))
"""


def command(what: str, *, shell: str = "") -> list[str]:
    words = [sys.executable, "-c", PROGRAM, what]
    return ["bash", "-c", f'"$@" {shell}', "bash", *words] if shell else words


def call(what: str, folder: Path, *, shell: str = "", **environment: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        command(what, shell=shell), cwd=folder, env=env, capture_output=True, text=True, timeout=HANG_S
    )


def start(what: str, folder: Path, **more: object) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command(what), cwd=folder, env=env, **more)  # type: ignore[call-overload]


def test_every_program_runs_in_it() -> None:
    programs = [
        name
        for name in list_modules(*ROOMS, "benchmarks", "tools")
        if '__name__ == "__main__"' in (ROOT / name).read_text()
    ]
    assert len(programs) > 30
    calls = re.compile(r"\b(run_program|run_driver|end_well)\(")
    bare = {str(name) for name in programs if not calls.search((ROOT / name).read_text())}
    assert bare == CHILDREN


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_reader_that_leaves_ends_it_without_a_word(unbuffered: str, tmp_path: Path) -> None:
    done = call("endless", tmp_path, shell="| head -1; exit ${PIPESTATUS[0]}", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stdout, done.stderr) == (141, "line 0\n", "")
    assert call("refuses", tmp_path, shell="2>&1 | true; exit ${PIPESTATUS[0]}").stderr == ""


def test_help_of_a_driver_has_a_reader_that_leaves() -> None:
    words = f'"{sys.executable}" sweeps/weight_norms.py --help | head -1'
    done = subprocess.run(["bash", "-c", words], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout
    assert not done.stderr


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # Python would go on in UTF-8 by itself


@pytest.mark.parametrize(
    ("word", "locale", "line"),
    [
        ("é", C_LOCALE, r"'\udcc3\udca9' is no name in UTF-8 (names are read as ascii here): set PYTHONUTF8=1"),
        (
            b"\xe9",
            {"PYTHONUTF8": "1"},
            r"'\udce9' is no name in UTF-8 (names are read as utf-8 here): call it by other",
        ),
        ("é", {"PYTHONUTF8": "1"}, ""),
        ("e", C_LOCALE, ""),
    ],
)
def test_word_that_is_no_utf8_is_refused(word: str | bytes, locale: dict, line: str, tmp_path: Path) -> None:
    """Stored in a plan, it made every later look at the sweep end in "damaged file"."""
    env = os.environ | {"PYTHONPATH": str(ROOT)} | locale
    program, folder = tmp_path / "program.py", tmp_path / os.fsdecode(word)
    program.write_text(PROGRAM, encoding="utf-8")
    folder.mkdir()
    words: list[Any] = [sys.executable, program, "speaks"]
    done = subprocess.run([*words, word], cwd=tmp_path, env=env, capture_output=True, encoding="utf-8")
    there = subprocess.run(words, cwd=folder, env=env, capture_output=True, encoding="utf-8")
    for what in (done, there):
        assert (what.returncode, what.stderr.count("\n")) == ((2, 1) if line else (0, 0))
        assert line.split("'")[-1] in what.stderr
    assert line in done.stderr


@pytest.mark.parametrize(
    ("encoding", "said"), [("ascii", r"\u2016W0\u2016"), ("latin-1", r"\u2016W0\u2016"), ("utf-8", "‖W0‖")]
)
def test_character_that_an_encoding_lacks_is_escaped(encoding: str, said: str, tmp_path: Path) -> None:
    assert call("speaks", tmp_path, PYTHONIOENCODING=encoding).stdout == f"{said}\n"
    done = call("refuses", tmp_path, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (2, f"error: no {said}\n")


def test_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    done = call("climbs", tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"error: a.+link: Too many levels of symbolic links\n", done.stderr), done.stderr


def test_closed_stream_leads_to_nothing_and_not_into_a_file(tmp_path: Path) -> None:
    assert call("opens", tmp_path, shell="<&- >&- 2>&-").returncode == 0
    number, *more = (tmp_path / "mine").read_text().split()
    assert int(number) > 2
    assert not more


def test_full_disk_behind_a_stream_is_one_line(tmp_path: Path) -> None:
    done = call("endless", tmp_path, shell="> /dev/full")
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")
    assert call("refuses", tmp_path, shell="2> /dev/full").returncode == 2


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 128 + signal.SIGHUP)],
)
def test_signal_unwinds_it(number: int, code: int, tmp_path: Path) -> None:
    with start("waits", tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, err) == (code, "")
    assert (tmp_path / "unwound").exists()


def test_end_of_the_terminal_reaches_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = """
import os, signal, sys, time
from training.stop import STOPPED, StopSignals
with StopSignals() as stop:
    os.kill(os.getppid(), signal.SIGHUP)
    while not stop():
        time.sleep(0.01)
sys.exit(STOPPED)
"""

    def die(number: int, frame: object) -> None:
        raise AssertionError("the sweep would have ended on the spot")

    before = signal.signal(signal.SIGHUP, die)
    monkeypatch.setattr(pool, "WORKER", (sys.executable, "-c", worker))
    try:
        assert pool.run_inline([], workers=1) == "stopped"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_end_of_the_terminal_is_shrugged_off_under_nohup(tmp_path: Path) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with start("waits", tmp_path, stdout=subprocess.PIPE, preexec_fn=ignore) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert process.poll() is None
        process.kill()


def test_terminal_that_is_gone_ends_it_without_a_traceback(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with open(tmp_path / "err", "w", encoding="utf-8") as err:
        process = start("endless", tmp_path, stdin=theirs, stdout=theirs, stderr=err)
    os.close(theirs)
    os.read(ours, 10)
    os.close(ours)
    assert process.wait(timeout=HANG_S) == 141
    assert (tmp_path / "err").read_text() == ""
