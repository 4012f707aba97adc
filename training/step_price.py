"""What a training step of a method costs beside LoRA's on this machine: seconds in turns, and memory of a process of its own.

python -m training.step_price LOAD RANK METHOD...     prints each method's seconds by lap and the peak in MiB, as JSON
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from adapters import get_class, parse_method
from adapters.inject import attach
from training.optimizer import PackedAdamW
from training.probe import Load, peak_mib
from training.process_setup import keep_freed_memory, quiet_libraries
from training.task_kinds import kind_of
from training.tasks.task import MeasuredModel

LIKE = "lora"
LAPS, WARMUP, STEPS = 15, 3, 1000


@dataclasses.dataclass(frozen=True)
class StepPrice:
    """A method's step over LoRA's, both alone in a pack of one.

    Attributes:
        ratio, low, high: of the seconds: the median over `num_laps` laps in turns, and their quartiles.
        num_laps: how many.
        peak_mib, lora_mib: peak of memory of a process that trains it, and of one that trains LoRA; the GPU's on a GPU.
    """

    ratio: float
    low: float
    high: float
    num_laps: int
    peak_mib: float
    lora_mib: float


def price(load: Load, method: str, rank: int) -> StepPrice:
    """Measure in processes of their own: both in turns for the time, each alone for the memory.

    Args:
        load: model, device and shape.
        method: as the command line names it.
        rank: of both.

    Raises:
        RuntimeError: if one of the processes fails; with its last line.
    """
    both = _run(load, rank, [LIKE, method])["laps"]
    ratios = [own / like for like, own in zip(both[0], both[1], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    lora, own = (_run(load, rank, [name])["peak_mib"] for name in (LIKE, method))
    return StepPrice(middle, low, high, len(ratios), own, lora)


def _run(load: Load, rank: int, methods: Sequence[str]) -> dict:
    words = [json.dumps(dataclasses.asdict(load)), str(rank), *methods]
    command = [sys.executable, "-m", "training.step_price", *words]
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths}  # a method's file may be named from where the user is
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    found: dict = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(load: Load, methods: Sequence[str], rank: int, laps: int = LAPS) -> dict:
    """Seconds of the laps of each method, taken in turns, and this process's peak.

    On a CPU one thread, and the seconds that the process computes: a busy machine changes them little.

    Returns:
        laps: [method][lap] in seconds. peak_mib: of the process, or of the GPU's memory.
    """
    quiet_libraries()
    keep_freed_memory()
    on_gpu = load.device == "cuda"
    if not on_gpu:
        torch.set_num_threads(1)
    clock = time.perf_counter if on_gpu else time.process_time
    model = kind_of(load.task).open().bench(load)
    models = [model, *(model.twin() for _ in methods[1:])]
    steps = [
        make_step(own.model, method, rank, partial(_loss, own, load.rows), targets=own.targets)
        for own, method in zip(models, methods, strict=True)
    ]
    found: list[list[float]] = [[] for _ in methods]
    for _ in range(WARMUP + laps):
        for own, step in zip(found, steps, strict=True):
            began = clock()
            step()
            if on_gpu:
                torch.cuda.synchronize()
            own.append(clock() - began)
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else peak_mib()
    return {"laps": [own[WARMUP:] for own in found], "peak_mib": peak}


def _loss(model: MeasuredModel, rows: int) -> Tensor:
    return model.train(rows).square().mean()


def make_step(
    model: nn.Module,
    method: str,
    rank: int,
    loss: Callable[[], Tensor],
    *,
    size: int = 1,
    targets: Mapping[str, nn.Linear] | None = None,
) -> Callable[[], object]:
    """Attach a pack; the step that is returned is forward, backward, clipping and AdamW of it.

    Args:
        model: what is finetuned.
        method: as the command line names it.
        rank: of every replica.
        loss: the mean loss of one batch, with as many rows for each replica.
        size: replicas in the pack.
        targets: the matrices; None for attention's of a U-Net.
    """
    spec = parse_method(method)
    boundary = [1.0] * size if get_class(spec.name).uses_boundary else None
    pack = attach(model, spec, seeds=range(size), rank=rank, boundary=boundary, targets=targets)
    optimizer = PackedAdamW(
        pack.flat, pack.grad, pack.segments, rates=dict.fromkeys(pack.segments, [1e-4] * size),
        weight_decay=[0.01] * size, clip=[1.0] * size, advancing=pack.advancing(),
    )  # fmt: skip

    def step() -> None:
        pack.zero_grad()
        pack.advance(STEPS)
        mean = loss() * size  # the sum of the replicas' means
        mean.backward()
        optimizer.step(mean.detach().expand(size))

    return step


def describe(found: StepPrice) -> list[tuple[str, str]]:
    """The price as what and words."""
    spread = f" (quartiles {found.low:.2f} to {found.high:.2f}, n = {found.num_laps} laps in turns)"
    more = found.peak_mib / found.lora_mib if found.lora_mib else math.nan
    return [
        ("time of a step over LoRA's", f"{found.ratio:.2f}{spread}"),
        ("memory over LoRA's", f"{more:.2f} ({found.peak_mib:.0f} MiB at the peak, LoRA {found.lora_mib:.0f} MiB)"),
    ]


if __name__ == "__main__":
    print(json.dumps(measure(Load(**json.loads(sys.argv[1])), sys.argv[3:], int(sys.argv[2]))))
