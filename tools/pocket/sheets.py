"""Contact sheets: many pictures in a grid, small enough to keep in git."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

GAP = 2  # white pixels between pictures


def to_bytes(images: Float[Tensor, "b 3 h w"]) -> np.ndarray:
    """[-1, 1] pictures as uint8 ``[b, h, w, 3]``."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def make_sheet(pictures: np.ndarray, columns: int) -> Image.Image:
    """uint8 pictures ``[b, h, w, 3]`` row by row on white."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + GAP), columns * (width + GAP), 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (height + GAP), (i % columns) * (width + GAP)
        sheet[top : top + height, left : left + width] = picture
    return Image.fromarray(sheet)


def save_sheet(pictures: np.ndarray, columns: int, path: Path) -> None:
    """Write a sheet as an optimised PNG of 256 colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_sheet(pictures, columns).quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def side_by_side(left: Float[Tensor, "b 3 h w"], right: Float[Tensor, "b 3 h w"]) -> np.ndarray:
    """Pictures of two batches in turn: left 0, right 0, left 1, ..."""
    return to_bytes(torch.stack([left, right], 1).flatten(0, 1))
