"""NB-LoRA: norm-bounded low-rank adaptation (Wang, Dvijotham, Manchester 2025, arXiv 2501.19050).

What could be read is the abstract, the public reviews of the submission, and their quotations of its code, which lies only in
a supplement there; the tables of the paper could not. So the start and the size of the bound are Plateau's own choices, stated
below. Identities that are not quoted were derived, and are tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from adapters.base import Adapter, Role
from adapters.cayley import LARGEST
from adapters.low_rank import LowRank


class NbLora(Adapter):
    """W = W0 + 2 B S A with [A^T; B] = Cayley([A~^T; B~]): no singular value of the change exceeds its entry of S.

    A~ (r x in) and B~ (out x r) are free and train, as the tensors ``A`` and ``B``. Cayley's formula gives the stacked matrix
    orthonormal columns, A A^T + B^T B = I, so that sigma_j(2 B S A) <= s_j; the bound is reached where A A^T = B^T B = I / 2.
    As B~ grows beyond all bounds, A A^T returns to I and the weight to W0.

    Start: B~ = 0, so that B = 0, W = W0 and A A^T = I, and A~ from N(0, 1/in): of rows of length 1 Cayley's formula makes
    nearly those rows (with the other sign), where short ones would become the first r inputs.

    The size of S is set by the boundary, DeLoRA's lambda at the start: S = lambda w / sqrt(r) I with w = ||W0||_F / sqrt(in),
    the root mean square of W0's column norms. The largest ||W - W0||_F is then lambda w, what DeLoRA's bound is for directions
    that weigh all inputs alike: both methods have balls of one size at one lambda.

    The solve is in double precision. Free values whose squares sum to more than 3e10 are held there, without a gradient for
    that: beyond, rounding would drown the identity beside them.

    Options:
        strength: ``constant``: lambda stays (the released code's, by a review); ``learned``: each direction has a lambda of
            its own, which starts at the boundary and is kept between 0 and it. As in COFT, the trained values are put back
            after every step, and the gradient is that at the values put back.
    """

    ROLES: ClassVar[Mapping[str, Role]] = {"A": "factors", "B": "factors"}
    frozen: ClassVar[tuple[str, ...]] = ("lam_start",)
    constants: ClassVar[tuple[str, ...]] = ("column_norm",)
    bound_kind: ClassVar[Literal["none", "distance", "transform"]] = "distance"
    uses_boundary: ClassVar[bool] = True
    A: Tensor
    B: Tensor
    lam: Tensor
    lam_start: Tensor
    column_norm: Tensor

    @classmethod
    def has_role(cls, role: str, options: Mapping[str, Any]) -> bool:
        return options["strength"] == "learned" if role == "lambda" else super().has_role(role, options)

    def configure(self) -> None:
        self.is_learned = self.options["strength"] == "learned"
        if self.is_learned:
            self.ROLES = {**self.ROLES, "lam": "lambda"}  # type: ignore[misc]

    def measure(self) -> dict[str, Tensor]:
        return {"column_norm": torch.linalg.vector_norm(self.weight0.double()) / self.shape[1] ** 0.5}

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        num_out, num_in = self.shape
        a = torch.randn(self.rank, num_in, generator=generator) / num_in**0.5
        tensors = {"A": a, "B": torch.zeros(num_out, self.rank), "lam_start": torch.tensor(1.0)}
        return {**tensors, "lam": torch.ones(self.rank)} if self.is_learned else tensors

    def set_boundary(self, boundary: Float[Tensor, " k"]) -> None:
        with torch.no_grad():
            self.lam_start.copy_(boundary)
            if self.is_learned:
                self.lam.copy_(boundary[:, None].expand_as(self.lam))

    @property
    def exact_gradient(self) -> bool:
        return not self.is_learned

    @torch.no_grad()
    def project(self) -> None:
        if self.is_learned:
            self.lam.copy_(self._kept_within())

    def lambdas(self) -> Float[Tensor, "*batch r"]:
        """Each direction's lambda."""
        if not self.is_learned:
            return self.lam_start[..., None].expand(*self.lam_start.shape, self.rank)
        return self._kept_within() + (self.lam - self.lam.detach())

    @torch.no_grad()
    def _kept_within(self) -> Float[Tensor, "*batch r"]:
        return torch.minimum(self.lam.clamp_min(0), self.lam_start[..., None])

    def strengths(self) -> Float[Tensor, "*batch r"]:
        """The diagonal of S, in double precision."""
        return self.lambdas().double() * (self.column_norm / self.rank**0.5)[..., None]

    def frame(self) -> tuple[Float[Tensor, "*batch r in"], Float[Tensor, "*batch out r"]]:
        """A and B of [A^T; B] = [(I - Z) N; -2 Y N], in double precision, with N and Y of :class:`_Parts`."""
        parts = self._parts()
        top = 2 * parts.inverse - torch.eye(self.rank, dtype=torch.float64, device=self.A.device)
        rest = -2 * (parts.rest_of_a @ parts.inverse)
        return torch.cat([top, rest], -2).mT, -2 * (parts.b @ parts.inverse)

    def _parts(self) -> _Parts:
        """Cayley's formula for a tall matrix: with [X; Y] the free matrix, X its first r rows, Z = X - X^T + Y^T Y.

        Z + Z^T is positive semidefinite, so I + Z has an inverse wherever the parameters are.
        """
        a, b = self.A.double() * (hold := self._holding()), self.B.double() * hold
        x, y = a[..., : self.rank].mT, a[..., self.rank :].mT
        gram_a, gram_b = y.mT @ y, b.mT @ b
        identity = torch.eye(self.rank, dtype=torch.float64, device=a.device)
        inverse = torch.linalg.inv_ex(identity + (x - x.mT + gram_a + gram_b))[0]
        return _Parts(y, b, gram_a, gram_b, inverse)

    @torch.no_grad()
    def _holding(self) -> Float[Tensor, "*batch 1 1"]:
        """1, or what brings the sum of the free values' squares down to the largest that Cayley's formula bears."""
        norms = (torch.linalg.vector_norm(part.double(), dim=(-2, -1), keepdim=True) for part in (self.A, self.B))
        return (LARGEST**0.5 / torch.hypot(*norms)).clamp_max(1)

    def weight(self) -> Float[Tensor, "*batch out in"]:
        """W0 + 2 B S A; the paper writes B for this one's transpose."""
        a, b = self.frame()
        return self.base_weight() + ((2 * b * self.strengths()[..., None, :]) @ a).to(self.dtype)

    def low_rank(self) -> LowRank:
        """The factors in the adapter's precision; S goes into A, so that the start's gradients reach B~ alone."""
        a, b = self.frame()
        return LowRank((2 * self.strengths()[..., None] * a).to(self.dtype), b.to(self.dtype))

    @torch.no_grad()
    def readings(self) -> dict[str, Float[Tensor, "*batch"]]:
        """The distance from r x r matrices: ||B S A||_F^2 = tr(S B^T B S A A^T), both Grams sums of positive terms.

        Near the start B^T B is what vanishes; I - A A^T, which equals it, would be rounding. ``input_share`` is
        tr(A A^T) / r: 1 at the start, 1/2 where the bound is reached, and 1 again where B~ is very long. ``lambda`` is the
        root mean square over the directions.
        """
        parts, strengths = self._parts(), self.strengths()
        n = parts.inverse
        top = 2 * n - torch.eye(self.rank, dtype=torch.float64, device=n.device)
        gram_a = top.mT @ top + 4 * n.mT @ parts.gram_a @ n
        gram_b = 4 * n.mT @ parts.gram_b @ n
        crossed = strengths[..., :, None] * strengths[..., None, :] * gram_b * gram_a
        distance = 2 * crossed.sum((-2, -1)).clamp_min(0).sqrt()
        bound = self.bounds()["distance"]
        return {
            "distance": distance,
            "lambda": torch.linalg.vector_norm(self.lambdas().double(), dim=-1) / self.rank**0.5,
            "bound": bound,
            "saturation": distance / bound.clamp_min(torch.finfo(torch.float64).tiny),
            "input_share": gram_a.diagonal(dim1=-2, dim2=-1).mean(-1),
        }

    def bounds(self) -> dict[str, Float[Tensor, "*batch"]]:
        """sqrt(sum_j s_j^2), since 2 sigma_j(B S A) <= s_j."""
        return {"distance": torch.linalg.vector_norm(self.strengths().detach(), dim=-1)}

    def directions(self) -> dict[str, Float[Tensor, "*batch n dim"]]:
        """The free factors."""
        return {"a": self.A, "b": self.B.mT}


class _Parts(NamedTuple):
    """What Cayley's formula is made of, in double precision.

    Attributes:
        rest_of_a: A~^T without its first r rows; with ``b`` below it, the matrix Y.
        b: B~.
        gram_a, gram_b: their columns' inner products; Y^T Y is the sum.
        inverse: N = (I + Z)^-1.
    """

    rest_of_a: Float[Tensor, "*batch rest r"]
    b: Float[Tensor, "*batch out r"]
    gram_a: Float[Tensor, "*batch r r"]
    gram_b: Float[Tensor, "*batch r r"]
    inverse: Float[Tensor, "*batch r r"]
