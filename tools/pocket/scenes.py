"""Backgrounds and small companions of a picture; each has one phrase in the captions.

A scene is a float ``[3, 64, 64]`` tensor in [0, 1]. Scenes and companions are the same for every class, so that a
composition is learnt once and holds for all of them.
"""

from __future__ import annotations

import colorsys

import torch
from jaxtyping import Float
from torch import Tensor

from tools.pocket.pictures import SIZE

COLOURS = {
    "red": (0.85, 0.15, 0.15),
    "orange": (0.98, 0.58, 0.12),
    "yellow": (0.98, 0.88, 0.25),
    "green": (0.25, 0.68, 0.30),
    "blue": (0.20, 0.42, 0.88),
    "purple": (0.52, 0.25, 0.75),
    "pink": (0.98, 0.66, 0.80),
    "brown": (0.45, 0.28, 0.16),
    "white": (1.0, 1.0, 1.0),
    "gray": (0.55, 0.55, 0.55),
    "black": (0.04, 0.04, 0.05),
}
COMPANIONS = {
    "a red heart": ("2764", "google"),
    "a yellow star": ("2b50", "google"),
    "a blue ball": ("1f535", "google"),
}


def _flat(rgb: tuple[float, float, float]) -> Float[Tensor, "3 64 64"]:
    return torch.tensor(rgb).view(3, 1, 1).expand(3, SIZE, SIZE).clone()


def _stack(top: tuple[float, float, float], bottom: tuple[float, float, float], row: int) -> Float[Tensor, "3 64 64"]:
    scene = _flat(top)
    scene[:, row:] = torch.tensor(bottom).view(3, 1, 1)
    return scene


def _fade(top: tuple[float, float, float], bottom: tuple[float, float, float]) -> Float[Tensor, "3 64 64"]:
    mix = torch.linspace(0, 1, SIZE).view(1, SIZE, 1)
    return _flat(top) * (1 - mix) + _flat(bottom) * mix


def _dots(scene: Float[Tensor, "3 64 64"], count: int, size: int) -> Float[Tensor, "3 64 64"]:
    generator = torch.Generator().manual_seed(count)
    for row, column in torch.randint(0, SIZE - size, (count, 2), generator=generator).tolist():
        scene[:, row : row + size, column : column + size] = 1.0
    return scene


def _checks(one: tuple[float, float, float], other: tuple[float, float, float], cell: int) -> Float[Tensor, "3 64 64"]:
    index = torch.arange(SIZE) // cell
    mask = ((index[:, None] + index[None, :]) % 2).float()
    return _flat(one) * mask + _flat(other) * (1 - mask)


def _stripes(
    one: tuple[float, float, float], other: tuple[float, float, float], width: int
) -> Float[Tensor, "3 64 64"]:
    mask = (torch.arange(SIZE) // width % 2).float().view(1, 1, SIZE)
    return _flat(one) * mask + _flat(other) * (1 - mask)


def make_scenes() -> dict[str, Float[Tensor, "3 64 64"]]:
    """Every named background: its caption phrase and its picture."""
    scenes = {f"on {'an' if name[0] == 'o' else 'a'} {name} background": _flat(rgb) for name, rgb in COLOURS.items()}
    sky, night = (0.62, 0.83, 0.98), (0.06, 0.08, 0.25)
    return scenes | {
        "on green grass": _stack(sky, (0.36, 0.70, 0.25), 40),
        "on the beach": _stack((0.35, 0.72, 0.92), (0.95, 0.85, 0.60), 40),
        "in the snow": _dots(_stack((0.70, 0.80, 0.90), (0.97, 0.98, 1.0), 44), 30, 3),
        "at night": _dots(_flat(night), 24, 2),
        "at sunset": _fade((0.42, 0.20, 0.52), (1.0, 0.62, 0.25)),
        "on a checkered floor": _checks((0.92, 0.92, 0.92), (0.35, 0.35, 0.40), 16),
        "on a striped background": _stripes((0.95, 0.45, 0.45), (1.0, 0.95, 0.88), 8),
    }


def random_scene(generator: torch.Generator) -> Float[Tensor, "3 64 64"]:
    """A background without a name: a fade between two random colours in a random direction, at times blotchy."""
    u = torch.rand(10, generator=generator).tolist()
    ends = [torch.tensor(colorsys.hsv_to_rgb(*u[i : i + 3])).view(3, 1, 1) for i in (0, 3)]
    axis = torch.linspace(-1, 1, SIZE)
    slope = axis.view(-1, 1) * (2 * u[6] - 1) + axis.view(1, -1) * (2 * u[7] - 1)
    if u[8] < 0.4:
        blotches = torch.randn(1, 1, 6, 6, generator=generator)
        slope = slope + torch.nn.functional.interpolate(blotches, SIZE, mode="bicubic")[0, 0]
    mix = (0.5 + slope * u[9]).clamp(0, 1)
    return ends[0] * (1 - mix) + ends[1] * mix
