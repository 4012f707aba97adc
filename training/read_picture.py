"""Read a picture, the same way everywhere: upright, 8 bits a channel, sRGB, on white.

A file is read as Pillow reads it, and then put right where that alone would train on something else than a viewer shows:
turned as its EXIF says, scaled from 16 bits, put on white where it is transparent, brought to sRGB from its colour profile.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import itertools
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageCms, JpegImagePlugin

from adapters.errors import BadInput

LIMIT = 2 * 89_478_485  # pixels, where Pillow takes a file for an attack
BIG_JPEG = 4 * LIMIT  # pixels of a JPEG, which can be read at half its size
LONGEST = 100  # times as long as wide
SRGB_LEVELS = 3  # of 255, by which a profile may differ from sRGB and still be taken for it
NO_PIXELS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}  # run a program, or need one
HEIF_SUFFIXES = {".heic", ".heics", ".heif", ".heifs", ".hif"}
HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}
HEIF_NEEDS = "HEIC needs `pip install pillow-heif`"
MAYBE_UNREAD = {".avif", ".avifs", ".jp2", ".j2k", ".jpx", *HEIF_SUFFIXES}
"""Of formats that a Pillow may have been built without, wholly or in part: a file that it does not know may be whole."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF's orientation -> what undoes it."""
LEVELS = {"L;2": 85, "L;4": 17}
"""Pillow's name of a grey PNG's pixels -> the steps in which it spreads them over 8 bits."""
WORDS = {
    "halved": "read at half their size",
    "first": "read as the first of their frames",
    "deep": "scaled to 8 bits",
    "profile": "brought to sRGB from their colour profile",
    "no profile": "taken for sRGB, their colour profile being damaged",
    "white": "put on white where they are transparent",
    "upright": "turned upright as their EXIF says",
}
"""What may be done to a picture, in the order in which it is, and the words that say so."""


class NoPicture(BadInput):
    """A file whose content is of no format that is read here; `why` is a guess at what it is."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} is broken or not a picture: {why}")
        self.why = why


@dataclass(frozen=True)
class Picture:
    """A picture as it is trained on.

    Attributes:
        image: RGB, 8 bits a colour.
        done: what was done to it, keys of `WORDS`.
        reading: the same joined, where it changed a pixel; "" for a picture that Pillow alone reads like this.
    """

    image: Image.Image
    done: tuple[str, ...] = ()
    reading: str = ""


def read_picture(file: Path | str | bytes) -> Picture:
    """Read a picture to its end.

    Args:
        file: its path, or its content.

    Raises:
        BadInput: it is missing, broken, no picture, of a depth whose white is not known, or too large; the message names it.
    """
    name = "the picture of a compact copy" if isinstance(file, bytes) else str(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damage that can be read over, and of sizes below the limit
            with _open(file, name) as image:
                return _put_right(image, name)
    except BadInput:
        raise
    except Image.UnidentifiedImageError:
        raise NoPicture(name, _explain_unknown(file)) from None
    except Image.DecompressionBombError:
        raise BadInput(f"{name} is too large: {_limits()}") from None
    except OSError as error:
        raise BadInput(f"{name} is broken or not a picture: {error.strerror or error}") from None
    except Exception as error:  # of any kind: damage comes out of Pillow's readers as whatever it makes them do
        raise BadInput(f"{name} is broken or not a picture: {str(error) or type(error).__name__}") from None


@functools.cache
def list_formats() -> tuple[str, ...]:
    """Names of the formats that Pillow reads here, HEIF among them where pillow-heif is installed."""
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    return tuple(name for name in Image.OPEN if name not in NO_PIXELS)


@functools.cache
def list_suffixes() -> frozenset[str]:
    """How files of these formats end, in small letters."""
    formats = {*list_formats(), "MPO"}  # which Pillow opens as JPEG
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def _open(file: Path | str | bytes, name: str) -> Image.Image:
    """Open a picture; a JPEG beyond Pillow's limit at half its size."""
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        image: Image.Image = Image.open(source, formats=list_formats())
    except Image.DecompressionBombError:
        return _open_half(source, name)
    if max(image.size) > LONGEST * min(image.size):
        image.close()
        raise BadInput(f"{name} has {image.width} x {image.height} pixels: more than {LONGEST} times as long as wide")
    return image


