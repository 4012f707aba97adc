"""Logistic regression on frozen features: what a finetune of an encoder is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

STRENGTH = 0.05  # C of the ridge, as scikit-learn counts it
ITERATIONS = 200


def predict_by_probe(
    train: Float[Tensor, "n d"], labels: Int[Tensor, " n"], test: Float[Tensor, "m d"], classes: int
) -> Int[Tensor, " m"]:
    """Classes that a logistic regression on standardised features gives, in double precision.

    Args:
        train, labels: what it is fitted to.
        test: what it is asked.
        classes: how many there are.
    """
    mean, sd = train.double().mean(dim=0), train.double().std(dim=0).clamp_min(1e-12)
    known, asked = ((part.double() - mean) / sd for part in (train, test))
    weight, bias = fit_ridge(known, labels, classes)
    return (asked @ weight.T + bias).argmax(dim=1)


def predict_by_regression(
    train: Float[Tensor, "n d"], numbers: Float[Tensor, " n"], test: Float[Tensor, "m d"]
) -> Float[Tensor, " m"]:
    """Numbers that a ridge regression on standardised features gives, in double precision: least squares plus ‖w‖² / (2 C)."""
    mean, sd = train.double().mean(dim=0), train.double().std(dim=0).clamp_min(1e-12)
    known, asked = ((part.double() - mean) / sd for part in (train, test))
    centre = numbers.double().mean()
    penalty = torch.eye(known.shape[1], dtype=known.dtype, device=known.device) / (2 * STRENGTH)
    weight = torch.linalg.solve(known.T @ known + penalty, known.T @ (numbers.double() - centre))
    return asked @ weight + centre


def fit_ridge(
    known: Float[Tensor, "n d"], labels: Int[Tensor, " n"], classes: int
) -> tuple[Float[Tensor, "c d"], Float[Tensor, " c"]]:
    """Weight and bias that minimise the sum of the cross-entropies plus ‖w‖² / (2 C) with C = 0.05."""
    shape = (classes, known.shape[1])
    weight = torch.zeros(shape, dtype=known.dtype, device=known.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=known.dtype, device=known.device, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        value = F.cross_entropy(known @ weight.T + bias, labels, reduction="sum")
        value = (value + weight.square().sum() / (2 * STRENGTH)) / len(labels)
        value.backward()
        return value

    search.step(loss)
    return weight.detach(), bias.detach()
