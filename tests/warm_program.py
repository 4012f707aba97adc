"""Programs of this project run in forks of a process that has loaded what takes long to load and is not ours.

    python -m tests.warm_program SOCKET     # {"words", "cwd", "env"} with three files for stdin, stdout, stderr a connection

A fork loads our own files anew and becomes `python WORDS`, which starts so in half a second rather than six. What a test says
of the start itself, of signals or of a terminal, it says of a real process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import multiprocessing.process
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from tests.warm_pytest import HEAVY

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}  # the suite's own, before a test has changed it
MORE = ("duckdb", "seaborn", "huggingface_hub", "transformers.models.clip.tokenization_clip")
PLACE = "PLATEAU_TEST_WARM"  # the variable that holds the socket, for programs that start workers
MOST_BYTES = 2**20  # of a request


def run_warm(words: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess:
    """`subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True)`, without a stdin."""
    place = start_server()
    with open(os.devnull, "rb") as nothing, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        code = Warm(words, cwd, {**env, PLACE: place}, nothing, out, err).wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(list(words), code, out.read().decode(), err.read().decode())


def warm_up(pool: ModuleType) -> Callable[..., Any]:
    """`pool.start_process` with warm workers, where they end with this process and a test has put nothing in their place."""
    cold, usual = pool.start_process, pool.WORKER

    def start(arguments: Sequence[str], number: int, device: str, environment: Mapping[str, str], **files: Any) -> Any:
        if tuple(arguments) != ("-",) or device != "cpu" or usual != pool.WORKER:
            return cold(arguments, number, device, environment, **files)
        path = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
        words, env = [*usual[2:], *arguments], {**environment, "PYTHONPATH": path}
        read, write = os.pipe()
        with open(read, "rb") as stdin, open(os.dup(2), "wb") as stderr:
            worker = Warm(words, Path.cwd(), env, stdin, files["stdout"], stderr)
        worker.stdin = os.fdopen(write, "wb")
        return worker

    return start


class Warm:
    """What `subprocess.Popen` is, for a program that was started warm.

    Args:
        words: what follows `python`.
        cwd: its current folder.
        env: its environment.
        files: its standard input, output and error.

    Attributes:
        pid: its process.
        returncode: its exit code, negative for a signal; None while it runs.
        stdin: the end of a pipe to it, if there is one.
    """

    def __init__(self, words: Sequence[str], cwd: Path, env: Mapping[str, str], *files: Any) -> None:
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(env.get(PLACE) or start_server())
        request = json.dumps({"words": list(words), "cwd": str(cwd), "env": dict(env)}).encode()
        socket.send_fds(self._line, [len(request).to_bytes(4, "big")], [file.fileno() for file in files])
        self._line.sendall(request)
        self._answers = self._line.makefile("r")
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None

    def poll(self) -> int | None:
        """Its exit code if it has ended."""
        if self.returncode is None and select.select([self._line], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a warm program", timeout or 0)
            answer = self._answers.readline()
            assert answer, "the process that programs are forked from has ended"
            self.returncode = int(answer)
            self._line.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send it SIGTERM, if it runs."""
        self.send_signal(signal.SIGTERM)


@functools.cache
def start_server() -> str:
    """One for this process, until it ends; returns its socket."""
    folder = tempfile.mkdtemp(prefix="plateau-warm-")
    place = os.path.join(folder, "socket")
    words = [sys.executable, "-m", "tests.warm_program", place]
    server = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout
    assert server.stdout.readline(), "the process that programs are forked from did not start"
    atexit.register(shutil.rmtree, folder)
    atexit.register(server.communicate)
    return place


def serve(place: str) -> None:
    """Fork a program for each connection, until stdin is closed."""
    for name in (*HEAVY, *MORE):
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen(64)
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            line, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                os._exit(look_after(line))
            line.close()


def look_after(line: socket.socket) -> int:
    """Fork the program that is asked for; tell its process id, and how it ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, _, _ = socket.recv_fds(line, 4, 3)
    size, request = int.from_bytes(head, "big"), b""
    while len(request) < size:
        request += line.recv(MOST_BYTES)
    if (fork := os.fork()) == 0:
        line.close()
        os._exit(become(json.loads(request), files))
    for file in files:
        os.close(file)
    line.sendall(f"{fork}\n".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
    with contextlib.suppress(BrokenPipeError):  # whoever started it may be gone
        line.sendall(f"{code}\n".encode())
    return 0


def become(asked: dict[str, Any], files: Sequence[int]) -> int:
    """Be `python WORDS` to its end; returns its exit code."""
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    multiprocessing.process.ORIGINAL_DIR = asked["cwd"]  # type: ignore[attr-defined]
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    sys.stdout.reconfigure(encoding=encoding, errors="strict")  # type: ignore[union-attr]
    sys.stderr.reconfigure(encoding=encoding, errors="backslashreplace")  # type: ignore[union-attr]
    code = 0
    try:
        run(asked["words"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if code and not isinstance(ended.code, int):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def run(words: list[str]) -> None:
    """A module or a file, with what stands on PYTHONPATH."""
    is_module = words[0] == "-m"
    sys.argv = words[is_module:]
    more = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [os.getcwd() if is_module else str(Path(words[0]).parent.absolute()), *filter(None, more)]
    for hook in (Path(folder, "sitecustomize.py") for folder in more if folder):
        if hook.exists():
            runpy.run_path(str(hook))
    if Path(words[0]).parent.name == "sweeps":
        pool = importlib.import_module("slurm.worker.pool")
        pool.start_process = warm_up(pool)  # type: ignore[attr-defined]
    if is_module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])
