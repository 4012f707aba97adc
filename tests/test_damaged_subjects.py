"""Whatever happens to a picture or a table, it is read, or refused in one line: never a traceback, never a hang."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adapters import BadInput
from tests.make_pictures import make_scene, swap_profile, to_file
from training.read_picture import read_picture
from training.tasks.subjects import load

EXIF = Image.Exif()
EXIF[0x0112] = 6
FILES = {
    "PNG": to_file(make_scene(), exif=EXIF, icc_profile=swap_profile()),
    "palette": to_file(make_scene().convert("P"), transparency=b"\0\x80\xff"),
    "JPEG": to_file(make_scene(), "JPEG", exif=EXIF, icc_profile=swap_profile()),
    "GIF": to_file(make_scene(), "GIF", save_all=True, append_images=[make_scene().rotate(90)]),
    "TIFF": to_file(make_scene(), "TIFF"),
    "WEBP": to_file(make_scene(), "WEBP", exif=EXIF),
    "AVIF": to_file(make_scene(), "AVIF"),
    "BMP": to_file(make_scene(), "BMP"),
    "JPEG2000": to_file(make_scene(), "JPEG2000"),
}
TABLES = {
    "subjects.csv": b"subject,class,kind,split,order\nmug,coffee mug,object,evidence,2\ncup,cup,live,tuning,1\n",
    "prompts.json": json.dumps({"object": ["a {token} {cls}", "{cls} {{x}}"], "unrelated": ["a tree"]}).encode(),
}
Read = TypeVar("Read")
quick = settings(max_examples=50, deadline=None, derandomize=True)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file's content with bytes exchanged, some of them early, where a file says what it is, and perhaps cut or doubled."""
    changed = bytearray(content)
    places = st.integers(0, len(content) - 1) | st.integers(0, min(63, len(content) - 1))
    for place, value in draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)):
        changed[place] = value
    start, end = draw(st.tuples(st.integers(0, 8), st.integers(0, 2 * len(content))))
    return bytes(
        (changed + changed)[start if draw(st.booleans()) else 0 : end if draw(st.booleans()) else len(changed)]
    )


def attempt(read: Callable[[], Read]) -> tuple[Read | None, str]:
    """What a reader returns, and the line by which it refuses instead."""
    try:
        return read(), ""
    except BadInput as refused:
        return None, str(refused)


@pytest.mark.parametrize("form", FILES)
def test_damaged_pictures(form: str) -> None:
    @quick
    @given(damaged(FILES[form]))
    def reads_or_refuses(content: bytes) -> None:
        picture, refused = attempt(lambda: read_picture(content))
        assert bool(picture) != (len(refused.splitlines()) == 1)
        assert picture is None or (picture.image.mode == "RGB" and min(picture.image.size) > 0)

    reads_or_refuses()


def load_or_refuse(name: str, content: bytes) -> None:
    """Load a subject beside a table of this content: what is wrong is one line that names the table."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "mug").mkdir()
        (folder / "mug" / "a.png").write_bytes(FILES["BMP"])
        (folder / name).write_bytes(content)
        subject, refused = attempt(lambda: load(folder, "mug", token="sks", instance_prompt="a {token} {cls}"))
        assert bool(subject) != (len(refused.splitlines()) == 1)
        assert subject is None or (subject.prompts and subject.content_hash(1))
        assert subject is not None or str(folder / name) in refused


@pytest.mark.parametrize("name", TABLES)
def test_damaged_tables(name: str) -> None:
    @quick
    @given(damaged(TABLES[name]))
    def reads_or_refuses(content: bytes) -> None:
        load_or_refuse(name, content)

    reads_or_refuses()


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["{", "{token}", "{0}", "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@quick
@given(values, st.sampled_from([(), ("object",), ("object", 0), ("unrelated",), ("unrelated", 0)]))
def test_exchanged_values_of_prompts(value: Any, at: tuple) -> None:
    prompts: Any = {"top": copy.deepcopy(json.loads(TABLES["prompts.json"]))}
    *way, last = ("top", *at)
    inner = prompts
    for key in way:
        inner = inner[key]
    inner[last] = value
    load_or_refuse("prompts.json", json.dumps(prompts["top"]).encode())


@quick
@given(
    st.lists(st.lists(st.text(max_size=5) | st.sampled_from(["mug", "object", "test", "1"]), max_size=6), max_size=3)
)
def test_tables_of_any_cells(rows: list[list[str]]) -> None:
    lines = ["subject,class,kind,split,order", *(",".join(row) for row in rows)]
    load_or_refuse("subjects.csv", "\n".join(lines).encode("utf-8", "surrogatepass"))
