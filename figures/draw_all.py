"""Draw what several drivers have left, a process for each core: a folder of theirs each, without torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from adapters.errors import BadInput
from analysis import Results, load
from figures.figure_set import MISSING, FigureSet
from figures.registry import GALLERY, draw_norms, driver_of
from figures.style import use_style

ALL = "all"
NORMS = "weight_norms.csv"  # of a base model, which has no runs
NORM_COLUMNS = ("block", "attention", "kind", "mean", "sd", "series", "method")


class Manner(NamedTuple):
    """How figures are drawn: style, width in inches (None: the style's), formats."""

    style: str = "screen"
    width: float | None = None
    formats: Sequence[str] = ("png", "pdf")


class Drawn(NamedTuple):
    """What became of one folder: the figures' files, notes where planned runs have no result, or why nothing was drawn."""

    paths: Sequence[Path] = ()
    notes: Sequence[str] = ()
    refusal: str = ""


def draw_all(names: Sequence[str], results: Path, out: Path, manner: Manner) -> tuple[list[Path], list[str]]:
    """Draw what the named drivers have left, several folders at once.

    Args:
        names: drivers; "all" stands for every one.
        results: folder of sweeps, or one sweep.
        out: gets a folder for each driver.
        manner: of the figures.

    Returns:
        The figures' files, and a line on everything that could not be drawn, with the command that makes it.

    Raises:
        BadInput: if nothing could be drawn at all.
        StoreError: if `out` cannot be written.
    """
    is_single = not any(folder.is_dir() and driver_of(folder.name) for folder in results.iterdir())
    every = [_sweep_of(results)] if is_single else list(GALLERY)
    wanted = every if ALL in names else list(dict.fromkeys(names))
    if not is_single:
        wanted = [folder for name in wanted for folder in (name, *_further(results, name))]
    lines = [] if is_single else [_hint(folder) for folder in sorted(results.iterdir()) if _is_other_sweep(folder)]
    folders = {name: results if is_single else results / name for name in wanted}
    there = {name: folder for name, folder in folders.items() if folder.is_dir()}
    drawn = dict(zip(there, _draw_folders(there, out, manner), strict=True))
    for name in wanted:
        found = drawn.get(name, Drawn(refusal=f"no results; python sweeps/{name}.py makes them"))
        lines += [f"{name}: {line}" for line in (*found.notes, *filter(None, [found.refusal]))]
    if all(found.refusal for found in drawn.values()):
        broken = [f"{name}: {found.refusal}" for name, found in drawn.items()]
        raise BadInput(f"nothing to draw in {results}: {'; '.join(broken or lines[-1:])}")
    return [path for found in drawn.values() for path in found.paths], lines


def _draw_folders(folders: Mapping[str, Path], out: Path, manner: Manner) -> list[Drawn]:
    """Draw each folder, in as many processes as there are cores; a single one here."""
    draw = partial(_draw_folder, out=out, manner=manner)
    if len(folders) < 2:
        return [draw(*pair) for pair in folders.items()]
    with ProcessPoolExecutor(min(len(folders), len(os.sched_getaffinity(0))), get_context("spawn")) as pool:
        return list(pool.map(draw, folders.keys(), folders.values()))


def _draw_folder(name: str, folder: Path, out: Path, manner: Manner) -> Drawn:
    """Draw one driver's results into `out`'s folder of its name."""
    with use_style(manner.style, manner.width):
        try:
            drawn = draw_one(name, folder)
        except BadInput as error:
            return Drawn(refusal=str(error))
        return Drawn(drawn.save(out / name, manner.formats), drawn.notes if MISSING in drawn.tables else ())


def draw_one(name: str, folder: Path) -> FigureSet:
    """Draw one driver's results.

    Raises:
        BadInput: if there are none, or too few for what the driver shows.
    """
    name = driver_of(name) or name
    if name == "weight_norms" and (folder / NORMS).is_file() and not _has_runs(folder):
        return draw_norms(_read_norms(folder / NORMS))
    draw: Callable[[Results], FigureSet] = GALLERY[name]
    return draw(load(folder))


def _read_norms(path: Path) -> pd.DataFrame:
    """The norms of a base model.

    Raises:
        BadInput: if the file is damaged.
    """
    try:
        found = pd.read_csv(path)
        missing = [name for name in NORM_COLUMNS if name not in found]
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {str(error).strip().splitlines()[0]}") from None
    if missing:
        raise BadInput(f"{path} is damaged: it has no column {missing[0]!r}")
    return found


def _sweep_of(folder: Path) -> str:
    """The driver whose results lie in a folder itself: the one that its name or its runs say, else Fig. 2's."""
    names = [*load(folder).runs["sweep"].unique()] if (folder / "runs.parquet").is_file() else []
    return next((name for name in map(driver_of, [*names, folder.resolve().name]) if name), next(iter(GALLERY)))


def _is_other_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep that has a name of its own."""
    return driver_of(folder.name) is None and _has_runs(folder)


def _further(results: Path, name: str) -> list[str]:
    """A driver's folders besides the one of its own name."""
    return sorted(folder.name for folder in results.glob(f"{name}-*") if _has_runs(folder))


def _has_runs(folder: Path) -> bool:
    return (folder / "runs.parquet").is_file() or any(folder.glob("*/run.json"))


def _hint(folder: Path) -> str:
    return f"{folder.name}, which is no driver's name: python -m figures NAME --results {folder} draws it as NAME's"
