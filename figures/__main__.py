"""Draw the figures and tables of results again, from run folders or from compact copies of them; without torch.

    python -m figures all --results runs --out drawn --style paper --format pdf
    python -m figures lr_robustness --results docs/results --out slides --style slides --format png svg
    python -m figures all --results runs --out drawn --claims docs/claims.toml
    python -m figures page runs/lr_robustness                                      # runs/lr_robustness/report.html

`page` makes the page of one sweep, an HTML file that opens from disk: curves, pictures, blocks, subjects, data.

Names are those of the drivers. `--results` is a folder of sweeps, each in a folder of its driver's name, or a single sweep; a
driver's further sweeps lie in folders such as `lr_robustness-other-subjects`.
Each driver's figures go into a folder of its name, the data of each beside it as CSV, tables as Markdown, LaTeX and CSV.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pandas as pd

from adapters.errors import BadInput
from analysis import Results, load, to_markdown, write_tables
from analysis.verdicts import judge_claims, read_claims
from figures.figure_set import MISSING, FigureSet
from figures.page import write_page
from figures.registry import GALLERY, draw_norms, driver_of
from figures.saving import METADATA
from figures.style import STYLES, use_style
from training.command_line import end_well
from training.store import writing

ALL = "all"
PLACE = ("<!-- verdicts -->", "<!-- end of verdicts -->")  # between these a README.md has the table of verdicts
NORMS = "weight_norms.csv"  # of a base model, which has no runs
NORM_COLUMNS = ("block", "attention", "kind", "mean", "sd", "series", "method")


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Report what is wrong.

        Raises:
            BadInput: always.
        """
        raise BadInput(message)


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        BadInput: for anything that cannot be read.
        SystemExit: after `--help`.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("python -m figures", description=__doc__, formatter_class=formatter)
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"{ALL}, or any of: {', '.join(GALLERY)}")
    parser.add_argument("--results", type=Path, required=True, help="folder of sweeps, or one sweep")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is drawn")
    parser.add_argument("--style", default="screen", help=f"one of: {', '.join(STYLES)}")
    parser.add_argument("--width", type=float, help="of every figure, in inches; panels then stand below each other")
    parser.add_argument(
        "--claims", type=Path, help="file of claims to judge: the verdicts go into OUT/verdicts.md, .tex, .csv"
    )
    parser.add_argument("--format", nargs="+", default=["png", "pdf"], help=f"any of: {', '.join(METADATA)}")
    read = parser.parse_args(arguments)
    if unknown := [name for name in read.names if name not in (ALL, *GALLERY)]:
        raise BadInput(f"unknown figure {unknown[0]!r}; allowed: {ALL}, {', '.join(GALLERY)}")
    if unknown := [name for name in read.format if name not in METADATA]:
        raise BadInput(f"unknown format {unknown[0]!r}; allowed: {', '.join(METADATA)}")
    if read.style not in STYLES:
        raise BadInput(f"unknown style {read.style!r}; allowed: {', '.join(STYLES)}")
    if not read.results.is_dir():
        raise BadInput(f"no results folder {read.results}: give a folder that a sweep has written, such as runs/")
    return read


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


def write_verdicts(out: Path, verdicts: pd.DataFrame) -> None:
    """Write the verdicts as tables, and into OUT's README.md where that has a place for them.

    Raises:
        StoreError: if they cannot be written.
    """
    write_tables(out, {"verdicts": verdicts})
    page, (begin, end) = out / "README.md", PLACE
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if begin in text and end in text:
        before, rest = text.split(begin, 1)
        shown = verdicts[["claim", "source", "mean", "low", "high", "num_subjects", "verdict"]]
        shown = shown.assign(verdict=shown["verdict"].where(shown["num_subjects"] > 0, "not run"))
        when = verdicts["criterion"] + verdicts["exploratory"].map({True: ", exploratory", False: ""})
        table = to_markdown(shown.assign(criterion=[_range(row) for row in verdicts.itertuples()], fixed=when))
        with writing(page) as aside:
            aside.write_text(f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")


def _range(row: Any) -> str:
    """The range in which a claim holds, in words."""
    low, high = (f"{end:g}" for end in (row.range_low, row.range_high))
    if row.range_high == float("inf"):
        return f"at least {low}"
    return f"at most {high}" if row.range_low == -float("inf") else f"{low} to {high}"


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    return end_well(lambda: _draw(arguments))


def read_page_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line of `page`.

    Raises:
        BadInput: for anything that cannot be read.
        SystemExit: after `--help`.
    """
    parser = Parser("python -m figures page", description="Make the page of one sweep.")
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder of one sweep, or a compact copy of it")
    parser.add_argument("--out", type=Path, help="the file; default: RESULTS/report.html")
    read = parser.parse_args(arguments)
    if not read.results.is_dir():
        raise BadInput(f"no results folder {read.results}: give a folder that a sweep has written, such as runs/NAME")
    return read


def _make_page(arguments: Sequence[str]) -> int:
    read = read_page_arguments(arguments)
    name = read.results.resolve().name
    print(write_page(read.out or read.results / "report.html", load(read.results), title=name))
    return 0


def _draw(arguments: Sequence[str] | None) -> int:
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["page"]:
        return _make_page(words[1:])
    read = read_arguments(arguments)
    claims = read_claims(read.claims) if read.claims else []
    paths, lines = draw_all(read.names, read.results, read.out, Manner(read.style, read.width, read.format))
    if claims:
        write_verdicts(read.out, judge_claims(read.results, claims))
    for path in paths:
        print(path)
    for line in lines:
        print(f"not drawn: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
