"""A picture is read upright, in 8 bits, as sRGB, on white; or refused in one line. Ordinary ones are read as Pillow does."""

from __future__ import annotations

import io
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from adapters import BadInput
from tests.make_pictures import make_scene, make_turned, swap_profile, to_file
from tests.rounds import told
from training import read_picture as reading
from training.read_picture import Picture, read_picture
from training.tasks.subjects import open_pictures


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(picture.image, np.int16)


@pytest.mark.parametrize("ending", ["png", "webp", "jpg"])
def test_every_orientation_is_upright(ending: str, tmp_path: Path) -> None:
    for orientation in range(1, 9):
        path = make_turned(tmp_path / f"turned-{orientation}.{ending}", orientation)
        picture = read_picture(path)
        (trained,) = open_pictures([path], 16)
        with told(f"orientation {orientation}"):
            assert abs(pixels(picture) - np.asarray(make_scene(), np.int16)).mean() <= (8 if ending == "jpg" else 0)
            assert picture.reading == ("" if orientation == 1 else "upright")
            np.testing.assert_array_equal(trained, np.asarray(picture.image)[:, 4:20])


def test_upright_tiff_is_not_turned_twice(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    make_scene().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.tif", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").image, make_scene())


def test_damaged_exif_leaves_the_picture_as_it_is() -> None:
    content = to_file(make_scene(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff no such place")
    assert read_picture(content).reading == ""
    np.testing.assert_array_equal(read_picture(content).image, make_scene())


RAMP = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(4, axis=0)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bits_are_scaled(form: str) -> None:
    picture = read_picture(to_file(Image.fromarray(RAMP), form))
    np.testing.assert_array_equal(pixels(picture)[0, :, 0], np.arange(256))
    assert picture.reading == "deep"


def test_white_is_what_so_many_bits_hold() -> None:
    """12 bits, and 16 bits whose zero is white."""
    deep = bytearray(to_file(Image.fromarray(RAMP), "TIFF"))
    kind = deep.index(b"\x06\x01\x03\x00\x01\x00\x00\x00\x01")  # PhotometricInterpretation: BlackIsZero
    deep[kind + 8] = 0
    np.testing.assert_array_equal(pixels(read_picture(bytes(deep)))[0, :, 0], np.arange(256)[::-1])


@pytest.mark.parametrize("kind", ["float32", "int32"])
def test_depth_without_a_white_is_refused(kind: str) -> None:
    content = to_file(Image.fromarray(np.zeros((4, 4), kind)), "TIFF")
    with pytest.raises(BadInput, match="nothing says what is white; save it with 8 or 16 bits"):
        read_picture(content)


def make_transparent() -> dict[str, Image.Image]:
    """Pictures whose left half is transparent, with magenta or black hidden there, and whose right half is one colour."""
    rgba = Image.new("RGBA", (8, 4), (255, 0, 255, 0))
    rgba.paste((10, 200, 30, 255), (4, 0, 8, 4))
    grey = Image.new("LA", (8, 4), (0, 0))
    grey.paste((90, 255), (4, 0, 8, 4))
    palette = Image.new("P", (8, 4), 0)
    palette.putpalette([255, 0, 255, 10, 200, 30])
    palette.paste(1, (4, 0, 8, 4))
    deep = Image.fromarray(np.array([[7] * 4 + [30840] * 4] * 4, np.uint16))
    return {"RGBA": rgba, "LA": grey, "P": palette, "RGB": rgba.convert("RGB"), "L": grey.convert("L"), "I;16": deep}


@pytest.mark.parametrize("mode", make_transparent())
def test_what_is_transparent_is_white(mode: str) -> None:
    clear = {"P": 0, "RGB": (255, 0, 255), "L": 0, "I;16": 7}.get(mode)
    content = to_file(make_transparent()[mode], **({} if clear is None else {"transparency": clear}))
    picture = read_picture(content)
    right = {"LA": (90,) * 3, "L": (90,) * 3, "I;16": (120,) * 3}.get(mode, (10, 200, 30))
    assert picture.image.getpixel((0, 0)) == (255, 255, 255)
    assert picture.image.getpixel((7, 3)) == right
    assert picture.reading.endswith("white")


@pytest.mark.parametrize(
    ("depth", "colour", "clear", "row", "right", "reading"),
    [
        (1, 0, "0000", "40", [255, 255], "white"),
        (2, 0, "0001", "1b", [0, 255, 170, 255], "white"),
        (4, 0, "0005", "05af", [0, 255, 170, 255], "white"),
        (8, 0, "0005", "0005aaff", [0, 255, 170, 255], "white"),
        (16, 0, "0500", "05000501", [255, 5], "deep+white"),
        (8, 2, "000500050005", "050505060606", [255, 6], "white"),
        (16, 2, "050505050505", "050505050505060606060606", [255, 6], "white"),
        (16, 2, "05aa05aa05aa", "05aa05aa05aa060606060606", [255, 6], "deep+white"),
    ],
)
def test_a_transparent_colour_is_white_at_every_depth(
    depth: int, colour: int, clear: str, row: str, right: list[int], reading: str
) -> None:
    """Pillow compares a PNG's tRNS, in the bits of the file, with pixels of 8 bits."""
    width = len(right)
    lines = [
        (b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)),
        (b"tRNS", bytes.fromhex(clear)), (b"IDAT", zlib.compress(b"\0" + bytes.fromhex(row))), (b"IEND", b""),
    ]  # fmt: skip
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in lines
    ]
    picture = read_picture(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    assert [picture.image.getpixel((place, 0)) for place in range(width)] == [(level,) * 3 for level in right]
    assert picture.reading == reading


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("P", (8, 4), number) for number in range(3)]
    for frame in frames:
        frame.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    picture = read_picture(to_file(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert picture.image.getpixel((0, 0)) == (200, 0, 0)
    assert (picture.done, picture.reading) == (("first",), ""), "earlier versions took the first one too"


# Colours.


def test_colours_are_those_of_the_profile() -> None:
    picture = read_picture(to_file(Image.new("RGB", (4, 4), (250, 10, 10)), icc_profile=swap_profile()))
    red, green, blue = picture.image.getpixel((0, 0))
    assert green > 240
    assert red < 60
    assert blue < 60
    assert picture.reading == "profile"
    half = Image.new("RGBA", (4, 4), (250, 10, 10, 0))
    half.paste((250, 10, 10, 255), (2, 0, 4, 4))
    put = read_picture(to_file(half, icc_profile=swap_profile()))
    assert put.image.getpixel((0, 0)) == (255, 255, 255)
    assert put.image.getpixel((3, 0)) == (red, green, blue)
    assert put.reading == "profile+white"


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_srgb_and_damaged_profiles_change_nothing(mode: str) -> None:
    image = make_scene().convert(mode)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile, done in ((srgb, ()), (b"no profile at all" * 20, ("no profile",))):
        picture = read_picture(to_file(image, icc_profile=profile))
        np.testing.assert_array_equal(picture.image, image.convert("RGB"))
        assert (picture.done, picture.reading) == (done, "")


ORDINARY = [
    (make_scene(), "PNG"), (make_scene(), "JPEG"), (make_scene(), "BMP"), (make_scene(), "GIF"), (make_scene(), "TIFF"),
    (make_scene(), "WEBP"), (make_scene(), "AVIF"), (make_scene().convert("L"), "PNG"), (make_scene().convert("1"), "PNG"),
    (make_scene().convert("P"), "PNG"), (make_scene().convert("CMYK"), "JPEG"), (make_scene().convert("RGBA"), "PNG"),
    (make_scene().convert("LA"), "PNG"), (make_scene(), "JPEG2000"),
]  # fmt: skip


@pytest.mark.parametrize(("image", "form"), ORDINARY, ids=[f"{image.mode}-{form}" for image, form in ORDINARY])
def test_ordinary_pictures_are_read_as_before(image: Image.Image, form: str) -> None:
    content = to_file(image, form)
    picture = read_picture(content)
    with Image.open(io.BytesIO(content)) as plain:
        np.testing.assert_array_equal(picture.image, plain.convert("RGB"))
    assert (picture.done, picture.reading) == ((), "")


# Sizes and damage.


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Pillow's limit were 200 pixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(reading, "BIG_JPEG", 800)


@pytest.mark.usefixtures("small_limit")
def test_too_many_pixels(tmp_path: Path) -> None:
    half = read_picture(to_file(make_scene().convert("L"), "JPEG"))
    assert half.image.size == (12, 8)
    assert half.done == ("halved",)
    for name, content in (("a.png", to_file(make_scene())), ("a.jpg", to_file(make_scene().resize((48, 32)), "JPEG"))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=rf"{tmp_path / name} .*: at most 179 megapixels are read, 0 of a JPEG"):
            read_picture(tmp_path / name)
    monkey = read_picture(to_file(make_scene().resize((12, 8))))
    assert monkey.image.size == (12, 8)


def test_a_strip_is_refused() -> None:
    with pytest.raises(BadInput, match="1 x 101 pixels: more than 100 times as long as wide"):
        read_picture(to_file(Image.new("L", (1, 101))))


def test_every_refusal_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image) -> None:
        raise AssertionError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", fail)
    with pytest.raises(BadInput, match="broken or not a picture: AssertionError"):
        read_picture(WHOLE)


WHOLE = to_file(make_scene())
BROKEN = {
    "empty": (b"", "it is empty"),
    "text": (b"no picture at all", "its content is of no format that Pillow reads"),
    "half": (WHOLE[: len(WHOLE) // 2], "truncated"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "of no format that Pillow reads"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "fetch it by `git lfs pull`"),
    "header": (WHOLE[:60], "broken or not a picture"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_broken_pictures_are_one_line(damage: str, tmp_path: Path) -> None:
    content, said = BROKEN[damage]
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(BadInput) as refused:
        read_picture(path)
    assert str(refused.value).startswith(f"{path} is broken or not a picture: ")
    assert said in str(refused.value)


@pytest.mark.skipif(find_spec("pillow_heif") is not None, reason="pillow-heif reads it")
def test_heic_is_named_where_nothing_reads_it(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(BadInput, match="it is a HEIC; HEIC needs `pip install pillow-heif`"):
        read_picture(tmp_path / "a.jpg")


def test_missing_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"{tmp_path / 'a.png'} is broken or not a picture: No such file"):
        read_picture(tmp_path / "a.png")


def test_a_misnamed_picture_is_read_for_what_it_is(tmp_path: Path) -> None:
    make_scene().save(tmp_path / "a.jpg", "PNG")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.jpg").image, make_scene())
