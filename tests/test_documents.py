"""JSON and TOML of anybody: a right answer or one line; text of anybody: one line that a terminal only prints."""

import os
from pathlib import Path

import pytest

from adapters import BadInput, printable
from adapters.documents import COUNT, NAME, NUMBER, PLACE, TEXT, parse_json, read_json, read_toml
from training.store import StoreError
from training.whole_files import DamagedFile
from training.whole_files import read_json as read_stored

DAMAGED = {
    "empty": b"", "cut": b'{"a": [1, 2', "latin": '{"a": "é"}'.encode("latin-1"), "utf-16": '{"a": 1}'.encode("utf-16"),
    "deep lists": b"[" * 100_000, "deep objects": b'{"a":' * 5000 + b"1" + b"}" * 5000, "as deep as Python reads":
    b"[" * 400 + b"]" * 400, "a number of 5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_json_is_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(DamagedFile, match=r"^damaged file .*a\.json: .+"):
        read_stored(path)


@pytest.mark.parametrize(
    "text", ["a = [", "a = " + "[" * 5000, "[" + ".".join("a" * 3000) + "]\nb = 1", "a = " + "[" * 300 + "]" * 300,
             "é".encode("latin-1"), "a = 1\na = 2", "a = " + "9" * 5000]
)  # fmt: skip
def test_damaged_toml_is_one_line(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput, match=r"a\.toml"):
        read_toml(path)


def test_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    (tmp_path / "b").write_bytes(b"\xef\xbb\xbfa = 1\r\n")
    assert read_json(tmp_path / "a") == {"a": 1}
    assert read_toml(tmp_path / "b")[0] == {"a": 1}


def test_what_cannot_be_opened_is_no_damage(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(StoreError, match="cannot be read") as caught:
            read_stored(place)
        assert not isinstance(caught.value, DamagedFile)
    with pytest.raises(FileNotFoundError):
        read_stored(tmp_path / "none")


FORM = {"a!": COUNT, "rows": [{"name": NAME, "folder": PLACE}], "cell": {"*": NUMBER}, "words": TEXT}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3", "it is 3, not an object"),
        ("{}", "a is missing"),
        ('{"a": null}', "a is missing"),
        ('{"a": true}', "a is True, not a whole number"),
        ('{"a": 1.5}', "a is 1.5, not a whole number"),
        ('{"a": 1, "rows": {}}', "rows is {}, not a list"),
        ('{"a": 1, "rows": [{}, {"name": "x\\u001b[31m"}]}', r"rows[1].name is 'x\x1b[31m', not a name in one line"),
        ('{"a": 1, "rows": [{"name": "\\ud800"}]}', r"rows[0].name is '\ud800', not a name in one line"),
        ('{"a": 1, "cell": {"lr": NaN}}', "cell.lr is nan, not a finite number"),
        ('{"a": 1, "cell": {"lr": 1e999}}', "cell.lr is inf, not a finite number"),
        ('{"a": 1, "cell": {"x\\n": 1}}', r"cell.a key is 'x\n', not a name in one line"),
        *[
            (f'{{"a": 1, "rows": [{{"folder": "{place}"}}]}}', "not a path that stays inside its folder")
            for place in ("../x", "/x", "a/../../x", "", ".", "..", "a\\u0000b", "a" * 300)
        ],
    ],
)
def test_misfit_is_named_with_its_place(text: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_json(text, "f", FORM)
    assert str(caught.value).startswith("f: ")
    assert said in str(caught.value)


def test_what_fits_is_returned_as_it_is() -> None:
    text = '{"a": 1, "rows": [{"name": "ü b", "folder": "001/a b"}], "cell": {"lr": 1, "b": null}, "words": "x\\n", "z": {}}'
    assert parse_json(text, "f", FORM)["z"] == {}


def test_text_that_is_printed_is_one_line_without_codes() -> None:
    assert printable("a\x1b]0;title\x07 b\r\n  c\u202e\ud800") == r"a\x1b]0;title\x07 b c\u202e\ud800"
    assert str(BadInput("a\nb\x1b[2J")) == r"a b\x1b[2J"
    assert printable("ü (a, b) [c] $d$ \\x1b") == "ü (a, b) [c] $d$ \\x1b"
