"""Sentences of four domains that people rated, and the training sets drawn from them. Imports no torch.

They come with vaderSentiment's source distribution: tweets, product reviews (amazon), newspaper editorials (nyt) and movie
reviews, each rated by at least 20 people from -4 to 4 (Hutto & Gilbert, ICWSM-14). They are read from the archive as pip has
fetched it (`training.tasks.fetch_text`): nothing is unpacked, and no code of the package runs. A sentence whose mean rating is
near zero has no label and is left out.

What an interval over these training sets generalises to: other training sets of these four domains, not other domains. The
sets of a domain are drawn from one pool: two of them share a third of their sentences (a tenth of the movies', four fifths of
most tuning sets'), and all are tested on the same sentences.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import html
import io
import itertools
import json
import math
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from adapters.errors import BadInput
from adapters.words import counted

ARCHIVE = "vaderSentiment-2.5.tar.gz"
SHA256 = "b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84"
INNER = "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz"
FOLDER = "hutto_ICWSM_2014"  # in the inner archive
TABLES = {
    "tweets": ("tweets", "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f"),
    "amazon": ("amazonReviewSnippets", "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2"),
    "nyt": ("nytEditorialSnippets", "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e"),
    "movies": ("movieReviewSnippets", "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"),
}
"""By domain: how its file's name begins, and the file's SHA-256."""
FETCH = "`make text` (python -m training.tasks.fetch_text) fetches it"
COLUMNS = "id, mean rating, text"
NEUTRAL = 0.5  # of the rating's absolute value: less than this is no opinion
NUM_SETS = {"evidence": 10, "tuning": 3}  # of each domain
MARKS = {"evidence": "", "tuning": "t"}  # before the number, in a set's name
PARTS = (
    (0.15, "tuning", "test"), (0.35, "tuning", "train"), (0.55, "evidence", "test"), (1.0, "evidence", "train"),
)  # fmt: skip
"""Where each part of the documents ends, as a share of all hash values."""
NUM_TRAIN, MOST_TEST, MOST_OTHERS = 512, 300, 32  # sentences; the last of each other domain


class Sentence(NamedTuple):
    """One rated sentence.

    Attributes:
        domain: where it is from.
        id: of its own, in the domain.
        document: what it was cut from: "12" where its id is "12_3"; its id elsewhere.
        rating: the mean of its ratings, from -4 to 4.
        text: in one line, HTML's entities read.
        label: 1 for positive, 0 for negative.
    """

    domain: str
    id: str
    document: str
    rating: float
    text: str
    label: int


Domains = Mapping[str, tuple[Sentence, ...]]
Parts = Mapping[tuple[str, str, str], tuple[Sentence, ...]]


@dataclass(frozen=True)
class TrainingSet:
    """Sentences that one finetune learns from, and those that it is tested on.

    Attributes:
        name: "tweets-1"; "tweets-t1" for tuning.
        cls: the domain.
        split: "evidence" or "tuning", which share no document.
        train: the sentences that are learned, in the order in which they were drawn.
        test: the sentences that scores are taken on, the same for every set of the domain and split.
        others: test sentences of the other domains, by which drift is measured; empty where there is one domain alone.
    """

    name: str
    cls: str
    split: str
    train: tuple[Sentence, ...]
    test: tuple[Sentence, ...]
    others: tuple[Sentence, ...] = ()

    @property
    def picture(self) -> None:
        """None: a set of sentences has no picture."""

    def fields(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of its cells that it decides."""
        return {"subject": self.name, "subject_hash": self.content_hash()}

    def content_hash(self) -> str:
        """SHA-256 of all texts and labels, cut to 16 hex digits."""
        said = [[(one.text, one.label) for one in part] for part in (self.train, self.test, self.others)]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def default_archive() -> Path:
    """Where `training.tasks.fetch_text` puts the archive."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "plateau" / "text" / ARCHIVE


def locate(name: str) -> Path:
    """The archive of rated sentences, or a folder of one's own, after all of it has been read.

    Args:
        name: "" or "vader" for the archive in its usual place; a path to it; or a folder of files `<domain>.tsv` without a
            header, whose columns are id, mean rating and text.

    Raises:
        BadInput: it is not there, is another file than it should be, or has a row or a domain that cannot be used.
    """
    if name in ("", "vader"):
        path = default_archive()
        if not path.is_file():
            raise BadInput(f"no rated sentences: {path} is not there; {FETCH}")
    else:
        path = Path(name)
        if not (path.is_dir() or path.is_file()):
            raise BadInput(
                f"no sentences at {name!r}; give 'vader', a path to {ARCHIVE}, or a folder of <domain>.tsv ({COLUMNS})"
            )
    read(path := path.resolve())
    return path


def names(archive: Path, split: str | None = None) -> list[str]:
    """Names of the training sets: number 1 of every domain, then number 2, ...

    Args:
        archive: as from `locate`.
        split: "evidence" or "tuning"; None for both, evidence first.

    Raises:
        BadInput: an unknown split, or as `locate`.
    """
    if split is not None and split not in NUM_SETS:
        raise BadInput(f"unknown split {split!r}; allowed: {', '.join(NUM_SETS)}")
    wanted = NUM_SETS if split is None else [split]
    return [name for each in wanted for name in _addresses(read(archive), each)]


def _addresses(domains: Iterable[str], split: str) -> dict[str, tuple[str, str, int]]:
    """(domain, split, number) of every training set of a split by its name, in order."""
    numbers = range(1, NUM_SETS[split] + 1)
    return {
        f"{domain}-{MARKS[split]}{number}": (domain, split, number)
        for number, domain in itertools.product(numbers, list(domains))
    }


def load(archive: Path, name: str, count: int = NUM_TRAIN) -> TrainingSet:
    """Draw a training set: the same one everywhere, whatever libraries are there.

    Args:
        archive: as from `locate`.
        name: one of `names`.
        count: sentences to learn from.

    Raises:
        BadInput: unknown name (with near matches), fewer sentences than `count`, one class only, or as `locate`.
    """
    domain, split, number = _find_address(archive, name)
    parts = divide(archive)
    pool = parts[domain, split, "train"]
    if not 2 <= count <= len(pool):
        raise BadInput(
            f"{name}: {count} sentences to learn from; allowed: 2 to {len(pool)}, which {domain} has for {split} in {archive}"
        )
    train = sorted(pool, key=lambda one: _digest(f"{domain}:{split}:{number}:{one.id}"))[:count]
    tests = {other: by_id(parts[other, split, "test"]) for other in read(archive)}
    test = tests.pop(domain)[:MOST_TEST]
    for part, what in ((train, "to learn from"), (test, "to test on")):
        check_classes(part, f"{name}: the sentences {what}")
    others = [one for other in tests.values() for one in other[:MOST_OTHERS]]
    return TrainingSet(name, domain, split, tuple(train), tuple(test), tuple(others))


def _find_address(archive: Path, name: str) -> tuple[str, str, int]:
    domains = read(archive)
    known = {key: found for split in NUM_SETS for key, found in _addresses(domains, split).items()}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        ranges = " and ".join(f"DOMAIN-{MARKS[split]}1 to -{MARKS[split]}{most}" for split, most in NUM_SETS.items())
        raise BadInput(f"unknown training set {name!r}: {hint}sets are {ranges}; domains are {', '.join(domains)}")
    return known[name]


def by_id(sentences: Iterable[Sentence]) -> list[Sentence]:
    """Sentences in the order of their ids' hashes, which is nobody's choice."""
    return sorted(sentences, key=lambda one: _digest(one.id))


def check_classes(sentences: Sequence[Sentence], what: str) -> None:
    """Check that there are positive and negative sentences.

    Args:
        sentences: to look at.
        what: how the error begins.

    Raises:
        BadInput: there is no sentence, or all have the same label.
    """
    found = Counter(one.label for one in sentences)
    if not found:
        raise BadInput(f"{what}: none is left (a mean rating between -{NEUTRAL} and {NEUTRAL} is no label)")
    if len(found) == 1:
        only = "positive" if 1 in found else "negative"
        raise BadInput(f"{what}: {counted(len(sentences), 'sentence')}, all {only}; both classes are needed")


# Which part a sentence belongs to.


def divide(archive: Path) -> Parts:
    """All sentences by (domain, "evidence" or "tuning", "train" or "test"); no two parts share a document.

    Raises:
        BadInput: as `locate`.
    """
    return _divide(archive, _stamp(archive))


@functools.cache
def _divide(archive: Path, stamp: tuple) -> Parts:
    parts: dict[tuple[str, str, str], list[Sentence]] = {}
    for domain, sentences in _read(archive, stamp).items():
        parts |= {(domain, split, role): [] for _, split, role in PARTS}
        for one in sentences:
            parts[domain, *find_part(domain, one.document)].append(one)
    return {key: tuple(part) for key, part in parts.items()}


def find_part(domain: str, document: str) -> tuple[str, str]:
    """The split and role of a document, by its hash alone: other documents never move it."""
    share = int(_digest(f"{domain}:{document}")[:13], 16) / 16**13  # 52 bits, which a float holds
    return next((split, role) for end, split, role in PARTS if share < end)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# Reading.


def read(archive: Path) -> Domains:
    """All sentences with a label by domain, without duplicates; read once for each process, and again if a file has changed.

    Raises:
        BadInput: as `locate`.
    """
    return _read(archive, _stamp(archive))


@functools.cache
def _read(archive: Path, stamp: tuple) -> Domains:
    tables = _read_folder(archive) if archive.is_dir() else _read_archive(archive)
    found = {}
    for domain, (where, content) in tables.items():
        found[domain] = tuple(drop_duplicates(_parse(domain, where, content)))
        check_classes(found[domain], where)
    return found


def _stamp(archive: Path) -> tuple[tuple[str, int, int], ...]:
    """What tells that a file has changed."""
    stats = [(path.name, path.stat()) for path in (_list_tables(archive) if archive.is_dir() else [archive])]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _list_tables(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.tsv") if not path.name.startswith("."))


def _read_folder(folder: Path) -> dict[str, tuple[str, bytes]]:
    """(path, content) of every domain's file."""
    tables = _list_tables(folder)
    if not tables:
        raise BadInput(f"no sentences in {folder}; expected files <domain>.tsv ({COLUMNS})")
    for path in tables:
        if not re.fullmatch(r"[\w.-]+", path.stem):
            raise BadInput(f"{path}: {path.stem!r} is no name of a domain; allowed: letters, digits, _, . and -")
    return {path.stem: (str(path), _read_bytes(path)) for path in tables}


