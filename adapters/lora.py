"""LoRA: low-rank adaptation (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from adapters.base import Adapter, Role, norm_of_product
from adapters.low_rank import LowRank


class Lora(Adapter):
    """W = W0 + (alpha / r) B A, with B = 0 at the start.

    Options:
        alpha: ``2r`` (the DeLoRA paper's setting) or a number.
        init: A's start: ``kaiming`` (U(-1/sqrt(in), 1/sqrt(in)), PEFT's default) or ``gaussian`` (N(0, 1/r^2), the
            diffusers scripts').
    """

    ROLES: ClassVar[Mapping[str, Role]] = {"A": "factors", "B": "factors"}
    has_small_work: ClassVar[bool] = False
    A: Tensor
    B: Tensor

    def configure(self) -> None:
        alpha = self.options["alpha"]
        self.scale = 2.0 if alpha == "2r" else float(alpha) / self.rank

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        num_out, num_in = self.shape
        if self.options["init"] == "gaussian":
            a = torch.randn(self.rank, num_in, generator=generator) / self.rank
        else:
            a = kaiming_uniform(self.rank, num_in, generator)
        return {"A": a, "B": torch.zeros(num_out, self.rank)}

    def weight(self) -> Float[Tensor, "*batch out in"]:
        """Equation 3 of the LoRA paper: W0 + (alpha / r) B A."""
        return self.base_weight() + self.scale * (self.B @ self.A)

    def low_rank(self) -> LowRank:
        return LowRank(self.A, self.B, self.scale)

    @torch.no_grad()
    def readings(self) -> dict[str, Float[Tensor, "*batch"]]:
        """The distance from Grams; they need double precision: in single, correlated factors lose 6e-4."""
        return {"distance": self.scale * norm_of_product(self.B.double().mT, self.A.double())}

    def directions(self) -> dict[str, Float[Tensor, "*batch n dim"]]:
        return {"a": self.A, "b": self.B.mT}


def kaiming_uniform(num_rows: int, num_columns: int, generator: torch.Generator) -> Float[Tensor, "rows columns"]:
    """``nn.init.kaiming_uniform_`` with a = sqrt(5), the default of linear layers: U(-1/sqrt(in), 1/sqrt(in))."""
    limit = 1 / math.sqrt(num_columns)
    return (2 * torch.rand(num_rows, num_columns, generator=generator) - 1) * limit
