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
    """Classifiers, one a replica, with AdamW of their own: linear ones, or with RoBERTa's layer before (`tanh(W x + b)`).

    Args:
        width: of what is classified.
        outputs: how many numbers each replica's head gives; those of the others in a pack that give fewer stay at 0.
        seeds: of the replicas: their starts follow from them.
        rates: learning rate of each replica.
        weight_decay: decoupled weight decay of each.
        device: where they train.
        dense: put a layer as wide as the features before the classifier.
    """

    def __init__(
        self, width: int, outputs: Sequence[int], seeds: Sequence[int], rates: Sequence[float],
        weight_decay: Sequence[float], device: torch.device, *, dense: bool = False,
    ) -> None:  # fmt: skip
        self.width, self.outputs, self.dense = width, list(outputs), dense
        most = max(outputs)
        starts = torch.stack([_start(s, width, n, most, dense) for s, n in zip(seeds, outputs, strict=True)]).to(device)
        self._start = starts.clone()
        self.values = nn.Parameter(starts)
        self.grad = self.values.grad = torch.zeros_like(starts)
        self._optimizer = PackedAdamW(
            self.values.data, self.grad, {"head": slice(0, starts.shape[1])}, rates={"head": rates},
            weight_decay=weight_decay, clip=[0.0] * len(seeds),
        )  # fmt: skip

    def logits(self, features: Float[Tensor, "k n d"]) -> Float[Tensor, "k n c"]:
        """What each replica's own head gives for its features; places beyond a replica's `outputs` mean nothing."""
        parts = self._split(self.values)
        if self.dense:
            weight, bias = parts["dense"]
            features = torch.baddbmm(bias[:, None], features, weight.mT).tanh()
        weight, bias = parts["out_proj"]
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
        """`head.safetensors` with the names of transformers: `classifier.weight` `[o, d]` and `classifier.bias` `[o]`, or, with a
        dense layer, `classifier.dense.weight`, ... and `classifier.out_proj.weight`, ...
        """
        own = {"dense": self.width, "out_proj": self.outputs[replica]}
        found = {
            f"classifier.{f'{name}.' if self.dense else ''}{kind}": part[replica, : own[name]].detach().cpu().clone()
            for name, both in self._split(self.values).items()
            for kind, part in zip(("weight", "bias"), both, strict=True)
        }
        with writing(folder / FILE) as aside:
            save_file(found, aside)

    def _split(self, values: Float[Tensor, "k p"]) -> dict[str, tuple[Float[Tensor, "k o d"], Float[Tensor, "k o"]]]:
        """Weight and bias of each layer."""
        found, start = {}, 0
        layers = ({"dense": self.width} if self.dense else {}) | {"out_proj": max(self.outputs)}
        for name, rows in layers.items():
            middle, end = start + rows * self.width, start + rows * (self.width + 1)
            found[name] = (values[:, start:middle].unflatten(1, (rows, self.width)), values[:, middle:end])
            start = end
        return found


def _start(seed: int, width: int, outputs: int, most: int, dense: bool) -> Float[Tensor, " p"]:
    """Small random weights, and biases of zeros."""
    generator = torch.Generator().manual_seed(seed_of("head", seed))
    parts = []
    for rows, room in ([(width, width)] if dense else []) + [(outputs, most)]:
        weight = START_SD * torch.randn(rows * width, generator=generator)
        parts += [weight, torch.zeros((room - rows) * width + room)]
    return torch.cat(parts)
