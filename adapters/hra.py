"""HRA: Householder reflection adaptation (Yuan, Liu, Xu 2024, arXiv 2405.17484), as in the authors' code and PEFT: no
orthogonality regulariser (lambda = 0 in the paper).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from adapters.base import Adapter, Role, gram, norm_of_product, row_norms, times_base
from adapters.lora import kaiming_uniform
from adapters.low_rank import LowRank

FLOOR = 1e-12
"""Where norms are clamped; only a vector of zeros gets there, and reflects nothing."""


class Hra(Adapter):
    """W = W0 H_1 H_2 ... H_r with H_i = I - 2 u_i u_i^T / ||u_i||^2: a chain of reflections on the input side.

    Vectors start in equal pairs, whose reflections undo each other; so the rank must be even. (PEFT takes odd ranks too
    and then starts from a random reflection instead of the base.)
    """

    ROLES: ClassVar[Mapping[str, Role]] = {"U": "factors"}
    constants: ClassVar[tuple[str, ...]] = ("base_norm",)
    bound_kind: ClassVar[Literal["none", "distance", "transform"]] = "transform"
    rank_multiple: ClassVar[int] = 2
    U: Tensor
    base_norm: Tensor

    def measure(self) -> dict[str, Tensor]:
        return {"base_norm": torch.linalg.vector_norm(self.weight0.double())}

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """PEFT's start, ``[in, r]``: columns of U(-1/sqrt(r/2), 1/sqrt(r/2)), each twice."""
        return {"U": kaiming_uniform(self.shape[1], self.rank // 2, generator).repeat_interleave(2, dim=1)}

    def weight(self) -> Float[Tensor, "*batch out in"]:
        """Equation 2 of the paper, one reflection after the other."""
        weight = self.base_weight()
        for u in self._unit_rows(self.U).unbind(-2):
            weight = weight - 2 * (weight @ u[..., None]) * u[..., None, :]
        return weight

    def low_rank(self) -> LowRank:
        """The compact form of a product of reflections (Schreiber and Van Loan 1989): with unit rows P it is
        I - P^T T P, T^-1 = 1/2 I + the strictly upper part of P P^T; so W - W0 = -(W0 P^T) T P.
        """
        p = self._unit_rows(self.U)
        image = times_base(p, self.base_weight())
        return LowRank(p, -torch.linalg.solve_triangular(self._inverse_t(p).mT, image, upper=False).mT)

    def _unit_rows(self, u: Tensor) -> Float[Tensor, "*batch r in"]:
        return u.mT / row_norms(u.mT, FLOOR)[..., None]

    def _inverse_t(self, p: Float[Tensor, "*batch r in"]) -> Float[Tensor, "*batch r r"]:
        half = 0.5 * torch.eye(self.rank, dtype=p.dtype, device=p.device)
        return gram(p).triu(1) + half

    @torch.no_grad()
    def readings(self) -> dict[str, Float[Tensor, "*batch"]]:
        """Distances from pairs of reflections, which the start makes equal.

        With q = v - u, H_u H_v - I = u (2 q - 2 ||q||^2 v)^T - 2 q v^T: everything vanishes with q. A chain of pairs
        telescopes: W - W0 = sum_k W0 Q_k (H_u H_v - I)_k with Q_k the product of all pairs before the k-th. Since -v
        reflects as v does, the one nearer to u is taken.
        """
        p = self._unit_rows(self.U.double())
        u, v = p[..., 0::2, :], p[..., 1::2, :]
        v = torch.where((u * v).sum(-1, keepdim=True) < 0, -v, v)
        q = v - u
        left = self._after_earlier_pairs(torch.stack([u, q], -2).flatten(-3, -2), p)
        right = torch.stack([2 * q - 2 * q.square().sum(-1, keepdim=True) * v, -2 * v], -2).flatten(-3, -2)
        transform = norm_of_product(left, right)
        bound = self.bounds()["transform_distance"]
        return {
            "distance": norm_of_product(times_base(left, self.weight0.double()), right),
            "transform_distance": transform,
            "bound": bound,
            "saturation": transform / bound,
        }

    def _after_earlier_pairs(self, rows: Tensor, p: Float[Tensor, "*batch r in"]) -> Float[Tensor, "*batch r in"]:
        """Q_k x for the two rows x of the k-th pair: x - P^T T (P x), with P x cut off where the pair begins."""
        first = torch.arange(self.rank, device=p.device) // 2 * 2
        earlier = torch.arange(self.rank, device=p.device)[:, None] < first
        weights = torch.linalg.solve_triangular(self._inverse_t(p), (p @ rows.mT) * earlier, upper=True)
        return rows - weights.mT @ p

    def bounds(self) -> dict[str, Float[Tensor, "*batch"]]:
        """||Q - I||_F <= 2 sqrt(r): r reflections leave all but r directions alone; ||W - W0||_F <= 2 ||W0||_F."""
        leading = self.U.shape[:-2]
        return {
            "transform_distance": self.base_norm.new_full(leading, 2 * self.rank**0.5),
            "distance": (2 * self.base_norm).expand(leading),
        }

    def directions(self) -> dict[str, Float[Tensor, "*batch n dim"]]:
        """The reflected directions: there are none on the other side."""
        return {"a": self.U.mT}
