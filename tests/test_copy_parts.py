"""A compact copy grows: new runs come in a part of their own, and not a byte of what is there changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest

from adapters import BadInput
from analysis import export_compact, load
from analysis.copy_parts import parts
from analysis.results import Results
from figures.registry import draw_lr_robustness
from tests.make_controls import GOOD, write_controls
from tests.make_runs import Shape, make_runs
from tests.test_gallery import contents

SHAPES: Mapping[str, Shape] = {"delora": Shape(), "lora": Shape(high=0.0)}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Two methods on three subjects, with pictures, controls and sharpness."""
    root = make_runs(
        tmp_path / "runs", shapes=SHAPES, multipliers=(0.5, 1.0, 2.0), pictures=True, sharpness={"lora": 3.0}
    )
    write_controls(root, dict.fromkeys(("cat", "dog", "owl"), GOOD))
    return load(root)


def frames(results: Results) -> dict[str, pd.DataFrame]:
    """All that a copy holds, sorted by its columns."""
    found = {
        "runs": results.runs[["run_id", "method", "multiplier", "subject", "series", "status"]],
        "scores": results.scores, "base": results.base, "controls": results.controls, "matrices": results.matrices,
        "dynamics": results.final_dynamics, "trajectories": results.trajectories(), "norms": results.norms(),
        "blocks": results.blocks(), "losses": results.losses(), "sharpness": results.sharpness(),
        "images": results.images().drop(columns="file"),
    }  # fmt: skip
    return {
        name: frame.astype({c: str for c in frame if frame[c].dtype.kind not in "fi"}).sort_values(
            [*frame], ignore_index=True
        )[sorted(frame)]
        for name, frame in found.items()
    }


def drawn(folder: Path, out: Path) -> dict[str, bytes]:
    """The data and tables of Fig. 2, drawn from a copy."""
    draw_lr_robustness(load(folder)).save(out, ("svg",))
    return contents(out)


@pytest.mark.parametrize("first", [{"method": "delora"}, {"subject": ["cat", "dog"]}, {"multiplier": [0.5, 1.0]}])
def test_new_runs_come_in_a_part_and_nothing_there_changes(results: Results, first: Mapping, tmp_path: Path) -> None:
    some = results.select(**first)
    own = set(some.all_runs[some.all_runs["subject"].isin(set(some.runs["subject"]))]["run_id"])
    some = Results(some.all_runs[some.all_runs["run_id"].isin(own)], some.sources)
    shown = results.images()
    export_compact(some, tmp_path / "grown", shown=shown[shown["run_id"].isin(own)])
    before = contents(tmp_path / "grown")
    files = export_compact(results, tmp_path / "grown", shown=shown)
    after = contents(tmp_path / "grown")
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[0] for name in after.keys() - before} == {"part-2"}
    assert {str(path.relative_to(tmp_path / "grown")) for path in files} == set(after)

    export_compact(results, tmp_path / "whole", shown=shown)
    for name, frame in frames(load(tmp_path / "whole")).items():
        pd.testing.assert_frame_equal(frames(load(tmp_path / "grown"))[name], frame, obj=name)
    export_compact(results, tmp_path / "grown", shown=shown)
    assert contents(tmp_path / "grown") == after, "nothing is new: nothing is written"
    export_compact(load(tmp_path / "grown"), tmp_path / "grown", shown=load(tmp_path / "grown").images())
    assert contents(tmp_path / "grown") == after, "a copy is read as the runs are"


def test_figures_of_a_grown_copy_are_those_of_a_whole_one(results: Results, tmp_path: Path) -> None:
    for name in ("delora", "lora"):
        export_compact(results.select(method=["delora", name]), tmp_path / "grown")
    export_compact(results, tmp_path / "whole")
    assert len(parts(tmp_path / "grown")) == 2
    one, two = (drawn(tmp_path / name, tmp_path / f"{name}-out") for name in ("grown", "whole"))
    assert one == two


def test_a_copy_grows_more_than_once(results: Results, tmp_path: Path) -> None:
    for most in (0.5, 1.0, 2.0):
        export_compact(results.select(multiplier=[m for m in (0.5, 1.0, 2.0) if m <= most]), tmp_path / "copy")
    assert [path.name for path in parts(tmp_path / "copy")] == ["copy", "part-2", "part-3"]
    assert len(load(tmp_path / "copy").runs) == len(results.runs)


def test_what_does_not_stay_true_is_written_anew(results: Results, tmp_path: Path) -> None:
    """Fewer runs, other norms, pictures or scores: one whole copy, no part, as in an empty folder."""
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    some, shown = results.select(method="lora"), results.images()

    def grown() -> None:
        export_compact(some, copy)
        export_compact(results, copy)
        assert len(parts(copy)) == 2

    for changed, how in (
        (some, {}),
        (results, {"num_norms": 3}),
        (results, {"shown": shown}),
        (results.select(multiplier=[1.0]), {}),
    ):
        grown()
        export_compact(changed, copy, **how)
        export_compact(changed, whole, **how)
        assert contents(copy) == contents(whole)

    grown()
    other = make_runs(tmp_path / "other", shapes=SHAPES, multipliers=(0.5, 1.0, 2.0), subject_sd=0.05)
    export_compact(load(other), copy)
    assert len(parts(copy)) == 1, "the same runs with other scores"


def test_a_grown_copy_can_be_written_anew_from_itself(results: Results, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    export_compact(results.select(method="lora"), copy)
    export_compact(results, copy)
    before = frames(load(copy))
    export_compact(load(copy), copy, num_norms=3)
    assert len(parts(copy)) == 1
    for name, frame in frames(load(copy)).items():
        pd.testing.assert_frame_equal(frame, before[name], obj=name)


def test_a_part_that_was_not_finished_is_none(results: Results, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    export_compact(results.select(method="lora"), copy)
    export_compact(results, copy)
    (copy / "part-2" / "runs.parquet").unlink()
    assert set(load(copy).runs["method"]) == {"lora"}
    export_compact(results, copy)
    assert set(load(copy).runs["method"]) == {"lora", "delora"}
    (copy / "part-2" / "norms.parquet").unlink()
    with pytest.raises(BadInput, match=r"part-2 is no whole compact copy: norms.parquet is missing; export it again"):
        load(copy)
    export_compact(results, copy)
    assert len(parts(copy)) == 1
    assert len(load(copy).runs) == len(results.runs)
