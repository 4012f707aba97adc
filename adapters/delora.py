"""DeLoRA: decoupling angles and strength in low-rank adaptation (Bini, Girrbach, Akata 2025, arXiv 2503.18225)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from adapters.base import Adapter, Role, gram, norm_of_product, norms_of_columns, row_norms
from adapters.lora import kaiming_uniform
from adapters.low_rank import LowRank

ZERO_B_FLOOR = 1e-4
"""Where PEFT clamps the norms of A's rows and B's columns, so that B = 0 is a start."""
FLOOR = 1e-12
"""Where the other starts clamp them; only a direction of zeros gets there."""


class Delora(Adapter):
    """W = W0 + (lambda / r) B Xi A diag(w) - start, with Xi_ii = 1 / (||b_i|| ||a_i||): unit directions, one strength.

    Options:
        start: what is subtracted so that training starts at W0. ``eq9``: a frozen copy of the factors with the
            *initial* lambda (the paper); ``live``: the frozen copy scaled by the *current* lambda (the authors' code);
            ``zero_b``: nothing, B = 0 instead and norms clamped at 1e-4 (PEFT).
        norm: ``columns``: w holds the norms of W0's columns, one per input (both public codes); ``scalar``: w is
            ||W0||_F throughout (the paper's text).
    """

    ROLES: ClassVar[Mapping[str, Role]] = {"A": "factors", "B": "factors", "lam": "lambda"}
    constants: ClassVar[tuple[str, ...]] = ("column_norms",)
    bound_kind: ClassVar[Literal["none", "distance", "transform"]] = "distance"
    uses_boundary: ClassVar[bool] = True
    A: Tensor
    B: Tensor
    lam: Tensor
    A_start: Tensor
    B_start: Tensor
    lam_start: Tensor
    column_norms: Tensor

    def configure(self) -> None:
        self._kept_copy: tuple[tuple[Tensor, ...], list[int], _FrozenCopy] | None = None
        self.has_copy = self.options["start"] != "zero_b"
        self.floor = FLOOR if self.has_copy else ZERO_B_FLOOR
        self.frozen = ("A_start", "B_start", "lam_start") if self.has_copy else ()  # type: ignore[misc]

    def measure(self) -> dict[str, Tensor]:
        norms = torch.linalg.vector_norm(self.weight0.double(), dim=-2)
        if self.options["norm"] == "scalar":
            norms = torch.linalg.vector_norm(norms).expand_as(norms).clone()
        return {"column_norms": norms}

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        num_out, num_in = self.shape
        lam = torch.tensor(1.0)
        a = kaiming_uniform(self.rank, num_in, generator)
        if not self.has_copy:
            return {"A": a, "B": torch.zeros(num_out, self.rank), "lam": lam}
        b = kaiming_uniform(num_out, self.rank, generator)
        return {"A": a, "B": b, "lam": lam, "A_start": a, "B_start": b, "lam_start": lam}

    def set_boundary(self, boundary: Float[Tensor, " k"]) -> None:
        with torch.no_grad():
            self.lam.copy_(boundary)
            if self.has_copy:
                self.lam_start.copy_(boundary)

    def weight(self) -> Float[Tensor, "*batch out in"]:
        """Equation 8 of the paper, minus the start of Equation 9 where there is one."""
        weight = self.base_weight() + self._update(self.A, self.B, self.lam)
        if not self.has_copy:
            return weight
        return weight - self._update(self.A_start, self.B_start, self._start_lam())

    def _update(self, a: Tensor, b: Tensor, lam: Tensor) -> Float[Tensor, "*batch out in"]:
        """(lambda / r) B Xi A diag(w)."""
        xi = 1 / (row_norms(b.mT, self.floor) * row_norms(a, self.floor))
        scale = (lam / self.rank)[..., None, None]
        return scale * (b * xi[..., None, :]) @ a * self._w()

    def _start_lam(self) -> Tensor:
        return self.lam_start if self.options["start"] == "eq9" else self.lam

    def _w(self) -> Float[Tensor, "*m 1 in"]:
        return self.column_norms.to(self.dtype)[..., None, :]

    def low_rank(self) -> LowRank:
        """lambda / r, the norms and w all go into A, the smaller product; the frozen copy keeps its own factors."""
        a: Tensor = _NormalisedRows.apply(self.A, self.B, self.lam / self.rank, self._w(), self.floor)
        if not self.has_copy:
            return LowRank(a, self.B)
        with torch.no_grad():
            norms = norms_of_columns(self.B_start).clamp_min(self.floor) * row_norms(self.A_start, self.floor)
            a_start = self.A_start * self._w() / (-self.rank * norms[..., None])
        return LowRank(a, self.B, a_start=self._start_lam()[..., None, None] * a_start, b_start=self.B_start)

    @torch.no_grad()
    def readings(self) -> dict[str, Float[Tensor, "*batch"]]:
        """The distance from telescoped factors, the bound and lambda.

        With L the unit columns of B and R the weighted unit rows of A, L R - L0 R0 = (L - L0) R + L0 (R - R0): both
        terms vanish at the start, so their Gram stays exact there, where the plain one turns negative.
        """
        lam, w = self.lam.double(), self.column_norms.double()[..., None, :]
        left, right = self._unit_rows(self.B.mT), self._unit_rows(self.A).mul_(w)
        bound = lam.abs() * row_norms(right).mean(-1)
        right.mul_((lam / self.rank)[..., None, None])
        if not self.has_copy:
            distance = norm_of_product(left, right)
        else:
            start, lam0 = self._frozen_copy(w), self._start_lam().double()
            bound = bound + lam0.abs() * start.reach
            distance = start.distance_to(left, right, (lam0 / self.rank)[..., None, None])
        tiny = torch.finfo(torch.float64).tiny
        return {"distance": distance, "lambda": lam, "bound": bound, "saturation": distance / bound.clamp_min(tiny)}

    def _frozen_copy(self, w: Float[Tensor, "*m 1 in"]) -> _FrozenCopy:
        """The frozen copy as the readings need it; made anew only when one of its tensors was replaced or written."""
        tensors = (self.A_start, self.B_start, self.column_norms)
        written = [tensor._version for tensor in tensors]
        kept = self._kept_copy
        if kept is None or written != kept[1] or any(one is not two for one, two in zip(tensors, kept[0], strict=True)):
            left, right = self._unit_rows(self.B_start.mT), self._unit_rows(self.A_start).mul_(w)
            kept = tensors, written, _FrozenCopy(left, right, gram(left), gram(right), row_norms(right).mean(-1))
            self._kept_copy = kept
        return kept[2]

    def _unit_rows(self, rows: Float[Tensor, "*batch r dim"]) -> Float[Tensor, "*batch r dim"]:
        """Unit rows in double precision, in memory of their own."""
        unit = rows.to(torch.float64, memory_format=torch.contiguous_format, copy=True)
        return unit.div_(row_norms(unit, self.floor)[..., None])

    def bounds(self) -> dict[str, Float[Tensor, "*batch"]]:
        """|lambda_t| S_t, plus |lambda_0| S_0 with a frozen copy; S = mean_i ||a_i * w|| / ||a_i|| <= max w.

        The paper's lambda ||W0||_F is about five times looser.
        """
        return {"distance": self.readings()["bound"]}

    def directions(self) -> dict[str, Float[Tensor, "*batch n dim"]]:
        return {"a": self.A, "b": self.B.mT}


class _FrozenCopy(NamedTuple):
    """DeLoRA's frozen start in double precision.

    Attributes:
        left, right: unit columns of B as rows (L0), weighted unit rows of A (R0).
        left_gram, right_gram: inner products of those rows.
        reach: mean norm of R0's rows.
    """

    left: Float[Tensor, "*batch r out"]
    right: Float[Tensor, "*batch r in"]
    left_gram: Float[Tensor, "*batch r r"]
    right_gram: Float[Tensor, "*batch r r"]
    reach: Float[Tensor, "*batch"]

    def distance_to(
        self, left: Float[Tensor, "*batch r out"], right: Float[Tensor, "*batch r in"], scale: Tensor
    ) -> Float[Tensor, "*batch"]:
        """Norm of left^T right - scale L0^T R0 = C^T right + L0^T D, with C = left - L0 and D = right - scale R0.

        Writes over `left` and `right`. Of the six Grams of the two products, those of L0 and R0 are known.
        """
        change, moved = left.sub_(self.left), right.sub_(self.right * scale)
        with_start, own = scale * (moved @ self.right.mT), gram(moved)
        across = with_start.mT + own  # right D^T
        squares = gram(change) * (scale.square() * self.right_gram + with_start + across)
        squares += self.left_gram * own + 2 * (change @ self.left.mT) * across
        return squares.sum((-2, -1)).clamp_min(0).sqrt()


class _NormalisedRows(torch.autograd.Function):
    """Rows c_i a_i * w with c_i = scale / (||a_i|| ||b_i||), and their gradient in closed form.

    With G the gradient of the result and t_i = sum_j G_ij a_ij w_j, the gradient of c_i: for a_i it is
    c_i (G_i * w) - t_i c_i a_i / ||a_i||^2, for b_i it is -t_i c_i b_i / ||b_i||^2, for the scale
    sum_i t_i / (||a_i|| ||b_i||). A norm at its floor is a constant.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, w: Tensor, floor: float) -> Tensor:
        norm_a = torch.linalg.vector_norm(a, dim=-1, keepdim=True)
        norm_b = norms_of_columns(b)[..., None, :]
        xi = 1 / (norm_a.clamp_min(floor) * norm_b.mT.clamp_min(floor))
        c = scale[..., None, None] * xi
        ctx.save_for_backward(a, b, w, norm_a, norm_b, xi, c)
        ctx.floor = floor
        return c * a * w

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b, w, norm_a, norm_b, xi, c = ctx.saved_tensors
        grad_w = grad * w
        t = (grad_w * a).sum(-1, keepdim=True)
        tc = t * c
        along_a = torch.where(norm_a >= ctx.floor, tc / norm_a**2, 0)
        along_b = torch.where(norm_b >= ctx.floor, tc.mT / norm_b**2, 0)
        grad_scale = (t * xi).sum((-2, -1))
        return c * grad_w - along_a * a, -along_b * b, grad_scale, None, None
