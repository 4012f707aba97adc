"""ETHER+: relaxed hyperplane reflections (Bini, Roth, Akata, Khoreva 2024, arXiv 2405.20271, Section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from adapters import BadInput
from adapters.base import Adapter, Role, norm_of_product, row_norms, times_base
from adapters.low_rank import LowRank

FLOOR = 1e-12
"""Where norms are clamped; only a vector of zeros gets there."""


class EtherPlus(Adapter):
    """W = H_out W0 H_in with H = I - u u^T + v v^T of unit vectors, block by block; v = -u at the start, so H = I.

    The public code cuts the input side of several blocks along rows of memory; here blocks are those of the paper,
    W0 diag(H_1, ..., H_n). With one block, the default, both agree.

    Options:
        sides: ``two`` (both), or ``one`` (the input side only).
        blocks: number of diagonal blocks of H; it must divide both sides of the matrix.
    """

    ROLES: ClassVar[Mapping[str, Role]] = {"u_in": "factors", "v_in": "factors"}
    bound_kind: ClassVar[Literal["none", "distance", "transform"]] = "transform"
    uses_rank: ClassVar[bool] = False
    constants: ClassVar[tuple[str, ...]] = ("base_norm",)
    u_in: Tensor
    v_in: Tensor
    u_out: Tensor
    v_out: Tensor
    base_norm: Tensor

    def configure(self) -> None:
        self.blocks = int(self.options["blocks"])
        self.two_sided = self.options["sides"] == "two"
        if self.two_sided:
            self.ROLES = {**self.ROLES, "u_out": "factors", "v_out": "factors"}  # type: ignore[misc]

    def measure(self) -> dict[str, Tensor]:
        for size in self.shape:
            if size % self.blocks:
                num_out, num_in = self.shape
                raise BadInput(f"blocks={self.blocks} does not divide matrix {self.path!r} of {num_out} x {num_in}")
        return {"base_norm": torch.linalg.vector_norm(self.weight0.double())}

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        num_out, num_in = self.shape
        sizes = {"in": num_in, "out": num_out} if self.two_sided else {"in": num_in}
        start: dict[str, Tensor] = {}
        for side, size in sizes.items():
            width = size // self.blocks
            u = (2 * torch.rand(self.blocks, width, generator=generator) - 1) / width**0.5
            start |= {f"u_{side}": u, f"v_{side}": -u}
        return start

    def weight(self) -> Float[Tensor, "*batch out in"]:
        """Equation 3 of the paper on each side: (I - u u^T + v v^T) W0 (I - u u^T + v v^T)."""
        weight = self.base_weight() @ self._transform(self.u_in, self.v_in)
        return self._transform(self.u_out, self.v_out) @ weight if self.two_sided else weight

    def _transform(self, u: Tensor, v: Tensor) -> Float[Tensor, "*batch dim dim"]:
        """H, materialised."""
        u, v = (torch.nn.functional.normalize(vector, dim=-1, eps=FLOOR) for vector in (u, v))
        blocks = v[..., :, None] * v[..., None, :] - u[..., :, None] * u[..., None, :]
        size = self.blocks * u.shape[-1]
        whole = _place_blocks(blocks.flatten(-3, -2), self.blocks).view(*u.shape[:-2], size, size)
        return whole + torch.eye(size, dtype=u.dtype, device=u.device)

    def low_rank(self) -> LowRank:
        """H_out W0 H_in - W0 in factors: with rows P of unit u, v and signs D, H = I + P^T D P on each side, so it is

        P_out^T D (P_out W0) + [W0 P_in^T + P_out^T D (P_out W0 P_in^T)] D P_in.
        """
        p = self._pair(self.u_in, self.v_in)
        signs = self._signs(p)
        image = times_base(p, self.base_weight())  # (W0 P_in^T)^T
        if not self.two_sided:
            return LowRank(p, (signs * image).mT)
        q = self._pair(self.u_out, self.v_out)
        image = image + (image @ q.mT * signs.mT) @ q
        back = times_base(q, self.base_weight().mT)
        return LowRank(torch.cat([back, p], -2), torch.cat([signs * q, signs * image], -2).mT)

    def _pair(self, u: Tensor, v: Tensor) -> Float[Tensor, "*batch n2 dim"]:
        """Unit u over unit v as rows of full length: block i's vectors are zero outside block i."""
        rows = torch.cat([u, v], -2)
        rows = rows / row_norms(rows, FLOOR)[..., None]
        if self.blocks == 1:
            return rows
        return torch.cat([_place_blocks(half, self.blocks) for half in rows.split(self.blocks, -2)], -2)

    def _signs(self, like: Tensor) -> Float[Tensor, "n2 1"]:
        return torch.tensor([[-1.0]] * self.blocks + [[1.0]] * self.blocks, dtype=like.dtype, device=like.device)

    @torch.no_grad()
    def readings(self) -> dict[str, Float[Tensor, "*batch"]]:
        """Distances from p = u + v and q = u - v: H - I = v v^T - u u^T = -(q p^T + p q^T) / 2.

        p is 0 at the start, so the distance stays exact there; where v turns to u, q is 0 instead.
        """
        small = self._sum_and_difference(self.u_in, self.v_in)
        transform = _transform_distance(small)
        rows, turned = self._full(small)
        left, right = times_base(turned.to(self.dtype), self.base_weight()).double(), rows
        if self.two_sided:
            small = self._sum_and_difference(self.u_out, self.v_out)
            transform = torch.maximum(transform, _transform_distance(small))
            rows_out, turned_out = self._full(small)
            back = times_base(turned_out.to(self.dtype), self.base_weight().mT).double()
            left = left - 0.5 * (left @ turned_out.mT) @ rows_out
            left, right = torch.cat([left, rows_out], -2), torch.cat([right, back], -2)
        bound = torch.full_like(transform, (2 * self.blocks) ** 0.5)
        return {
            "distance": 0.5 * norm_of_product(left, right),
            "transform_distance": transform,
            "bound": bound,
            "saturation": transform / bound,
        }

    def _sum_and_difference(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """p = u + v and q = u - v of the unit vectors, in double precision."""
        u, v = (vector.double() / row_norms(vector.double(), FLOOR)[..., None] for vector in (u, v))
        return u + v, u - v

    def _full(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(p, q) and (q, p) as rows of full length: H - I = -1/2 turned^T rows."""
        p, q = (_place_blocks(part, self.blocks) for part in pair)
        return torch.cat([p, q], -2), torch.cat([q, p], -2)

    def bounds(self) -> dict[str, Float[Tensor, "*batch"]]:
        """||H - I||_F <= sqrt(2 n) on each side; ||W - W0||_F <= ||W0||_F with one side, 3 ||W0||_F with two."""
        leading = self.u_in.shape[:-2]
        return {
            "transform_distance": self.base_norm.new_full(leading, (2 * self.blocks) ** 0.5),
            "distance": ((3 if self.two_sided else 1) * self.base_norm).expand(leading),
        }

    def directions(self) -> dict[str, Float[Tensor, "*batch n dim"]]:
        return {"a": self.u_in, "b": self.v_in}


def _place_blocks(rows: Float[Tensor, "*batch rows width"], blocks: int) -> Float[Tensor, "*batch rows dim"]:
    """Widen rows to ``blocks * width``: an equal share of consecutive rows goes to each block's columns."""
    if blocks == 1:
        return rows
    share = rows.shape[-2] // blocks
    out = rows.new_zeros(*rows.shape[:-1], blocks, rows.shape[-1])
    for block in range(blocks):
        out[..., block * share : (block + 1) * share, block, :] = rows[..., block * share : (block + 1) * share, :]
    return out.flatten(-2)


def _transform_distance(pair: tuple[Tensor, Tensor]) -> Float[Tensor, "*batch"]:
    """||H - I||_F: sqrt of the sum over blocks of (||p||^2 ||q||^2 + (p . q)^2) / 2, which is 2 - 2 (u . v)^2."""
    p, q = pair
    squares = (p**2).sum(-1) * (q**2).sum(-1) + (p * q).sum(-1) ** 2
    return (0.5 * squares.sum(-1)).sqrt()
