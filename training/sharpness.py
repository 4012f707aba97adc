"""Sharpness: the largest eigenvalue of the Hessian of a run's loss in the adapter's own parameters.

arXiv 2602.04998 ties it to the best learning rate. Lanczos' iteration (1950) for all replicas of a pack at once; the product
of Hessian and vector is a central difference of gradients, so that it holds for every method, whatever its backward pass is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from adapters.pack import Attached

BATCHES = 4  # over which the loss is averaged: those of the first steps, whatever step the run is at
ITERATIONS = 12
RADIUS = 1e-3  # of the difference, as a share of the parameters' norm


def sharpness(
    attached: Attached,
    losses: Callable[[int], Float[Tensor, " k"]],
    *,
    batches: int = BATCHES,
    iterations: int = ITERATIONS,
) -> Float[Tensor, " k"]:
    """The largest eigenvalue of each replica's Hessian, to within a few per cent; parameters and gradients stay as they are.

    Args:
        attached: the pack.
        losses: the replicas' losses on batch 1, 2, ...
        batches: how many batches the loss is the mean of.
        iterations: products of Hessian and vector, at the most.
    """
    flat, grad = attached.flat, attached.grad
    home, kept = flat.detach().clone(), grad.clone()
    radius = RADIUS * home.norm(dim=1, keepdim=True).clamp_min(1e-6)

    def gradient(at: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        with torch.no_grad():
            flat.copy_(at)
        attached.zero_grad()
        for batch in range(1, batches + 1):
            (losses(batch).sum() / batches).backward()
        return grad.double()

    def times_hessian(v: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        ahead, behind = gradient(home + radius * v), gradient(home - radius * v)
        return (ahead - behind) / (2 * radius)

    try:
        return largest_eigenvalue(times_hessian, torch.ones_like(home), min(iterations, home.shape[1]))
    finally:
        with torch.no_grad():
            flat.copy_(home)
            grad.copy_(kept)


def largest_eigenvalue(
    times: Callable[[Float[Tensor, "k p"]], Float[Tensor, "k p"]], like: Float[Tensor, "k p"], iterations: int
) -> Float[Tensor, " k"]:
    """Of k symmetric matrices, known by their products with k vectors; every new vector is made orthogonal to all before.

    Args:
        times: the products.
        like: shape, precision and device of the vectors.
        iterations: dimension of the Krylov space, at most p.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(like.shape[1], generator=generator, dtype=torch.float64).to(like.device)
    basis = [(start / start.norm()).expand(*like.shape).clone()]
    rows = []
    for _ in range(iterations):
        image = times(basis[-1].to(like.dtype)).double()
        rows.append(torch.stack([(v * image).sum(1) for v in basis], dim=1))
        for _ in range(2):  # once is not enough in finite precision
            for v in basis:
                image = image - (v * image).sum(1, keepdim=True) * v
        size = image.norm(dim=1, keepdim=True)
        basis.append(torch.where(size > 1e-12, image / size.clamp_min(1e-300), torch.zeros_like(image)))
    projected = torch.zeros(like.shape[0], len(rows), len(rows), dtype=torch.float64, device=like.device)
    for number, row in enumerate(rows):
        projected[:, number, : row.shape[1]] = row
    return torch.linalg.eigvalsh(projected)[:, -1]  # reads the lower triangle
