"""Disks that run full, out of inodes, or read-only under a sweep of this machine's own workers, at a moment drawn at random.

Each test ends with the same command, and the comparison to a sweep that nothing has disturbed. `PLATEAU_FAULTS` says how
often each fault is injected.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm.store.layout import SweepFolder
from slurm.store.leases import read_claims
from tests.compare_runs import assert_same_results
from tests.make_disk import Disk, make_disk, read_only
from tests.make_studio import Studio
from tests.waiting import HANG_S, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk")]
TIMES = int(os.environ.get("PLATEAU_FAULTS", "1"))
CELLS = (
    "--method", "lora", "dora", "--base-lr", "1e-3", "--base-lr-for-all", "--multipliers", "0.5", "1", "--steps", "60",
    "--eval-steps", "20", "--pack-size", "1", "--workers", "2",
)  # fmt: skip
Injected = Callable[[Disk], contextlib.AbstractContextManager[None]]


@pytest.fixture(scope="module")
def reference(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep without faults."""
    runs = tmp_path_factory.mktemp("reference") / "runs"
    done = studio.run(runs, "--subjects", str(studio.folder / "subjects"), "1", *CELLS)
    assert done.returncode == 0, done.stderr
    return runs


@contextlib.contextmanager
def full(disk: Disk) -> Iterator[None]:
    """Not a block is free inside the block."""
    disk.fill()
    yield
    disk.grow()


@contextlib.contextmanager
def without_inodes(disk: Disk) -> Iterator[None]:
    """Not a file more can be made inside the block."""
    disk.limit_files()
    yield
    disk.allow_files()


@contextlib.contextmanager
def closed(disk: Disk) -> Iterator[None]:
    """Nothing can be written inside the block."""
    with read_only(disk.path):
        yield


@pytest.mark.parametrize("inject", [full, without_inodes, closed])
@pytest.mark.parametrize("time_of", range(TIMES))
def test_disk_fails_in_the_middle_of_a_sweep(
    inject: Injected, time_of: int, studio: Studio, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLATEAU_CHECKPOINT_S", "0.1")
    monkeypatch.setenv("PLATEAU_BEAT_S", "0.2")
    flags = ("--subjects", str(studio.folder / "subjects"), "1", *CELLS)
    with make_disk(tmp_path / "disk", "64m") as disk:
        runs = disk.path / "runs"
        with studio.start(runs, *flags) as sweep:
            wait_for(lambda: sweep.poll() is not None or any(runs.glob("*/*/checkpoint/*")), "a checkpoint")
            time.sleep(random.uniform(0, 2))
            assert sweep.poll() is None, sweep.communicate()
            with inject(disk):
                assert_one_line(sweep)
                again = studio.run(runs, *flags)
                assert again.returncode == 2, again.stdout
                assert len(again.stderr.strip().splitlines()) == 1, again.stderr
        assert not list(runs.rglob("*.tmp"))
        done = studio.run(runs, *flags)
        assert done.returncode == 0, done.stderr
        assert "trained again" not in done.stderr + done.stdout
        assert_same_results(reference, runs)
        turns = {pack: read_claims(files) for pack, files in SweepFolder(runs / "lr_robustness").scan().items()}
        assert all([claim.get("outcome") for claim in claims].count("done") == 1 for claims in turns.values()), turns


def assert_one_line(sweep: subprocess.Popen) -> None:
    """The sweep ends by itself with one line of the fault, or it was done."""
    out, err = sweep.communicate(timeout=HANG_S)
    lines = [line for line in err.strip().splitlines() if line.startswith("error: ")]
    print(sweep.returncode, lines)
    assert sweep.returncode == 2, out + err
    assert len(lines) == 1, err
    assert "Traceback" not in err, err
