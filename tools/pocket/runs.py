"""What all training stages share: a schedule in steps, a learning rate, checkpoints, a log, and a measured precision.

A stage is so many steps long, on any machine and over any number of restarts; a step's draws depend on its number alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tools.pocket.muon import Muon

STATES = ("step", "exp_avg", "exp_avg_sq", "momentum")  # of AdamW and Muon


class StageRun:
    """One stage's training: ``for step in run.steps(): ... run.update(loss)``; stop it at any time, start it again to go on.

    Args:
        folder: where checkpoint and log go.
        model: what is trained.
        num_steps: steps in all; they set the learning rate's cosine, so a begun run keeps its number.
        lr: peak learning rate.
        muon: whether the hidden convolutions are trained by Muon, at the same rate; all else is trained by AdamW.
        ema: decay of the averaged weights.

    Raises:
        ValueError: if the checkpoint was begun with another ``num_steps`` or for another model.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        *,
        num_steps: int,
        lr: float,
        muon: bool = False,
        ema: float = 0.998,
        weight_decay: float = 0.01,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.model, self.num_steps, self.lr = folder, model, num_steps, lr
        self.params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        hidden = [p for p in self.params.values() if muon and p.ndim == 4 and min(p.shape[:2]) >= 16]
        others = [p for p in self.params.values() if all(p is not q for q in hidden)]
        adam = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
        self.optimizers = [adam, Muon(hidden, lr)] if hidden else [adam]
        self.ema_decay, self.ema = ema, {name: p.detach().clone() for name, p in self.params.items()}
        self.step, self.elapsed_s = 0, 0.0
        self._load()

    @property
    def progress(self) -> float:
        """Share of the steps that are done."""
        return self.step / self.num_steps

    def steps(self, save_every_s: float = 180.0) -> Iterator[int]:
        """Yield step numbers until all are done; saves now and then and at the end."""
        saved_s = self.elapsed_s
        while self.step < self.num_steps:
            start = time.perf_counter()
            yield self.step
            self.step += 1
            self.elapsed_s += time.perf_counter() - start
            if self.elapsed_s - saved_s >= save_every_s:
                self.save()
                saved_s = self.elapsed_s
        self.save()

    def update(self, loss: Tensor, **values: float | Tensor) -> None:
        """One optimiser step, one step of the average, a log line every 50."""
        rate = self.lr * min(1, (self.step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.progress)))
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.params.values(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.ema.values()), [p.detach() for p in self.params.values()], 1 - decay)
        if self.step % 50 == 0:
            self.log(loss=loss.item(), lr=rate, **{k: float(torch.as_tensor(v).detach()) for k, v in values.items()})

    def log(self, **values: float) -> None:
        """Append a line to log.jsonl and print it."""
        row = {"step": self.step, "minute": round(self.elapsed_s / 60, 2)} | {
            k: round(float(v), 6) for k, v in values.items()
        }
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(self.folder.name, row, flush=True)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model with the averaged weights in place."""
        kept = {name: p.detach().clone() for name, p in self.params.items()}
        _put(self.params, self.ema)
        yield self.model
        _put(self.params, kept)

    def use_average(self) -> Any:
        """The model with the averaged weights, for good."""
        _put(self.params, self.ema)
        return self.model.eval()

    def save(self) -> None:
        """Write the checkpoint aside, then rename."""
        tensors: dict[str, Tensor] = {f"model.{name}": p for name, p in self.params.items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.items()}
        names: dict[Tensor, str] = {p: name for name, p in self.params.items()}
        for optimizer in self.optimizers:
            tensors |= {f"{key}.{names[p]}": t for p, state in optimizer.state.items() for key, t in state.items()}
        path = checkpoint_path(self.folder)
        partial = path.with_suffix(".partial")
        counters = {"step": self.step, "num_steps": self.num_steps, "elapsed_s": self.elapsed_s}
        flat = {name: t.detach().contiguous() for name, t in tensors.items()}
        save_file(flat, partial, metadata={name: str(value) for name, value in counters.items()})
        os.replace(partial, path)

    def _load(self) -> None:
        path = checkpoint_path(self.folder)
        if not path.exists():
            return
        begun = read_counters(path)
        if begun["num_steps"] != self.num_steps:
            raise ValueError(
                f"{path} was begun for {begun['num_steps']:.0f} steps, not {self.num_steps}: "
                f"give the same number, or begin anew in another folder"
            )
        self.step, self.elapsed_s = int(begun["step"]), begun["elapsed_s"]
        _put(self.params, read_group(path, "model"))
        _put(self.ema, read_group(path, "ema"))
        states = {key: read_group(path, key) for key in STATES}
        names: dict[Tensor, str] = {p: name for name, p in self.params.items()}
        for optimizer in self.optimizers:
            for p in optimizer.param_groups[0]["params"]:
                found = {key: of_all[names[p]] for key, of_all in states.items() if names[p] in of_all}
                optimizer.state[p] = {key: _like(p, value) for key, value in found.items()}


def checkpoint_path(folder: Path) -> Path:
    """The one checkpoint of a stage: weights, average, optimiser and counters."""
    return folder / "checkpoint.safetensors"


def read_counters(path: Path) -> dict[str, float]:
    """``step``, ``num_steps`` and ``elapsed_s`` of a checkpoint."""
    with safe_open(path, framework="pt") as file:
        return {name: float(value) for name, value in file.metadata().items()}


def read_group(path: Path, group: str) -> dict[str, Tensor]:
    """One group of a checkpoint's tensors by parameter name: ``model``, ``ema``, or a state of the optimiser."""
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(f"{group}.")]  # noqa: SIM118
        return {name.removeprefix(f"{group}."): file.get_tensor(name) for name in names}


@torch.no_grad()
def _put(into: dict[str, Any], values: dict[str, Tensor]) -> None:
    """Copy values into tensors of the same names.

    Raises:
        ValueError: if the names differ.
    """
    if into.keys() != values.keys():
        raise ValueError(f"the checkpoint is of another model: {sorted(into.keys() ^ values.keys())[:3]} differ")
    for name, value in values.items():
        into[name].copy_(value)


def _like(p: Tensor, value: Tensor) -> Tensor:
    """``value`` in the memory format of ``p``, if it has its shape."""
    return torch.empty_like(p).copy_(value).detach() if value.shape == p.shape else value


def seeded(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step, the same after a resume."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def faster_precision(forward_backward: Callable[[], None], num_trials: int = 3) -> torch.dtype | None:
    """torch.bfloat16 if autocast makes this step faster on this machine, else None (float32)."""
    seconds = {}
    for dtype in (None, torch.bfloat16):
        with precision(dtype):
            forward_backward()
            start = time.perf_counter()
            for _ in range(num_trials):
                forward_backward()
        seconds[dtype] = (time.perf_counter() - start) / num_trials
    print("precision", {str(k): round(v, 4) for k, v in seconds.items()}, flush=True)
    return min(seconds, key=seconds.__getitem__)


def precision(dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    """Autocast to ``dtype`` on the CPU; None leaves float32."""
    return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype)
