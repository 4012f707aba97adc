"""Subjects in DreamBooth's folder layout: `<folder>/<subject>/*.png`, with tables of classes, splits and prompts.

The tables are `subjects.csv` and `prompts.json`, or `prompts_and_classes.txt` as the DreamBooth paper's authors publish it.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from adapters.errors import BadInput
from training.read_picture import read_picture
from training.tasks.picture_folder import is_left_behind, read_folder
from training.tasks.subject_tables import UNRELATED, find_templates, read_prompts, read_table


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
        readings: how each picture is read otherwise than by Pillow alone, where that changes its pixels; "" elsewhere.
        remarks: (what, file) of all that the user is told of the pictures.
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
    readings: tuple[str, ...] = ()
    remarks: tuple[tuple[str, str], ...] = ()

    @property
    def picture(self) -> Path:
        """Its first photograph."""
        return self.pictures[0]

    @property
    def is_read_anew(self) -> bool:
        """Whether that one is read otherwise than it lies in its file: earlier versions have drawn it as it lay there."""
        return any(self.readings[:1])

    def fields(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of its cells that it decides; to train on as many pictures as there are is to train on all of them."""
        own = {"subject": self.name, "subject_hash": self.content_hash(cell["num_drift_prompts"])}
        return own | ({"num_instance_images": 0} if cell["num_instance_images"] >= len(self.pictures) else {})

    def content_hash(self, num_drift_prompts: int = 0) -> str:
        """SHA-256 of the pictures as they are read, of every prompt, and of as many unrelated ones as are used.

        A picture goes in as its bytes, and as what the reading does to it. Where that does nothing the hash is that of earlier
        versions, and their runs are found; where they read something else, nothing of theirs is taken up.
        """
        said = [self.cls, self.prompts, self.instance_prompt, *self.unrelated[:num_drift_prompts]]
        digest = hashlib.sha256(json.dumps(said).encode())
        for path, reading in itertools.zip_longest(self.pictures, self.readings, fillvalue=""):
            digest.update(Path(path).read_bytes() + reading.encode())
        return digest.hexdigest()[:16]


def names(folder: Path, split: str | None = None) -> list[str]:
    """Names of the subjects in a folder, of one split or of all but the test subjects.

    Raises:
        BadInput: if the folder is missing or has no subjects.
    """
    if not folder.is_dir():
        raise BadInput(f"no subjects folder {folder}; expected a folder of <subject>/*.png")
    table = read_table(folder)
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and not is_left_behind(p))
    if not any(row["split"] for row in table.values()):
        split = None  # a table without splits has nothing to choose by
    wanted = [n for n in found if split is None or table.get(n, {}).get("split", "") == split]
    if not wanted:
        raise BadInput(f"no subjects{f' of split {split!r}' if split else ''} in {folder}; expected <subject>/*.png")
    return wanted


def in_order(found: Sequence[str], folder: Path) -> list[str]:
    """Subjects as the table's column `order` says, smallest number first; those without a number last, as they came.

    Raises:
        BadInput: as `read_table`.
    """
    table = read_table(folder)
    places = {name: (table.get(name, {}).get("order") or "").strip() for name in found}
    return sorted(found, key=lambda name: int(places[name]) if places[name] else math.inf)


def class_of(name: str, row: Mapping[str, str]) -> str:
    """A subject's class in words: as its row of the table says, else its name without digits.

    Raises:
        BadInput: if neither has one.
    """
    found = row.get("class") or re.sub(r"[\d_]+", " ", name).strip()
    if not found:
        raise BadInput(
            f"subject {name!r}: its name says no class; call the folder as in dog_{name}, or give a class in subjects.csv"
        )
    return found


def load(folder: Path, name: str, *, token: str, instance_prompt: str) -> Subject:
    """Read one subject and check every picture of it.

    Args:
        folder: the folder of subjects.
        name: the subject.
        token: the rare token, "sks".
        instance_prompt: template with `{token}` and `{cls}`.

    Raises:
        BadInput: unknown subject (with near matches), no pictures, a file that is no picture, or a table that cannot be used.
    """
    known = names(folder)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise BadInput(f"unknown subject {name!r}: {hint}subjects in {folder} are {', '.join(known)}")
    row = read_table(folder).get(name, {})
    cls = class_of(name, row)
    kind = row.get("kind", "object")
    prompts = read_prompts(folder)
    templates, pictures = find_templates(folder, prompts, name, kind), read_folder(folder / name)
    plain = [re.sub(r"\s+", " ", t.replace("{token}", "")).format(cls=cls) for t in templates]
    return Subject(
        name, cls, kind, row.get("split", ""), pictures.paths,
        tuple(t.format(token=token, cls=cls) for t in templates), tuple(plain),
        instance_prompt.format(token=token, cls=cls), tuple(prompts.get("unrelated", UNRELATED)),
        pictures.readings, pictures.remarks,
    )  # fmt: skip


def open_pictures(paths: Sequence[Path], resolution: int) -> list[Image.Image]:
    """Pictures as RGB squares: the short side scaled to `resolution` (bilinear), then the centre cut out."""
    return [_square(read_picture(path).image, resolution) for path in paths]


def _square(image: Image.Image, side: int) -> Image.Image:
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))
