"""The committed results: the page shows what is there, the verdicts are what code computes, and all of it stays small."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from analysis import load, summary, to_markdown
from analysis.control_words import failing_words
from analysis.statements import MARKER, fill
from analysis.summary import robustness
from analysis.tables import rounded
from analysis.verdicts import judge_claims, read_claims
from figures.registry import driver_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PILOT = ROOT / "docs" / "results", ROOT / "docs" / "pilot"
CLAIMS = {RESULTS: ROOT / "docs", PILOT: PILOT}  # the folders of their claims
EDITIONS = pytest.mark.parametrize("edition", list(CLAIMS), ids=lambda folder: folder.name)


def sweeps(edition: Path) -> list[str]:
    """The folders of an edition's results that a driver made."""
    return [folder.name for folder in sorted(edition.iterdir()) if folder.is_dir() and driver_of(folder.name)]


@functools.cache
def verdicts(edition: Path) -> pd.DataFrame:
    """Of the papers' claims and of what the pages say."""
    files = [CLAIMS[edition] / name for name in ("claims.toml", "findings.toml")]
    return judge_claims(edition, [claim for path in files for claim in read_claims(path)])


@EDITIONS
def test_verdicts_are_what_code_computes(edition: Path) -> None:
    papers = verdicts(edition)[verdicts(edition)["source"] != ""]
    committed = pd.read_csv(edition / "verdicts.csv")
    assert committed["verdict"].to_list() == papers["verdict"].to_list()
    pd.testing.assert_series_equal(committed["mean"], papers["mean"], rtol=1e-5)
    for row in papers.itertuples():
        lines = (edition / "README.md").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith(f"| {row.claim} ")]
        assert (row.verdict if row.num_subjects else "not run") in line


# Words that give a direction; a sentence with one of them holds what is measured of a claim, with its verdict.
DIRECTION = re.compile(
    r"\b(above|below|beyond|higher|lower|more|less|better|worse|grows?|falls?|rises?|raises?|loses?|gains|costs|keeps|degrades?)\b"
)
CORRELATIONS = ("residual", "its variance", "LoRA minus OFT")  # of coincidence.md and of an independent reading
# What is said of papers, of what an interval or a scorer is, and of tables that stand beside the text.
NOT_OF_THE_DATA = (
    "The paper",
    "paper*",
    "by construction",
    "boundary too far",
    "ImageNet",
    "scored afterwards",
    "criteri",
)


def sentences(page: str, start: str, end: str) -> list[str]:
    """The sentences between two headings, without figures, tables and what papers say."""
    text = page[page.index(start) : page.index(end)]
    text = re.sub(r"^(!\[.*|\|.*|#.*)$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\*The [^*]*paper\*:.*?\*Here\*", "", text, flags=re.DOTALL)
    return [part for part in re.split(r"(?<=\.)\s+(?=[A-Z-])|\n\n", text) if part.strip()]


@pytest.mark.parametrize(
    ("edition", "page", "start", "end"),
    [
        (RESULTS, "README.md", "## What came out here", "## On a cluster"),
        (RESULTS, "docs/results/README.md", "## In short", "## What is not covered"),
        (PILOT, "docs/pilot/README.md", "## In short", "## Weight norms"),
    ],
)
def test_sentences_say_what_the_data_carry(edition: Path, page: str, start: str, end: str) -> None:
    text = (ROOT / page).read_text()
    assert fill(text, verdicts(edition), page) == text, "make figures writes the numbers anew"
    for sentence in sentences(text, start, end):
        plain = MARKER.sub("", sentence)
        if DIRECTION.search(plain) and not any(words in plain for words in NOT_OF_THE_DATA):
            assert MARKER.search(sentence), f"{page}: {sentence!r} gives a direction without a claim"
        if re.search(r"\d \[-?\d", plain):
            assert any(words in plain for words in CORRELATIONS), f"{page}: {sentence!r} has an interval of its own"


@EDITIONS
def test_page_shows_every_sweep_and_nothing_else(edition: Path) -> None:
    shown = re.findall(r"\]\(([\w/-]+/[\w.-]+\.(?:png|md))\)", (edition / "README.md").read_text())
    assert not [name for name in shown if not (edition / name).is_file()]
    assert {name.split("/")[0] for name in shown} == set(sweeps(edition))
    for name in sweeps(edition):
        assert list((edition / name).glob("*.csv")), f"{name} has no table"


@pytest.mark.parametrize(
    "folder",
    [e / name for e in CLAIMS for name in sweeps(e) if (e / name / "summary.md").is_file()],
    ids=lambda folder: f"{folder.parent.name}-{folder.name}",
)
def test_tables_are_those_of_the_data_beside_them(folder: Path) -> None:
    results = load(folder)
    if folder.name == "dora_magnitude":
        results = results.select(method=["dora", "dora-fixed"])
    table = summary(robustness(results))
    if failing := failing_words(results):
        table = table.assign(controls_fail=failing.partition(": ")[2])
    rows = set(to_markdown(rounded(table)).splitlines())
    assert rows == set((folder / "summary.md").read_text().splitlines())
    assert results.runs["status"].isin(["finished", "diverged"]).all()


@pytest.mark.parametrize(("edition", "most_mib"), [(RESULTS, 60), (PILOT, 35)], ids=["results", "pilot"])
def test_results_stay_small(edition: Path, most_mib: int) -> None:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", str(edition)], capture_output=True, text=True
    ).stdout
    sizes = {name: (ROOT / name).stat().st_size for name in listed.split("\0") if name}
    assert sum(sizes.values()) < most_mib * 2**20, sorted(sizes, key=sizes.__getitem__)[-5:]
