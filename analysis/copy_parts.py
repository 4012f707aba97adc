"""Let a compact copy grow: what is there stays as it was written, new runs come in a part of their own.

A part (`part-2`, `part-3`, ...) is a folder of the same tables inside the copy. `analysis.load` reads all of them as one. So a
repository that keeps results keeps every file once, however often runs are added.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

PART = "part-"
FIRST_PART = 2  # the copy's own folder is the first
# What may become another one although the run stays: how it ended, and the names that it goes by.
SAME = ("run_id", "status", "sweep", "multiplier", "scale")


def parts(folder: Path) -> list[Path]:
    """The parts of a copy in the order in which they were written, its own folder first."""
    numbered = {int(path.name.removeprefix(PART)): path for path in folder.glob(f"{PART}*") if _is_part(path)}
    return [folder, *(numbered[number] for number in sorted(numbered))]


def next_part(folder: Path) -> Path:
    """The folder of the part that comes next."""
    last = parts(folder)[-1]
    return folder / f"{PART}{FIRST_PART if last == folder else int(last.name.removeprefix(PART)) + 1}"


def remove_parts(folder: Path) -> None:
    """Remove all parts but the copy's own folder."""
    for path in parts(folder)[1:]:
        shutil.rmtree(path)


def new_runs(there: pd.DataFrame, wanted: pd.DataFrame) -> set[str] | None:
    """The runs that a copy lacks.

    Args:
        there: `all_runs` of the copy.
        wanted: `all_runs` of what it is to hold.

    Returns:
        Their ids; None if the copy holds runs that are not wanted, or some that have become others.
    """
    old, new = _rows(there), _rows(wanted)
    known = {row[0] for row in old}
    return {row[0] for row in new} - known if old == {row for row in new if row[0] in known} else None


def same_rows(there: pd.DataFrame, wanted: pd.DataFrame, known: Iterable[str]) -> bool:
    """Whether a small table has the same rows of known runs, in whatever order."""
    kept = wanted[wanted["run_id"].astype(str).isin(set(known))]
    columns = sorted(set(kept.columns) & set(there.columns))
    one, two = (
        frame[columns].astype({name: str for name in columns if name != "value"}).sort_values(columns)
        for frame in (there, kept)
    )
    return len(one) == len(two) and bool((one.to_numpy() == two.to_numpy()).all())


def _rows(runs: pd.DataFrame) -> set[tuple[str, ...]]:
    columns = [runs[name].astype(str) if name in runs else pd.Series("", runs.index) for name in SAME]
    return set(zip(*columns, strict=True))


def _is_part(path: Path) -> bool:
    return path.name.removeprefix(PART).isdigit() and (path / "runs.parquet").is_file()
