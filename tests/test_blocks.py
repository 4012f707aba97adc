"""Dynamics by block of the U-Net: means over a block's matrices, curves over subjects, and the figure by its artists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import figures
from adapters import BadInput
from analysis import block_curves, export_compact, load, spectrum_curves
from analysis.block_means import QUANTITIES, few_steps
from analysis.results import Results
from figures.figure_set import FigureSet, add_blocks
from figures.looks import shades
from figures.registry import (
    draw_lr_robustness,
    draw_prolonged_training,
    draw_rank_robustness,
    draw_setting_robustness,
    draw_weight_norms,
)
from tests.make_runs import Shape, assert_drawn, make_runs
from tests.test_figures import axes_of, line_of, words_of
from training.store import SPECTRA

SHAPES = {"lora": Shape(diverges_from=4.0), "delora": Shape()}
BLOCKS = ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two methods at three rates, the highest of which LoRA does not survive."""
    return load(make_runs(tmp_path_factory.mktemp("runs"), shapes=SHAPES, multipliers=(0.5, 1.0, 4.0)))


@pytest.fixture(scope="module")
def curves(results: Results) -> pd.DataFrame:
    """Of one rate, a line a method."""
    return block_curves(results.select(multiplier=1.0))


# Numbers.


def test_means_over_a_block_are_those_of_its_matrices(results: Results) -> None:
    rows = results.dynamics(["lambda", "distance", "distance_rel"]).merge(
        results.norms().eval("colnorm_spread = colnorm_sd / colnorm_mean").drop(columns="colnorm_mean"),
        on=["run_id", "step", "matrix"], how="left",
    )  # fmt: skip
    rows = rows.merge(results.matrices[["run_id", "matrix", "block"]], on=["run_id", "matrix"])
    keys = ["run_id", "step", "block"]
    wanted = rows.astype({"run_id": str, "block": str}).groupby(keys)[list(QUANTITIES)].mean()
    found = results.blocks().astype({"run_id": str, "block": str}).set_index(keys).sort_index()
    assert set(found.index.unique("block")) == set(BLOCKS)
    pd.testing.assert_frame_equal(found[list(QUANTITIES)], wanted, check_dtype=False, rtol=1e-6)


def test_a_curve_is_the_mean_over_subjects(results: Results, curves: pd.DataFrame) -> None:
    rows = results.select(multiplier=1.0, method="delora").blocks()
    wanted = rows[rows["block"] == "mid_block"].groupby("step")["distance"].mean()
    own = curves.query("quantity == 'distance' and block == 'mid_block' and series == 'DeLoRA'")
    np.testing.assert_allclose(own.set_index("step")["mean"], wanted, rtol=1e-6)
    assert set(own["num_subjects"]) == {3}
    assert set(curves.query("quantity == 'lambda'")["series"]) == {"DeLoRA"}, "LoRA has no lambda"


def test_a_diverged_run_keeps_its_last_values_and_is_counted(results: Results) -> None:
    curves = block_curves(results, by_multiplier=True)
    lost = curves.query("series == 'LoRA' and multiplier == 4 and quantity == 'distance_rel' and block == 'mid_block'")
    assert list(lost["step"]) == list(range(21))
    assert lost.set_index("step")["mean"].loc[10:].nunique() == 1
    assert list(lost.loc[lost["num_diverged"] > 0, "step"]) == list(range(10, 21))


@pytest.mark.parametrize("num_steps", [1, 2, 39, 40, 41, 1001])
def test_few_steps_are_even_and_have_both_ends(num_steps: int) -> None:
    frame = pd.DataFrame({"step": np.repeat(np.arange(num_steps) * 5, 2)})
    steps = few_steps(frame)["step"].unique()
    assert len(few_steps(frame)) == 2 * len(steps) == 2 * min(num_steps, 40)
    assert (steps[0], steps[-1]) == (0, 5 * (num_steps - 1))
    assert np.ptp(np.diff(steps)) <= 5 if num_steps > 1 else True


