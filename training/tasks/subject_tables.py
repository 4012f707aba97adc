"""Read the tables of a folder of subjects: `subjects.csv` and `prompts.json`, or the DreamBooth authors' file for both."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterable
from pathlib import Path
from string import Formatter

from adapters.documents import Form, read_json
from adapters.errors import BadInput
from adapters.words import counted
from training.tasks import dreambench

COLUMNS = ("subject", "class", "kind", "split")
SPLITS = ("tuning", "evidence", "test")
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
FIELDS = ("token", "cls")  # of a prompt
DEFAULT_PROMPTS = (
    "a {token} {cls} in the jungle", "a {token} {cls} in the snow", "a {token} {cls} on the beach",
    "a {token} {cls} on a cobblestone street", "a {token} {cls} on top of pink fabric",
    "a {token} {cls} with a city in the background", "a red {token} {cls}", "a purple {token} {cls}",
)  # fmt: skip
UNRELATED = (
    "a wooden table with a bowl of fruit", "a city street at night in the rain", "a mountain lake in autumn",
    "a red bicycle against a brick wall", "an old lighthouse by the sea", "a bookshelf full of books",
    "a steam train on a bridge", "a field of sunflowers under a blue sky", "a grand piano in an empty hall",
    "a sailing ship in a storm",
)  # fmt: skip


def read_table(folder: Path) -> dict[str, dict[str, str]]:
    """Rows (subject, class, kind, split) of `subjects.csv`, or of the published classes, by subject; empty without either file.

    A table may have a column `order` too: in which order subjects are taken where only their number is given.

    Raises:
        BadInput: the file cannot be read as a table, lacks a column, names a subject twice or none, or holds what is no split,
            no number in `order`, or no name in one line.
    """
    path = folder / "subjects.csv"
    if not path.exists():
        published = _published(folder)
        return {
            name: {"subject": name, "class": cls, "kind": published.kind(name), "split": ""}
            for name, cls in published.classes.items()
        }
    rows: dict[str, dict[str, str]] = {}
    for line, row in _read_rows(path):
        if fault := _find_row_fault(row):
            raise BadInput(f"{path}, line {line}: {fault}")
        if row["subject"] in rows:
            raise BadInput(f"{path}, line {line}: subject {row['subject']!r} stands there twice")
        rows[row["subject"]] = row
    return rows


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, row by column) of a table with commas; a byte order mark is passed over, and so are empty lines."""
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if any(row)]
    except csv.Error as error:
        raise BadInput(f"{path}, line {reader.line_num}: {error}") from None
    header = rows[0][1] if rows else []
    if missing := [name for name in COLUMNS if name not in header]:
        other = next((name for mark, name in SEPARATORS.items() if any(mark in cell for cell in header)), "")
        hint = f"; cells are separated by {other} there, not by commas" if other else ""
        raise BadInput(f"{path}: no column {missing[0]!r}; columns are {', '.join(COLUMNS)}{hint}")
    if twice := [name for name in COLUMNS if header.count(name) > 1]:
        raise BadInput(f"{path}: column {twice[0]!r} stands there twice")
    for line, row in rows:
        if len(row) > len(header):
            raise BadInput(f"{path}, line {line}: {counted(len(row), 'cell')} under {counted(len(header), 'column')}")
    return [(line, dict(zip(header, row + [""] * len(header)))) for line, row in rows[1:]]


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadInput(f"{path} is UTF-16; save it as UTF-8 with commas (Excel calls it `CSV UTF-8`)")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BadInput(f"{path}, line {line}: not UTF-8; save it as such (Excel calls it `CSV UTF-8`)") from None
    if "\0" in text:
        raise BadInput(f"{path}, line {text[: text.index(chr(0))].count(chr(10)) + 1}: a NUL byte; it is no text")
    return text


def _find_row_fault(row: dict[str, str]) -> str:
    if wrong := [name for name in COLUMNS if not row[name].isprintable()]:
        return f"{wrong[0]} is {row[wrong[0]]!r}; expected a name in one line"
    if not row["subject"]:
        return "no subject"
    if row["split"] not in SPLITS:
        return f"{row['subject']} has split {row['split']!r}; splits are {', '.join(SPLITS)}"
    place = (row.get("order") or "").strip()
    if place and not (place.isdecimal() and len(place) < 10):
        return f"order of {row['subject']} is {place!r}; allowed: whole numbers"
    return ""


def _published(folder: Path) -> dreambench.Published:
    path = folder / dreambench.FILE
    return dreambench.read_published(path) if path.exists() else dreambench.Published()


def read_prompts(folder: Path) -> dict[str, list[str]]:
    """Prompt templates by kind, and "unrelated" ones, from `prompts.json` or the published file, else DreamBooth-like ones.

    Raises:
        BadInput: the file holds anything but lists of prompts, or a prompt has a field that there is not.
    """
    path, prompt = folder / "prompts.json", Form("a prompt", _is_prompt)
    if path.exists():
        try:
            found = read_json(path, {"*": [prompt]})
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    else:
        path, found = folder / dreambench.FILE, _published(folder).prompts
    for kind, templates in found.items():
        if not templates:
            raise BadInput(f"{path}: {kind!r} has no prompts; leave it out, or give it some")
        _check_templates(path, kind, templates)
    return found or dict.fromkeys(("live", "object"), list(DEFAULT_PROMPTS))


def find_templates(folder: Path, prompts: dict[str, list[str]], name: str, kind: str) -> list[str]:
    """The prompts of one subject's kind; DreamBooth-like ones where no file has prompts of any kind.

    Raises:
        BadInput: the file has prompts, and none of this kind.
    """
    kinds = sorted(prompts.keys() - {"unrelated"})
    if kinds and kind not in kinds and (folder / "prompts.json").exists():
        raise BadInput(
            f"{folder / 'prompts.json'} has no prompts of kind {kind!r}, which {name} is; kinds there: {', '.join(kinds)}"
        )
    return prompts.get(kind, list(DEFAULT_PROMPTS))


def _is_prompt(value: object) -> bool:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in value)  # half a letter, which no file could hold


def _check_templates(path: Path, kind: str, templates: Iterable[str]) -> None:
    allowed = () if kind == "unrelated" else FIELDS
    for number, template in enumerate(templates, 1):
        if fault := _find_template_fault(template, allowed):
            raise BadInput(f"{path}: prompt {number} of {kind!r} has {fault}; {{{{ and }}}} stand for braces")


def _find_template_fault(template: str, allowed: tuple[str, ...]) -> str:
    try:
        fields = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        return f"braces that are no field ({error})"
    listed = f"allowed: {', '.join(f'{{{name}}}' for name in allowed) or 'none'}"
    for name, form, conversion in fields:
        if name not in allowed or form or conversion:
            written = f"!{conversion}" * bool(conversion) + f":{form}" * bool(form)
            return f"the field {{{name}{written}}}; {listed}"
    return ""
