"""Loss, gradient norm and rates of every step, for the store and for a progress display."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from training.optimizer import PackedAdamW
from training.store import RunFolder
from training.tasks.task import Trained


class _Step(NamedTuple):
    step: int
    losses: torch.Tensor
    norms: torch.Tensor
    rates: dict[str, torch.Tensor]
    seconds: float
    sharpness: torch.Tensor | None
    beside: torch.Tensor | None


class StepLog:
    """Loss, gradient norm and rates of every step, buffered on the device between flushes."""

    def __init__(self, num_replicas: int) -> None:
        self._rows: list[_Step] = []
        self.last = [float("nan")] * num_replicas

    def record(
        self,
        step: int,
        losses: torch.Tensor,
        norms: torch.Tensor,
        optimizer: PackedAdamW,
        factor: float,
        seconds: float,
        sharpness: torch.Tensor | None = None,
        beside: Trained | None = None,
    ) -> None:
        """Keep one step; `sharpness` where it was measured, `beside` where something trains beside the adapters."""
        moved = beside.distances() if beside is not None else None
        self._rows.append(_Step(step, losses, norms, optimizer.rates_of_step(factor), seconds, sharpness, moved))

    def last_losses(self) -> list[float]:
        """Losses of the last step."""
        if self._rows:
            self.last = self._rows[-1].losses.tolist()
        return self.last

    def flush(self, folders: Sequence[RunFolder | None], last_step: int) -> None:
        """Write one part for each run, and forget it."""
        if not self._rows:
            return
        self.last_losses()
        losses = torch.stack([row.losses for row in self._rows]).cpu().numpy()
        norms = torch.stack([row.norms for row in self._rows]).cpu().numpy()
        rates = {n: torch.stack([row.rates[n] for row in self._rows]).cpu().numpy() for n in self._rows[0].rates}
        apart = [row.beside for row in self._rows if row.beside is not None]
        moved = torch.stack(apart).cpu().numpy() if apart else None
        steps = np.array([row.step for row in self._rows], dtype=np.int32)
        seconds = np.array([row.seconds for row in self._rows], dtype=np.float32)
        for replica, folder in enumerate(folders):
            if folder is not None:
                columns = {
                    "step": steps,
                    "loss": losses[:, replica],
                    "grad_norm": norms[:, replica],
                    "seconds": seconds,
                }
                if any(row.sharpness is not None for row in self._rows):
                    columns["sharpness"] = np.array(
                        [np.nan if row.sharpness is None else float(row.sharpness[replica]) for row in self._rows],
                        dtype=np.float32,
                    )
                if moved is not None:
                    columns["beside_distance"] = moved[:, replica]
                columns |= {name: values[:, replica].astype(np.float32) for name, values in rates.items()}
                folder.append("steps", columns, last_step)
        self._rows.clear()
