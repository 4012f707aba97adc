"""GLUE (Wang et al., arXiv 1804.07461): the eight tasks of DeLoRA's Table 4, from a copy of the hub's files. Imports no torch.

The hub hides the labels of the test sets, so the validation set is split in two, once and for all: a part to select by, which
the tuning split is scored on, and a part to test on. One of more than 2,000 rows gives 1,000 of them to select by, a smaller one
half (DeLoRA, arXiv 2503.18225, App. B). The authors' code draws that split anew with each run's seed, so that what one seed
selects by another is tested on.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from adapters.errors import BadInput
from adapters.words import counted
from training.tasks import hub, training_sets
from training.tasks.training_sets import TrainingSet

HUB = "nyu-mll/glue"
PATTERNS = ("*/train-*.parquet", "*/validation*.parquet")
LARGE, MOST_TUNING = 2000, 1000  # rows of a validation set; those of a large one to select by
TUNING = "-tuning"  # behind a task's name: scored on the part to select by
MOST_OTHERS = 32  # of each other task


@dataclass(frozen=True)
class GlueTable:
    """How a task is laid out.

    Attributes:
        columns: of the text, one or two.
        classes: labels are 0 to this, without it; 1 for a number that is to be told.
        measure: "accuracy", "matthews", or "correlation", the mean of Pearson's and Spearman's.
        validation: how the file's name begins.
    """

    columns: tuple[str, ...]
    classes: int = 2
    measure: str = "accuracy"
    validation: str = "validation"


TABLES = {
    "cola": GlueTable(("sentence",), measure="matthews"),
    "sst2": GlueTable(("sentence",)),
    "mrpc": GlueTable(("sentence1", "sentence2")),
    "stsb": GlueTable(("sentence1", "sentence2"), classes=1, measure="correlation"),
    "qqp": GlueTable(("question1", "question2")),
    "mnli": GlueTable(("premise", "hypothesis"), classes=3, validation="validation_matched"),
    "qnli": GlueTable(("question", "sentence")),
    "rte": GlueTable(("sentence1", "sentence2")),
}
"""The tasks, in the order in which they are taken."""
RANGE = (0.0, 5.0)  # of the numbers that are to be told


class GlueRow(NamedTuple):
    """One row of a task.

    Attributes:
        domain: the task.
        id: its place in its file.
        text: a sentence, or a pair.
        label: its class, or the number that is to be told.
    """

    domain: str
    id: str
    text: str | tuple[str, str]
    label: float


@dataclass(frozen=True)
class GlueSet(TrainingSet):
    """What a finetune learns of a task, and what it is tested on; `name` is "cola", or "cola-tuning" for the part to select by.

    Attributes:
        table: the task's layout.
    """

    table: GlueTable = field(kw_only=True)


def locate(name: str) -> Path:
    """A folder that holds a folder of each task, with files as the hub's: `cola/train-*.parquet`, `cola/validation-*.parquet`.

    Args:
        name: the folder, or "" for the hub's own, out of its cache or downloaded.

    Raises:
        BadInput: it is not there, or holds no task.
    """
    if not name:
        try:
            return hub.fetch(HUB, None, PATTERNS, kind="dataset")
        except Exception as error:
            raise BadInput(hub.explain("data set", HUB, error)) from None
    folder = Path(name).resolve()
    if not folder.is_dir():
        raise BadInput(f"no folder {name!r}; give one that holds {HUB} of the hub: cola/train-*.parquet, ...")
    if not names(folder):
        raise BadInput(
            f"{folder} holds none of {', '.join(TABLES)}: each is a folder with train-*.parquet, as {HUB} has it"
        )
    return folder


def names(folder: Path, split: str = "evidence") -> list[str]:
    """The tasks that a folder holds, as that split calls them."""
    mark = TUNING if split == "tuning" else ""
    return [f"{task}{mark}" for task in TABLES if _files(folder, task, "train")]


def load(folder: Path, name: str, count: int = 0) -> GlueSet:
    """One task.

    Args:
        folder: as from `locate`.
        name: of a task, with "-tuning" behind it for the part to select by.
        count: rows to learn from; 0 for all. Fewer are those whose hashes come first.

    Raises:
        BadInput: an unknown name, a file or column that is missing, a label outside the task's, an empty part, one class alone,
            or fewer rows than `count`.
    """
    task, split = name.removesuffix(TUNING), "tuning" if name.endswith(TUNING) else "evidence"
    known = names(folder)
    if task not in known:
        near = difflib.get_close_matches(task, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise BadInput(f"unknown task of GLUE {name!r}: {hint}{folder} holds {', '.join(known)}")
    train = _read(folder, task, "train", _stamp(folder, task))
    if count and not 2 <= count <= len(train):
        raise BadInput(f"{name}: {count} rows to learn from; allowed: 0 for all, or 2 to {len(train)}")
    learnt = tuple(sorted(train, key=order)[:count]) if count else train
    test = divide(_read(folder, task, TABLES[task].validation, _stamp(folder, task)))[split]
    for part, what in ((learnt, "to learn from"), (test, "to test on")):
        _check_classes(part, TABLES[task], f"{name}: the rows {what}")
    others = [
        row
        for other in known
        if other != task
        for row in divide(_read(folder, other, TABLES[other].validation, _stamp(folder, other)))["evidence"][
            :MOST_OTHERS
        ]
    ]
    return GlueSet(name, task, split, learnt, test, tuple(others), table=TABLES[task])


def divide(rows: Sequence[GlueRow]) -> dict[str, tuple[GlueRow, ...]]:
    """A validation set in two: "tuning" to select by, "evidence" to test on, each row where its hash puts it."""
    ordered = sorted(rows, key=order)
    cut = MOST_TUNING if len(ordered) > LARGE else math.ceil(len(ordered) / 2)
    return {"tuning": tuple(ordered[:cut]), "evidence": tuple(ordered[cut:])}


def order(row: GlueRow) -> str:
    """What rows are sorted by to stand in nobody's order."""
    return training_sets.digest(f"{row.domain}:{row.id}")


