"""A convolutional stand-in for the vision tower, against which the text tower learns."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Eye(nn.Module):
    """A small convolutional tower that reads pictures while the text tower learns, and is thrown away then.

    It learns what a noun looks like in a third of the ViT's time; the ViT follows in stage ``clip_vision``.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        widths = (3, 24, 64, 128, 192)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise(widths))
        self.refine = nn.ModuleList(_residual_branch(width) for width in widths[3:])
        self.project = nn.Linear(widths[-1], dim)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Float[Tensor, "b 3 64 64"]) -> Float[Tensor, "b d"]:
        """L2-normalised embeddings."""
        x = F.gelu(self.shrink[1](F.gelu(self.shrink[0](images))))
        for shrink, refine in zip(self.shrink[2:], self.refine, strict=True):
            x = F.gelu(shrink(x))
            x = x + refine(x)
        return F.normalize(self.project(x.mean((2, 3))).float(), dim=-1)


def _residual_branch(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.GroupNorm(8, width),
        nn.Conv2d(width, width, 3, padding=1),
        nn.GELU(),
        nn.GroupNorm(8, width),
        nn.Conv2d(width, width, 3, padding=1),
    )
