"""The committed results: the page shows what is there, the verdicts are what code computes, and all of it stays small."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from analysis import load, summary, to_markdown
from analysis.statements import MARKER, fill
from analysis.summary import robustness
from analysis.tables import rounded
from analysis.verdicts import judge_claims, read_claims
from figures.registry import driver_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
PAGE = (RESULTS / "README.md").read_text()
SWEEPS = [folder.name for folder in sorted(RESULTS.iterdir()) if folder.is_dir() and driver_of(folder.name)]


@pytest.fixture(scope="module")
def verdicts() -> pd.DataFrame:
    """Of the papers' claims and of what the pages say."""
    files = [ROOT / "docs" / name for name in ("claims.toml", "findings.toml")]
    return judge_claims(RESULTS, [claim for path in files for claim in read_claims(path)])


def test_verdicts_are_what_code_computes(verdicts: pd.DataFrame) -> None:
    verdicts = verdicts[verdicts["source"] != ""]
    committed = pd.read_csv(RESULTS / "verdicts.csv")
    assert committed["verdict"].to_list() == verdicts["verdict"].to_list()
    pd.testing.assert_series_equal(committed["mean"], verdicts["mean"], rtol=1e-5)
    for row in verdicts.itertuples():
        (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {row.claim} ")]
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
    ("page", "start", "end"),
    [("README.md", "## What came out here", "## On a cluster"), ("docs/results/README.md", "## In short", "## Weight norms")],
)  # fmt: skip
def test_sentences_say_what_the_data_carry(page: str, start: str, end: str, verdicts: pd.DataFrame) -> None:
    text = (ROOT / page).read_text()
    assert fill(text, verdicts, page) == text, "python -m analysis.verdicts --pages writes the numbers anew"
    for sentence in sentences(text, start, end):
        plain = MARKER.sub("", sentence)
        if DIRECTION.search(plain) and not any(words in plain for words in NOT_OF_THE_DATA):
            assert MARKER.search(sentence), f"{page}: {sentence!r} gives a direction without a claim"
        if re.search(r"\d \[-?\d", plain):
            assert any(words in plain for words in CORRELATIONS), f"{page}: {sentence!r} has an interval of its own"


def test_page_shows_every_sweep_and_nothing_else() -> None:
    shown = re.findall(r"\]\(([\w/-]+/[\w.-]+\.(?:png|md))\)", PAGE)
    assert not [name for name in shown if not (RESULTS / name).is_file()]
    assert {name.split("/")[0] for name in shown} == set(SWEEPS)
    for name in SWEEPS:
        assert list((RESULTS / name).glob("*.csv")), f"{name} has no table"


@pytest.mark.parametrize("name", [name for name in SWEEPS if (RESULTS / name / "summary.md").is_file()])
def test_tables_are_those_of_the_data_beside_them(name: str) -> None:
    results = load(RESULTS / name)
    if name == "dora_magnitude":
        results = results.select(method=["dora", "dora-fixed"])
    rows = set(to_markdown(rounded(summary(robustness(results)))).splitlines())
    assert rows == set((RESULTS / name / "summary.md").read_text().splitlines())
    assert results.runs["status"].isin(["finished", "diverged"]).all()


def test_results_stay_below_40_mb() -> None:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "docs/results"], capture_output=True, text=True
    ).stdout
    sizes = {name: (ROOT / name).stat().st_size for name in listed.split("\0") if name}
    assert sum(sizes.values()) < 40 * 2**20, sorted(sizes, key=sizes.__getitem__)[-5:]
