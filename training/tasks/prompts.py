"""Prompts with their answers out of a user's own files, and the training sets drawn from them. Imports no torch.

A folder holds a file `<domain>.jsonl` for each domain; a line is a JSON object with "prompt" and "answer", and may have "id". Ids
of the form `12_3` name a document, whose rows stay together; without an id a row is known by its content.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adapters.documents import parse_json
from adapters.errors import BadInput
from training.tasks import training_sets
from training.tasks.training_sets import TrainingSet, decode, read_bytes

ENDING = ".jsonl"
ROW = 'one JSON object a line with "prompt" and "answer"'
FIELDS = ("prompt", "answer")


class Exchange(NamedTuple):
    """A prompt with its answer.

    Attributes:
        domain: where it is from.
        id: of its own, in the domain.
        document: what it was cut from; its id elsewhere.
        text: the prompt.
        label: the answer.
    """

    domain: str
    id: str
    document: str
    text: str
    label: str


def locate(name: str) -> Path:
    """A folder of prompts and answers, after all of it has been read.

    Raises:
        BadInput: it is not there, or has a row or a file that cannot be used.
    """
    if not name:
        raise BadInput(f"--subjects names no folder; give one of <domain>{ENDING} ({ROW})")
    path = Path(name).resolve()
    if not path.is_dir():
        raise BadInput(f"no folder {name!r}; give one of <domain>{ENDING} ({ROW})")
    read(path)
    return path


def names(folder: Path, split: str | None = None) -> list[str]:
    """Names of the training sets: number 1 of every domain, then number 2, ...

    Raises:
        BadInput: an unknown split, or as `locate`.
    """
    return training_sets.set_names(read(folder), split)


def load(folder: Path, name: str, count: int) -> TrainingSet:
    """Draw a training set: the same one everywhere.

    Args:
        folder: as from `locate`.
        name: one of `names`.
        count: rows to learn from.

    Raises:
        BadInput: unknown name (with near matches), fewer rows than `count`, nothing to test on, or as `locate`.
    """
    return training_sets.draw(training_sets.divide(read(folder)), folder, name, count, "rows", check_rows)


def check_rows(rows: Sequence[Exchange], what: str) -> None:
    """Check that there are rows.

    Raises:
        BadInput: there is none.
    """
    if not rows:
        raise BadInput(f"{what}: there is none; the folder has too few rows")


def read(folder: Path) -> Mapping[str, tuple[Exchange, ...]]:
    """All rows by domain, each prompt once; read once for each process, and again if a file has changed.

    Raises:
        BadInput: as `locate`.
    """
    return _read(folder, training_sets.stamp(folder, ENDING))[0]


@functools.cache
def _read(folder: Path, stamp: tuple) -> tuple[dict[str, tuple[Exchange, ...]], int]:
    """All rows by domain, each prompt once, and how many rows that leaves out."""
    rows = {path.stem: _parse(path) for path in training_sets.list_domains(folder, ENDING, "prompts", ROW)}
    once = {domain: tuple(_once(own)) for domain, own in rows.items()}
    return once, sum(map(len, rows.values())) - sum(map(len, once.values()))


def _once(rows: Sequence[Exchange]) -> list[Exchange]:
    """The rows whose prompt does not stand before them."""
    found: dict[str, Exchange] = {}
    for one in rows:
        found.setdefault(one.text, one)
    return list(found.values())


def count_repeated(folder: Path) -> int:
    """How many rows are left out because their prompt stands before them in their file, with another answer or another id."""
    return _read(folder, training_sets.stamp(folder, ENDING))[1]


def _parse(path: Path) -> list[Exchange]:
    """All rows of a file, but those that stand there twice as they are."""
    found: dict[str, Exchange] = {}
    for number, line in enumerate(decode(str(path), read_bytes(path)).split("\n"), 1):
        if line.strip():
            one = _parse_row(path.stem, f"{path}, line {number}", line)
            if one.id in found and found[one.id] != one:
                raise BadInput(f"{path}, line {number}: id {one.id!r} stands there twice")
            found.setdefault(one.id, one)
    return list(found.values())


def check_characters(text: str, where: str) -> None:
    """Refuse half of a character, which JSON can write and UTF-8 cannot.

    Raises:
        BadInput: there is one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{where} has half of a character, {text[error.start]!r}; write it whole") from None


def _parse_row(domain: str, where: str, line: str) -> Exchange:
    row: Any = parse_json(line, f"{where}: no JSON; expected {ROW}")
    if not isinstance(row, dict):
        raise BadInput(f"{where}: {type(row).__name__}; expected {ROW}")
    for name in FIELDS:
        if name not in row:
            raise BadInput(f"{where}: no {name!r}; expected {ROW}")
        if not isinstance(row[name], str) or not row[name].strip():
            raise BadInput(f"{where}: {name} is {row[name]!r}; allowed: text that is not empty")
        check_characters(row[name], f"{where}: {name}")
    id_ = row.get("id")
    if id_ is None:
        id_ = training_sets.digest(json.dumps([row[name] for name in FIELDS]))[:16]
    if not isinstance(id_, str | int):
        raise BadInput(f"{where}: id {id_!r}; allowed: text or a whole number")
    check_characters(str(id_), f"{where}: id")
    document = match[1] if (match := re.fullmatch(r"(\d+)_\d+", str(id_))) else str(id_)
    return Exchange(domain, str(id_), document, row["prompt"], row["answer"])
