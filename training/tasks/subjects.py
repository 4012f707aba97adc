"""Subjects in DreamBooth's folder layout: `<folder>/<subject>/*.png`, with tables of classes, splits and prompts.

The tables are `subjects.csv` and `prompts.json`, or `prompts_and_classes.txt` as the DreamBooth paper's authors publish it.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from adapters import BadInput
from training.tasks import dreambench

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
SPLITS = ("tuning", "evidence", "test")


@dataclass(frozen=True)
class Subject:
    """One thing that a finetune has to learn.

    Attributes:
        name: the folder's name.
        cls: its class in words ("dog"), for prompts and prior preservation.
        kind: "live" or "object", which chooses the prompts.
        split: "tuning", "evidence" or "test"; "" in a folder without a table.
        pictures: paths, in the order of their names.
        prompts: evaluation prompts with `{token}` and `{cls}` filled in.
        plain_prompts: the same without the token, for CLIP-T: the rare token means nothing to CLIP.
        instance_prompt: the prompt that the subject is trained with.
        unrelated: prompts about other things, by which drift is measured.
    """

    name: str
    cls: str
    kind: str
    split: str
    pictures: tuple[Path, ...]
    prompts: tuple[str, ...]
    plain_prompts: tuple[str, ...]
    instance_prompt: str
    unrelated: tuple[str, ...] = ()

    def content_hash(self, num_drift_prompts: int = 0) -> str:
        """SHA-256 of the pictures' bytes, of every prompt, and of as many unrelated ones as are used."""
        said = [self.cls, self.prompts, self.instance_prompt, *self.unrelated[:num_drift_prompts]]
        digest = hashlib.sha256(json.dumps(said).encode())
        for path in self.pictures:
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


def read_table(folder: Path) -> dict[str, dict[str, str]]:
    """Rows (subject, class, kind, split) of `subjects.csv`, or of the published classes, by subject; empty without either file.

    A table may have a column `order` too: in which order subjects are taken where only their number is given (`in_order`).

    Raises:
        BadInput: if a column is missing or a split is unknown.
    """
    path = folder / "subjects.csv"
    if not path.exists():
        published = _published(folder)
        return {
            name: {"subject": name, "class": cls, "kind": published.kind(name), "split": ""}
            for name, cls in published.classes.items()
        }
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if missing := {"subject", "class", "kind", "split"} - set(row):
            raise BadInput(f"{path}: no column {sorted(missing)[0]!r}; columns are subject, class, kind, split")
        if row["split"] not in SPLITS:
            raise BadInput(f"{path}: {row['subject']} has split {row['split']!r}; splits are {', '.join(SPLITS)}")
    return {row["subject"]: row for row in rows}


def _published(folder: Path) -> dreambench.Published:
    path = folder / dreambench.FILE
    return dreambench.read_published(path) if path.exists() else dreambench.Published()


def read_prompts(folder: Path) -> dict[str, list[str]]:
    """Prompt templates by kind, and "unrelated" ones, from `prompts.json` or the published file, else DreamBooth-like ones."""
    path = folder / "prompts.json"
    if not path.exists():
        return _published(folder).prompts or dict.fromkeys(("live", "object"), list(DEFAULT_PROMPTS))
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is not JSON: {error}") from None


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


def names(folder: Path, split: str | None = None) -> list[str]:
    """Names of the subjects in a folder, of one split or of all but the test subjects.

    Raises:
        BadInput: if the folder is missing or has no subjects.
    """
    if not folder.is_dir():
        raise BadInput(f"no subjects folder {folder}; expected a folder of <subject>/*.png")
    table = read_table(folder)
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not any(row["split"] for row in table.values()):
        split = None  # a table without splits has nothing to choose by
    wanted = [n for n in found if split is None or table.get(n, {}).get("split", "") == split]
    if not wanted:
        raise BadInput(f"no subjects{f' of split {split!r}' if split else ''} in {folder}; expected <subject>/*.png")
    return wanted


def in_order(found: Sequence[str], folder: Path) -> list[str]:
    """Subjects as the table's column `order` says, smallest number first; those without a number last, as they came.

    Raises:
        BadInput: if the column holds anything but numbers.
    """
    table = read_table(folder)
    places = {name: (table.get(name, {}).get("order") or "").strip() for name in found}
    if wrong := [name for name, place in places.items() if place and not place.isdecimal()]:
        raise BadInput(
            f"{folder / 'subjects.csv'}: order of {wrong[0]} is {places[wrong[0]]!r}; allowed: whole numbers"
        )
    return sorted(found, key=lambda name: int(places[name]) if places[name] else math.inf)


def load(folder: Path, name: str, *, token: str, instance_prompt: str) -> Subject:
    """Read one subject and check every picture of it.

    Args:
        folder: the folder of subjects.
        name: the subject.
        token: the rare token, "sks".
        instance_prompt: template with `{token}` and `{cls}`.

    Raises:
        BadInput: unknown subject (with near matches), no pictures, or a file that is no picture.
    """
    known = names(folder)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise BadInput(f"unknown subject {name!r}: {hint}subjects in {folder} are {', '.join(known)}")
    row = read_table(folder).get(name, {})
    cls = row.get("class") or re.sub(r"[\d_]+", " ", name).strip()
    kind = row.get("kind", "object")
    prompts = read_prompts(folder)
    templates = prompts.get(kind, list(DEFAULT_PROMPTS))
    plain = [re.sub(r"\s+", " ", t.replace("{token}", "")).format(cls=cls) for t in templates]
    return Subject(
        name, cls, kind, row.get("split", ""), _checked_pictures(folder / name),
        tuple(t.format(token=token, cls=cls) for t in templates), tuple(plain),
        instance_prompt.format(token=token, cls=cls), tuple(prompts.get("unrelated", UNRELATED)),
    )  # fmt: skip


def _checked_pictures(folder: Path) -> tuple[Path, ...]:
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    pictures = [p for p in files if p.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        raise BadInput(f"no pictures in {folder}; expected files ending in {', '.join(sorted(PICTURE_SUFFIXES))}")
    for path in pictures:
        check_picture(path)
    return tuple(pictures)


def check_picture(path: Path) -> None:
    """Read a picture to its end.

    Raises:
        BadInput: if it is broken, or no picture.
    """
    try:
        with Image.open(path) as image:
            image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise BadInput(f"{path} is broken or not a picture: {str(error).splitlines()[0]}") from None


def open_pictures(paths: Sequence[Path], resolution: int) -> list[Image.Image]:
    """Pictures as RGB squares: the short side scaled to `resolution` (bilinear), then the centre cut out."""
    return [_square(Image.open(path).convert("RGB"), resolution) for path in paths]


def _square(image: Image.Image, side: int) -> Image.Image:
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))
