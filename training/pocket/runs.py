"""What every training stage shares: a clock, a learning rate, checkpoints, a log, and a measured precision.

A stage is timed in minutes of training, so that its cost is known on any machine; the log says how many steps that was.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Run:
    """One stage's training: ``for step in run.steps(): ... run.update(loss)``; stop it at any time, start it again to go on.

    Args:
        folder: where checkpoint and log go.
        model: what is trained. time_min: minutes of training in all. lr: peak learning rate.
        ema: decay of the averaged weights.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        *,
        time_min: float,
        lr: float,
        ema: float = 0.998,
        weight_decay: float = 0.01,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.model, self.time_min, self.lr = folder, model, time_min, lr
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.params, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
        self.ema_decay, self.ema = ema, [p.detach().clone() for p in self.params]
        self.step, self.elapsed_s = 0, 0.0
        self._load()

    @property
    def progress(self) -> float:
        """Share of the training time that is over."""
        return min(1.0, self.elapsed_s / (60 * self.time_min))

    def steps(self, save_every_s: float = 60) -> Iterator[int]:
        """Yield step numbers until the time is over; saves now and then and at the end."""
        saved = self.elapsed_s
        while self.progress < 1:
            start = time.perf_counter()
            yield self.step
            self.step += 1
            self.elapsed_s += time.perf_counter() - start
            if self.elapsed_s - saved > save_every_s:
                self.save()
                saved = self.elapsed_s
        self.save()

    def update(self, loss: torch.Tensor, **values: float | torch.Tensor) -> None:
        """One optimiser step, one step of the average, a log line every 50."""
        rate = self.lr * min(1, (self.step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.progress)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.params], 1 - decay)
        if self.step % 50 == 0:
            self.log(loss=loss.item(), lr=rate, **{k: float(torch.as_tensor(v).detach()) for k, v in values.items()})

    def log(self, **values: float) -> None:
        """Append a line to log.jsonl and print it."""
        row = {"step": self.step, "minute": round(self.elapsed_s / 60, 2)} | {
            k: round(float(v), 6) for k, v in values.items()
        }
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(self.folder.name, row, flush=True)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model with the averaged weights in place."""
        kept = [p.detach().clone() for p in self.params]
        self._put(self.ema)
        yield self.model
        self._put(kept)

    def use_average(self) -> Any:
        """The model with the averaged weights, for good."""
        self._put(self.ema)
        return self.model.eval()

    @torch.no_grad()
    def _put(self, tensors: list[torch.Tensor]) -> None:
        for p, value in zip(self.params, tensors, strict=True):
            p.copy_(value)

    def save(self) -> None:
        """Write the checkpoint aside, then rename."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "ema": self.ema}
        path = self.folder / "checkpoint.pt"
        torch.save(state | {"step": self.step, "elapsed_s": self.elapsed_s}, path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)

    def _load(self) -> None:
        path = self.folder / "checkpoint.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.ema, self.step, self.elapsed_s = state["ema"], state["step"], state["elapsed_s"]


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
