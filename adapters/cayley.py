"""Rotations from skew-symmetric parameters by Cayley's formula, Q = (I - S)(I + S)^-1, solved in double precision.

As used by OFT (Qiu et al. 2023, arXiv 2306.07280, Section 3.3), with the series that HF PEFT puts in its place. The solve
is in double precision whatever the entries' own: for blocks of a rotation it is no slower on a CPU, and what a method
applies is then the rotation to the last digit of its precision, wherever training takes S.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

LARGEST = torch.finfo(torch.float64).eps ** (-2 / 3)
"""The norm of S, 3e10, beyond which rounding drowns the identity beside it."""


@torch.no_grad()
def solve(entries: Float[Tensor, "*batch entries"], width: int) -> tuple[Tensor, Tensor]:
    """D = Q - I = -2 S (I + S)^-1, exact near S = 0 too, and the inverse, which D's gradient needs: in double precision.

    A singular system gives infinite values and no exception.
    """
    s = skew(entries.double(), width)
    inverse = torch.linalg.inv_ex(s + torch.eye(width, dtype=s.dtype, device=s.device))[0]
    return (s @ inverse).mul_(-2), inverse


class CayleyChange(torch.autograd.Function):
    """What :func:`solve` gave for some entries, as a function of them.

    With M = (I + S)^-1 it is 2 M - 2 I, so its differential is -2 M dS M, and the gradient of S is -2 M^T G M^T.
    """

    @staticmethod
    def forward(ctx: Any, entries: Tensor, change: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return change.view_as(change)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        grad_s = inverse.mT @ grad @ inverse.mT
        rows, columns = above_diagonal(inverse.shape[-1], inverse.device)
        return -2 * (grad_s - grad_s.mT)[..., rows, columns], None, None


def series_change(entries: Float[Tensor, "*batch entries"], width: int) -> Float[Tensor, "*batch width width"]:
    """2 S + 2 S^2 + 2 S^3 + S^4 by Horner's rule: PEFT's series without its identity."""
    s = skew(entries, width)
    twice = 2 * torch.eye(width, dtype=s.dtype, device=s.device)
    return s @ (twice + s @ (twice + s @ (twice + s)))


def skew(entries: Float[Tensor, "*batch entries"], width: int) -> Float[Tensor, "*batch width width"]:
    """The skew-symmetric matrix with these entries above its diagonal, row by row, as in PEFT."""
    rows, columns = above_diagonal(width, entries.device)
    upper = entries.new_zeros(*entries.shape[:-1], width, width)
    upper[..., rows, columns] = entries
    return upper - upper.mT


@lru_cache(maxsize=32)
def above_diagonal(width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns of the entries."""
    rows, columns = torch.triu_indices(width, width, 1, device=device)
    return rows, columns


def skew_norm(entries: Float[Tensor, "*batch entries"]) -> Float[Tensor, "*batch 1"]:
    """||S||_F in double precision."""
    return 2**0.5 * torch.linalg.vector_norm(entries.double(), dim=-1, keepdim=True)


@torch.no_grad()
def holding(entries: Float[Tensor, "*batch entries"]) -> Float[Tensor, "*batch 1"]:
    """1, or what brings ||S||_F down to :data:`LARGEST`, in the entries' precision."""
    return (LARGEST / skew_norm(entries)).clamp_max(1).to(entries.dtype)
