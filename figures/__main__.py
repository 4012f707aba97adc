"""Draw the figures and tables of results again, from run folders or from compact copies of them; without torch.

    python -m figures all --results runs --out drawn --style paper --format pdf
    python -m figures lr_robustness --results docs/results --out slides --style slides --format png svg
    python -m figures all --results runs --out drawn --claims docs/claims.toml
    python -m figures all --results docs/results --out docs/results --claims docs/claims.toml docs/findings.toml --pages README.md
    python -m figures page runs/lr_robustness                                      # runs/lr_robustness/report.html

`page` makes the page of one sweep, an HTML file that opens from disk: curves, pictures, blocks, subjects, data.

Names are those of the drivers. `--results` is a folder of sweeps, each in a folder of its driver's name, or a single sweep; a
driver's further sweeps lie in folders such as `lr_robustness-other-subjects`.
Each driver's figures go into a folder of its name, the data of each beside it as CSV, tables as Markdown, LaTeX and CSV.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd

from adapters.errors import BadInput
from analysis import load, to_markdown, write_tables
from analysis.statements import fill
from analysis.verdicts import judge_claims, read_claims
from figures.draw_all import ALL, Manner, draw_all
from figures.page import write_page
from figures.registry import GALLERY
from figures.saving import METADATA
from figures.style import STYLES
from training.command_line import end_well
from training.store import writing

PLACE = ("<!-- verdicts -->", "<!-- end of verdicts -->")  # between these a README.md has the table of verdicts


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
        "--claims", type=Path, nargs="+", default=[], metavar="FILE",
        help="claims to judge: the verdicts on the first file's go into OUT/verdicts.md, .tex, .csv",
    )  # fmt: skip
    parser.add_argument(
        "--pages", type=Path, nargs="+", default=[], metavar="FILE",
        help="Markdown whose numbers are written anew from all claims; a sentence that no longer holds is an error",
    )  # fmt: skip
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
    if read.pages and not read.claims:
        raise BadInput("--pages needs --claims: the files of what stands in them")
    return read


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


def write_pages(pages: Sequence[Path], verdicts: pd.DataFrame) -> None:
    """Write the numbers of pages anew; none is written if one of them cannot be.

    Raises:
        BadInput: for a page that cannot be read, or a sentence in it that does not hold.
        StoreError: if one cannot be written.
    """
    try:
        texts = {page: page.read_text(encoding="utf-8") for page in pages}
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"a page of --pages cannot be read: {error}") from None
    filled = {page: fill(text, verdicts, str(page)) for page, text in texts.items()}
    for page, text in filled.items():
        with writing(page) as aside:
            aside.write_text(text, encoding="utf-8")


def _range(row: Any) -> str:
    """The range in which a claim holds, in words."""
    low, high = (f"{end:g}" for end in (row.range_low, row.range_high))
    if row.range_high == float("inf"):
        return f"at least {low}"
    return f"at most {high}" if row.range_low == -float("inf") else f"{low} to {high}"


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
    claims = [read_claims(path) for path in read.claims]
    with ThreadPoolExecutor(1) as beside:  # the folders are drawn in processes of their own
        judged = beside.submit(judge_claims, read.results, sum(claims, []))
        paths, lines = draw_all(read.names, read.results, read.out, Manner(read.style, read.width, read.format))
    if claims:
        write_verdicts(read.out, judged.result().head(len(claims[0])))
        write_pages(read.pages, judged.result())
    for path in paths:
        print(path)
    for line in lines:
        print(f"not drawn: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
