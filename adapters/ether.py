"""ETHER and ETHER+: hyperplane reflections (Bini, Roth, Akata, Khoreva 2024, arXiv 2405.20271, Sections 3.2 and 3.3).

Both multiply the weight by H = I + sum_j s_j x_j x_j^T of unit vectors x_j: W0 H on the input side, H W0 H' on both. H may
consist of n diagonal blocks, each with vectors of its own; that changes no number of parameters.

On the input side of several blocks the released code and the paper differ, and ``layout`` chooses. ``paper``, the default,
because it is what both papers define and what OFT's code does: W0 diag(H_1, ..., H_n). ``released``: the code cuts the
memory of W0 into n pieces, and as that runs along rows, the rows of the k-th n-th of W0 are cut into n chunks each, all
multiplied by H_k. With one block both are one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from adapters.base import Adapter, Role, norm_of_product, row_norms, times_base
from adapters.low_rank import LowRank

FLOOR = 1e-12
"""Where norms are clamped; only a vector of zeros gets there."""


class Hyperplanes(Adapter):
    """What ETHER and ETHER+ share: vectors by block and side, the weight, and the fast path.

    Options:
        sides: ``one`` (the input side only) or ``two``.
        blocks: number n of diagonal blocks of H; it must divide both sides of the matrix.
        layout: ``paper`` or ``released``, see above.
    """

    SIGNS: ClassVar[Mapping[str, float]] = {}
    """The vectors of H by name, each with its s_j."""
    bound_kind: ClassVar[Literal["none", "distance", "transform"]] = "transform"
    uses_rank: ClassVar[bool] = False
    constants: ClassVar[tuple[str, ...]] = ("base_norm",)
    base_norm: Tensor

    def configure(self) -> None:
        self.blocks = int(self.options["blocks"])
        self.two_sided = self.options["sides"] == "two"
        self.released = self.options["layout"] == "released"
        if self.two_sided:
            self.ROLES = {**self.ROLES, **{f"{name}_out": "factors" for name in self.SIGNS}}  # type: ignore[misc]

    @classmethod
    def misfit(cls, shape: tuple[int, int], options: Mapping[str, Any]) -> str | None:
        blocks = options["blocks"]
        return f"blocks={blocks} does not divide" if any(size % blocks for size in shape) else None

    def measure(self) -> dict[str, Tensor]:
        return {"base_norm": torch.linalg.vector_norm(self.weight0.double())}

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        num_out, num_in = self.shape
        sizes = {"in": num_in, "out": num_out} if self.two_sided else {"in": num_in}
        start: dict[str, Tensor] = {}
        for side, size in sizes.items():
            width = size // self.blocks
            u = (2 * torch.rand(self.blocks, width, generator=generator) - 1) / width**0.5
            start |= {f"{name}_{side}": u if name == "u" else -u for name in self.SIGNS}
        return start

    def weight(self) -> Float[Tensor, "*batch out in"]:
        """The definition; with the layout ``released`` the very reshapes of the authors' ``ETHERLinear.forward``."""
        weight, n = self.base_weight(), self.blocks
        num_out, num_in = self.shape
        h = self._transforms("in")
        if self.released:
            pieces = weight.reshape(*weight.shape[:-2], n, num_out, num_in // n)
            weight = (pieces @ h).reshape(*h.shape[:-3], num_out, num_in)
        else:
            weight = (weight.unflatten(-1, (n, -1)).transpose(-2, -3) @ h).transpose(-2, -3).flatten(-2)
        return (self._transforms("out") @ weight.unflatten(-2, (n, -1))).flatten(-3, -2) if self.two_sided else weight

    def _transforms(self, side: str) -> Float[Tensor, "*batch n width width"]:
        """H_1, ..., H_n, materialised."""
        vectors = {name: self._unit(f"{name}_{side}") for name in self.SIGNS}
        identity = torch.eye(next(iter(vectors.values())).shape[-1], dtype=self.dtype, device=self.weight0.device)
        terms = [sign * vectors[name][..., :, None] * vectors[name][..., None, :] for name, sign in self.SIGNS.items()]
        return identity + torch.stack(terms).sum(0)

    def _unit(self, name: str) -> Float[Tensor, "*batch n width"]:
        """A vector of each block, of length 1."""
        vectors = getattr(self, name)
        return vectors / row_norms(vectors, FLOOR)[..., None]

    def low_rank(self) -> LowRank:
        """W - W0 in factors: with the unit vectors of a side as rows P and their s_j as a diagonal D, H = I + P^T D P, so

        W - W0 = P_out^T D (P_out W0) + [W0 P_in^T + P_out^T D (P_out W0 P_in^T)] D P_in.
        """
        p, signs = self._rows("in")
        image = signs * self._image(p)
        if not self.two_sided:
            return LowRank(p, image.mT)
        q, signs = self._rows("out")
        image = image + (image @ q.mT * signs.mT) @ q
        back = times_base(q, self.base_weight().mT)
        return LowRank(torch.cat([back, p], -2), torch.cat([signs * q, image], -2).mT)

    def _rows(self, side: str) -> tuple[Float[Tensor, "*batch R dim"], Float[Tensor, "R 1"]]:
        """Unit vectors as rows of full length, and the sign of each."""
        rows = [self._widen(self._unit(f"{name}_{side}"), side) for name in self.SIGNS]
        signs = torch.tensor(list(self.SIGNS.values()), dtype=rows[0].dtype, device=rows[0].device)
        return torch.cat(rows, -2), signs.repeat_interleave(rows[0].shape[-2])[:, None]

    def _widen(self, vectors: Float[Tensor, "*batch n width"], side: str) -> Float[Tensor, "*batch R dim"]:
        """Rows of full length: block k's vector in the columns of block k, or, ``released``, in each of the n chunks."""
        if self.blocks == 1:
            return vectors
        places = torch.eye(self.blocks, dtype=vectors.dtype, device=vectors.device)
        if self.released and side == "in":
            return (vectors[..., :, None, None, :] * places[:, :, None]).flatten(-4, -3).flatten(-2)
        return (vectors[..., :, None, :] * places[..., None]).flatten(-2)

    def _image(self, rows: Float[Tensor, "*batch R in"]) -> Float[Tensor, "*batch R out"]:
        """``(W0 rows^T)^T``; with the layout ``released`` block k's rows see the k-th n-th of W0's rows only.

        Rows of any number of vectors by block, one vector after another, as :meth:`_widen` and ``cat`` give them.
        """
        weight = self.weight0.to(rows.dtype)
        image = times_base(rows, weight)
        if not self.released or self.blocks == 1:
            return image
        n, num_out = self.blocks, self.shape[0]
        seen = torch.eye(n, dtype=image.dtype, device=image.device).repeat_interleave(num_out // n, 1)
        return image * seen.repeat_interleave(n, 0).repeat(rows.shape[-2] // n**2, 1)

    def directions(self) -> dict[str, Float[Tensor, "*batch n dim"]]:
        return {key: getattr(self, f"{name}_in") for key, name in zip("ab", self.SIGNS)}


class Ether(Hyperplanes):
    """ETHER: H = I - 2 u u^T, a reflection of full strength, so that training does not start at the base.

    At every step ||H - I||_F = 2 sqrt(n); how far the weight is from W0 depends on u: 2 sqrt(sum_k ||W0_k u_k||^2) with
    one side, W0_k the columns of block k.

    Options: see :class:`Hyperplanes`; ``sides=one`` is the default, as in the paper (99,456 parameters on SD 1.5).
    """

    ROLES: ClassVar[Mapping[str, Role]] = {"u_in": "factors"}
    SIGNS: ClassVar[Mapping[str, float]] = {"u": -2.0}
    starts_at_base: ClassVar[bool] = False
    u_in: Tensor
    u_out: Tensor

    @torch.no_grad()
    def readings(self) -> dict[str, Float[Tensor, "*batch"]]:
        """Distances in closed form. With two sides, H_out is orthogonal and its own inverse, so that

        ||H_out W0 H_in - W0|| = ||W0 H_in - H_out W0|| = 2 ||W0 P_in^T P_in - P_out^T P_out W0||.
        """
        unit = {name: self._unit_double(name) for name in self.ROLES}
        turns = [2 * (vectors.square().sum(-1).square().sum(-1)).sqrt() for vectors in unit.values()]
        transform = torch.stack(turns).amax(0)
        p = self._widen(unit["u_in"], "in")
        image = self._image(p)
        if self.two_sided:
            q = self._widen(unit["u_out"], "out")
            back = times_base(q, self.weight0.double().mT)
            distance = 2 * norm_of_product(torch.cat([image, q], -2), torch.cat([p, -back], -2))
        else:
            distance = 2 * image.square().sum((-2, -1)).sqrt()
        bound = self.bounds()["transform_distance"]
        return {
            "distance": distance,
            "transform_distance": transform,
            "bound": bound,
            "saturation": transform / bound,
        }

    def _unit_double(self, name: str) -> Float[Tensor, "*batch n width"]:
        vectors = getattr(self, name).double()
        return vectors / row_norms(vectors, FLOOR)[..., None]

    def bounds(self) -> dict[str, Float[Tensor, "*batch"]]:
        """||H - I||_F = 2 sqrt(n) on each side; ||W - W0||_F <= 2 ||W0||_F, as H keeps lengths."""
        leading = self.u_in.shape[:-2]
        return {
            "transform_distance": self.base_norm.new_full(leading, 2 * self.blocks**0.5),
            "distance": (2 * self.base_norm).expand(leading),
        }

    def at_start(self) -> dict[str, float]:
        """The paper's distance of every transformation, which holds from the start on."""
        return {"transform_distance": 2 * self.blocks**0.5}


class EtherPlus(Hyperplanes):
    """ETHER+: H = I - u u^T + v v^T of unit vectors; v = -u at the start, so H = I.

    Options: see :class:`Hyperplanes`; ``sides=two`` is the default, the form in which both papers compare it.
    """

    ROLES: ClassVar[Mapping[str, Role]] = {"u_in": "factors", "v_in": "factors"}
    SIGNS: ClassVar[Mapping[str, float]] = {"u": -1.0, "v": 1.0}
    u_in: Tensor
    v_in: Tensor
    u_out: Tensor
    v_out: Tensor

    @torch.no_grad()
    def readings(self) -> dict[str, Float[Tensor, "*batch"]]:
        """Distances from p = u + v and q = u - v: H - I = v v^T - u u^T = -(q p^T + p q^T) / 2.

        p is 0 at the start, so the distance stays exact there; where v turns to u, q is 0 instead.
        """
        small = self._sum_and_difference(self.u_in, self.v_in)
        transform = _transform_distance(small)
        rows, turned = self._full(small, "in")
        left, right = self._image(turned.to(self.dtype)).double(), rows
        if self.two_sided:
            small = self._sum_and_difference(self.u_out, self.v_out)
            transform = torch.maximum(transform, _transform_distance(small))
            rows_out, turned_out = self._full(small, "out")
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

    def _full(self, pair: tuple[Tensor, Tensor], side: str) -> tuple[Tensor, Tensor]:
        """(p, q) and (q, p) as rows of full length: H - I = -1/2 turned^T rows."""
        p, q = (self._widen(part, side) for part in pair)
        return torch.cat([p, q], -2), torch.cat([q, p], -2)

    def bounds(self) -> dict[str, Float[Tensor, "*batch"]]:
        """||H - I||_F <= sqrt(2 n) on each side; ||W - W0||_F <= ||W0||_F with one side, 3 ||W0||_F with two."""
        leading = self.u_in.shape[:-2]
        return {
            "transform_distance": self.base_norm.new_full(leading, (2 * self.blocks) ** 0.5),
            "distance": ((3 if self.two_sided else 1) * self.base_norm).expand(leading),
        }


def _transform_distance(pair: tuple[Tensor, Tensor]) -> Float[Tensor, "*batch"]:
    """||H - I||_F: sqrt of the sum over blocks of (||p||^2 ||q||^2 + (p . q)^2) / 2, which is 2 - 2 (u . v)^2."""
    p, q = pair
    squares = (p**2).sum(-1) * (q**2).sum(-1) + (p * q).sum(-1) ** 2
    return (0.5 * squares.sum(-1)).sqrt()
