"""Curves around each one's own optimum, and the loss at the end, from run folders and from a compact copy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import figures
from adapters.errors import BadInput
from analysis import Results, centre_on_best, export_compact, load, loss_curve, robustness
from tests.make_runs import Shape, assert_drawn, make_runs
from tests.test_figures import axes_of, line_of, words_of


def curve(series: str, multipliers: list[float], means: list[float], diverged: int = 0) -> pd.DataFrame:
    """Rows of a score curve; the last of them diverged, or none."""
    lost = [0] * (len(means) - 1) + [diverged]
    columns = {"series": series, "metric": "dino", "multiplier": multipliers, "mean": means, "num_diverged": lost}
    return pd.DataFrame(columns)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """DeLoRA, and LoRA that diverges from 8x on; both at six rates on three subjects."""
    shapes = {"lora": Shape(diverges_from=8.0), "delora": Shape(high=2.0)}
    return load(make_runs(tmp_path_factory.mktemp("rates"), shapes=shapes, multipliers=(0.5, 1.0, 2.0, 4.0, 8.0, 16.0)))


def test_one_is_where_the_mean_is_best_and_an_end_of_the_grid_is_said() -> None:
    inside, edge = curve("inside", [1, 2, 4], [0.2, 0.5, 0.3]), curve("edge", [1, 2, 4], [0.6, 0.5, 0.3])
    scores = pd.concat([inside, edge], ignore_index=True)
    found = centre_on_best(scores, scores).set_index("series")
    assert found.loc["inside", "over_best"].tolist() == [0.5, 1.0, 2.0]
    assert found.loc["edge", "over_best"].tolist() == [1.0, 2.0, 4.0]
    assert found["at_edge"].groupby("series").first().to_dict() == {"inside": False, "edge": True}


def test_a_rate_at_which_a_run_diverged_is_never_the_best() -> None:
    scores = curve("a", [1, 2, 4], [0.2, 0.3, 0.9], diverged=1)
    assert centre_on_best(scores, scores)["over_best"].tolist() == [0.5, 1.0, 2.0]
    lost = curve("b", [1.0], [0.2], diverged=1)
    assert centre_on_best(lost, lost).empty


def test_the_loss_is_the_mean_over_the_last_fifth_before_any_divergence(results: Results) -> None:
    steps, losses = results.steps().astype({"run_id": str}), results.losses().set_index("run_id")["loss"]
    for run_id, own in steps.groupby("run_id"):
        finite = own["loss"].to_numpy(dtype=float)
        finite = finite[np.isfinite(finite)]
        assert losses[run_id] == pytest.approx(finite[-(len(own) // 5) :].mean())
    found = loss_curve(results)
    assert set(found["series"]) == {"LoRA", "DeLoRA"}
    assert (found["num_subjects"] == 3).all()
    assert found.query("series == 'LoRA' and multiplier >= 8")["num_diverged"].tolist() == [3, 3]


def test_a_compact_copy_has_the_losses_and_an_older_one_has_none(results: Results, tmp_path: Path) -> None:
    export_compact(results, tmp_path)
    pd.testing.assert_frame_equal(loss_curve(load(tmp_path)), loss_curve(results))
    (tmp_path / "losses.parquet").unlink()
    assert loss_curve(load(tmp_path)).empty


def test_the_figure_draws_what_was_computed(results: Results) -> None:
    curves, losses = robustness(results), loss_curve(results)
    figure = figures.around_the_best.draw(curves, losses)
    scores = centre_on_best(curves.scores[curves.scores["metric"] == "dino"], curves.scores)
    for series, rows in scores.groupby("series"):
        assert_drawn(line_of(axes_of(figure, "dino centred"), str(series)), rows[["over_best", "mean"]])
        (best,) = rows.loc[rows["over_best"] == 1.0, "mean"]
        assert best == rows.loc[rows["num_diverged"] == 0, "mean"].max()
    for series, rows in losses.groupby("series"):
        assert_drawn(line_of(axes_of(figure, "loss"), str(series)), rows[["multiplier", "mean"]])
    assert "multiple of the curve's own best rate" in words_of(figure)
    with pytest.raises(BadInput, match="no finished run"):
        figures.around_the_best.draw(curves._replace(scores=curves.scores[:0]), losses[:0])
