"""A synthetic copy of GLUE's layout: some of its tasks as the hub's files have them, in which a few words decide the label."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from tests.make_text import BAD, GOOD, NOUNS, PLAIN
from training.tasks.glue import TABLES


def make_glue(folder: Path, tasks: Sequence[str] = tuple(TABLES), num: int = 120, held: int = 60) -> Path:
    """A folder of tasks.

    Args:
        folder: where it goes.
        tasks: names of GLUE's.
        num, held: rows to learn from, and of the validation set.
    """
    for task in tasks:
        (folder / task).mkdir(parents=True, exist_ok=True)
        rows = make_rows(task, num + held)
        for part, some in (("train", rows[:num]), (TABLES[task].validation, rows[num:])):
            some.reset_index(drop=True).to_parquet(folder / task / f"{part}-00000-of-00001.parquet")
    return folder


def make_rows(task: str, num: int) -> pd.DataFrame:
    """Rows of a task: with the last class, or the higher number, come more good words."""
    table, draw = TABLES[task], random.Random(task)
    found = []
    for index in range(num):
        label = index % table.classes if table.classes > 1 else round(draw.random() * 5, 2)
        share = label / (table.classes - 1 if table.classes > 1 else 5)
        words = [draw.choice(GOOD if draw.random() < share else BAD) for _ in range(4)]
        texts = [" ".join([*words, draw.choice(NOUNS), draw.choice(PLAIN)]) for _ in table.columns]
        found.append({**dict(zip(table.columns, texts, strict=True)), "label": label, "idx": index})
    return pd.DataFrame(found)
