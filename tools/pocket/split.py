"""Split the held-out vendor's 65 pictures into tuning, evidence and final test.

python -m tools.pocket.split        # writes subject_split.csv anew from the committed seed

Drawn by kind before the second edition's first training. The last look holds none of the first edition's 24 subjects.
"""

from __future__ import annotations

import csv
import random
import sys
from pathlib import Path

from adapters.ending import end_well
from tools.pocket.pictures import read_classes

SEED = 20261128
FIRST_EDITION = (
    "boat", "hat", "lion", "whale", "bulb", "burger", "butterfly", "cake", "cow", "frog", "gift", "mushroom", "octopus",
    "owl", "robot", "snail", "sneaker", "teapot", "tiger", "unicorn", "crab", "fish", "guitar", "trophy",
)  # fmt: skip
SIZES = {
    "last_look": {"live": 6, "object": 7},
    "tuning": {"live": 5, "object": 7},
    "evidence": {"live": 17, "object": 23},
}
SPLIT_CSV = Path(__file__).with_name("subject_split.csv")


def draw_split(seed: int = SEED) -> dict[str, str]:
    """``{class: split}`` for all classes; the last look is drawn first, from classes that were never subjects."""
    kinds, rng = dict(read_classes().values()), random.Random(seed)
    split: dict[str, str] = {}
    for name, sizes in SIZES.items():
        for kind, size in sizes.items():
            free = sorted(c for c, k in kinds.items() if k == kind and c not in split)
            allowed = [c for c in free if c not in FIRST_EDITION] if name == "last_look" else free
            split |= dict.fromkeys(rng.sample(allowed, size), name)
    return split


def read_split(path: Path = SPLIT_CSV) -> dict[str, str]:
    """The table as ``{class: split}``."""
    with path.open(encoding="utf-8") as file:
        return {row["class"]: row["split"] for row in csv.DictReader(file)}


def main() -> int:
    """Draw the split and write its table."""
    write_split()
    return 0


def write_split(path: Path = SPLIT_CSV) -> None:
    """Write the table, in the order of classes.csv."""
    split = draw_split()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("class", "kind", "split"))
        writer.writerows((name, kind, split[name]) for name, kind in read_classes().values())


if __name__ == "__main__":
    sys.exit(end_well(main))
