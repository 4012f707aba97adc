"""The baseline of the autoencoder: the best linear code of 8 x 8 patches, with as many numbers for each patch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

PATCH = 8  # pixels on a side: one place of the latents


@dataclass(frozen=True)
class LinearCode:
    """Principal components of patches: ``mean [192]`` and ``basis [192, channels]``."""

    mean: Float[Tensor, " d"]
    basis: Float[Tensor, "d c"]

    @classmethod
    def fit(cls, images: Float[Tensor, "b 3 h w"], num_channels: int) -> LinearCode:
        """The code of ``num_channels`` numbers a patch with the least squared error on ``images``."""
        patches = cut(images)
        mean = patches.mean(0)
        _, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean))
        return cls(mean, vectors[:, -num_channels:])

    def round_trip(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Encode and decode."""
        patches = (cut(images) - self.mean) @ self.basis @ self.basis.T + self.mean
        rows = patches.view(len(images), -1, patches.shape[1]).transpose(1, 2).to(images.dtype)
        return F.fold(rows, images.shape[-2:], PATCH, stride=PATCH).clamp(-1, 1)


def cut(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "n d"]:
    """All patches, in double precision."""
    return F.unfold(images, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1).double()


def psnr_db(made: Float[Tensor, "b 3 h w"], real: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Each picture's peak signal-to-noise ratio in decibels; pictures in [-1, 1], so peak to peak 2."""
    return 10 * torch.log10(4 / (made - real).square().mean((1, 2, 3)))
