"""SingLoRA: low-rank adaptation with a single matrix (Bensaid, Rotstein, Velich, Bensaid, Kimmel 2025, arXiv 2507.05566).

The authors have released no code; "released" here is that of the two public implementations, kyegomez/SingLoRA and
bghira/PEFT-SingLoRA.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from adapters.base import Adapter, Role, norm_of_product
from adapters.lora import kaiming_uniform
from adapters.low_rank import LowRank


class SingLora(Adapter):
    """W = W0 + (alpha / r) u(t) A A^T with u(t) = min(t / T, 1) after t optimiser steps: one factor on both sides.

    A is N x r with N = max(out, in). Where W is not square, one of the two factors has only A's first min(out, in) rows.

    A does not start at zero, so the weight leaves W0 while u rises, whatever the learning rate: at rate 0 it ends
    (alpha / r) ||A0 A0^T||_F away, which the gauge ``drift`` shows. t counts optimiser steps, and is 1 at the first forward:
    at t = 0 there would be no gradient. (The public codes count forwards, so that gradient accumulation shortens the ramp.)
    t and T are saved with the adapter; one that is trained further goes on from its own.

    Options:
        alpha: ``r`` (the paper's experiments on language, r = alpha = 8) or a number.
        init: A from U(-1/sqrt(fan), 1/sqrt(fan)), torch's Kaiming-uniform with a = sqrt(5): ``paper``, fan = N, since its
            theory asks for entries of order N^(-1/2); ``released``, fan = r, as the public codes call it on an N x r tensor,
            which makes the drift N / r times as large and overwrites a model of usual size.
        ramp: T: ``1%`` of all steps of the training, rounded up (the paper's main setting, App. A.1), or a number of steps
            (1000 in its Section 6.1 and in the public codes).
    """

    ROLES: ClassVar[Mapping[str, Role]] = {"A": "factors"}
    frozen: ClassVar[tuple[str, ...]] = ("t", "ramp", "start_norm")
    advancing: ClassVar[tuple[str, ...]] = ("t", "ramp")
    A: Tensor
    t: Tensor
    ramp: Tensor
    start_norm: Tensor

    def configure(self) -> None:
        self.scale = 1.0 if self.options["alpha"] == "r" else float(self.options["alpha"]) / self.rank
        self.share = self.options["ramp"] == "1%"

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """A; the ramp before its first step, with T = 0 where only the training says how long it is; and ||A0* A0^T||_F."""
        rows = max(self.shape)
        if self.options["init"] == "released":
            a = kaiming_uniform(rows, self.rank, generator)
        else:
            a = kaiming_uniform(self.rank, rows, generator).mT.contiguous()
        start = norm_of_product(*(part.double().mT for part in self._sides(a)))
        ramp = torch.tensor(0.0 if self.share else float(self.options["ramp"]))
        return {"A": a, "t": torch.tensor(0.0), "ramp": ramp, "start_norm": start}

    def _sides(self, a: Float[Tensor, "*batch rows r"]) -> tuple[Tensor, Tensor]:
        """A as far as it stands on the output side, and on the input side."""
        return a[..., : self.shape[0], :], a[..., : self.shape[1], :]

    @torch.no_grad()
    def advance(self, steps: int, live: Bool[Tensor, " k"]) -> None:
        """One step up the ramp; where T is a share of the training, the first step settles it."""
        moving = live.view(-1, *[1] * (self.t.ndim - 1))
        if self.share:
            self.ramp.copy_(torch.where(moving & (self.ramp == 0), math.ceil(steps / 100), self.ramp))
        self.t += moving

    def strength(self) -> Float[Tensor, "*batch"]:
        """(alpha / r) u(t), in double precision."""
        return self.scale * (self.t.double() / self.ramp.double().clamp_min(1)).clamp_max(1)

    def weight(self) -> Float[Tensor, "*batch out in"]:
        """Equation 8 of the paper, and Section 4.4 where W is not square."""
        left, right = self._sides(self.A)
        return self.base_weight() + self._factor() * (left @ right.mT)

    def low_rank(self) -> LowRank:
        left, right = self._sides(self.A)
        return LowRank(self._factor() * right.mT, left)

    def _factor(self) -> Float[Tensor, "*batch 1 1"]:
        return self.strength().to(self.dtype)[..., None, None]

    @torch.no_grad()
    def readings(self) -> dict[str, Float[Tensor, "*batch"]]:
        """The distance from Grams, and ``drift``: the distance at which the start's own A would be at this t."""
        left, right = self._sides(self.A.double())
        strength = self.strength()
        return {"distance": strength * norm_of_product(left.mT, right.mT), "drift": strength * self.start_norm.double()}

    def directions(self) -> dict[str, Float[Tensor, "*batch n dim"]]:
        """A's columns: there is no other factor."""
        return {"a": self.A.mT}
