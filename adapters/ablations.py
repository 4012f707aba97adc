"""The rows of Table 1 between LoRA and ETHER+ one-sided (DeLoRA paper, arXiv 2503.18225, Sections 2.2 and 3.2).

Neither the paper nor any code gives the rows' starts; each class states its own, and all start at W0.

| row of the table                          | change of the weight                   | here                              |
|-------------------------------------------|----------------------------------------|-----------------------------------|
| LoRA                                      | B A                                    | ``lora``                          |
| + normalise, controllable boundary        | (lambda / r) B Xi A                    | ``ablation-normalized``           |
| + norm scaling                            | ||W0|| (lambda / r) B Xi A             | ``delora``                        |
| relaxed, multiplicative                   | (lambda / r) (B Xi A - D Phi C) W0     | ``ablation-relaxed``              |
| high rank                                 | (lambda / r) (U Sigma U^T - V Theta V^T) W0 | ``ablation-highrank``        |
| controllable boundary                     | lambda (u u^T - v v^T) W0              | ``ablation-boundary``             |
| ETHER+ one-sided                          | (u u^T - v v^T) W0                     | ``etherplus:sides=one``           |

The multiplicative rows act on the input side, as ETHER+ one-sided does, and have its sign, that of Equations 10 to 14:
W = W0 H^T with H = I - s (sum_i b_i a_i^T - sum_i d_i c_i^T), unit vectors, and the strength s from the trained lambda.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from adapters.base import Adapter, Role, norm_of_product, row_norms, times_base
from adapters.delora import Delora
from adapters.lora import kaiming_uniform
from adapters.low_rank import LowRank

FLOOR = 1e-12
"""Where norms are clamped; only a vector of zeros gets there."""


class Normalized(Delora):
    """DeLoRA without the norm of W0: W = W0 + (lambda / r) B Xi A (Equation 7) - start, so ||W - W0|| <= 2 lambda.

    Lambda is a distance here, not a fraction of a norm: a boundary is what DeLoRA's is times the norms of W0's columns.

    Options:
        start: as in DeLoRA: ``eq9``, ``live`` or ``zero_b``.
    """

    def measure(self) -> dict[str, Tensor]:
        return {"column_norms": torch.ones(self.shape[1], dtype=torch.float64)}


class Relaxed(Adapter):
    """W = W0 H^T with H = I - (lambda / r) (B Xi A - D Phi C) and r/2 vectors in each factor ("U, V relaxation").

    Start: A and B Kaiming-uniform, C = A and D = B, so the terms cancel and H = I, as v = -u does in ETHER+.
    The factors are held as rows: a_i, c_i on the output side of H, b_i, d_i on its input side.
    """

    ROLES: ClassVar[Mapping[str, Role]] = {
        "a": "factors",
        "b": "factors",
        "c": "factors",
        "d": "factors",
        "lam": "lambda",
    }
    constants: ClassVar[tuple[str, ...]] = ("base_norm",)
    bound_kind: ClassVar[Literal["none", "distance", "transform"]] = "transform"
    uses_boundary: ClassVar[bool] = True
    rank_multiple: ClassVar[int] = 2
    base_norm: Tensor
    lam: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor

    def measure(self) -> dict[str, Tensor]:
        return {"base_norm": torch.linalg.vector_norm(self.weight0.double())}

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        a, b = (kaiming_uniform(self.num_pairs, self.shape[1], generator) for _ in range(2))
        return {"a": a, "b": b, "c": a, "d": b, "lam": torch.tensor(1.0)}

    def set_boundary(self, boundary: Float[Tensor, " k"]) -> None:
        with torch.no_grad():
            self.lam.copy_(boundary)

    @property
    def num_pairs(self) -> int:
        """Vectors in each factor."""
        return self.rank // 2

    def strength(self) -> Float[Tensor, "*batch"]:
        """s = lambda / r."""
        return self.lam / self.rank

    def pairs(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(a, b) of the first term, (c, d) of the second."""
        return (self.a, self.b), (self.c, self.d)

    def weight(self) -> Float[Tensor, "*batch out in"]:
        """W0 H^T with the H of the text below Equation 14 (Equations 14 and 10 in the subclasses)."""
        (a, b), (c, d) = (tuple(map(_unit, pair)) for pair in self.pairs())
        identity = torch.eye(self.shape[1], dtype=self.dtype, device=self.weight0.device)
        h = identity - self.strength()[..., None, None] * (b.mT @ a - d.mT @ c)
        return self.base_weight() @ h.mT

    def low_rank(self) -> LowRank:
        """W - W0 = -s sum_i (W0 a_i) b_i^T + s sum_i (W0 c_i) d_i^T."""
        (a, b), (c, d) = (tuple(map(_unit, pair)) for pair in self.pairs())
        image = times_base(torch.cat([-a, c], -2) * self.strength()[..., None, None], self.base_weight())
        return LowRank(torch.cat([b, d], -2), image.mT)

    @torch.no_grad()
    def readings(self) -> dict[str, Float[Tensor, "*batch"]]:
        """The distances from sum_i a_i b_i^T - c_i d_i^T as a sum of products that vanish at the start, one by one."""
        left, right = self._telescoped()
        strength = self.strength().double().abs()
        transform = strength * norm_of_product(left, right)
        bound = self.bounds()["transform_distance"]
        return {
            "distance": strength * norm_of_product(times_base(left, self.weight0.double()), right),
            "transform_distance": transform,
            "lambda": self.lam.double(),
            "bound": bound,
            "saturation": transform / bound.clamp_min(torch.finfo(torch.float64).tiny),
        }

    def _telescoped(self) -> tuple[Float[Tensor, "*batch n in"], Float[Tensor, "*batch n in"]]:
        """Rows L, R with L^T R = sum_i a_i b_i^T - c_i d_i^T = (a - c) b^T + c (b - d)^T, in double precision."""
        a, b, c, d = (_unit(rows.double()) for rows in (self.a, self.b, self.c, self.d))
        return torch.cat([a - c, c], -2), torch.cat([b, b - d], -2)

    def bounds(self) -> dict[str, Float[Tensor, "*batch"]]:
        """||H - I||_F <= |lambda| and ||W - W0||_F <= |lambda| ||W0||_F: r unit products of strength |lambda| / r."""
        return self._bounds(self.rank, self.rank)

    def _bounds(self, transform: float | int, spectral: float | int) -> dict[str, Float[Tensor, "*batch"]]:
        """From the largest Frobenius and spectral norm of the two terms at strength 1."""
        strength = self.strength().detach().double().abs()
        return {"transform_distance": strength * transform, "distance": strength * spectral * self.base_norm}

    def directions(self) -> dict[str, Float[Tensor, "*batch n dim"]]:
        return {"a": torch.cat([self.a, self.c], -2), "b": torch.cat([self.b, self.d], -2)}


