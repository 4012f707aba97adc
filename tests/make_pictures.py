"""Pictures as strangers have them: turned by EXIF, deep, transparent, with a profile, animated, broken."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

SCENE = (24, 16)  # wide and high


def make_scene() -> Image.Image:
    """A picture without any symmetry: red rises to the right, green downwards, and one corner is blue."""
    width, height = SCENE
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    pixels[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    pixels[:4, :6, 2] = 255
    return Image.fromarray(pixels)


def make_turned(path: Path, orientation: int) -> Path:
    """The scene as a camera held in one of eight ways stores it, with the EXIF that says so."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the inverse of what puts it right, in Pillow's numbers
    image = make_scene()
    if orientation in back:
        image = image.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **({"lossless": True} if path.suffix == ".webp" else {}))
    return path


def swap_profile() -> bytes:
    """A colour profile that takes red for green and green for red: sRGB's with two entries of its table exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"????", b"gXYZ", 1)


def to_file(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """A picture as a file's content."""
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()
