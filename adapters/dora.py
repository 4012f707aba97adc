"""DoRA: weight-decomposed low-rank adaptation (Liu et al. 2024, arXiv 2402.09353), and DoRA with fixed magnitude
(DeLoRA paper, arXiv 2503.18225, Appendix C).

The paper writes one magnitude per column of W0 in R^(d x k), which for torch's ``[out, in]`` is one per **input**; every
public implementation (NVlabs', PEFT's) keeps one per **output row**. Both are options here; the code's is the default,
because it is what the published results were made with and what checkpoints hold.
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
    """W = diag(m / ||V||) V with V = W0 + (alpha / r) B A and the norms ||V|| of its rows; m starts as those of W0.

    A row (or column) of zeros has m = 0, stays zero and harms nothing: norms are never divided by below their floor.

    The options of LoRA, and these.

    Options:
        axis: ``rows`` (one norm and magnitude per output, as in all public code) or ``columns`` (per input, as the
            paper writes it: W = V diag(m / ||V||)).
        norm_grad: ``detached`` (Section 4.3 of the paper, NVlabs' and PEFT's default: the norm is a constant for the
            gradient) or ``full``.
    """

    ROLES: ClassVar[Mapping[str, Role]] = {"A": "factors", "B": "factors", "magnitude": "magnitude"}
    constants: ClassVar[tuple[str, ...]] = ("base_norms",)
    has_small_work: ClassVar[bool] = True
    magnitude: Tensor
    base_norms: Tensor

    def configure(self) -> None:
        super().configure()
        self.choose_axis()

    def choose_axis(self) -> None:
        """Rows of ``[out, in]`` are normalised along their last dimension, columns along the one before."""
        self.by_rows = self.options["axis"] == "rows"
        self.dim = -1 if self.by_rows else -2

    def measure(self) -> dict[str, Tensor]:
        return {"base_norms": torch.linalg.vector_norm(self.weight0.double(), dim=self.dim)}

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {**super().draw(generator), "magnitude": self.base_norms.cpu()}

    @property
    def exact_gradient(self) -> bool:
        """With ``detached`` the norm is a constant for the gradient."""
        return bool(self.options["norm_grad"] != "detached")

    def weight(self) -> Float[Tensor, "*batch out in"]:
        """Equation 5 of the DoRA paper along the chosen axis; with ``detached``, Equation 11's constant norm."""
        a, b = self.factor_pair()
        v = self.base_weight() + self.scale * (b @ a)
        norms = torch.linalg.vector_norm(v, dim=self.dim, keepdim=True)
        if self.options["norm_grad"] == "detached":
            norms = norms.detach()
        return self.magnitude.unsqueeze(self.dim) * v / norms.clamp_min(_floor(v.dtype))

    def low_rank(self) -> LowRank:
        a, b = self.factor_pair()
        if self.options["norm_grad"] == "full":
            norms = self._direction_norms(a, b)
        else:
            with torch.no_grad():
                norms = self._direction_norms(a, b)
        gain = self.magnitude / norms
        return LowRank(a, b, self.scale, gain=gain) if self.by_rows else LowRank(a, b, self.scale, gain_in=gain)

    def _along_axis(self, a: Tensor, b: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A, B and W0 such that the rows of W0 + scale B A are the vectors whose norms count; or their transposes."""
        return (a, b, weight) if self.by_rows else (b.mT, a.mT, weight.mT)

    def _direction_norms(self, a: Tensor, b: Tensor) -> Float[Tensor, "*batch n"]:
        """Norms of V's vectors from Grams, never forming V: ||v||^2 = ||w||^2 + 2 s <w, b A> + s^2 b A A^T b^T.

        The sum resolves its terms to their rounding error, so it is cut off there: a vector of V that all but cancels
        gets a large gain instead of a negative square.
        """
        a, b, weight = self._along_axis(a, b, self.base_weight())
        squares = self.base_norms.to(self.dtype) ** 2
        products = times_base(a, weight).mT
        half = 2 * self.scale * products + self.scale**2 * (b @ gram(a))
        floor = 4 * torch.finfo(self.dtype).eps * squares + _floor(self.dtype) ** 2
        return torch.maximum((b * half).sum(-1) + squares, floor).sqrt()

    @torch.no_grad()
    def readings(self) -> dict[str, Float[Tensor, "*batch"]]:
        """The distance, and how far the magnitudes have moved (mean |m - ||w|||).

        Vector by vector the squared distance is (m - ||w||)^2 + 2 m ||w|| (1 - cos), in a form that stays exact near
        the start: 1 - cos = sin^2 / (1 + cos) where cos > 0, with sin^2 = (||d||^2 - <w, d>^2 / ||w||^2) / ||v||^2 and
        d the vector of the change. A negative magnitude turns the sign of the cosine, not of the magnitude.
        """
        tiny = torch.finfo(torch.float64).tiny
        w, wd, dd = self.base_norms.double(), *self._products()
        vv = (w**2 + 2 * wd + dd).clamp_min(0)
        v = vv.sqrt()
        sine2 = ((dd - wd**2 / (w**2).clamp_min(tiny)) / vv.clamp_min(tiny)).clamp(0, 1)
        m = self.magnitude.double() * (v / v.clamp_min(_floor(self.dtype)))
        cosine = torch.sign(m) * ((w**2 + wd) / (w * v).clamp_min(tiny)).clamp(-1, 1)
        turned = torch.where(cosine > 0, sine2 / (1 + cosine), 1 - cosine)
        squares = (m.abs() - w) ** 2 + 2 * m.abs() * w * turned
        drift = (self.magnitude.double() - w).abs().mean(-1)
        return self._with_bound({"distance": squares.sum(-1).sqrt(), "magnitude_drift": drift})

    def _products(self) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch n"]]:
        """<w, d> and ||d||^2 of every row (or column), in double precision throughout.

        Single precision would do for most changes, but is off by 1e-4 ||W0|| where rows only grow (d along w) or the
        directions nearly cancel; to ask whether they do costs as much as to be exact.
        """
        a, b = self.factor_pair()
        a, b, weight = self._along_axis(a.double(), b.double(), self.weight0.double())
        a, b = self.scale * a, b.mT.contiguous()
        along = times_base(a, weight)
        return (b * along).sum(-2), (b * (gram(a) @ b)).sum(-2)

    def _with_bound(self, readings: dict[str, Tensor]) -> dict[str, Tensor]:
        return readings


class FixedDora(Dora):
    """DoRA whose magnitudes stay those of W0: only directions train, and the distance is bounded by 2 ||W0||_F."""

    ROLES: ClassVar[Mapping[str, Role]] = {"A": "factors", "B": "factors"}
    frozen: ClassVar[tuple[str, ...]] = ("magnitude",)
    bound_kind: ClassVar[Literal["none", "distance", "transform"]] = "distance"

    def bounds(self) -> dict[str, Float[Tensor, "*batch"]]:
        """A row (or column) of length ||w|| that turns by pi moves by 2 ||w||."""
        whole = 2 * torch.linalg.vector_norm(self.base_norms, dim=-1)
        return {"distance": whole.expand(self.A.shape[:-2])}

    def _with_bound(self, readings: dict[str, Tensor]) -> dict[str, Tensor]:
        bound = self.bounds()["distance"]
        tiny = torch.finfo(torch.float64).tiny
        return {**readings, "bound": bound, "saturation": readings["distance"] / bound.clamp_min(tiny)}


def _floor(dtype: torch.dtype) -> float:
    """Smallest norm that is divided by; a row of zeros stays one."""
    return float(torch.finfo(dtype).tiny ** 0.5)
