"""How like each subject the base model's pictures are before any training: ``base_dino.csv``, by which subjects are ordered.

    python -m tools.pocket.base_likeness        # after the stages ``subjects`` and ``export``

Twelve prompts a subject, two pictures each, scored by the shipped DINO against the subject's photographs.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import torch
from transformers import ViTModel

from tools.pocket.dino import embed
from tools.pocket.quality import generate, subject_photographs
from tools.pocket.subjects import BASE_DINO_CSV, PHOTOGRAPHS, PROMPTS, write_table
from training.command_line import end_well
from training.tasks.pipeline import POCKET
from training.tasks.subject_tables import read_table

PICTURES = 2  # of each prompt


@torch.no_grad()
def measure_base_dino(folder: Path = POCKET / "subjects") -> dict[str, float]:
    """Mean cosine of the base model's pictures of each subject with its photographs, by the subject's name."""
    dino = ViTModel.from_pretrained(POCKET / "dino", add_pooling_layer=False).eval()
    photographs, names = subject_photographs()
    real = embed(dino, photographs).unflatten(0, (len(names), PHOTOGRAPHS))
    table, found = read_table(folder), {}
    for name, features in zip(names, real, strict=True):
        templates = PROMPTS[table[name]["kind"]]
        captions = [template.format(token="sks", cls=table[name]["class"]) for template in templates] * PICTURES
        found[name] = (embed(dino, generate(captions)) @ features.T).mean().item()
        print(f"{name} {found[name]:.3f}", flush=True)
    return found


def main() -> int:
    """Measure, write the table, and order the shipped subjects by it."""
    found = measure_base_dino()
    with BASE_DINO_CSV.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("class", "base_dino"))
        writer.writerows((name, f"{value:.3f}") for name, value in sorted(found.items()))
    write_table(POCKET / "subjects" / "subjects.csv")
    return 0


if __name__ == "__main__":
    sys.exit(end_well(main))
