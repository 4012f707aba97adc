"""Compact copies: which steps stay, and that a copy of a copy is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from adapters import BadInput
from analysis import block_curves, export_compact, gauge_curve, load, subject_distances, subject_scores
from analysis.compact_copy import thin
from tests.make_runs import MATRICES, Shape, make_runs


@pytest.mark.parametrize("num_steps", [1, 49, 50, 51, 151, 1001])
def test_thinning_keeps_few_even_steps_and_both_ends(num_steps: int) -> None:
    step = np.tile(np.arange(num_steps), 2)
    run_id = np.repeat(["one", "two"], num_steps)
    kept = thin(pd.DataFrame({"run_id": run_id, "matrix": "mean", "step": step}), max_points=50)
    for _, run in kept.groupby("run_id"):
        assert len(run) == min(num_steps, 50)
        assert run["step"].iloc[0] == 0
        assert run["step"].iloc[-1] == num_steps - 1
        assert np.ptp(np.diff(run["step"])) <= 1 if num_steps > 1 else True


def test_a_second_copy_of_a_compact_copy_is_the_same(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path / "runs", shapes={"lora": Shape(), "delora": Shape()}, multipliers=(1.0, 2.0)))
    export_compact(results, tmp_path / "one")
    export_compact(load(tmp_path / "one"), tmp_path / "two")
    for find in (subject_scores, subject_distances, gauge_curve, block_curves):
        pd.testing.assert_frame_equal(find(load(tmp_path / "one")), find(load(tmp_path / "two")))
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "blocks.parquet", "dynamics_final.parquet", "losses.parquet", "matrices.parquet", "norms.parquet", "runs.parquet",
        "scores.parquet", "trajectories.parquet",
    ]  # fmt: skip


def test_what_a_compact_copy_lacks_is_said(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path / "runs", multipliers=(1.0,)))
    export_compact(results, tmp_path / "copy", kept_matrices=[MATRICES[3][0]])
    copy = load(tmp_path / "copy")
    own, kept = (gauge_curve(r, matrix=MATRICES[3][0]) for r in (results, copy))
    np.testing.assert_allclose(own["mean"], kept["mean"], rtol=1e-6)
    with pytest.raises(BadInput, match="is not in"):
        gauge_curve(copy, matrix=MATRICES[4][0])
    for read in (copy.dynamics, copy.steps):
        with pytest.raises(BadInput, match="load the runs folder itself"):
            read()
    (tmp_path / "copy" / "norms.parquet").unlink()
    with pytest.raises(BadInput, match="norms.parquet is missing"):
        load(tmp_path / "copy")
