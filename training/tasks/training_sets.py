"""Training sets drawn from domains of rows, the same everywhere, and the documents that learning and testing never share.

A row's document decides by its hash which part it belongs to, so that other rows never move it. The sets of a domain are drawn
from one pool, so two of them share rows, and all are tested on the same ones. What an interval over these sets generalises to:
other training sets of these domains, not other domains. Imports no torch.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from adapters.errors import BadInput

NUM_SETS = {"evidence": 10, "tuning": 3}  # of each domain
MARKS = {"evidence": "", "tuning": "t"}  # before the number, in a set's name
PARTS = (
    (0.15, "tuning", "test"), (0.35, "tuning", "train"), (0.55, "evidence", "test"), (1.0, "evidence", "train"),
)  # fmt: skip
"""Where each part of the documents ends, as a share of all hash values."""
MOST_TEST, MOST_OTHERS = 300, 32  # rows to test on; the last of each other domain


@runtime_checkable
class DrawnRow(Protocol):
    """One row of a domain."""

    @property
    def domain(self) -> str:
        """Where it is from."""

    @property
    def id(self) -> str:
        """Of its own, in the domain."""

    @property
    def document(self) -> str:
        """What it was cut from; its id where it stands alone."""

    @property
    def text(self) -> Any:
        """What is read."""

    @property
    def label(self) -> Any:
        """What is to be told."""


AnyRow = TypeVar("AnyRow", bound=DrawnRow)
Domains = Mapping[str, tuple[AnyRow, ...]]
Parts = dict[tuple[str, str, str], tuple[AnyRow, ...]]


@dataclass(frozen=True)
class TrainingSet:
    """Rows that one finetune learns from, and those that it is tested on.

    Attributes:
        name: "tweets-1"; "tweets-t1" for tuning.
        cls: the domain.
        split: "evidence" or "tuning", which share no document.
        train: the rows that are learned, in the order in which they were drawn.
        test: the rows that scores are taken on, the same for every set of the domain and split.
        others: test rows of the other domains, by which drift is measured; empty where there is one domain alone.
    """

    name: str
    cls: str
    split: str
    train: tuple[Any, ...]
    test: tuple[Any, ...]
    others: tuple[Any, ...] = ()

    @property
    def picture(self) -> None:
        """None: a set of texts has no picture."""

    def fields(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of its cells that it decides."""
        return {"subject": self.name, "subject_hash": self.content_hash()}

    def content_hash(self) -> str:
        """SHA-256 of all texts and labels, cut to 16 hex digits; computed once."""
        return self._hash

    @functools.cached_property
    def _hash(self) -> str:
        said = [[(one.text, one.label) for one in part] for part in (self.train, self.test, self.others)]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def set_names(domains: Iterable[str], split: str | None = None) -> list[str]:
    """Names of the training sets: number 1 of every domain, then number 2, ...

    Args:
        domains: their names.
        split: "evidence" or "tuning"; None for both, evidence first.

    Raises:
        BadInput: an unknown split.
    """
    if split is not None and split not in NUM_SETS:
        raise BadInput(f"unknown split {split!r}; allowed: {', '.join(NUM_SETS)}")
    known, wanted = list(domains), NUM_SETS if split is None else [split]
    return [name for each in wanted for name in _addresses(known, each)]


def _addresses(domains: Sequence[str], split: str) -> dict[str, tuple[str, str, int]]:
    """(domain, split, number) of every training set of a split by its name, in order."""
    numbers = range(1, NUM_SETS[split] + 1)
    return {
        f"{domain}-{MARKS[split]}{number}": (domain, split, number)
        for number, domain in itertools.product(numbers, domains)
    }


def draw(
    parts: Parts, place: Path, name: str, count: int, what: str, check: Callable[[Sequence[Any], str], None]
) -> TrainingSet:
    """Draw a training set.

    Args:
        parts: as from `divide`.
        place: where the rows are from, for errors.
        name: one of `set_names`.
        count: rows to learn from.
        what: a row is called, in the plural ("sentences").
        check: looks at the rows to learn from and at those to test on, which words name; may raise `BadInput`.

    Raises:
        BadInput: unknown name (with near matches), fewer rows than `count`, or what `check` raises.
    """
    domains = list(dict.fromkeys(domain for domain, _, _ in parts))
    domain, split, number = _find_address(domains, name)
    pool = parts[domain, split, "train"]
    if not 2 <= count <= len(pool):
        allowed = f"allowed: 2 to {len(pool)}, which" if len(pool) > 1 else f"too few, {len(pool)}, are what"
        raise BadInput(f"{name}: {count} {what} to learn from; {allowed} {domain} has for {split} in {place}")
    train = sorted(pool, key=lambda one: digest(f"{domain}:{split}:{number}:{one.id}"))[:count]
    tests = {other: by_id(parts[other, split, "test"]) for other in domains}
    test = tests.pop(domain)[:MOST_TEST]
    for part, use in ((train, "to learn from"), (test, "to test on")):
        check(part, f"{name}: the {what} {use}")
    others = [one for other in tests.values() for one in other[:MOST_OTHERS]]
    return TrainingSet(name, domain, split, tuple(train), tuple(test), tuple(others))