def _read_archive(archive: Path) -> dict[str, tuple[str, bytes]]:
    """(place, content) of every domain's file in the inner archive; both archives stay in memory."""
    content = _read_bytes(archive)
    check_hash(str(archive), content, SHA256)
    paths = {domain: f"{FOLDER}/{stem}_GroundTruth.txt" for domain, (stem, _) in TABLES.items()}
    members = _extract(_extract(content, [INNER])[INNER], list(paths.values()))
    for domain, path in paths.items():
        check_hash(f"{archive}: {path}", members[path], TABLES[domain][1])
    return {domain: (f"{archive}: {path}", members[path]) for domain, path in paths.items()}


def _extract(content: bytes, wanted: list[str]) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        files = {name: tar.extractfile(name) for name in wanted}
        return {name: file.read() for name, file in files.items() if file is not None}


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None


def check_hash(where: str, content: bytes, wanted: str) -> None:
    """Check that a file is the one that it should be.

    Raises:
        BadInput: its SHA-256 is another one; the message names the file, what was found, and what was wanted.
    """
    if (found := hashlib.sha256(content).hexdigest()) != wanted:
        raise BadInput(f"{where} is another file than it should be: its SHA-256 is {found}, not {wanted}; {FETCH}")


def _parse(domain: str, where: str, content: bytes) -> list[Sentence]:
    """Sentences with a label, in the file's order."""
    found, seen = [], set[str]()
    for number, line in enumerate(_decode(where, content).split("\n"), 1):
        if line.strip():
            one = _parse_row(domain, f"{where}, line {number}", line)
            if one.id in seen:
                raise BadInput(f"{where}, line {number}: id {one.id!r} stands there twice")
            seen.add(one.id)
            found.append(one)
    return [one for one in found if abs(one.rating) >= NEUTRAL]


