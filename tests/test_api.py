"""docs/api.md: what it shows is run; SQL over run folders and compact copies; copies by the command line."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from adapters import BadInput
from analysis import compact, export_compact, load
from analysis import query as sql
from analysis.query import query
from tests.make_controls import GOOD, write_controls
from tests.make_runs import make_runs
from training.store import COLUMNS


def test_page_shows_what_comes_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    plt.switch_backend("agg")
    failed, tried = doctest.testfile(str(root / "docs" / "api.md"), module_relative=False)
    assert tried > 8
    assert not failed
    curves, heatmap, subjects = (plt.figure(number).axes[0] for number in plt.get_fignums())
    plt.close("all")
    assert len([line for line in curves.lines if len(line.get_xdata())]) == 7
    assert len(heatmap.texts) == 7 * 8
    assert [len(points.get_offsets()) for points in subjects.collections] == [24] * 7


def test_table_joins_every_score_with_its_run(runs: Path) -> None:
    results = load(runs)
    table = results.table()
    assert table.columns.to_list() == [
        "series", "method", "multiplier", "subject", "seed", "step", "metric", "value", "run_id",
    ]  # fmt: skip
    own = table[table["method"] != "base"]
    means = results.scores.groupby(["run_id", "step", "metric"], observed=True)["value"].mean()
    np.testing.assert_allclose(own["value"], [means[row.run_id, row.step, row.metric] for row in own.itertuples()])
    assert len(own) == len(means), "every evaluation, once"
    assert own.groupby("multiplier")["run_id"].nunique().to_dict() == {1.0: 1, 4.0: 1}
    base = table[table["method"] == "base"]
    assert set(base["series"]) == {"base model"}
    assert base[["multiplier", "seed"]].isna().all(axis=None)
    assert base["value"].mean() == pytest.approx(results.base["value"].mean())


def test_page_names_every_column(root: Path) -> None:
    page = (root / "docs" / "api.md").read_text()
    named = set(re.findall(r"[a-z_]+[0-9]*", page))
    for kind in ("dynamics", "norms", "steps"):
        for column in set(COLUMNS[kind]) - {"step", "matrix"}:
            assert column in named or re.sub("_(rows|cols)$", "_", column) in named, column


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return make_runs(tmp_path / "it's here", multipliers=(1, 4), subjects=("cat",), steps=6)


def test_tables_of_run_folders_hold_what_the_frames_hold(runs: Path) -> None:
    results = load(runs)
    dynamics = query("SELECT * FROM dynamics ORDER BY run_id, step, matrix", runs)
    expected = results.dynamics().astype({"run_id": str, "matrix": str}).sort_values(["run_id", "step", "matrix"])
    assert list(dynamics["run_id"]) == list(expected["run_id"])
    for name in ("distance", "distance_rel", "lambda"):
        pd.testing.assert_series_equal(dynamics[name], expected[name].reset_index(drop=True), check_dtype=False)
    for name, count in (("runs", 2), ("matrices", len(results.matrices)), ("steps", len(results.steps())),
                        ("norms", len(results.norms())), ("base", len(results.base))):  # fmt: skip
        assert query(f"SELECT count(*) AS n FROM {name}", runs)["n"].item() == count


def test_controls_are_a_table_of_run_folders_and_copies(runs: Path, tmp_path: Path) -> None:
    assert query("SELECT * FROM controls", runs).empty
    write_controls(runs, {"cat": GOOD})
    results = load(runs)
    export_compact(results, tmp_path / "copy")
    wanted = results.controls.astype({"metric": str, "kind": str}).groupby(["metric", "kind"])["value"].mean()
    question = "SELECT metric, kind, avg(value) AS value FROM controls WHERE subject = 'cat' GROUP BY ALL ORDER BY ALL"
    for root in (runs, tmp_path / "copy"):
        found = query(question, root).set_index(["metric", "kind"])["value"]
        assert len(found) == 2 * len(GOOD)
        np.testing.assert_allclose(found, wanted[found.index], rtol=1e-5, atol=1e-7)


def test_compact_copy_answers_too(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert compact.main([str(runs), "--out", str(tmp_path / "copy")]) == 0
    assert "2 runs in 8 files" in capsys.readouterr().out
    question = "SELECT run_id, avg(value) AS v FROM scores JOIN runs USING (run_id) GROUP BY run_id ORDER BY run_id"
    pd.testing.assert_frame_equal(query(question, tmp_path / "copy"), query(question, runs))
    assert query("SELECT count(*) AS n FROM trajectories", tmp_path / "copy")["n"].item() == 14


def test_command_line_prints_tables_csv_and_json(runs: Path, capsys: pytest.CaptureFixture) -> None:
    question = "SELECT multiplier, status FROM runs ORDER BY multiplier"
    assert sql.main([question, str(runs)]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["multiplier", "status"], ["1.0", "finished"], ["4.0", "finished"],
    ]  # fmt: skip
    assert sql.main([question, str(runs), "--format", "csv"]) == 0
    assert capsys.readouterr().out == "multiplier,status\n1.0,finished\n4.0,finished\n"
    assert sql.main([question, str(runs), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[1] == {"multiplier": 4.0, "status": "finished"}


@pytest.mark.parametrize("question", ["SELEC 1", "SELECT nothing FROM runs", "SELECT * FROM nowhere"])
def test_refused_questions_are_one_line(question: str, runs: Path, capsys: pytest.CaptureFixture) -> None:
    assert sql.main([question, str(runs)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the query is refused: ")
    assert error.count("\n") == 1


def test_folders_without_runs_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert sql.main(["SELECT 1", str(tmp_path)]) == 2
    assert compact.main([str(tmp_path / "gone"), "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.count("error: no ") == 2
    with pytest.raises(BadInput, match="no runs in"):
        query("SELECT 1", tmp_path)
