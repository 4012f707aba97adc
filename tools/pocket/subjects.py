"""Stage ``subjects``: five photographs each of pictures of the held-out vendor, in DreamBooth's folder layout.

``subjects/<subject>/00.png`` .. ``04.png``, ``subjects/prompts.json``, and ``subjects/subjects.csv``: subject, class, kind (which
chooses the prompts), split, and the order in which a number of subjects is taken of a split, with what it rests on.
"""

from __future__ import annotations

import csv
import json
import shutil
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from tools.pocket.captions import SIZES
from tools.pocket.pictures import HELD_OUT_VENDOR, PictureSet, read_classes, read_groups
from tools.pocket.runs import seeded
from tools.pocket.scenes import make_scenes
from tools.pocket.sheets import to_bytes
from tools.pocket.split import read_split
from tools.pocket.views import Placement, light, over, place, premultiply, to_model

PHOTOGRAPHS = 5
SHIPPED_AS = {"last_look": "test"}  # what the drivers call a split of subject_split.csv
BASE_DINO_CSV = Path(__file__).with_name("base_dino.csv")
SHARED_PROMPTS = (
    "a {token} {cls} on a blue background",
    "a {token} {cls} on the beach",
    "a {token} {cls} in the snow",
    "a {token} {cls} with a red heart on a white background",
    "a small {token} {cls} on a yellow background",
    "a 3d render of a {token} {cls} on a pink background",
)
PROMPTS = {
    "live": (
        *SHARED_PROMPTS,
        "a {token} {cls} on green grass",
        "a drawing of a {token} {cls} at night",
        "a {token} {cls} with a yellow star at sunset",
        "a big {token} {cls} on a purple background",
        "a {token} {cls} on a striped background",
        "a small {token} {cls} with a blue ball on an orange background",
    ),
    "object": (
        *SHARED_PROMPTS,
        "a {token} {cls} on a checkered floor",
        "a drawing of a {token} {cls} at sunset",
        "a {token} {cls} with a blue ball on green grass",
        "a big {token} {cls} on an orange background",
        "a {token} {cls} on a striped background",
        "a small {token} {cls} with a yellow star on a purple background",
    ),
    "unrelated": (  # by them drift is measured: of no tuning or evidence subject's class, but of the last look's
        "a cat on the beach",
        "a cup in the snow",
        "a penguin on a blue background",
        "a donut on a checkered floor",
        "a camera at night",
        "a tulip on green grass",
        "a rabbit at sunset",
        "a backpack on a yellow background",
        "a drawing of a bear on a pink background",
        "a 3d render of a turtle on a white background",
    ),
}


def most_to_learn(subjects: Mapping[str, tuple[str, float]]) -> tuple[str, ...]:
    """Order subjects so that the first few have most to learn and differ in what they are.

    Args:
        subjects: by name, what each is (animal, food, ...) and how like it the base model's pictures are.

    Returns:
        The least like of everything that a subject may be, the least like first; then the second of each, and so on.
    """
    taken: Counter[str] = Counter()
    rounds = {}
    for name in sorted(subjects, key=lambda name: (subjects[name][1], name)):
        rounds[name] = taken[subjects[name][0]]
        taken[subjects[name][0]] += 1
    return tuple(sorted(rounds, key=lambda name: (rounds[name], subjects[name][1], name)))


def read_base_dino() -> dict[str, float]:
    """base_dino.csv as ``{class: DINO likeness of the base model's pictures of it}``: where it is high, little is to learn.

    Empty before ``tools.pocket.base_likeness`` has measured it.
    """
    if not BASE_DINO_CSV.exists():
        return {}
    with BASE_DINO_CSV.open(encoding="utf-8") as file:
        return {row["class"]: float(row["base_dino"]) for row in csv.DictReader(file)}


def order_splits() -> dict[str, tuple[str, ...]]:
    """The subjects of each split, in the order in which a number of them is taken."""
    groups, likeness = read_groups(), read_base_dino()
    found: dict[str, dict[str, tuple[str, float]]] = {}
    for name, split in read_split().items():
        found.setdefault(SHIPPED_AS.get(split, split), {})[name] = groups[name], likeness.get(name, 0.0)
    return {split: most_to_learn(subjects) for split, subjects in found.items()}


def photograph(rgba: Float[Tensor, "1 4 64 64"], seed: int) -> Float[Tensor, "5 3 64 64"]:
    """Five views of one thing, on five backgrounds that the base knows, with a little of a difference in place, size and light.

    They stand as the base's own pictures do. Where they stood anywhere, and tilted, the base, which had seen no such thing,
    learned the mean of them: a finetuned cactus was a green blot.
    """
    g = seeded(seed, 0)
    scale = torch.full((PHOTOGRAPHS,), SIZES[""])
    spot = Placement.jitter(scale, g, shift=2.0, zoom=0.04, turn=0.0, flip=0.0)
    scenes = list(make_scenes().values())
    pick = torch.randperm(len(scenes), generator=g)[:PHOTOGRAPHS].tolist()
    below = torch.stack([scenes[i] for i in pick])
    return to_model(light(over(place(rgba.expand(PHOTOGRAPHS, -1, -1, -1), spot), below), g, 0.06))


def photograph_class(
    pictures: PictureSet, name: str, seed: int = 0, vendor: str = HELD_OUT_VENDOR
) -> Float[Tensor, "5 3 64 64"]:
    """Five photographs of the class's picture by ``vendor``; the seed depends on the name alone."""
    row = pictures.where((pictures.names == name) & (pictures.vendors == vendor))
    return photograph(premultiply(torch.from_numpy(row.pixels)), zlib.crc32(name.encode()) % 100_000 + seed)


def write_subjects(pictures: PictureSet, folder: Path, seed: int = 0) -> None:
    """Write photographs, table and prompts to ``folder``, replacing what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in read_split():
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(to_bytes(photograph_class(pictures, name, seed))):
            Image.fromarray(image).save(folder / name / f"{i:02d}.png", optimize=True)
    write_table(folder / "subjects.csv")
    (folder / "prompts.json").write_text(json.dumps(PROMPTS, indent=1) + "\n", encoding="utf-8")


def write_table(path: Path) -> None:
    """Write subjects.csv: all subjects, split by split."""
    kinds, groups = dict(read_classes().values()), read_groups()
    likeness = {name: f"{value:.3f}" for name, value in read_base_dino().items()}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("subject", "class", "kind", "split", "order", "group", "base_dino"))
        for split, names in order_splits().items():
            for place, name in enumerate(names, 1):
                writer.writerow((name, name, kinds[name], split, place, groups[name], likeness.get(name, "")))
