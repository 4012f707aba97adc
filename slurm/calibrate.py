"""How many runs a pack should hold on this machine, and how long they will take: measured once, and remembered.

The frozen U-Net with LoRA on it is timed at growing pack sizes; the smallest size within 2 % of the best time for each
run is taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters import BadInput
from slurm.job import Setting
from training.cell import BASE, Cell
from training.store import StoreError, write_json

SIZES = (1, 2, 4, 8, 16, 32)
WITHIN = 1.02
START_S = 8.0  # seconds until a worker has loaded everything
UNMEASURED = 8  # runs in a pack for a GPU that is not in this machine
NAME = "calibration.json"  # in a sweep's folder
PASSES = 3.0  # a training step costs about three forward passes


@dataclass(frozen=True)
class Calibration:
    """Seconds of one training step at each pack size, and the size chosen; no seconds where nothing could be measured."""

    step_s: dict[int, float]
    pack_size: int

    def predict(self, cells: Sequence[Cell], workers: int = 1) -> float | None:
        """Expected seconds until all cells are done; None where nothing was measured.

        A cell costs its steps, and its pictures' passes through the U-Net: two for each sampler step with guidance.
        """
        if not self.step_s:
            return None
        size = max((size for size in self.step_s if size <= self.pack_size), default=min(self.step_s))
        each, total = self.step_s[size] / size, 0.0
        for cell in cells:
            rows = cell.train_batch_size * cell.gradient_accumulation_steps * (2 if cell.prior_loss_weight > 0 else 1)
            evaluations = len(cell.evaluated_steps()) if cell.method != BASE else 1
            passes = 2 * cell.num_inference_steps * cell.num_prompts * cell.num_images * evaluations
            total += each * (cell.steps * rows + passes / PASSES)
        return START_S + total / workers if cells else 0.0


def calibrate(setting: Setting, cell: Cell, pack_size: str, sweep: Path | None = None) -> Calibration:
    """The calibration for a model and a shape of batch: the sweep's own, or this machine's, from the cache or measured now.

    A GPU that is not in this machine cannot be measured here: then nothing is known but a modest size.

    Args:
        setting: model and device.
        cell: says resolution, precision and rows of a batch.
        pack_size: "auto", or the number that the user wants.
        sweep: a sweep's folder: what it holds decides the size, so that every resume packs alike.
    """
    own = _of_sweep(sweep, _shape(setting, cell)) if sweep else {}
    times = _of_machine(setting, cell, own)
    chosen = own or times
    if pack_size != "auto":
        return Calibration(times, int(pack_size))
    return Calibration(times, choose_size(chosen) if chosen else UNMEASURED)


def _shape(setting: Setting, cell: Cell) -> str:
    return f"{setting.device}-{cell.resolution}-{cell.mixed_precision}-{cell.prior_loss_weight > 0:d}"


def choose_size(times: Mapping[int, float]) -> int:
    """The smallest pack within 2 % of the best time for each run."""
    best = min(seconds / size for size, seconds in times.items())
    return min(size for size, seconds in times.items() if seconds / size <= WITHIN * best)


def keep_calibration(sweep: Path, setting: Setting, cell: Cell, found: Calibration) -> None:
    """Store the calibration that a sweep was planned with, unless it holds one for this shape."""
    shape, stored = _shape(setting, cell), _read(sweep / NAME)
    if found.step_s and shape not in stored:
        write_json(sweep / NAME, stored | {shape: {str(size): seconds for size, seconds in found.step_s.items()}})


def predict_by(sweep: Path) -> Callable[[Sequence[Cell]], float | None]:
    """Seconds that one process needs for some cells, by what a sweep was planned with."""
    stored = _read(sweep / NAME)

    def predict(cells: Sequence[Cell]) -> float | None:
        tail = f"-{cells[0].resolution}-{cells[0].mixed_precision}-{cells[0].prior_loss_weight > 0:d}"
        found: dict[str, float] = next((times for shape, times in stored.items() if shape.endswith(tail)), {})
        return Calibration({int(size): s for size, s in found.items()}, len(cells)).predict(cells)

    return predict


def _of_sweep(sweep: Path, shape: str) -> dict[int, float]:
    return {int(size): seconds for size, seconds in _read(sweep / NAME).get(shape, {}).items()}


def _of_machine(setting: Setting, cell: Cell, known: dict[int, float]) -> dict[int, float]:
    """From the cache; else what is known, or what is measured now; empty for a GPU where there is none."""
    key = _key(setting, cell)
    path = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "plateau" / "calibration" / f"{key}.json"
    if stored := _read(path):
        return {int(size): seconds for size, seconds in stored.items()}
    if known or (setting.device == "cuda" and not _has_gpu()):
        return known
    times = _measure_elsewhere(setting, cell)
    with contextlib.suppress(StoreError):  # measured again next time
        write_json(path, times)
    return times


def _read(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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


def _measure_elsewhere(setting: Setting, cell: Cell) -> dict[int, float]:
    """Measure in a process of its own, so that this one stays small."""
    rows = cell.train_batch_size * (2 if cell.prior_loss_weight > 0 else 1)
    command = [sys.executable, "-m", "slurm.calibrate", setting.model, setting.device, str(cell.resolution), str(rows),
               cell.mixed_precision]  # fmt: skip
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise BadInput(f"cannot measure the model's speed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return {int(size): seconds for size, seconds in json.loads(done.stdout.strip().splitlines()[-1]).items()}


def measure(model: str, device: str, resolution: int, rows: int, precision: str) -> dict[int, float]:
    """Median seconds of a training step at each pack size, on one thread of a CPU, or a GPU.

    Stops growing when a size is no longer worth it, or memory ends.
    """
    import torch

    from adapters import parse_method
    from adapters.inject import attach
    from training.tasks import pipeline as pipelines

    if device == "cpu":
        torch.set_num_threads(1)
    parts = pipelines.load(Path(model), torch.device(device))
    side = resolution // 2 ** (len(parts.vae.config.block_out_channels) - 1)
    text = parts.encode_text([""])
    times: dict[int, float] = {}
    for size in SIZES:
        pack = attach(parts.unet, parse_method("lora"), seeds=[0] * size, rank=4)
        noise = torch.randn(size * rows, parts.unet.config.in_channels, side, side, device=device)
        context, steps = text.expand(size * rows, -1, -1), torch.zeros(size * rows, dtype=torch.long, device=device)
        laps = []
        try:
            for _ in range(4):
                began = time.perf_counter()
                with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
                    output = parts.unet(noise, steps, encoder_hidden_states=context).sample
                output.float().square().sum().backward()
                if device == "cuda":
                    torch.cuda.synchronize()
                laps.append(time.perf_counter() - began)
        except (torch.OutOfMemoryError, MemoryError):
            break
        finally:
            pack.detach()
        times[size] = sorted(laps[1:])[1]
        if size >= 8 and times[size] / size > 0.97 * min(t / s for s, t in times.items() if s < size):
            break
    return times


if __name__ == "__main__":
    model, device, resolution, rows, precision = sys.argv[1:]
    print(json.dumps(measure(model, device, int(resolution), int(rows), precision)))
