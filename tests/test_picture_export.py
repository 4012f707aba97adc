"""Pictures for a scorer of one's own: each with what it was asked for, byte for byte, and files that stay as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from analysis import load
from analysis.picture_export import KEY, main
from tests.make_runs import Shape, make_runs


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """LoRA and DeLoRA at two rates on three subjects, with pictures."""
    shapes = {"lora": Shape(), "delora": Shape()}
    return make_runs(tmp_path / "runs", shapes=shapes, multipliers=(1.0, 4.0), pictures=True, dynamics=False)


def read(folder: Path) -> pd.DataFrame:
    """All files of an export."""
    return pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))], ignore_index=True)


def export(runs: Path, out: Path, *more: str) -> int:
    """The command."""
    return main(
        [str(runs), "--out", str(out), "--method", "lora", "delora", "--subjects", "2", "--prompts", "1", *more]
    )


def test_every_picture_is_the_runs_own_file_with_its_key(runs: Path, tmp_path: Path) -> None:
    assert export(runs, tmp_path / "out") == 0
    table, results = read(tmp_path / "out"), load(runs)
    subjects = sorted(results.runs["subject"].unique())[:2]
    names = {f"{method}-{subject}.parquet" for method in ("base", "lora", "delora") for subject in subjects}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert list(table) == [*KEY, "png"]
    assert table.groupby("method").size().to_dict() == {"base": 2, "lora": 4, "delora": 4}
    images = results.images().astype({"run_id": str, "prompt": str})
    of = results.all_runs.set_index("run_id")
    for row in table.itertuples():
        own = of[(of["method"] == row.method) & (of["subject"] == row.subject)]
        own = own if row.method == "base" else own[own["multiplier"] == row.multiplier]
        match = images[
            images["run_id"].isin(own.index) & (images["step"] == row.step) & (images["prompt"] == row.prompt)
        ]
        assert row.png == Path(match["file"].iloc[0]).read_bytes()
        assert row.picture_seed == match["seed"].iloc[0]


def test_a_file_that_is_there_stays(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(runs, tmp_path / "out") == 0
    first = sorted((tmp_path / "out").iterdir())[0]
    first.write_bytes(b"mine")
    assert export(runs, tmp_path / "out") == 0
    assert first.read_bytes() == b"mine"
    assert "0 new files" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--method", "oft"), "--method has oft, of which there are no runs"),
        (("--subjects", "9"), "--subjects is 9; allowed: 1 to 3"),
        (("--prompts", "0"), "--prompts is 0; allowed: numbers from 1 on"),
        (("--prompts", "99"), "no run has left picture 0 of prompt"),
    ],
)
def test_what_there_is_not_is_said(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
) -> None:
    assert export(runs, tmp_path / "out", *more) == 2
    assert said in capsys.readouterr().err


def test_without_a_number_all_prompts_and_subjects_are_taken(runs: Path, tmp_path: Path) -> None:
    assert main([str(runs), "--out", str(tmp_path / "out")]) == 0
    table, images = read(tmp_path / "out"), load(runs).images()
    assert table["subject"].nunique() == 3
    assert table["prompt"].nunique() == images["prompt"].nunique()


def test_every_series_is_exported_at_its_own_first_seed(tmp_path: Path) -> None:
    shared = {"multipliers": (1.0,), "pictures": True, "dynamics": False}
    make_runs(tmp_path / "runs", shapes={"lora": Shape()}, seeds=(0, 1), **shared)
    make_runs(tmp_path / "runs", shapes={"delora": Shape()}, seeds=(1,), **shared)
    assert export(tmp_path / "runs", tmp_path / "out") == 0
    table = read(tmp_path / "out").query("method != 'base'")
    assert set(zip(table["method"], table["seed"])) == {("lora", 0), ("delora", 1)}


def test_a_picture_that_is_gone_is_named(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in runs.rglob("*.png"):
        path.unlink()
    assert export(runs, tmp_path / "out") == 2
    assert re.search(r"error: \S+\.png cannot be read: No such file|no run has left picture", capsys.readouterr().err)
