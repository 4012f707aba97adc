"""How many runs a pack should hold on this machine: measured once, and remembered.

The frozen U-Net with LoRA on it trains at growing pack sizes, and each size's seconds and memory are kept. The size taken is
the smallest within 2 % of the most runs a second that all workers together reach in the memory there is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters import BadInput
from slurm.forecast import NAME, Cost, Forecast, read_costs, shape_of, to_json
from slurm.inline import machine_mib, num_workers
from slurm.pack import Setting
from training.cell import Cell
from training.store import StoreError, write_json

SIZES = (1, 2, 4, 8, 16, 32)
WITHIN = 1.02
UNMEASURED = 8  # runs in a pack for a GPU that is not in this machine


@dataclass(frozen=True)
class Calibration(Forecast):
    """What packs cost, and how many runs one should hold."""

    pack_size: int


def calibrate(
    setting: Setting, cell: Cell, pack_size: str, sweep: Path | None = None, task_mib: float | None = None
) -> Calibration:
    """The calibration for a model and a shape of batch: the sweep's own, or this machine's, from the cache or measured now.

    A GPU that is not in this machine cannot be measured here: then nothing is known but a modest size.

    Args:
        setting: model and device.
        cell: says resolution, precision and rows of a batch.
        pack_size: "auto", or the number that the user wants.
        sweep: a sweep's folder: what it holds decides the size, so that every resume packs alike.
        task_mib: memory of a cluster's task; None for workers that share this machine.
    """
    own = read_costs(sweep / NAME).get(_shape(setting, cell), {}) if sweep else {}
    costs = _of_machine(setting, cell, own)
    if pack_size != "auto":
        return Calibration(costs, int(pack_size))
    chosen = own or costs
    return Calibration(costs, choose_size(chosen, setting.device, task_mib) if chosen else UNMEASURED)


def _shape(setting: Setting, cell: Cell) -> str:
    return f"{setting.device}-{shape_of(cell)}"


def choose_size(costs: Mapping[int, Cost], device: str = "cpu", task_mib: float | None = None) -> int:
    """The smallest pack within 2 % of the most runs a second.

    Args:
        costs: by pack size.
        device: "cpu", or "cuda", which one process has for itself.
        task_mib: memory of a cluster's task, which holds one process; None for workers that share this machine.
    """

    def rate(size: int) -> float:
        cost = costs[size]
        if task_mib is not None:
            return size / cost.step_s if cost.peak_mib <= task_mib else 0.0
        return num_workers(device, cost.peak_mib) * size / cost.step_s

    best = max(map(rate, costs))
    return min(size for size in costs if rate(size) * WITHIN >= best)


def keep_calibration(sweep: Path, setting: Setting, cell: Cell, found: Calibration) -> None:
    """Store the calibration that a sweep was planned with, unless it holds one for this shape."""
    shape, stored = _shape(setting, cell), read_costs(sweep / NAME)
    if found.costs and shape not in stored:
        write_json(sweep / NAME, {name: to_json(costs) for name, costs in (stored | {shape: found.costs}).items()})


def _of_machine(setting: Setting, cell: Cell, known: dict[int, Cost]) -> dict[int, Cost]:
    """From the cache; else what is known, or what is measured now; empty for a GPU where there is none."""
    key = _key(setting, cell)
    path = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "plateau" / "calibration" / f"{key}.json"
    if stored := read_costs(path).get(key):
        return stored
    if known or (setting.device == "cuda" and not _has_gpu()):
        return known
    costs = _measure_elsewhere(setting, cell)
    with contextlib.suppress(StoreError):  # measured again next time
        write_json(path, {key: to_json(costs)})
    return costs


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _key(setting: Setting, cell: Cell) -> str:
    cpu = next((line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    parts = (cell.model_hash, setting.device, cell.resolution, cell.mixed_precision, cell.prior_loss_weight > 0, cpu)
    return hashlib.sha256(repr((*parts, os.cpu_count())).encode()).hexdigest()[:16]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _measure_elsewhere(setting: Setting, cell: Cell) -> dict[int, Cost]:
    """Measure in a process of its own, so that this one stays small."""
    rows = cell.train_batch_size * (2 if cell.prior_loss_weight > 0 else 1)
    command = [sys.executable, "-m", "slurm.calibrate", setting.model, setting.device, str(cell.resolution), str(rows),
               cell.mixed_precision]  # fmt: skip
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise BadInput(f"cannot measure the model's speed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return {int(n): Cost(**cost) for n, cost in json.loads(done.stdout.strip().splitlines()[-1]).items()}


def measure(model: str, device: str, resolution: int, rows: int, precision: str) -> dict[int, Cost]:
    """Median seconds of a training step, and the process's peak of memory, on one thread of a CPU, or a GPU.

    Stops growing when a size is no longer worth it, or memory would end.
    """
    import torch

    from adapters import parse_method
    from adapters.inject import attach
    from training.tasks import pipeline as pipelines

    if device == "cpu":
        torch.set_num_threads(1)
    parts = pipelines.load(Path(model), torch.device(device))
    side = resolution // parts.vae_factor
    text = parts.encode_text([""])
    costs: dict[int, Cost] = {}
    for size in SIZES:
        if len(costs) > 1 and Forecast(costs).peak_mib(size) > machine_mib():
            break
        pack = attach(parts.unet, parse_method("lora"), seeds=[0] * size, rank=4)
        noise = torch.randn(size * rows, parts.unet.config.in_channels, side, side, device=device)
        context, steps = text.expand(size * rows), torch.zeros(size * rows, dtype=torch.long, device=device)
        laps = []
        try:
            for _ in range(4):
                began = time.perf_counter()
                with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
                    output = parts.predict(noise, steps, context)
                output.float().square().sum().backward()
                if device == "cuda":
                    torch.cuda.synchronize()
                laps.append(time.perf_counter() - began)
        except (torch.OutOfMemoryError, MemoryError):
            break
        finally:
            pack.detach()
        costs[size] = Cost(sorted(laps[1:])[1], peak_mib())
        if size >= 8 and costs[size].step_s / size > 0.97 * min(c.step_s / s for s, c in costs.items() if s < size):
            break
    return costs


def peak_mib() -> float:
    """This process's peak of resident memory in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    model, device, resolution, rows, precision = sys.argv[1:]
    print(json.dumps(to_json(measure(model, device, int(resolution), int(rows), precision))))
