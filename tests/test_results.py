"""The committed results: the page shows what is there, the verdicts are what code computes, and all of it stays small."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from analysis import load, summary, to_markdown
from analysis.summary import robustness
from analysis.verdicts import judge_claims, read_claims
from figures.gallery import driver_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
PAGE = (RESULTS / "README.md").read_text()
SWEEPS = [folder.name for folder in sorted(RESULTS.iterdir()) if folder.is_dir() and driver_of(folder.name)]


def test_verdicts_are_what_code_computes() -> None:
    verdicts = judge_claims(RESULTS, read_claims(ROOT / "docs" / "claims.toml"))
    committed = pd.read_csv(RESULTS / "verdicts.csv")
    assert committed["verdict"].to_list() == verdicts["verdict"].to_list()
    pd.testing.assert_series_equal(committed["mean"], verdicts["mean"], rtol=1e-6)
    for row in verdicts.itertuples():
        (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {row.claim} ")]
        assert (row.verdict if row.num_subjects else "not run") in line


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
    rows = set(to_markdown(summary(robustness(results))).splitlines())
    assert rows == set((RESULTS / name / "summary.md").read_text().splitlines())
    assert results.runs["status"].isin(["finished", "diverged"]).all()


def test_results_stay_below_40_mb() -> None:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "docs/results"], capture_output=True, text=True
    ).stdout
    sizes = {name: (ROOT / name).stat().st_size for name in listed.split("\0") if name}
    assert sum(sizes.values()) < 40 * 2**20, sorted(sizes, key=sizes.__getitem__)[-5:]
