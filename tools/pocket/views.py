"""Paint pictures onto backgrounds, many at a time: placement, turn, flip, light and companion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tools.pocket.pictures import SIZE


@dataclass
class Placement:
    """Where a picture stands, one entry per row of a batch.

    scale: share of the picture's side. x, y: shift of its centre in [-1, 1] units. turn: radians. flip: +1 or -1.
    """

    scale: Float[Tensor, " b"]
    x: Float[Tensor, " b"]
    y: Float[Tensor, " b"]
    turn: Float[Tensor, " b"]
    flip: Float[Tensor, " b"]

    @classmethod
    def still(cls, scale: Float[Tensor, " b"]) -> Placement:
        """In the middle, upright."""
        zero = torch.zeros_like(scale)
        return cls(scale, zero, zero.clone(), zero.clone(), torch.ones_like(scale))

    @classmethod
    def jitter(
        cls, scale: Float[Tensor, " b"], g: torch.Generator, *, shift: float, zoom: float, turn: float, flip: float
    ) -> Placement:
        """Around the middle: shift in pixels, zoom as a share of the scale, turn in radians, flip a probability."""
        u = torch.rand(5, len(scale), generator=g) * 2 - 1
        flips = torch.where(torch.rand(len(scale), generator=g) < flip, -1.0, 1.0)
        reach = 2 * shift / SIZE
        return cls(scale * (1 + zoom * u[0]), reach * u[1], reach * u[2], turn * u[3], flips)


def place(rgba: Float[Tensor, "b 4 h w"], placement: Placement) -> Float[Tensor, "b 4 64 64"]:
    """Premultiplied ``rgba`` moved to its place on an empty canvas."""
    cos, sin = placement.turn.cos() / placement.scale, placement.turn.sin() / placement.scale
    rows = [
        torch.stack([cos * placement.flip, sin * placement.flip], -1),
        torch.stack([-sin, cos], -1),
    ]
    linear = torch.stack(rows, 1)
    centre = torch.stack([placement.x, placement.y], -1).unsqueeze(-1)
    theta = torch.cat([linear, -linear @ centre], -1)
    grid = F.affine_grid(theta, [len(rgba), 4, SIZE, SIZE], align_corners=False)
    return F.grid_sample(rgba, grid, align_corners=False)


def premultiply(pixels: Tensor) -> Float[Tensor, "b 4 64 64"]:
    """uint8 ``[b, 64, 64, 4]`` with straight alpha as premultiplied float in [0, 1]."""
    rgba = pixels.permute(0, 3, 1, 2).float() / 255
    return torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)


def over(top: Float[Tensor, "b 4 64 64"], below: Float[Tensor, "b 3 64 64"]) -> Float[Tensor, "b 3 64 64"]:
    """``top`` (premultiplied) painted over ``below``."""
    return top[:, :3] + below * (1 - top[:, 3:])


def light(image: Float[Tensor, "b 3 64 64"], g: torch.Generator, strength: float) -> Float[Tensor, "b 3 64 64"]:
    """Brightness, contrast and colour cast changed by up to ``strength`` each."""
    u = 1 + strength * (torch.rand(3, len(image), 3, 1, 1, generator=g) * 2 - 1)
    gain, contrast, cast = u[0][:, :1], u[1][:, :1], 1 + (u[2] - 1) / 2
    mean = image.mean((1, 2, 3), keepdim=True)
    return ((image - mean) * contrast + mean) * gain * cast


def to_model(image: Float[Tensor, "b 3 64 64"]) -> Float[Tensor, "b 3 64 64"]:
    """[0, 1] to the [-1, 1] that every model of the pocket reads."""
    return image.clamp(0, 1) * 2 - 1
