"""Measure seconds and memory of packs of growing size on this machine: the frozen model with LoRA, training and evaluation.

python -m training.probe LOAD     the fields of a `Load` as JSON; prints what it begins with, then what it found as JSON
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.cell import Cell
from training.demand import Cost, on_line, to_json
from training.memory_advice import list_smaller, machine_mib, total_gib
from training.setting import Setting
from training.task_kinds import PICTURES, kind_of

SIZES = (1, 2, 4, 8, 16, 32)
FEW = 16  # pictures of an evaluation; four times as many fill a sampler call whatever the size


@dataclass(frozen=True)
class Load:
    """What is measured.

    Attributes:
        task, task_options: of the cells.
        model, dino, clip: as in a setting; without scorers pictures are not scored.
        device, resolution, precision: where and how.
        rows: rows of one run in a batch.
        pictures: how many a run makes for an evaluation, roughly.
        checkpointing: whether activations are computed again instead of kept.
    """

    model: str
    device: str
    resolution: int
    rows: int = 1
    precision: str = "no"
    pictures: int = FEW
    dino: str = ""
    clip: str = ""
    checkpointing: bool = False
    task: str = PICTURES
    task_options: str = ""

    @classmethod
    def of(cls, setting: Setting, cell: Cell) -> Load:
        """What packs like a cell's are."""
        rows = kind_of(cell.task).rows(cell)
        few = cell.num_prompts * cell.num_images <= FEW
        return cls(
            setting.model, setting.device, cell.resolution, rows, cell.mixed_precision, FEW if few else 4 * FEW,
            setting.dino, setting.clip, setting.gradient_checkpointing, cell.task, cell.task_options,
        )  # fmt: skip


def measure_or_fit(load: Load) -> dict[str, Any]:
    """Costs by pack size; where not even one run fits, which smaller loads do, by their flags, in MiB."""
    import torch

    costs, fits = measure(load, tell=_say), {}
    for flags, changes in [] if costs else list_smaller(load.resolution, load.checkpointing):
        _say(f"does {flags} fit?")
        if smaller := measure(dataclasses.replace(load, **changes), sizes=(1,)):
            fits[flags] = smaller[1].gpu_mib or smaller[1].peak_mib
    on_gpu = torch.cuda.is_available() and load.device == "cuda"
    total = torch.cuda.get_device_properties(0).total_memory / 2**30 if on_gpu else total_gib()
    return {"costs": to_json(costs), "fits": fits, "total_gib": total}


def _say(line: str) -> None:
    print(line, flush=True)


def measure(
    load: Load, sizes: Sequence[int] = SIZES, tell: Callable[[str], None] = lambda line: None
) -> dict[int, Cost]:
    """Median seconds of a training step of one row a run, and the peaks of memory, on one thread of a CPU, or a GPU.

    On a CPU seconds are those that the process computes: on a busy machine they are nearly what they are on an idle one.

    Stops growing when a size is no longer worth it, or memory would end; `tell` hears of each size as it begins.
    """
    import torch

    from training.process_setup import keep_freed_memory, quiet_libraries

    quiet_libraries()
    keep_freed_memory()
    if load.device != "cuda":
        torch.set_num_threads(1)
    return _measure_on(kind_of(load.task).open().bench(load), load, sizes, tell)


def _measure_on(bench: Any, load: Load, sizes: Sequence[int], tell: Callable[[str], None]) -> dict[int, Cost]:
    """`measure`, on a model that is loaded."""
    import torch

    from adapters import parse_method
    from adapters.inject import attach

    on_gpu = load.device == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    write_table()
    costs: dict[int, Cost] = {}
    for size in sizes:
        if len(costs) > 1 and on_line(costs, size, "peak_mib") > machine_mib():
            break
        tell(f"packs of {size}")
        pack, laps = None, []
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        try:
            pack = attach(bench.model, parse_method("lora"), seeds=[0] * size, rank=4, targets=bench.targets)
            for _ in range(4):
                began = clock()
                bench.train(size * load.rows).square().sum().backward()
                if on_gpu:
                    torch.cuda.synchronize()
                laps.append(clock() - began)
            bench.evaluate(size, laps[-1] / (size * load.rows))
        except (torch.OutOfMemoryError, MemoryError):
            break
        finally:
            if pack is not None:
                pack.detach()
        gpu = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0
        costs[size] = Cost(sorted(laps[1:])[1] / load.rows, peak_mib(), gpu)
        if size >= 8 and costs[size].step_s / size > 0.97 * min(c.step_s / s for s, c in costs.items() if s < size):
            break
    return costs


def write_table() -> None:
    """Write a table to memory, as workers write theirs to disk: what the library takes for that it keeps."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"step": np.arange(10_000), "value": np.arange(10_000.0)}), pa.BufferOutputStream())


def peak_mib() -> float:
    """This process's peak of resident memory in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    print(json.dumps(measure_or_fit(Load(**json.loads(sys.argv[1])))))
