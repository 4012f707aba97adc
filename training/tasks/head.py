"""A classifier's head for every replica of a pack: it trains fully beside the adapter, at a rate of its own.

Its rate does not follow the multiplier unless that is asked for: else a method would fail by its head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors.torch import save_file
from torch import Tensor, nn

from training.optimizer import PackedAdamW
from training.seeds import seed_of
from training.store import writing
from training.tasks.task import Trained

START_SD = 0.02  # as transformers' classifiers start
FILE = "head.safetensors"


class Head(Trained):
    """Linear classifiers, one a replica, with AdamW of their own.

    Args:
        width: of what is classified.
        classes: how many there are.
        seeds: of the replicas: their starts follow from them.
        rates: learning rate of each replica.
        weight_decay: decoupled weight decay of each.
        device: where they train.
    """

    def __init__(
        self, width: int, classes: int, seeds: Sequence[int], rates: Sequence[float], weight_decay: Sequence[float],
        device: torch.device,
    ) -> None:  # fmt: skip
        self.width, self.classes = width, classes
        starts = torch.stack([_start(seed, width, classes) for seed in seeds]).to(device)
        self._start = starts.clone()
        self.values = nn.Parameter(starts)
        self.grad = self.values.grad = torch.zeros_like(starts)
        self._optimizer = PackedAdamW(
            self.values.data, self.grad, {"head": slice(0, starts.shape[1])}, rates={"head": rates},
            weight_decay=weight_decay, clip=[0.0] * len(seeds),
        )  # fmt: skip

    def logits(self, features: Float[Tensor, "k n d"]) -> Float[Tensor, "k n c"]:
        """Scores of the classes, each replica's features by its own head."""
        weight, bias = self._split(self.values)
        return torch.baddbmm(bias[:, None], features, weight.mT)

    def zero_grad(self) -> None:
        """Set all gradients to zero, in place."""
        self.grad.zero_()

    def step(self, frozen: Bool[Tensor, " k"], factor: float) -> None:
        """One step of AdamW of every replica but the frozen ones."""
        optimizer = self._optimizer
        optimizer.frozen_at.masked_fill_(frozen & ~optimizer.frozen, optimizer.steps_done + 1)
        optimizer.step(torch.zeros_like(optimizer.clip), factor)

    def state(self) -> Mapping[str, Tensor]:
        """The values with their moments and counters, `[k, ...]`."""
        return {f"head.{name}": getattr(self._optimizer, name) for name in self._optimizer.kept}

    def distances(self) -> Float[Tensor, " k"]:
        """‖h_t - h_0‖ of weight and bias together."""
        return (self.values.detach() - self._start).norm(dim=1)

    def save(self, folder: Path, replica: int) -> None:
        """`head.safetensors`: `classifier.weight` `[c, d]` and `classifier.bias` `[c]`."""
        weight, bias = (part[replica].detach().cpu().clone() for part in self._split(self.values))
        with writing(folder / FILE) as aside:
            save_file({"classifier.weight": weight, "classifier.bias": bias}, aside)

    def _split(self, values: Float[Tensor, "k p"]) -> tuple[Float[Tensor, "k c d"], Float[Tensor, "k c"]]:
        size = self.classes * self.width
        return values[:, :size].unflatten(1, (self.classes, self.width)), values[:, size:]


def _start(seed: int, width: int, classes: int) -> Float[Tensor, " p"]:
    """Small random weights, and a bias of zeros."""
    generator = torch.Generator().manual_seed(seed_of("head", seed))
    weight = START_SD * torch.randn(classes * width, generator=generator)
    return torch.cat([weight, torch.zeros(classes)])