def test_a_copy_has_the_same_curves_and_one_made_before_the_last_step(results: Results, tmp_path: Path) -> None:
    export_compact(results, tmp_path)
    own = block_curves(results, by_multiplier=True)
    pd.testing.assert_frame_equal(block_curves(load(tmp_path), by_multiplier=True), own, check_dtype=False, rtol=1e-6)
    (tmp_path / "blocks.parquet").unlink()
    old = block_curves(load(tmp_path), by_multiplier=True)
    assert {name: set(rows["step"]) for name, rows in old.groupby("quantity")} == {
        "lambda": {20}, "distance": {20}, "distance_rel": {20}, "colnorm_spread": {0, 20},
    }  # fmt: skip
    keys = ["quantity", "block", "series", "multiplier", "step"]
    both = old.set_index(keys)["mean"].to_frame("old").join(own.set_index(keys)["mean"])
    np.testing.assert_allclose(both["old"], both["mean"], rtol=1e-6)


def test_runs_that_have_not_ended_have_no_curves(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path, multipliers=(1.0,), status="running"))
    assert block_curves(results).empty
    drawn = FigureSet()
    add_blocks(drawn, results)
    assert not drawn.figures
    with pytest.raises(BadInput, match="prolonged_training"):
        figures.dynamics_by_block.draw(block_curves(results))


