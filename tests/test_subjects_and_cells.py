"""Heatmaps and points of subjects: every cell and point is a number of the analysis, and the best is marked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

import figures
from adapters import BadInput
from analysis import load, score_curve, scores_by_setting, subject_scores, weight_norms
from analysis.results import Results
from tests.make_runs import Maker, Shape


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two methods at two ranks."""
    root = tmp_path_factory.mktemp("runs")
    for rank in (2, 4):
        Maker(root, shapes={"lora": Shape(), "delora": Shape(high=1.0)}, multipliers=(1.0, 4.0), rank=rank).write()
    return load(root)


def cells_of(ax: Axes) -> np.ndarray:
    """What a heatmap shows, ``[rows, columns]``."""
    return ax.collections[0].get_array().reshape(len(ax.get_yticks()), len(ax.get_xticks()))


def test_every_cell_is_a_mean_and_the_best_is_framed(results: Results) -> None:
    figure = figures.rate_by_setting.draw(scores_by_setting(results, {"rank": [2, 4]}))
    assert [ax.get_label() for ax in figure.axes] == ["rank LoRA", "rank DeLoRA"]
    curve = score_curve(results.select(method="lora", rank=4)).query("metric == 'dino'")
    ax = figure.axes[0]
    np.testing.assert_allclose(cells_of(ax)[1], curve.sort_values("multiplier")["mean"].astype(float), rtol=1e-5)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["2", "4"]
    assert len(ax.texts) == 4
    (frame,) = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    column, row = map(int, frame.get_xy())
    assert cells_of(ax)[row, column] == cells_of(ax).max()
    with pytest.raises(BadInput, match="nothing|no finished run"):
        figures.rate_by_setting.draw(scores_by_setting(results, {"rank": [2, 4]})[:0])


def test_every_point_is_a_subject_at_its_methods_best_rate(results: Results) -> None:
    scores = subject_scores(results.select(rank=2))
    (ax,) = figures.scores_by_subject.draw(scores).axes
    lora = scores[(scores["metric"] == "dino") & (scores["method"] == "lora")]
    best = lora.groupby("multiplier")["value"].mean().idxmax()
    points = np.sort(np.asarray(ax.collections[0].get_offsets())[:, 0])
    np.testing.assert_allclose(points, np.sort(lora.loc[lora["multiplier"] == best, "value"]), rtol=1e-5)
    assert ax.get_yticklabels()[0].get_text().replace("\n", " ").startswith("LoRA")


def test_norms_stand_by_kind_and_block(results: Results) -> None:
    norms = weight_norms(results.select(rank=2))
    figure = figures.norms_by_block.draw(norms)
    before = norms[norms["series"] == "base model"]
    for ax in figure.axes:
        series, attention = str(ax.get_label()).rsplit(" ", 1)
        if series == "base model":
            shown = before.loc[before["attention"] == attention, "mean"]
            np.testing.assert_allclose(np.sort(cells_of(ax), axis=None), np.sort(shown), rtol=1e-5)


def test_the_same_bytes_twice(results: Results, tmp_path: Path) -> None:
    scores = subject_scores(results.select(rank=2))
    np.random.seed(1)
    one, two = (
        figures.save(figures.scores_by_subject.draw(scores), tmp_path / name, ["png"])[0].read_bytes() for name in "ab"
    )
    assert one == two