def _decode(where: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BadInput(f"{where}, line {line}: not UTF-8; save it as such") from None


def _parse_row(domain: str, where: str, line: str) -> Sentence:
    fields = [" ".join(html.unescape(field).split()) for field in line.split("\t")]
    if len(fields) != 3:
        raise BadInput(f"{where}: {counted(len(fields), 'field')}; expected 3, parted by tabs: {COLUMNS}")
    if missing := [name for name, field in zip(COLUMNS.split(", "), fields) if not field]:
        raise BadInput(f"{where}: no {missing[0]}; expected {COLUMNS}, parted by tabs")
    id_, rating, text = fields
    document = found[1] if (found := re.fullmatch(r"(\d+)_\d+", id_)) else id_
    value = _read_number(where, rating)
    return Sentence(domain, id_, document, value, text, int(value > 0))


def _read_number(where: str, rating: str) -> float:
    try:
        value = float(rating)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadInput(f"{where}: rating {rating!r} is no number")
    return value


def drop_duplicates(sentences: Iterable[Sentence]) -> list[Sentence]:
    """Sentences of which no two have the same text, capitals or not: the first stays, or none if their labels differ."""
    groups: dict[str, list[Sentence]] = {}
    for one in sentences:
        groups.setdefault(one.text.casefold(), []).append(one)
    return [group[0] for group in groups.values() if len({one.label for one in group}) == 1]
