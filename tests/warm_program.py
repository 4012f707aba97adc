"""Programs of this project run to their end in forks of a process that has loaded what takes long to load and is not ours.

    python -m tests.warm_program     # reads {"words", "cwd", "env", "out", "err"} as JSON lines from stdin, answers exit codes

A fork loads our own files anew and becomes `python WORDS`, which starts so in half a second rather than six. What a test says
of the start itself, of signals or of a terminal, it says of a real process.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import multiprocessing.process
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.warm_pytest import HEAVY

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}  # the suite's own, before a test has changed it
MORE = ("duckdb", "seaborn", "huggingface_hub", "transformers.models.clip.tokenization_clip")


def run_warm(words: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess:
    """`subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True)`, without a stdin."""
    server = start_server()
    assert server.stdin
    assert server.stdout
    with tempfile.TemporaryDirectory(prefix="plateau-warm-") as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        asked = {"words": list(words), "cwd": str(cwd), "env": dict(env), "out": str(out), "err": str(err)}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        code = server.stdout.readline()
        assert code, "the process that programs are forked from has ended"
        return subprocess.CompletedProcess(list(words), int(code), *(path.read_text("utf-8") for path in (out, err)))


@functools.cache
def start_server() -> subprocess.Popen:
    """One for this process, until it ends."""
    words = [sys.executable, "-m", "tests.warm_program"]
    server = subprocess.Popen(
        words, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.communicate)
    return server


def serve() -> None:
    """Run what is asked for, one after the other."""
    for name in (*HEAVY, *MORE):
        importlib.import_module(name)
    gc.freeze()
    for line in sys.stdin:
        if (fork := os.fork()) == 0:
            os._exit(become(json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]), flush=True)


def become(asked: dict[str, Any]) -> int:
    """Be `python WORDS` to its end; returns its exit code."""
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    multiprocessing.process.ORIGINAL_DIR = asked["cwd"]  # type: ignore[attr-defined]
    for number, path in enumerate((os.devnull, asked["out"], asked["err"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
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
    if is_module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    serve()