def _check_classes(rows: Sequence[GlueRow], table: GlueTable, what: str) -> None:
    if not rows:
        raise BadInput(f"{what}: there is none")
    found = Counter(row.label for row in rows)
    if len(found) == 1:
        raise BadInput(f"{what}: {counted(len(rows), 'row')}, all with the label {rows[0].label:g}")


# Reading.


def _files(folder: Path, task: str, part: str) -> list[Path]:
    return sorted((folder / task).glob(f"{part}-*.parquet"))


def _stamp(folder: Path, task: str) -> tuple:
    """What tells that a file has changed."""
    return training_sets.stamp(folder / task, ".parquet")


@functools.cache
def _read(folder: Path, task: str, part: str, stamp: tuple) -> tuple[GlueRow, ...]:
    """All rows of a task's part, once for each process, and again if a file has changed."""
    table, found = TABLES[task], list[GlueRow]()
    if not (files := _files(folder, task, part)):
        raise BadInput(f"{folder / task} has no {part}-*.parquet; {HUB} of the hub has it")
    for path in files:
        rows = _read_columns(path, [*table.columns, "label"])
        texts = zip(*(rows[name] for name in table.columns), strict=True)
        for place, (text, label) in enumerate(zip(texts, rows["label"], strict=True)):
            found.append(_make_row(task, table, len(found), text, label, f"{path}, row {place}"))
    return tuple(found)


def _read_columns(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    import pyarrow.parquet

    try:
        there = pyarrow.parquet.read_schema(path).names
        if missing := [name for name in columns if name not in there]:
            raise BadInput(f"{path} has no column {missing[0]!r}; it has {', '.join(there)}")
        return pd.read_parquet(path, columns=list(columns))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise BadInput(f"{path} cannot be read: {(str(error).splitlines() or ['?'])[0]}") from None


def _make_row(task: str, table: GlueTable, place: int, text: tuple, label: Any, where: str) -> GlueRow:
    for column, part in zip(table.columns, text, strict=True):
        if not isinstance(part, str):
            raise BadInput(f"{where}: {column} is {part!r}; allowed: text")
    said = text[0] if len(text) == 1 else text
    is_number = isinstance(label, int | float | np.number) and not isinstance(label, bool)
    if table.classes == 1:
        low, high = RANGE
        if not (is_number and low <= label <= high):
            raise BadInput(f"{where}: label {label}; allowed: {low:g} to {high:g}")
        return GlueRow(task, str(place), said, float(label))
    if not (is_number and label in range(table.classes)):
        allowed = ", ".join(map(str, range(table.classes)))
        raise BadInput(f"{where}: label {label}; allowed: {allowed} (-1 stands for a label that is kept secret)")
    return GlueRow(task, str(place), said, int(label))