@pytest.fixture(scope="module")
def spectral(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two methods at three rates, with spectra at steps 10 and 20, intruders at 20."""
    return load(
        make_runs(tmp_path_factory.mktemp("spectral"), shapes=SHAPES, multipliers=(0.5, 1.0, 4.0), spectra=True)
    )


def test_spectra_by_block_are_means_over_matrices_and_live_on_in_a_copy(spectral: Results, tmp_path: Path) -> None:
    export_compact(spectral, tmp_path)
    own = block_curves(spectral, SPECTRA, by_multiplier=True)
    pd.testing.assert_frame_equal(
        block_curves(load(tmp_path), SPECTRA, by_multiplier=True), own, check_dtype=False, rtol=1e-6
    )
    rows = spectral.norms().merge(spectral.matrices[["run_id", "matrix", "block"]], on=["run_id", "matrix"])
    rows = rows.astype({"run_id": str}).merge(spectral.runs[["run_id", "series", "multiplier"]], on="run_id")
    for name in SPECTRA:
        kept = rows.query("block == 'up_blocks.1' and series == 'DeLoRA' and multiplier == 0.5").dropna(subset=[name])
        curve = own.query(
            f"quantity == '{name}' and block == 'up_blocks.1' and series == 'DeLoRA' and multiplier == 0.5"
        )
        assert list(curve["step"]) == ([20] if name == "intruders" else [10, 20])
        np.testing.assert_allclose(curve["mean"], kept.groupby("step")[name].mean(), rtol=1e-6)


def test_spectra_at_the_end_stand_against_the_rate(spectral: Results, results: Results, tmp_path: Path) -> None:
    curves = spectrum_curves(spectral)
    export_compact(spectral, tmp_path)
    copied = spectrum_curves(load(tmp_path))
    last = spectral.norms().query("step == 20").astype({"run_id": str}).groupby("run_id")[list(SPECTRA)].mean()
    last = last.join(spectral.runs.set_index("run_id")[["series", "multiplier"]], how="inner")
    figure = figures.spectra_vs_rate.draw(curves)
    for name, curve in curves.items():
        pd.testing.assert_frame_equal(copied[name], curve, rtol=1e-6)
        wanted = last[last["series"] == "LoRA"].groupby("multiplier")[name].mean()
        np.testing.assert_allclose(curve[curve["series"] == "LoRA"]["mean"], wanted, rtol=1e-6)
        assert set(curve["num_subjects"]) == {3}
        if name in figures.spectra_vs_rate.TITLES:
            assert_drawn(line_of(axes_of(figure, name), "LoRA")[:, 1], wanted)
    assert not any(map(len, spectrum_curves(results).values()))
    with pytest.raises(BadInput, match="--spectra"):
        figures.spectra_vs_rate.draw(spectrum_curves(results))


def test_drivers_draw_spectra_where_there_are_some(spectral: Results, results: Results) -> None:
    names = {"spectra_by_block", "spectra_vs_rate"}
    drawn = draw_lr_robustness(spectral)
    assert names <= set(drawn.figures)
    assert set(drawn.data["spectra_by_block"]["quantity"]) == set(SPECTRA)
    assert [ax.get_label() for ax in drawn.figures["spectra_by_block"].axes] == [
        f"{name} {block}" for name in SPECTRA for block in BLOCKS
    ]
    assert names <= set(draw_rank_robustness(spectral).figures)
    with pytest.raises(BadInput, match="no setting was varied"):
        draw_setting_robustness(spectral)
    assert "spectra_by_block" in draw_prolonged_training(spectral.select(multiplier=1.0)).figures
    assert not names & set(draw_lr_robustness(results).figures)


# The figure.


def test_every_panel_draws_what_the_analysis_found(curves: pd.DataFrame) -> None:
    figure = figures.dynamics_by_block.draw(curves)
    assert [ax.get_label() for ax in figure.axes] == [f"{name} {block}" for name in
        ("lambda", "distance_rel", "distance", "colnorm_spread") for block in BLOCKS]  # fmt: skip
    for (name, block, series), rows in curves.groupby(["quantity", "block", "series"]):
        drawn = line_of(axes_of(figure, f"{name} {block}"), series)
        assert_drawn(drawn, rows.sort_values("step")[["step", "mean"]].astype(float))
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["LoRA (n = 3)", "DeLoRA (n = 3)"], "as everywhere, though LoRA has no lambda"
    assert [ax.get_title("left") for ax in figure.axes[:5]] == ["down.0", "down.1", "mid", "up.0", "up.1"]
    assert "95 % t intervals" in words_of(figure)
    for name in ("distance", "colnorm_spread"):
        assert len({axes_of(figure, f"{name} {block}").get_ylim() for block in BLOCKS}) == 1, "panels compare"


def test_multipliers_are_lines_of_their_own_shades_in_their_order(results: Results) -> None:
    curves = block_curves(results.select(method="delora"), by_multiplier=True)
    figure = figures.dynamics_by_block.draw(curves)
    names = ["DeLoRA, 1/2×", "DeLoRA, 1×", "DeLoRA, 4×"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"{name} (n = 3)" for name in names]
    lines = {line.get_label(): line for line in axes_of(figure, "distance mid_block").lines}
    assert [lines[name].get_color() for name in names] == [look.color for look in shades(names).values()]
    rows = curves.query("quantity == 'distance' and block == 'mid_block' and multiplier == 4")
    assert_drawn(line_of(axes_of(figure, "distance mid_block"), names[2]), rows[["step", "mean"]].astype(float))


def test_far_ends_are_on_a_log_axis(curves: pd.DataFrame) -> None:
    far = curves.assign(mean=curves["mean"].where(curves["series"] == "LoRA", 100 * curves["mean"]))
    scales = {ax.get_yscale() for ax in figures.dynamics_by_block.draw(far).axes if "distance" in ax.get_label()}
    assert scales == {"log"}
    near = {ax.get_yscale() for ax in figures.dynamics_by_block.draw(curves).axes}
    assert near == {"linear"}


def test_one_step_is_a_mark_with_a_bar_and_says_so(curves: pd.DataFrame) -> None:
    figure = figures.dynamics_by_block.draw(curves[curves["step"] == 20])
    ax = axes_of(figure, "distance mid_block")
    rows = curves.query("quantity == 'distance' and block == 'mid_block' and step == 20 and series == 'LoRA'")
    assert_drawn(line_of(ax, "LoRA"), rows[["step", "mean"]].astype(float))
    (line,) = [line for line in ax.lines if line.get_label() == "LoRA"]
    assert line.get_marker() not in ("", "None", None)
    assert [c for c in ax.collections if c.get_label() == "_bar LoRA"]
    assert "last step only" in words_of(figure).replace("\n", " ")


def test_one_block_and_one_quantity_are_one_panel(curves: pd.DataFrame) -> None:
    figure = figures.dynamics_by_block.draw(curves.query("block == 'mid_block' and quantity == 'distance_rel'"))
    (ax,) = figure.axes
    assert (ax.get_label(), ax.get_title("left")) == ("distance_rel mid_block", "mid")
    assert ax.get_xlabel() == "training step"


def test_drivers_draw_it(results: Results) -> None:
    alone = results.select(multiplier=1.0)
    assert "dynamics_by_block" in draw_prolonged_training(alone).figures
    drawn = draw_weight_norms(alone)
    assert "dynamics_by_block" in drawn.figures
    assert set(drawn.data["dynamics_by_block"]["quantity"]) == set(QUANTITIES)
    several = {name for name in draw_lr_robustness(results).figures if name.startswith("dynamics")}
    assert several == {"dynamics_by_block"}
    of_one = draw_lr_robustness(results.select(method="delora")).data["dynamics_by_block"]
    assert set(of_one["multiplier"]) == {0.5, 1.0, 4.0}
    of_both = draw_lr_robustness(results).data["dynamics_by_block"]
    assert set(of_both["series"]) == {"LoRA, 1×", "DeLoRA, 1×"}
