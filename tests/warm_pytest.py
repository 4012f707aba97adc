"""Pytest again and again, in forks of a process that has loaded what takes long to load and is not ours.

    python -m tests.warm_pytest     # reads [nodes, file for the outcomes, file for the log, seconds] as JSON lines from stdin

Answers each line by the seconds that it took, or null if the time was up. Our own packages are loaded by each fork anew,
from the folder that this was started in; `tests/take_out.py` changes them there in between.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import signal
import sys
import time

HEAVY = (
    "torch", "torch.optim.adamw", "pandas", "pyarrow.parquet", "scipy.stats", "submitit", "PIL.Image", "beartype", "rich.live",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "transformers.models.clip.modeling_clip",
    "transformers.models.vit.modeling_vit", "psutil", "tyro", "matplotlib.pyplot",
)  # fmt: skip
TAKE_DOWN_S = 60.0
LOADED = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
OFFLINE = {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "TOKENIZERS_PARALLELISM": "false"}


def serve() -> None:
    """Run what is asked for; returns at the end of stdin, and in each fork with pytest's exit code on its way out."""
    os.environ |= OFFLINE
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    for name in HEAVY:
        importlib.import_module(name)
    gc.freeze()  # what is loaded stays: pytest's forks need not look through it again and again
    for line in sys.stdin:
        nodes, outcomes, log, limit_s = json.loads(line)
        began = time.monotonic()
        if (fork := os.fork()) == 0:
            run(nodes, outcomes, log)
        ended = wait(fork, limit_s)
        print(json.dumps(time.monotonic() - began if ended else None), flush=True)


def run(nodes: list[str], outcomes: str, log: str) -> None:
    """Become the process of one call of pytest."""
    import pytest

    os.setsid()
    os.environ["PLATEAU_OUTCOMES"] = outcomes
    with open(os.devnull, encoding="utf-8") as nothing, open(log, "w", encoding="utf-8") as said:
        os.dup2(nothing.fileno(), 0)
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    words = ["-q", "-p", "tests.outcomes", "-p", "no:cacheprovider", "-m", "", "-W", LOADED]
    code = pytest.main([*words, *nodes])
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)  # to take down all that is loaded would cost seconds


def wait(fork: int, limit_s: float) -> bool:
    """Wait for a fork to end; if the time is up, or this process is interrupted, end it with all that it has started."""
    ended = False
    try:
        ended = has_ended(fork, limit_s)
        return ended
    finally:
        if not ended:
            os.kill(fork, signal.SIGINT)  # pytest takes down what fixtures have set up, such as a SLURM
            ended = has_ended(fork, TAKE_DOWN_S)
        if not ended:
            os.killpg(fork, signal.SIGKILL)
            os.waitpid(fork, 0)


def has_ended(fork: int, within_s: float) -> bool:
    """Whether a fork ends within some time."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if os.waitpid(fork, os.WNOHANG)[0]:
            return True
        time.sleep(0.05)
    return False


if __name__ == "__main__":
    serve()
