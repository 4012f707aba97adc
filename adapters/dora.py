"""DoRA: weight-decomposed low-rank adaptation (Liu et al. 2024, arXiv 2402.09353), and DoRA with fixed magnitude
(DeLoRA paper, arXiv 2503.18225, Appendix C).

The paper writes magnitudes per column of its (in x out) weight; in torch's layout, and in every public implementation,
that is one magnitude per **output row**.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from adapters.base import Role, gram, times_base
from adapters.lora import Lora
from adapters.low_rank import LowRank


class Dora(Lora):
    """W = diag(m / ||V||) V with V = W0 + (alpha / r) B A and row norms ||V||; m starts as the row norms of W0.

    Options: those of LoRA, and
        norm_grad: ``detached`` (Section 4.3 of the paper, NVlabs' and PEFT's default: the norm is a constant for the
            gradient) or ``full``.
    """

    ROLES: ClassVar[Mapping[str, Role]] = {"A": "factors", "B": "factors", "magnitude": "magnitude"}
    constants: ClassVar[tuple[str, ...]] = ("row_norms",)
    has_small_work: ClassVar[bool] = True
    magnitude: Tensor
    row_norms: Tensor

    def measure(self) -> dict[str, Tensor]:
        return {"row_norms": torch.linalg.vector_norm(self.weight0.double(), dim=-1)}

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {**super().draw(generator), "magnitude": self.row_norms.cpu()}

    @property
    def exact_gradient(self) -> bool:
        """With ``detached`` the norm is a constant for the gradient."""
        return bool(self.options["norm_grad"] != "detached")

    def weight(self) -> Float[Tensor, "*batch out in"]:
        """Equation 5 of the DoRA paper, by output rows; with ``detached``, Equation 11's constant norm."""
        v = self.base_weight() + self.scale * (self.B @ self.A)
        norms = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        if self.options["norm_grad"] == "detached":
            norms = norms.detach()
        return self.magnitude[..., None] * v / norms.clamp_min(_floor(v.dtype))

    def low_rank(self) -> LowRank:
        if self.options["norm_grad"] == "full":
            norms = self._direction_norms()
        else:
            with torch.no_grad():
                norms = self._direction_norms()
        return LowRank(self.A, self.B, self.scale, gain=self.magnitude / norms)

    def _direction_norms(self) -> Float[Tensor, "*batch out"]:
        """Row norms of V from Grams, never forming V: ||v||^2 = ||w||^2 + 2 s <w, b A> + s^2 b A A^T b^T.

        The sum resolves its terms to their rounding error, so it is cut off there: a row of V that all but cancels
        gets a large gain instead of a negative square.
        """
        squares = self.row_norms.to(self.dtype) ** 2
        products = times_base(self.A, self.base_weight()).mT
        half = 2 * self.scale * products + self.scale**2 * (self.B @ gram(self.A))
        floor = 4 * torch.finfo(self.dtype).eps * squares + _floor(self.dtype) ** 2
        return torch.maximum((self.B * half).sum(-1) + squares, floor).sqrt()

    @torch.no_grad()
    def readings(self) -> dict[str, Float[Tensor, "*batch"]]:
        """The distance, and how far the magnitudes have moved (mean |m - ||w|||).

        Row by row the squared distance is (m - ||w||)^2 + 2 m ||w|| (1 - cos), in a form that stays exact near the
        start: 1 - cos = sin^2 / (1 + cos) where cos > 0, with sin^2 = (||d||^2 - <w, d>^2 / ||w||^2) / ||v||^2 and d
        the row of the change. A negative magnitude turns the sign of the cosine, not of the magnitude.
        """
        tiny = torch.finfo(torch.float64).tiny
        w, wd, dd = self.row_norms.double(), *self._row_products()
        vv = (w**2 + 2 * wd + dd).clamp_min(0)
        v = vv.sqrt()
        sine2 = ((dd - wd**2 / (w**2).clamp_min(tiny)) / vv.clamp_min(tiny)).clamp(0, 1)
        m = self.magnitude.double() * (v / v.clamp_min(_floor(self.dtype)))
        cosine = torch.sign(m) * ((w**2 + wd) / (w * v).clamp_min(tiny)).clamp(-1, 1)
        turned = torch.where(cosine > 0, sine2 / (1 + cosine), 1 - cosine)
        squares = (m.abs() - w) ** 2 + 2 * m.abs() * w * turned
        drift = (self.magnitude.double() - w).abs().mean(-1)
        return self._with_bound({"distance": squares.sum(-1).sqrt(), "magnitude_drift": drift})

    def _row_products(self) -> tuple[Float[Tensor, "*batch out"], Float[Tensor, "*batch out"]]:
        """<w, d> and ||d||^2 of every row, in double precision throughout.

        Single precision would do for most changes, but is off by 1e-4 ||W0|| where rows only grow (d along w) or the
        directions nearly cancel; to ask whether they do costs as much as to be exact.
        """
        a, b = self.scale * self.A.double(), self.B.mT.double().contiguous()
        along = times_base(a, self.weight0.double())
        return (b * along).sum(-2), (b * (gram(a) @ b)).sum(-2)

    def _with_bound(self, readings: dict[str, Tensor]) -> dict[str, Tensor]:
        return readings


class FixedDora(Dora):
    """DoRA whose magnitudes stay those of W0: only directions train, and the distance is bounded by 2 ||W0||_F."""

    ROLES: ClassVar[Mapping[str, Role]] = {"A": "factors", "B": "factors"}
    frozen: ClassVar[tuple[str, ...]] = ("magnitude",)
    bound_kind: ClassVar[Literal["none", "distance", "transform"]] = "distance"

    def bounds(self) -> dict[str, Float[Tensor, "*batch"]]:
        """A row of length ||w|| that turns by pi moves by 2 ||w||."""
        whole = 2 * torch.linalg.vector_norm(self.row_norms, dim=-1)
        return {"distance": whole.expand(self.A.shape[:-2])}

    def _with_bound(self, readings: dict[str, Tensor]) -> dict[str, Tensor]:
        bound = self.bounds()["distance"]
        tiny = torch.finfo(torch.float64).tiny
        return {**readings, "bound": bound, "saturation": readings["distance"] / bound.clamp_min(tiny)}


def _floor(dtype: torch.dtype) -> float:
    """Smallest norm that is divided by; a row of zeros stays one."""
    return float(torch.finfo(dtype).tiny ** 0.5)
