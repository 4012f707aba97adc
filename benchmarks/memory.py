"""The default command as a new user sees it: memory of all its processes, and seconds until `--help`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from benchmarks.rows import Row
from benchmarks.scene import Effort, Place
from benchmarks.timing import mean_of, once
from sweeps.rate_file import read_rates
from training.stop import describe_exit
from training.tasks.pipeline import POCKET

ROOT = Path(__file__).resolve().parents[1]
DRIVER = str(ROOT / "sweeps" / "lr_robustness.py")
GIB, EVERY_S = 2.0**30, 0.05
AIM_GIB, AIM_HELP_S = 2.5, 1.5
# DeLoRA's rates where the data file has none for the model yet: they change no byte of the memory.
RATES = ("--base-lr", "0.001", "--base-lr-for-all", "--lr-lambda", "0.001", "--boundary", "1")


@dataclass(frozen=True)
class Peak:
    """Peak memory of a command in bytes.

    Attributes:
        largest: `ru_maxrss` of the largest process of its tree.
        together: largest sum of the resident sets, sampled; pages that processes share count in each.
    """

    largest: int
    together: int


def measure(place: Place, device: str, effort: Effort) -> list[Row]:
    """The rows of the front door."""
    with tempfile.TemporaryDirectory(prefix="plateau-bench-") as folder:
        peak = measure_peak([*default_run(place, device, Path(folder)), *effort.run_flags], Path(folder) / "cache")
    seconds = [time_help() for _ in range(effort.starts + 1)][1:]
    return [
        Row("peak memory of the default run, its processes together", once(peak.together / GIB), AIM_GIB, unit="GiB"),
        Row("peak memory of the default run, its largest process", once(peak.largest / GIB), unit="GiB"),
        Row("--help", mean_of(seconds), AIM_HELP_S, judged="high", unit="s"),
    ]  # fmt: skip


def default_run(place: Place, device: str, folder: Path) -> list[str]:
    """The default command, on an empty runs folder; it measures the machine anew too."""
    command = [sys.executable, DRIVER, "--method", "delora", "--runs", str(folder / "runs"), "--device", device]
    if place.folder != POCKET:
        parts = {"model": "pipeline", "subjects": "subjects", "dino": "dino", "clip": "clip"}
        command += [word for flag, part in parts.items() for word in (f"--{flag}", place.part(part))]
    if place.folder != POCKET or "delora" not in read_rates().get("pocket", {}).get("methods", {}):
        command += RATES
    return command


def measure_peak(command: Sequence[str], cache: Path) -> Peak:
    """Run a command and watch the memory of its process tree.

    Raises:
        RuntimeError: if it fails; with its last line on stderr.
    """
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said, cwd=cache.parent)
        root, together = psutil.Process(process.pid), 0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            together = max(together, _resident(root))
            time.sleep(EVERY_S)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            last = (said.read().decode(errors="replace").strip().splitlines() or ["?"])[-1]
            raise RuntimeError(f"{' '.join(command)} failed, it {describe_exit(process.returncode)}: {last}")
    return Peak(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), together)


def _resident(root: psutil.Process) -> int:
    total = 0
    try:
        for process in (root, *root.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.Error:  # a process ended while it was looked at
        pass
    return total


def time_help() -> float:
    """Seconds of the front door's `--help`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, DRIVER, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began
