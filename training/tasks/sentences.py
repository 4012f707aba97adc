"""Sentences of four domains that people rated, and the training sets drawn from them. Imports no torch.

They come with vaderSentiment's source distribution: tweets, product reviews (amazon), newspaper editorials (nyt) and movie
reviews, each rated by at least 20 people from -4 to 4 (Hutto & Gilbert, ICWSM-14). They are read from the archive as pip has
fetched it (`training.tasks.fetch_text`): nothing is unpacked, and no code of the package runs. A sentence whose mean rating is
near zero has no label and is left out.

Two sets of a domain share a third of their sentences (a tenth of the movies', four fifths of most tuning sets').
"""

from __future__ import annotations

import functools
import hashlib
import html
import io
import math
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from adapters.errors import BadInput
from adapters.words import counted
from training.tasks import training_sets
from training.tasks.training_sets import TrainingSet, decode, read_bytes

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
ENDING = ".tsv"  # of the files of a folder of one's own
NEUTRAL = 0.5  # of the rating's absolute value: less than this is no opinion
NUM_TRAIN = 512  # sentences


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
    return training_sets.set_names(read(archive), split)


def load(archive: Path, name: str, count: int = NUM_TRAIN) -> TrainingSet:
    """Draw a training set: the same one everywhere, whatever libraries are there.

    Args:
        archive: as from `locate`.
        name: one of `names`.
        count: sentences to learn from.

    Raises:
        BadInput: unknown name (with near matches), fewer sentences than `count`, one class only, or as `locate`.
    """
    return training_sets.draw(divide(archive), archive, name, count, "sentences", check_classes)


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


def divide(archive: Path) -> training_sets.Parts:
    """All sentences by (domain, "evidence" or "tuning", "train" or "test"); no two parts share a document.

    Raises:
        BadInput: as `locate`.
    """
    return _divide(archive, training_sets.stamp(archive, ENDING))


@functools.cache
def _divide(archive: Path, stamp: tuple) -> training_sets.Parts:
    return training_sets.divide(_read(archive, stamp))


# Reading.


def read(archive: Path) -> Domains:
    """All sentences with a label by domain, without duplicates; read once for each process, and again if a file has changed.

    Raises:
        BadInput: as `locate`.
    """
    return _read(archive, training_sets.stamp(archive, ENDING))


@functools.cache
def _read(archive: Path, stamp: tuple) -> Domains:
    tables = _read_folder(archive) if archive.is_dir() else _read_archive(archive)
    found = {}
    for domain, (where, content) in tables.items():
        found[domain] = tuple(drop_duplicates(_parse(domain, where, content)))
        check_classes(found[domain], where)
    return found


def _read_folder(folder: Path) -> dict[str, tuple[str, bytes]]:
    """(path, content) of every domain's file."""
    tables = training_sets.list_domains(folder, ENDING, "sentences", COLUMNS)
    return {path.stem: (str(path), read_bytes(path)) for path in tables}


def _read_archive(archive: Path) -> dict[str, tuple[str, bytes]]:
    """(place, content) of every domain's file in the inner archive; both archives stay in memory."""
    content = read_bytes(archive)
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
    for number, line in enumerate(decode(where, content).split("\n"), 1):
        if line.strip():
            one = _parse_row(domain, f"{where}, line {number}", line)
            if one.id in seen:
                raise BadInput(f"{where}, line {number}: id {one.id!r} stands there twice")
            seen.add(one.id)
            found.append(one)
    return [one for one in found if abs(one.rating) >= NEUTRAL]


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