def _open_half(source: io.BytesIO | Path | str, name: str) -> Image.Image:
    if isinstance(source, io.BytesIO):
        source.seek(0)
    try:
        image = JpegImagePlugin.JpegImageFile(source)
    except SyntaxError:
        raise BadInput(f"{name} is too large: {_limits()}") from None
    width, height = image.size
    if width * height > BIG_JPEG:
        image.close()
        raise BadInput(f"{name} has {width} x {height} pixels: {_limits()}")
    image.draft(None, (width // 2, height // 2))
    image.info["halved"] = True
    return image


def _limits() -> str:
    return f"at most {LIMIT / 1e6:.0f} megapixels are read, {BIG_JPEG / 1e6:.0f} of a JPEG; make it smaller"


def _explain_unknown(file: Path | str | bytes) -> str:
    content = file if isinstance(file, bytes) else Path(file).read_bytes()
    if not content:
        return "it is empty"
    if content[4:8] == b"ftyp" and content[8:12] in HEIC_BRANDS:
        return f"it is a HEIC; {HEIF_NEEDS}"
    if content.startswith(b"version https://git-lfs"):
        return "it is what Git LFS leaves in its place; fetch it by `git lfs pull`"
    return "its content is of no format that Pillow reads"


def _put_right(image: Image.Image, name: str) -> Picture:
    tiles = getattr(image, "tile", None) if image.format == "PNG" else None  # gone once it is loaded
    form = str(tiles[0][3]) if tiles else ""
    image.load()
    done = ["halved"] if image.info.get("halved") else []
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a telephone's MPO: one photograph, and its depth
        done.append("first")
        image.seek(0)
        image.load()
    other = _fit_transparency(image, form)
    orientation = _find_orientation(image)
    colours, alpha = _split(image, name)
    if other or (colours is not image and image.mode.startswith(("I", "F"))):
        done.append("deep")
    colours = _to_srgb(colours, image.info.get("icc_profile"), done)
    rgb = colours.convert("RGB")
    if alpha is not None and alpha.getextrema() != (255, 255):
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)
        done.append("white")
    if orientation in UPRIGHT:
        rgb = rgb.transpose(UPRIGHT[orientation])
        done.append("upright")
    changed = bool(done) and not _is_plain(image, rgb)
    return Picture(rgb, tuple(done), "+".join(done) if changed else "")


def _fit_transparency(image: Image.Image, form: str) -> bool:
    """Bring a PNG's transparent colour, which counts in the file's bits, to the 8 bits of the pixels that Pillow reads.

    Of 16 bits Pillow keeps the upper 8 of each colour: what agrees in those is transparent.

    Args:
        image: loaded.
        form: Pillow's name of how the file stores pixels.

    Returns:
        Whether earlier code took another colour of 16 bits, so that the picture's reading has to say more than `white`.
    """
    clear = image.info.get("transparency")
    if form in LEVELS and isinstance(clear, int):
        image.info["transparency"] = (clear & 255 // LEVELS[form]) * LEVELS[form]
    elif form == "RGB;16B" and isinstance(clear, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in clear)
        return any(level >> 8 != level & 255 for level in clear)
    return False


def _is_plain(image: Image.Image, rgb: Image.Image) -> bool:
    """Whether Pillow alone would have read these pixels."""
    plain = image.convert("RGB")
    return plain.size == rgb.size and ImageChops.difference(plain, rgb).getbbox() is None


def _find_orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 where there is none or the EXIF is damaged."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # as above: the photograph itself is whole
        return 1


def _split(image: Image.Image, name: str) -> tuple[Image.Image, Image.Image | None]:
    """The colours, 8 bits each, and the alpha channel where there is one."""
    if image.mode.startswith(("I", "F")):
        return _to_8_bits(image, name)
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return rgba.convert("RGB"), rgba.getchannel("A")
    return image, None


def _to_8_bits(image: Image.Image, name: str) -> tuple[Image.Image, Image.Image | None]:
    """A grey picture of 12 or 16 bits in 8, and its alpha channel; white is the largest value that so many bits hold.

    Raises:
        BadInput: of more bits, or of signed or broken numbers: nothing says what is white.
    """
    tags = getattr(image, "tag_v2", {})
    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))):
        depth = "numbers with a point" if image.mode == "F" else "signed or 32-bit numbers"
        raise BadInput(f"{name} has {depth} for pixels, and nothing says what is white; save it with 8 or 16 bits")
    values = np.asarray(image).astype(np.int64)
    white = 2 ** tags[258][0] - 1 if 258 in tags else 65535  # BitsPerSample
    grey = (values * 255 + white // 2) // white
    if tags.get(262) == 0:  # WhiteIsZero, which Pillow heeds at 8 bits only
        grey = 255 - grey
    clear = image.info.get("transparency")
    alpha = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)) if isinstance(clear, int) else None
    return Image.fromarray(grey.astype(np.uint8)), alpha


def _to_srgb(image: Image.Image, profile: bytes | None, done: list[str]) -> Image.Image:
    """The picture's colours in sRGB, and a note of it in `done`; the picture itself where that changes nothing to see."""
    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(source.profile.xcolor_space.strip())
        image = image.convert("RGB") if image.mode == "P" else image
        if image.mode != mode:
            return image  # a profile of another kind of picture: nothing that a viewer heeds
        to_srgb = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode != "CMYK" and _is_srgb(to_srgb, mode):
            return image
        converted = ImageCms.applyTransform(image, to_srgb)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        done.append("no profile")
        return image
    assert converted is not None
    done.append("profile")
    return converted


def _is_srgb(to_srgb: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transformation moves no colour of a grid by more than `SRGB_LEVELS`."""
    levels = range(0, 256, 51)
    grid = np.array(list(itertools.product(levels, repeat=3)), np.uint8)[None]
    patches = Image.fromarray(grid) if mode == "RGB" else Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    moved = ImageCms.applyTransform(patches, to_srgb)
    assert moved is not None
    return bool(np.abs(np.asarray(moved, np.int16) - np.asarray(patches.convert("RGB"), np.int16)).max() <= SRGB_LEVELS)
