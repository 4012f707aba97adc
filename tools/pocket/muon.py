"""Muon: momentum whose step has all singular values near one (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

torch's own takes matrices only; here a convolution's kernel counts as the matrix ``[out, in * height * width]``.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # the post's quintic
NUM_ITERATIONS = 5
ADAM_RMS = (
    0.2  # a step's root mean square as AdamW's, so that its learning rates serve (Liu et al. 2025, arXiv 2502.16982)
)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, without weight decay."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    mean.lerp_(p.grad, 1 - group["momentum"])
                    matrix = p.grad.lerp(mean, group["momentum"]).reshape(len(p), -1)
                    size = ADAM_RMS * max(matrix.shape) ** 0.5
                    p.add_(orthogonalise(matrix).view(p.shape), alpha=-group["lr"] * size)


def orthogonalise(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """The matrix with its singular values moved close to 1 (0.7 to 1.2), by Newton-Schulz steps on its small Gram matrix.

    ``X <- (a + b S + c S^2) X`` with ``S = X X^T``; all factors commute, so they are multiplied up beside X.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalise(matrix.T).T
    a, b, c = COEFFICIENTS
    x = matrix / (matrix.norm() + 1e-7)
    gram, identity = x @ x.T, torch.eye(len(x), dtype=x.dtype)
    product = identity
    for _ in range(NUM_ITERATIONS):
        factor = torch.addmm(a * identity + b * gram, gram, gram, alpha=c)
        product, gram = factor @ product, factor @ gram @ factor
    return product @ x
