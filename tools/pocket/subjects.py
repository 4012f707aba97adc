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

from tools.pocket.pictures import HELD_OUT_VENDOR, PictureSet, read_classes
from tools.pocket.runs import seeded
from tools.pocket.scenes import make_scenes, random_scene
from tools.pocket.sheets import to_bytes
from tools.pocket.views import Placement, light, over, place, premultiply, to_model

PHOTOGRAPHS = 5
# What each subject is, and the DINO likeness of the base model's pictures of it (all prompts, docs/results): where the base
# is like it already, there is little to learn.
SUBJECTS: dict[str, dict[str, tuple[str, float]]] = {
    "tuning": {
        "boat": ("vehicle", 0.232), "hat": ("clothing", 0.318), "lion": ("animal", 0.125), "whale": ("animal", 0.196),
    },
    "evidence": {
        "bulb": ("thing", 0.585), "burger": ("food", -0.036), "butterfly": ("animal", -0.020), "cake": ("food", 0.002),
        "cow": ("animal", 0.360), "frog": ("animal", 0.079), "gift": ("thing", 0.251), "mushroom": ("food", 0.440),
        "octopus": ("animal", 0.022), "owl": ("animal", 0.137), "robot": ("thing", 0.246), "snail": ("animal", -0.073),
        "sneaker": ("clothing", -0.054), "teapot": ("thing", 0.030), "tiger": ("animal", 0.027),
        "unicorn": ("animal", 0.141),
    },
    "test": {
        "crab": ("animal", 0.170), "fish": ("animal", -0.042), "guitar": ("thing", 0.255), "trophy": ("thing", 0.237),
    },
}  # fmt: skip
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
    ),
    "object": (
        *SHARED_PROMPTS,
        "a {token} {cls} on a checkered floor",
        "a drawing of a {token} {cls} at sunset",
        "a {token} {cls} with a blue ball on green grass",
        "a big {token} {cls} on an orange background",
    ),
    "unrelated": (  # none of a subject's class: by them drift is measured
        "a cat on the beach",
        "a house in the snow",
        "a penguin on a blue background",
        "a pizza on a checkered floor",
        "a car at night",
        "an umbrella on green grass",
        "a rabbit at sunset",
        "a clock on a yellow background",
        "a drawing of an elephant on a pink background",
        "a 3d render of a rocket on a white background",
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


SPLITS = {split: most_to_learn(subjects) for split, subjects in SUBJECTS.items()}


def photograph(rgba: Float[Tensor, "1 4 64 64"], seed: int) -> Float[Tensor, "5 3 64 64"]:
    """Five views of one thing: background, size, place, tilt and light differ."""
    g = seeded(seed, 0)
    scale = 0.62 + 0.28 * torch.rand(PHOTOGRAPHS, generator=g)
    spot = Placement.jitter(scale, g, shift=5.0, zoom=0.0, turn=0.10, flip=0.0)
    scenes = list(make_scenes().values())
    pick = torch.randperm(len(scenes), generator=g)[: PHOTOGRAPHS - 2].tolist()
    below = torch.stack([scenes[i] for i in pick] + [random_scene(g) for _ in range(2)])
    return to_model(light(over(place(rgba.expand(PHOTOGRAPHS, -1, -1, -1), spot), below), g, 0.12))


def photograph_class(
    pictures: PictureSet, name: str, seed: int = 0, vendor: str = HELD_OUT_VENDOR
) -> Float[Tensor, "5 3 64 64"]:
    """Five photographs of the class's picture by ``vendor``; the seed depends on the name alone."""
    row = pictures.where((pictures.names == name) & (pictures.vendors == vendor))
    return photograph(premultiply(torch.from_numpy(row.pixels)), zlib.crc32(name.encode()) % 100_000 + seed)


def write_subjects(pictures: PictureSet, folder: Path, seed: int = 0) -> None:
    """Write photographs, table and prompts to ``folder``, replacing what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    rows = [(name, split) for split, names in SPLITS.items() for name in names]
    for name, _ in rows:
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(to_bytes(photograph_class(pictures, name, seed))):
            Image.fromarray(image).save(folder / name / f"{i:02d}.png", optimize=True)
    _write_table(rows, folder / "subjects.csv")
    (folder / "prompts.json").write_text(json.dumps(PROMPTS, indent=1) + "\n", encoding="utf-8")


def _write_table(rows: list[tuple[str, str]], path: Path) -> None:
    kinds = dict(read_classes().values())
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("subject", "class", "kind", "split", "order", "group", "base_dino"))
        for name, split in rows:
            group, base_dino = SUBJECTS[split][name]
            place = SPLITS[split].index(name) + 1
            writer.writerow((name, name, kinds[name], split, place, group, f"{base_dino:.3f}"))
