"""Sharpness at the start against the best rate: what is paired with what, the correlation, copies and the figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import figures
from adapters import BadInput
from analysis import export_compact, load, sharpness_vs_rate
from analysis.curves import run_scores
from analysis.results import Results
from figures.registry import draw_lr_robustness
from tests.make_runs import Shape, assert_drawn, make_runs
from tests.test_figures import axes_of, line_of, words_of

# Peaks at 1/4, 1 and 4 times one base rate; LoRA would be best at 8x, where it diverges.
SHAPES = {
    "dora": Shape(low=-2.0, high=-2.0),
    "lora": Shape(low=0.0, high=0.0),
    "delora": Shape(low=2.0, high=2.0, diverges_from=8.0),
}
SHARPNESS = {"dora": 40.0, "lora": 10.0, "delora": 3.0}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Three methods, the sharper the lower their best rate, on five subjects with noise."""
    root, subjects = tmp_path_factory.mktemp("runs"), ("cat", "dog", "owl", "fox", "cow")
    return load(make_runs(root, shapes=SHAPES, sharpness=SHARPNESS, subjects=subjects, noise_sd=0.05))


def test_each_subjects_first_sharpness_stands_beside_its_best_rate(results: Results) -> None:
    found = sharpness_vs_rate(results).points.set_index(["series", "subject"])
    runs = results.runs.set_index("run_id")
    measured = results.sharpness().astype({"run_id": str}).set_index("run_id")
    assert set(measured["step"]) == {1}
    scores = run_scores(results).query("metric == 'dino' and not diverged").set_index("run_id").join(runs["lr"])
    for (series, subject), point in found.iterrows():
        own = runs[(runs["series"] == series) & (runs["subject"] == subject)]
        lowest = own["multiplier"].idxmin()
        assert point["sharpness"] == pytest.approx(measured.loc[lowest, "sharpness"], rel=1e-6)
        kept = scores[(scores["series"] == series) & (scores["subject"] == subject)]
        assert point["best_lr"] == kept.loc[kept["value"].idxmax(), "lr"]
        assert point["at_edge"] == (point["best_lr"] in (own["lr"].min(), own["lr"].max()))
    assert len(found) == 15


def test_correlation_is_spearmans_averaged_over_subjects(results: Results) -> None:
    found = sharpness_vs_rate(results)
    each = [spearmanr(own["sharpness"], own["best_lr"]).statistic for _, own in found.points.groupby("subject")]
    (row,) = found.correlation.to_dict("records")
    assert row["rho"] == pytest.approx(np.mean(each))
    assert row["rho"] < -0.8
    assert (row["num_series"], row["num_subjects"]) == (3, 5)
    assert -1 <= row["low"] <= row["rho"] <= row["high"] <= 1
    means = found.means.set_index("series")
    own = found.points.query("series == 'LoRA'")
    assert means.loc["LoRA", "sharpness"] == pytest.approx(np.exp(np.log(own["sharpness"]).mean()))
    assert sharpness_vs_rate(results.select(method=["lora", "dora"])).correlation.empty


def test_a_copy_keeps_it_and_runs_without_it_show_nothing(results: Results, tmp_path: Path) -> None:
    export_compact(results, tmp_path / "copy")
    for own, copied in zip(sharpness_vs_rate(results), sharpness_vs_rate(load(tmp_path / "copy")), strict=True):
        pd.testing.assert_frame_equal(own, copied)
    bare = load(make_runs(tmp_path / "bare", shapes=SHAPES))
    export_compact(bare, tmp_path / "copy")
    for without in (bare, load(tmp_path / "copy")):
        assert without.sharpness().empty
        with pytest.raises(BadInput, match="--sharpness-steps 1"):
            figures.sharpness_vs_rate.draw(sharpness_vs_rate(without))
    assert "sharpness_vs_rate" not in draw_lr_robustness(bare).figures


def test_the_figure_draws_every_mean_and_says_the_correlation(results: Results) -> None:
    drawn = draw_lr_robustness(results)
    ax = axes_of(drawn.figures["sharpness_vs_rate"], "sharpness")
    for row in drawn.tables["sharpness"].itertuples():
        assert_drawn(line_of(ax, row.series)[0], [row.sharpness, row.best_lr])
        assert len(line_of(ax, f"_subjects {row.series}")) == row.num_subjects == 5
    words = words_of(drawn.figures["sharpness_vs_rate"]).replace("\n", " ")
    assert f"{drawn.tables['sharpness_correlation']['rho'].item():.2f} [" in words
    assert "n = 5" in words
    assert ax.get_xscale() == ax.get_yscale() == "log"
