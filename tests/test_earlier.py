"""`--results`: what earlier results hold is drawn, and not trained again."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from analysis import load
from analysis.compact_copy import export_compact
from sweeps import lr_robustness
from sweeps.report import trained_at
from tests.make_driver import Driven, drive_studio
from tests.make_studio import Studio
from training.store import find_runs

RATES = ("--base-lr", "1e-3", "--base-lr-for-all", "--lr-lambda", "1e-3", "--boundary", "1", "--multipliers", "1", "4")


@pytest.fixture(scope="module")
def copy(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compact copy of LoRA's runs, whose own folder is not looked at any more."""
    folder = tmp_path_factory.mktemp("earlier")
    driven = drive_studio(studio, lr_robustness, folder / "runs", "--method", "lora", *RATES)
    assert driven.code == 0, driven.err
    export_compact(load(driven.folder), folder / "copy")
    return folder / "copy"


def drive(studio: Studio, runs: Path, *more: str) -> Driven:
    return drive_studio(studio, lr_robustness, runs, *RATES, *more)


def test_another_method_is_trained_and_drawn_beside_what_a_copy_holds(
    studio: Studio, copy: Path, tmp_path: Path
) -> None:
    driven = drive(studio, tmp_path, "--method", "lora", "dora", "--results", str(copy))
    assert driven.code == 0, driven.err
    assert "8 cells: 4 done, 4 to train" in driven.out
    assert {run.read()["cell"]["method"] for run in find_runs(driven.folder)} == {"dora"}
    alone = drive(studio, tmp_path / "alone", "--method", "lora", "dora")
    assert alone.code == 0, alone.err
    together, apart = (found.table("summary") for found in (driven, alone))
    assert {"LoRA", "DoRA"} < set(together["series"])
    pd.testing.assert_frame_equal(together, apart, rtol=1e-3)  # other packs, other order of sums


def test_all_that_is_asked_for_may_be_there(studio: Studio, copy: Path, tmp_path: Path) -> None:
    driven = drive(studio, tmp_path, "--method", "lora", "--results", str(copy))
    assert driven.code == 0, driven.err
    assert "4 cells: 4 done, 0 to train" in driven.out
    assert not find_runs(driven.folder)
    assert driven.table("summary")["num_subjects"].eq(2).all()


def test_other_settings_are_trained_whatever_the_copy_holds(studio: Studio, copy: Path, tmp_path: Path) -> None:
    driven = drive(studio, tmp_path, "--method", "lora", "--seeds", "1", "--results", str(copy), "--dry-run")
    assert "4 cells: 0 done, 4 to train" in driven.out
    unlike = drive(studio, tmp_path, "--method", "lora", "--steps", "7", "--results", str(copy), "--dry-run")
    assert f"--results {copy} holds none of these runs: steps is " in unlike.err
    assert "there, 7 here" in unlike.err


def test_results_of_another_model_or_of_none_are_one_line(studio: Studio, copy: Path, tmp_path: Path) -> None:
    other = drive(studio, tmp_path, "--method", "lora", "--results", "docs/results/lr_robustness")
    assert other.code == 2
    assert "--results docs/results/lr_robustness is of model pocket" in other.err
    missing = drive(studio, tmp_path, "--method", "lora", "--results", str(tmp_path / "nothing"))
    assert missing.code == 2
    assert len(missing.err.splitlines()) == 1
    assert "no results folder" in missing.err


def test_the_record_names_what_all_runs_were_trained_with(studio: Studio, copy: Path, tmp_path: Path) -> None:
    """Those of a copy too, whose run folders may be gone."""
    runs = load(copy).runs
    assert (runs["commit"] != "").all()
    mixed = runs.assign(commit=["aaaa", *["bbbb with changes"] * (len(runs) - 1)])
    assert trained_at(mixed) == f"bbbb with changes ({len(runs) - 1} runs), aaaa (1 run)"
    docs = tmp_path / "docs"
    driven = drive(studio, tmp_path / "runs", "--method", "lora", "--results", str(copy), "--docs", str(docs))
    assert driven.code == 0, driven.err
    assert f"trained at commit {runs['commit'].iloc[0]}; drawn on" in (docs / "RECORD.md").read_text()


def test_of_the_base_model_only_the_subjects_that_are_asked_for_are_taken(
    studio: Studio, copy: Path, tmp_path: Path
) -> None:
    """Else those that another call planned in the same sweep count as missing."""
    one = sorted(load(copy).runs["subject"].unique())[0]
    subjects = ("--subjects", str(studio.folder / "subjects"), one)
    driven = drive(
        studio, tmp_path, "--method", "lora", "--results", str(copy), *subjects, "--docs", str(tmp_path / "docs")
    )
    assert driven.code == 0, driven.err
    found = load(tmp_path / "docs")
    assert set(found.runs["subject"]) == set(found.base_runs["subject"]) == {one}