def _find_address(domains: Sequence[str], name: str) -> tuple[str, str, int]:
    known = {key: found for split in NUM_SETS for key, found in _addresses(domains, split).items()}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        ranges = " and ".join(f"DOMAIN-{MARKS[split]}1 to -{MARKS[split]}{most}" for split, most in NUM_SETS.items())
        raise BadInput(f"unknown training set {name!r}: {hint}sets are {ranges}; domains are {', '.join(domains)}")
    return known[name]


def by_id(rows: Iterable[AnyRow]) -> list[AnyRow]:
    """Rows in the order of their ids' hashes, which is nobody's choice."""
    return sorted(rows, key=lambda one: digest(one.id))


def divide(domains: Domains) -> Parts:
    """All rows by (domain, "evidence" or "tuning", "train" or "test"); no two parts share a document."""
    parts: dict[tuple[str, str, str], list[Any]] = {}
    for domain, rows in domains.items():
        parts |= {(domain, split, role): [] for _, split, role in PARTS}
        for one in rows:
            parts[domain, *find_part(domain, one.document)].append(one)
    return {key: tuple(part) for key, part in parts.items()}


def find_part(domain: str, document: str) -> tuple[str, str]:
    """The split and role of a document, by its hash alone: other documents never move it."""
    share = int(digest(f"{domain}:{document}")[:13], 16) / 16**13  # 52 bits, which a float holds
    return next((split, role) for end, split, role in PARTS if share < end)


def digest(text: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def stamp(place: Path, ending: str = "") -> tuple[tuple[str, int, int], ...]:
    """What tells that a file, or one of a folder's files with an ending, has changed.

    Raises:
        BadInput: one cannot be looked at.
    """
    found = []
    for path in list_files(place, ending) if place.is_dir() else [place]:
        try:
            stat = path.stat()
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}") from None
        found.append((path.name, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def list_files(folder: Path, ending: str = "") -> list[Path]:
    """What a folder holds with an ending in any case, but for what is hidden, in order."""
    return sorted(path for path in folder.iterdir() if path.name[0] != "." and path.name.lower().endswith(ending))


def left_out(folder: Path, ending: str) -> list[str]:
    """A line that names what a folder holds beside the files with an ending; none where there is nothing."""
    if not folder.is_dir():
        return []
    taken = set(list_files(folder, ending))
    names = [path.name for path in list_files(folder) if path not in taken]
    return [f"left out of {folder}: {', '.join(names)}; read are files <domain>{ending}"] if names else []


def list_domains(folder: Path, ending: str, what: str, holds: str) -> list[Path]:
    """A file for each domain.

    Args:
        folder: where they are.
        ending: of their names, with its dot.
        what: they hold, in the plural.
        holds: how a row is laid out.

    Raises:
        BadInput: there is none, or one whose name is none of a domain.
    """
    files = list_files(folder, ending)
    if not files:
        raise BadInput(f"no {what} in {folder}; expected files <domain>{ending} ({holds})")
    stems = [path.stem for path in files]
    if twice := [stem for stem in stems if stems.count(stem) > 1]:
        raise BadInput(f"{folder}: two files are of the domain {twice[0]!r}")
    for path in files:
        if not re.fullmatch(r"[\w.-]+", path.stem):
            raise BadInput(f"{path}: {path.stem!r} is no name of a domain; allowed: letters, digits, _, . and -")
    return files


def read_bytes(path: Path) -> bytes:
    """What a file holds.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None


def decode(where: str, content: bytes) -> str:
    """The text of a file in UTF-8.

    Raises:
        BadInput: it is none; the message names the line.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BadInput(f"{where}, line {line}: not UTF-8; save it as such") from None
