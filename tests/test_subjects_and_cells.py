"""Heatmaps and points of subjects: every cell and point is a number of the analysis, and the best is marked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

import figures
from adapters import BadInput
from analysis import load, score_curve, scores_by_setting, scores_by_step, subject_scores, weight_norms
from analysis.results import Results
from figures.registry import draw_boundary_and_angle, draw_lr_robustness, draw_prolonged_training
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
    assert [ax.get_label() for ax in figure.axes] == [
        "rank LoRA",
        "rank LoRA centred",
        "rank DeLoRA",
        "rank DeLoRA centred",
    ]
    curve = score_curve(results.select(method="lora", rank=4)).query("metric == 'dino'")
    ax = figure.axes[0]
    np.testing.assert_allclose(cells_of(ax)[1], curve.sort_values("multiplier")["mean"].astype(float), rtol=1e-5)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["2", "4"]
    assert len(ax.texts) == 4
    frames = sorted((patch for patch in ax.patches if isinstance(patch, Rectangle)), key=lambda patch: patch.get_y())
    for row, frame in enumerate(frames):
        column, place = map(int, frame.get_xy())
        assert (place, cells_of(ax)[row, column]) == (row, cells_of(ax)[row].max())
    assert len(frames) == 2
    assert ax.get_title("left") == "LoRA: DINO, n = 3"
    with pytest.raises(BadInput, match="nothing|no finished run"):
        figures.rate_by_setting.draw(scores_by_setting(results, {"rank": [2, 4]})[:0])


def test_cells_centred_on_the_best_rate_are_what_it_is_above_the_others(results: Results) -> None:
    frame = scores_by_setting(results, {"rank": [2, 4]})
    ax = figures.rate_by_setting.draw(frame).axes[3]
    for row, rank in enumerate((2, 4)):
        curve = score_curve(results.select(method="delora", rank=rank)).query("metric == 'dino'")
        means = curve.set_index("multiplier")["mean"].astype(float)
        np.testing.assert_allclose(np.sort(cells_of(ax)[row]), np.sort(means - means.max()), rtol=1e-5)
        best = [text.get_text() for text in ax.get_xticklabels()].index("1")
        assert cells_of(ax)[row, best] == 0
    assert {text.get_text() for text in ax.texts} >= {"0"}


def test_a_point_with_divergence_is_crossed_and_never_best_and_lost_subjects_are_counted(tmp_path: Path) -> None:
    """DINO would be highest at 4x if its runs were not lost there."""
    shapes = {"lora": Shape(low=3.0, high=3.0, slope=0.2, diverges_from=4.0)}
    Maker(tmp_path, shapes=shapes, multipliers=(1.0, 2.0, 4.0)).write()
    Maker(tmp_path, shapes=shapes, multipliers=(1.0,), subjects=("cat", "dog", "owl", "fox")).write()
    frame = scores_by_setting(load(tmp_path), {"rank": [8]})
    frame.loc[frame["multiplier"] == 4, "mean"] = 0.9
    scores, centred = figures.rate_by_setting.draw(frame).axes
    words = [text.get_text() for text in scores.texts]
    assert ["n=4" in word for word in words[:3]] == [True, False, False]
    assert ["×" in word for word in words[:3]] == [False, False, True]
    assert "×: some runs diverged" in words
    (best,) = scores.patches
    assert best.get_xy() == (1, 0)
    assert [text.get_text() for text in centred.get_xticklabels()] == ["1/2", "1", "2"]
    lost = frame.assign(best_multiplier=np.nan, over_best=np.nan, below_best=np.nan)
    assert "no rate without" in figures.rate_by_setting.draw(lost).axes[1].texts[0].get_text()


def test_training_length_is_a_setting_of_runs_that_were_scored_on_the_way(tmp_path: Path) -> None:
    shapes = {"lora": Shape(diverges_from=4.0), "delora": Shape()}
    Maker(tmp_path, shapes=shapes, multipliers=(0.5, 1.0, 4.0), eval_steps=(5, 10)).write()
    results = load(tmp_path)
    rows = scores_by_step(results).query("metric == 'dino' and series == 'DeLoRA'")
    wanted = score_curve(results.select(multiplier=4.0, method="delora"), x="step").query(
        "metric == 'dino' and step > 0"
    )
    np.testing.assert_allclose(rows.query("multiplier == 4")["mean"], wanted["mean"])
    assert list(rows.query("multiplier == 4")["value"]) == [5, 10, 20]
    for draw in (draw_prolonged_training, draw_lr_robustness):
        drawn = draw(results)
        assert [ax.get_label() for ax in drawn.figures["rate_by_steps"].axes[::2]] == ["steps LoRA", "steps DeLoRA"]
    assert "rate_by_steps" not in draw_prolonged_training(results.select(multiplier=1.0)).figures


def test_starts_of_lambda_are_a_setting_for_every_rate_that_is_scaled(tmp_path: Path) -> None:
    """One heatmap a scale: rates of different parts are not averaged."""
    for start in (0.5, 2.0):
        Maker(tmp_path, boundary=start, sweep=f"start-{start}", multipliers=(1.0, 4.0)).write()
    results = load(tmp_path)
    runs = results.all_runs
    other = runs[(runs["multiplier"] == 4) & (runs["boundary"] == 2.0)]["run_id"]
    runs = runs.assign(scale=runs["scale"].mask(runs["run_id"].isin(other), "lambda"))
    drawn = draw_boundary_and_angle(Results(runs, results.sources))
    assert {ax.get_label() for ax in drawn.figures["rate_by_boundary"].axes[::2]} == {
        "boundary DeLoRA, both scaled", "boundary DeLoRA, lambda scaled",
    }  # fmt: skip
    assert "rate_by_boundary" not in draw_boundary_and_angle(results.select(boundary=2.0)).figures


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
