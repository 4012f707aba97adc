"""Find how many runs a pack should hold on this machine: measure once, and remember.

The frozen U-Net with LoRA on it trains at growing pack sizes and makes pictures, as a worker does, and each size's seconds and
memory are kept. The size taken is the smallest within 2 % of the most runs a second that all workers together reach in the
memory there is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from adapters.errors import BadInput
from slurm.estimate.need import NAME, Estimate
from slurm.estimate.telling import hear, telling
from slurm.store.code_version import ROOT
from slurm.worker.pool import num_workers
from training.cell import Cell
from training.demand import Cost, read_costs, shape_of, to_json
from training.memory_advice import describe_too_large, total_gib
from training.pack import Setting
from training.probe import Load
from training.stop import describe_exit
from training.store import StoreError, write_signed

MEASURED = 4  # changes with what is measured: older caches are left alone
WITHIN = 1.02
GPU_USABLE = 0.92  # the rest is CUDA's own, and what its allocator cannot use
UNMEASURED = 8  # runs in a pack for a GPU that is not in this machine


def calibrate(
    setting: Setting,
    cell: Cell,
    pack_size: str,
    sweep: Path | None = None,
    task_mib: float | None = None,
    own_mib: float = 0.0,
) -> Estimate:
    """What packs of a model and a shape of batch cost: the sweep's own, or this machine's, from the cache or measured now.

    A GPU that is not in this machine cannot be measured here: then nothing is known but a modest size.

    Args:
        setting: model and device.
        cell: says resolution, precision and rows of a batch.
        pack_size: "auto", or the number that the user wants.
        sweep: a sweep's folder: what it holds decides the size, so that every resume packs alike.
        task_mib: memory of a cluster's task; None for workers that share this machine.
        own_mib: what one run's own values take, of the method that has most of them.

    Raises:
        BadInput: if a single run does not fit into memory, naming what does, or the model cannot be measured.
    """
    own = read_costs(sweep / NAME).get(_shape(setting, cell), {}) if sweep else {}
    costs = _of_machine(setting, cell, own)
    if pack_size != "auto":
        return Estimate(costs, int(pack_size))
    chosen = own or costs
    return Estimate(costs, choose_size(chosen, setting.device, task_mib, own_mib) if chosen else UNMEASURED)


def _shape(setting: Setting, cell: Cell) -> str:
    return f"{setting.device}-{shape_of(cell)}"


def choose_size(
    costs: Mapping[int, Cost], device: str = "cpu", task_mib: float | None = None, own_mib: float = 0.0
) -> int:
    """The smallest pack within 2 % of the most runs a second.

    Args:
        costs: by pack size.
        device: "cpu", or "cuda", which one process has for itself.
        task_mib: memory of a cluster's task, which holds one process; None for workers that share this machine.
        own_mib: what one run's own values take beside what was measured.
    """
    on_gpu, most_mib = device == "cuda", gpu_mib()

    def rate(size: int) -> float:
        cost, own = costs[size], size * own_mib
        if on_gpu and cost.gpu_mib + own > most_mib:
            return 0.0
        host_mib = cost.peak_mib + (0.0 if on_gpu else own)
        if task_mib is not None:
            return size / cost.step_s if host_mib <= task_mib else 0.0
        return num_workers(device, host_mib) * size / cost.step_s

    best = max(map(rate, costs))
    return min(size for size in costs if rate(size) * WITHIN >= best)


def keep_calibration(sweep: Path, setting: Setting, cell: Cell, found: Estimate) -> None:
    """Store the calibration that a sweep was planned with, unless it holds one for this shape."""
    shape, stored = _shape(setting, cell), read_costs(sweep / NAME)
    if found.costs and shape not in stored:
        write_signed(sweep / NAME, {name: to_json(costs) for name, costs in (stored | {shape: found.costs}).items()})


def _of_machine(setting: Setting, cell: Cell, known: dict[int, Cost]) -> dict[int, Cost]:
    """From the cache; else what is known, or what is measured now; empty for a GPU where there is none."""
    key = _key(setting, cell)
    path = _cache(key)
    if stored := read_costs(path).get(key):
        return stored
    if known or not has_device(setting.device):
        return known
    costs = _measure_elsewhere(setting, cell)
    with contextlib.suppress(StoreError):  # measured again next time
        write_signed(path, {key: to_json(costs)})
    return costs


def has_device(device: str) -> bool:
    """Whether this machine has the device, so that it can be measured here."""
    import torch

    return device == "cpu" or torch.cuda.is_available()


def measured_file(setting: Setting, cell: Cell) -> Path:
    """Where a machine remembers what it measured of a model and a shape; without the file it measures again."""
    return _cache(_key(setting, cell))


def _cache(key: str) -> Path:
    return cache_folder("calibration") / f"{key}.json"


def _key(setting: Setting, cell: Cell) -> str:
    load = asdict(Load.of(setting, cell)) | {"model": cell.model_hash, "dino": "", "clip": cell.scorer_hash}
    return hash_with_machine(MEASURED, *load.values())


def hash_with_machine(*parts: object) -> str:
    """A short name that depends on some values and on this machine's processor."""
    cpu = next((line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    return hashlib.sha256(repr((*parts, cpu, os.cpu_count())).encode()).hexdigest()[:16]


def gpu_mib() -> float:
    """Memory that a process may take on the GPU it sees; infinite where there is none to ask."""
    import torch

    if not torch.cuda.is_available():
        return math.inf
    return GPU_USABLE * torch.cuda.get_device_properties(0).total_memory / 2**20


def cache_folder(name: str) -> Path:
    """Where what was measured on this machine is remembered."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "plateau" / name


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _measure_elsewhere(setting: Setting, cell: Cell) -> dict[int, Cost]:
    """Measure in a process of its own, so that this one stays small.

    Raises:
        BadInput: if a single run does not fit, or anything else goes wrong.
    """
    load = Load.of(setting, cell)
    command = [sys.executable, "-m", "training.probe", json.dumps(asdict(load))]
    what = f"measuring the model's speed and memory on {load.device}, once on this machine"
    busy = machine_load()
    with telling() as tell, tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        tell(what)
        done = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=complaints, encoding="utf-8", errors="replace"
        )
        said = hear(done, lambda line: tell(f"{what}: {line}"))
        complaints.seek(0)
        words = complaints.read().strip().splitlines()
    if done.returncode == -signal.SIGKILL:  # what the system does with a process that takes too much
        raise BadInput(describe_too_large(cell, load.checkpointing, f"this machine's {total_gib():.0f} GiB", None))
    if done.returncode:
        ended = f"the process that measures it {describe_exit(done.returncode)}"
        last = (words if done.returncode > 0 and words else [ended])[-1]
        raise BadInput(f"cannot measure the model's speed: {last}")
    found = json.loads(said)
    if not found["costs"]:
        place = f"the GPU's {found['total_gib']:.0f} GiB" if load.device == "cuda" else "memory"
        raise BadInput(describe_too_large(cell, load.checkpointing, place, found["fits"]))
    return {int(n): dataclasses.replace(Cost(**cost), load=busy) for n, cost in found["costs"].items()}


def machine_load() -> float | None:
    """How many processes of this machine computed at once, on average over the last minute; None where nobody counts."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None
