"""A real SLURM of this machine for tests: shared by a session, with many faked CPUs and small limits."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters import BadInput
from tests.waiting import HANG_S, wait_for
from tools.slurm_node import __main__ as local_cluster
from tools.slurm_node.__main__ import Options, check, require_packages
from tools.slurm_node.files import LocalSlurm

ROOT = Path(__file__).resolve().parents[1]
REQUIRED = "PLATEAU_REQUIRE_SLURM"
CPUS = 32
MAX_ARRAY_SIZE = 20
FLAGS = ("--cpus", str(CPUS), "--max-array-size", str(MAX_ARRAY_SIZE), "--grace-s", "30")


def name_folder(what: str = "test") -> Path:
    """A new folder that root alone can change and that everyone can enter; pytest's own are closed to others."""
    return Path(f"/var/tmp/plateau-{what}-{os.getpid()}")


def why_no_slurm(*flags: str) -> str | None:
    """Why no cluster can be made here; None if one can."""
    options = Options("up", accounting="--accounting" in flags)
    try:
        check(options)
        require_packages(options)
    except BadInput as error:
        return str(error)
    return None


def require_slurm(*flags: str) -> None:
    """Skip the test where there is no SLURM; where there must be one, fail it."""
    reason = why_no_slurm(*flags)
    if reason and os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{REQUIRED}=1, and there is no SLURM: {reason}")
    if reason:
        pytest.skip(f"NO SLURM, SO NOTHING OF IT IS TESTED: {reason}")


@contextlib.contextmanager
def make_cluster(folder: Path, *flags: str) -> Iterator[LocalSlurm]:
    """A cluster that is up inside the block; SLURM's commands of this process and its children reach it."""
    before = os.environ.get("SLURM_CONF")
    try:
        up(folder, *flags)
        cluster = LocalSlurm.read(folder)
        assert cluster is not None
        os.environ["SLURM_CONF"] = str(cluster.conf)
        yield cluster
    finally:
        os.environ.pop("SLURM_CONF", None)
        if before is not None:
            os.environ["SLURM_CONF"] = before
        assert local_cluster.main(["down", "--folder", str(folder)]) == 0


def up(folder: Path, *flags: str) -> None:
    """Start what is not running of a cluster."""
    assert local_cluster.main(["up", "--folder", str(folder), *flags]) == 0


@contextlib.contextmanager
def closed_partition() -> Iterator[None]:
    """What is submitted inside the block is queued and starts after it."""
    call("scontrol", "update", "partitionname=debug", "state=down")
    try:
        yield
    finally:
        call("scontrol", "update", "partitionname=debug", "state=up")


def call(*command: str | Path) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
    return done.stdout.strip()


def submit(folder: Path, script: str, *flags: str) -> str:
    """Submit a shell script whose output goes to `folder`; returns the job's id."""
    output = f"--output={folder}/%A_%a.out"
    return call("sbatch", "--parsable", "--chdir", folder, output, "--open-mode=append", *flags, "--wrap", script)


def find_states(job: str) -> dict[str, str]:
    """State and reason of a job's tasks, such as `RUNNING None`, as squeue shows them; empty when it has forgotten it."""
    listed = subprocess.run(
        ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T %r", f"--jobs={job}"],
        capture_output=True, text=True, timeout=HANG_S,
    )  # fmt: skip
    return dict(line.split(" ", 1) for line in listed.stdout.splitlines())


def count_restarts(job: str) -> int:
    """How often SLURM has started tasks of a job again, all tasks together."""
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, timeout=HANG_S).stdout
    return sum(map(int, re.findall(r"\bRestarts=(\d+)", shown)))


def wait_for_state(job: str, state: str) -> None:
    """Wait until every task of a job is in a state."""
    wait_for(
        lambda: bool(found := find_states(job)) and all(text.startswith(state) for text in found.values()),
        f"job {job} {state}",
    )


def run_local_cluster(*words: str, **options: object) -> subprocess.CompletedProcess:
    """`python -m tools.slurm_node ...`."""
    command = [sys.executable, "-m", "tools.slurm_node", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, **options)  # type: ignore[call-overload]