class HighRank(Relaxed):
    """Equation 14: H = I - (lambda / r) (U Sigma U^T - V Theta V^T) with r/2 vectors in U and in V.

    Start: U Kaiming-uniform, V = -U, so H = I, as in ETHER+ (the sign of a vector does not matter to H).
    """

    ROLES: ClassVar[Mapping[str, Role]] = {"u": "factors", "v": "factors", "lam": "lambda"}
    u: Tensor
    v: Tensor

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        u = kaiming_uniform(self.num_pairs, self.shape[1], generator)
        return {"u": u, "v": -u, "lam": torch.tensor(1.0)}

    def pairs(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return (self.u, self.u), (self.v, self.v)

    def _telescoped(self) -> tuple[Float[Tensor, "*batch n in"], Float[Tensor, "*batch n in"]]:
        """u u^T - v v^T = (p q^T + q p^T) / 2 with p = u + v, which is 0 at the start, and q = u - v."""
        u, v = _unit(self.u.double()), _unit(self.v.double())
        p, q = u + v, u - v
        return torch.cat([p, q], -2) / 2, torch.cat([q, p], -2)

    def bounds(self) -> dict[str, Float[Tensor, "*batch"]]:
        """||H - I||_F <= |lambda| / sqrt(2) and ||W - W0||_F <= |lambda| / 2 ||W0||_F: u u^T - v v^T has a Frobenius norm
        of at most sqrt(2) and a spectral norm of at most 1. (The paper's Equation 13 counts 2 for each pair.)
        """
        return self._bounds(2**0.5 * self.num_pairs, self.num_pairs)

    def directions(self) -> dict[str, Float[Tensor, "*batch n dim"]]:
        return {"a": self.u, "b": self.v}


class Boundary(HighRank):
    """ETHER+ one-sided with a boundary: H = I - s (u u^T - v v^T).

    Start: as in ETHER+, u Kaiming-uniform and v = -u.

    Options:
        scale: ``half``, s = lambda / 2: Equation 10, and Equation 14 at r = 2, for which reason it is the default; at
            lambda 2 it is ETHER+. ``whole``, s = lambda: as Table 1 writes the row; at lambda 1 it is ETHER+.
    """

    uses_rank: ClassVar[bool] = False
    rank_multiple: ClassVar[int] = 1

    @property
    def num_pairs(self) -> int:
        return 1

    def strength(self) -> Float[Tensor, "*batch"]:
        """s = lambda / 2, or lambda."""
        return self.lam / 2 if self.options["scale"] == "half" else self.lam


def _unit(rows: Float[Tensor, "*batch n dim"]) -> Float[Tensor, "*batch n dim"]:
    """Rows of length 1."""
    return rows / row_norms(rows, FLOOR)[..., None]
