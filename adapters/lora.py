"""LoRA: low-rank adaptation (Hu et al. 2021, arXiv 2106.09685), with the scale of rank-stabilised LoRA (Kalajdzievski
2023, arXiv 2312.03732) and the two rates of LoRA+ (Hayou, Ghosh, Yu 2024, arXiv 2402.12354) as options.
"""

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
    """W = W0 + scale B A with scale = alpha / r, and B = 0 at the start.

    Options:
        alpha: ``2r`` (the DeLoRA paper's setting) or a number.
        init: A's start: ``kaiming`` (U(-1/sqrt(in), 1/sqrt(in)), PEFT's default) or ``gaussian`` (N(0, 1/r^2), the
            diffusers scripts').
        divisor: what alpha is divided by: ``r`` (the LoRA paper), or ``sqrt_r`` (rank-stabilised LoRA: the change
            neither vanishes nor explodes as the rank grows).
        lr_ratio: rate of B over that of A, which is the method's rate: 1 (one rate, the LoRA paper), or any positive
            number (LoRA+, which advises 16).
    """

    ROLES: ClassVar[Mapping[str, Role]] = {"A": "factors", "B": "factors"}
    has_small_work: ClassVar[bool] = False
    A: Tensor
    B: Tensor

    def configure(self) -> None:
        alpha = 2.0 * self.rank if self.options["alpha"] == "2r" else float(self.options["alpha"])
        self.scale = alpha / (self.rank if self.options["divisor"] == "r" else math.sqrt(self.rank))
        self.lr_ratio = float(self.options["lr_ratio"])
        if self.lr_ratio != 1:
            self.ROLES = {**self.ROLES, "B": "factors_b"}  # type: ignore[misc]

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        num_out, num_in = self.shape
        if self.options["init"] == "gaussian":
            a = torch.randn(self.rank, num_in, generator=generator) / self.rank
        else:
            a = kaiming_uniform(self.rank, num_in, generator)
        return {"A": a, "B": torch.zeros(num_out, self.rank)}

    def factor_pair(self) -> tuple[Float[Tensor, "*batch r in"], Float[Tensor, "*batch out r"]]:
        """The factors A and B of the change ``scale B A``; methods that make them of less override this."""
        return self.A, self.B

    def weight(self) -> Float[Tensor, "*batch out in"]:
        """Equation 3 of the LoRA paper: W0 + (alpha / r) B A."""
        a, b = self.factor_pair()
        return self.base_weight() + self.scale * (b @ a)

    def low_rank(self) -> LowRank:
        return LowRank(*self.factor_pair(), self.scale)

    @torch.no_grad()
    def readings(self) -> dict[str, Float[Tensor, "*batch"]]:
        """The distance from Grams; they need double precision: in single, correlated factors lose 6e-4."""
        a, b = self.factor_pair()
        return {"distance": self.scale * norm_of_product(b.double().mT, a.double())}

    def directions(self) -> dict[str, Float[Tensor, "*batch n dim"]]:
        return {"a": self.A, "b": self.B.mT}


def kaiming_uniform(num_rows: int, num_columns: int, generator: torch.Generator) -> Float[Tensor, "rows columns"]:
    """``nn.init.kaiming_uniform_`` with a = sqrt(5), the default of linear layers: U(-1/sqrt(in), 1/sqrt(in))."""
    limit = 1 / math.sqrt(num_columns)
    return (2 * torch.rand(num_rows, num_columns, generator=generator) - 1) * limit
