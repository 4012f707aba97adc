"""Full finetuning of the same matrices: every replica trains a weight of its own.

What it costs is memory: per replica the weights, their gradients, Adam's two moments, the state before a step and the
rows that the next angular step starts from, :data:`adapters.parameters.COPIES_IN_TRAINING` values for each one trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from adapters.base import Adapter, Role


class Full(Adapter):
    """W itself, from W0 on. Weight decay therefore pulls to zero, as in ordinary finetuning, and not back to W0."""

    ROLES: ClassVar[Mapping[str, Role]] = {"W": "factors"}
    draws_start: ClassVar[bool] = False
    uses_rank: ClassVar[bool] = False
    has_small_work: ClassVar[bool] = False
    W: Tensor

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"W": self.base_weight().cpu()}

    def weight(self) -> Float[Tensor, "*batch out in"]:
        """The trained weight."""
        return self.W

    def transform(
        self, rows: Float[Tensor, "k n in"], weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "k n out"]:
        """One product for each replica; the frozen weight is not needed."""
        own = self.W.to(rows.dtype)
        if self.num_replicas == 1:
            return F.linear(rows[0], own[0], bias)[None]
        out = torch.bmm(rows, own.mT)
        return out if bias is None else out.add_(bias)

    @torch.no_grad()
    def readings(self) -> dict[str, Float[Tensor, "*batch"]]:
        """The norm of the difference, one replica after the other, so that no pack of copies is made."""
        w0 = self.base_weight()
        norms = [torch.linalg.vector_norm((one - w0).flatten(-2).double(), dim=-1) for one in self.W]
        return {"distance": torch.stack(norms)}

    def directions(self) -> dict[str, Float[Tensor, "*batch n dim"]]:
        """The rows of W: there are no factors on the other side."""
        return {"a": self.W}
