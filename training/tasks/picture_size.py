"""Which picture sizes a model takes: the VAE and the U-Net halve the sides, and each half must be a whole number."""

from __future__ import annotations

from pathlib import Path

from adapters.documents import read_json
from adapters.errors import BadInput


def check_resolution(folder: Path, resolution: int) -> None:
    """Refuse a picture's side that the halvings do not divide: 64 divides it for Stable Diffusion, 3 halvings by each part.

    The VAE would cut the picture, and the U-Net stretch what it has halved.

    Args:
        folder: the pipeline's folder.
        resolution: the side in pixels.

    Raises:
        BadInput: naming the side, and the nearest ones that are allowed.
    """
    vae, unet = (count_halvings(folder / part / "config.json") for part in ("vae", "unet"))
    step = 2 ** (vae + unet)
    if resolution % step:
        below = resolution // step * step
        near = f"{below} or {below + step}" if below else f"{step}"
        raise BadInput(
            f"--resolution is {resolution}; allowed: multiples of {step}, such as {near} (the model's VAE halves a picture {vae} "
            f"times, its U-Net {unet} times)"
        )


def count_halvings(config: Path) -> int:
    """How often a VAE or a U-Net halves its input: between any two of its blocks."""
    return max(1, len(read_json(config, {}).get("block_out_channels", ()))) - 1
