"""Figures are read by their artists: every point drawn is a number of the analysis; no torch anywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.transforms import Bbox

import figures
from adapters import BadInput
from analysis import (
    base_line,
    gauge_curve,
    load,
    paired_curve,
    pictures,
    robustness,
    score_curve,
    subject_scores,
    summary,
    weight_norms,
)
from analysis.results import Results
from analysis.summary import Robustness
from figures.figure_set import FigureSet
from figures.style import BACKGROUND
from tests.make_runs import BASE_SCORE, Shape, assert_drawn, make_runs

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {"lora": Shape(high=0.0, diverges_from=16.0), "delora": Shape(), "dora": Shape(high=1.0)}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Three methods on three subjects."""
    return load(make_runs(tmp_path_factory.mktemp("runs"), shapes=SHAPES))


def axes_of(figure: Figure, name: str) -> Axes:
    """The axes with this label."""
    (found,) = [ax for ax in figure.axes if ax.get_label() == name]
    return found


def words_of(figure: Figure) -> str:
    """Every text in a figure."""
    import matplotlib.text

    return " | ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def line_of(ax: Axes, label: str) -> np.ndarray:
    """The points of the line with this label, ``[n, 2]``."""
    (found,) = [line for line in ax.lines if line.get_label() == label]
    return np.column_stack(found.get_data())


# Figure 2.


def test_fig2_draws_the_curves_that_the_analysis_found(results: Results) -> None:
    curves = robustness(results)
    figure = figures.fig2_lr_robustness.draw(curves)
    for metric in ("dino", "clip_i", "clip_t"):
        ax = axes_of(figure, metric)
        for series in ("LoRA", "DeLoRA", "DoRA"):
            rows = curves.scores[(curves.scores["series"] == series) & (curves.scores["metric"] == metric)]
            assert_drawn(line_of(ax, series), rows[["multiplier", "mean"]].astype(float))
        base = line_of(ax, "_base")[:, 1]
        assert base == pytest.approx(BASE_SCORE[metric], abs=0.05)
    assert "n = 3" in words_of(figure)
    assert "base model" in words_of(figure)
    assert axes_of(figure, "dino").get_xscale() == "log"


def test_fig2_bands_are_the_intervals(results: Results) -> None:
    curves = robustness(results)
    ax = axes_of(figures.fig2_lr_robustness.draw(curves), "dino")
    (band,) = [c for c in ax.collections if c.get_label() == "_band DeLoRA"]
    corners = band.get_paths()[0].vertices
    rows = curves.scores[(curves.scores["series"] == "DeLoRA") & (curves.scores["metric"] == "dino")]
    for end in ("low", "high"):
        for x, y in rows[["multiplier", end]].astype(float).to_numpy():
            assert np.isclose(corners, (x, y)).all(axis=1).any(), (end, x, y)


def test_fig2_marks_divergence(results: Results) -> None:
    figure = figures.fig2_lr_robustness.draw(robustness(results))
    crosses = [line for line in axes_of(figure, "dino").lines if line.get_label() == "_diverged"]
    assert [list(line.get_xdata()) for line in crosses] == [[16.0]]
    assert "some runs diverged" in words_of(figure)


def test_fig2_with_one_subject_has_no_band_and_says_so(results: Results) -> None:
    figure = figures.fig2_lr_robustness.draw(robustness(results.select(subject="cat")))
    assert not [c for ax in figure.axes for c in ax.collections if str(c.get_label()).startswith("_band")]
    assert "no interval" in words_of(figure)


def test_fig2_background_is_named_and_not_repeated(results: Results) -> None:
    own, every = robustness(results.select(method="delora")), robustness(results)
    figure = figures.fig2_lr_robustness.draw(own, every)
    lines = {line.get_label(): line for line in axes_of(figure, "dino").lines}
    assert {"DeLoRA", "_LoRA", "_DoRA"} <= set(lines)
    assert "_DeLoRA" not in lines
    assert lines["_LoRA"].get_color() == lines["_DoRA"].get_color() == BACKGROUND
    assert lines["_LoRA"].get_linestyle() != lines["_DoRA"].get_linestyle()
    rows = every.scores.query("series == 'LoRA' and metric == 'dino'")
    assert_drawn(line_of(axes_of(figure, "dino"), "_LoRA"), rows[["multiplier", "mean"]].astype(float))
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [name for name in named if "LoRA (n" in name or "DoRA (n" in name] == [
        "DeLoRA (n = 3)", "LoRA (n = 3)", "DoRA (n = 3)",
    ]  # fmt: skip
    assert figure.legends[0].get_title().get_text().endswith("grey: earlier runs")
    ends = [text.get_text() for text in axes_of(figure, "distance").texts]
    assert sorted(ends) == ["DeLoRA", "DoRA", "LoRA"], "every curve has its name at its right end"


def test_fig2_plateaus_run_from_edge_to_edge_and_open_ones_are_lower_bounds(tmp_path: Path) -> None:
    shapes = {"lora": Shape(gain=-0.5), "dora": Shape(-1, 1, 0.5), "delora": Shape(-9, 9)}
    curves = robustness(load(make_runs(tmp_path, shapes=shapes)))
    strip = axes_of(figures.fig2_lr_robustness.draw(curves), "plateau")
    texts = [text.get_text() for text in strip.texts]
    assert "never above the base" in texts
    assert "≥ 6.0 [6.0, 6.0]" in texts
    assert "4.0 [3.9, 4.0]" in texts, "half of the gain: the top of 2 octaves and 1 on each slope"
    np.testing.assert_allclose(line_of(strip, "_DoRA")[:, 0], [2**-2, 2**2], rtol=1e-3)
    assert_drawn(line_of(strip, "_DeLoRA")[:, 0], strip.get_xlim())
    assert [line.get_marker() for line in strip.lines if line.get_marker() in "<>"] == ["<", ">"]


def test_fig2_a_wide_band_does_not_flatten_the_curves(tmp_path: Path) -> None:
    """Three subjects: t of two degrees of freedom is 4.3, and the band many times as high as the curves."""
    curves = robustness(load(make_runs(tmp_path, subjects=("cat", "dog", "owl"), subject_sd=0.3, noise_sd=0.02)))
    ax = axes_of(figures.fig2_lr_robustness.draw(curves), "dino")
    dino = curves.scores[curves.scores["metric"] == "dino"]
    assert (dino["high"] - dino["low"]).max() > 2 * np.ptp(ax.get_ylim())
    assert np.ptp(dino["mean"].astype(float)) > 0.3 * np.ptp(ax.get_ylim())
    assert ax.get_ylim()[0] < dino["mean"].min() < dino["mean"].max() < ax.get_ylim()[1]
    assert "bands end at a panel's edge" in words_of(ax.get_figure(root=True))


def test_fig2_a_series_of_one_point_has_a_bar_for_its_band(results: Results) -> None:
    curves = robustness(results.select(method="delora", multiplier=1.0))
    figure = figures.fig2_lr_robustness.draw(curves)
    (bar,) = [c for c in axes_of(figure, "dino").collections if c.get_label() == "_bar DeLoRA"]
    row = curves.scores[curves.scores["metric"] == "dino"].iloc[0]
    assert_drawn(bar.get_segments()[0], [(1.0, row["low"]), (1.0, row["high"])])


def test_fig2_refuses_nothing(results: Results) -> None:
    curves = robustness(results)
    with pytest.raises(BadInput, match="lr_robustness"):
        figures.fig2_lr_robustness.draw(curves._replace(scores=curves.scores.iloc[:0]))


# Figures 3, 4, 5.


def test_fig3_draws_scores_distance_and_lambda_against_steps(tmp_path: Path) -> None:
    shapes = {"lora": Shape(), "delora": Shape()}
    results = load(make_runs(tmp_path, shapes=shapes, multipliers=(1,), eval_steps=(5, 10)))
    scores, distances, lambdas = score_curve(results, "step"), gauge_curve(results), gauge_curve(results, "lambda")
    figure = figures.fig3_prolonged_training.draw(scores, distances, lambdas, base_line(results))
    rows = scores[(scores["series"] == "LoRA") & (scores["metric"] == "dino")]
    assert_drawn(line_of(axes_of(figure, "dino"), "LoRA"), rows[["step", "mean"]].astype(float))
    rows = distances[distances["series"] == "LoRA"]
    assert_drawn(line_of(axes_of(figure, "distance"), "LoRA"), rows[["step", "mean"]].astype(float))
    assert {line.get_label() for line in axes_of(figure, "lambda").lines if line.get_label()[0] != "_"} == {"DeLoRA"}
    assert line_of(axes_of(figure, "dino"), "_base")[:, 1] == pytest.approx(BASE_SCORE["dino"], abs=0.05)
    assert {"LoRA (n = 3)", "DeLoRA (n = 3)", "base model"} <= set(words_of(figure).split(" | "))
    best = scores[(scores["series"] == "LoRA") & (scores["metric"] == "dino")].iloc[1]
    assert line_of(axes_of(figure, "dino"), "_best LoRA").ravel() == pytest.approx([10, best["mean"]])
    alone = figures.fig3_prolonged_training.draw(scores, distances, None, base_line(results))
    assert "lambda" not in [ax.get_label() for ax in alone.axes]


def test_fig3_of_many_curves_keeps_its_panels_and_leaves_the_names_to_the_legend(tmp_path: Path) -> None:
    multipliers = tuple(2.0 ** np.arange(-10, 15))
    results = load(make_runs(tmp_path, shapes={"delora": Shape()}, multipliers=multipliers, subjects=("cat",), steps=4))
    curves = score_curve(results, "step"), gauge_curve(results), gauge_curve(results, "lambda"), base_line(results)
    figure = figures.fig3_prolonged_training.draw(*curves)
    figure.draw_without_rendering()
    distance = axes_of(figure, "distance")
    assert distance.get_window_extent().height / figure.dpi > 2.0, "inches"
    assert not distance.texts
    assert len(figure.legends[0].get_texts()) == 25 + 1, (
        "one evaluation only: no best step, the base's line is the last entry"
    )
    assert not [line for line in axes_of(figure, "dino").lines if str(line.get_label()).startswith("_best")]


@pytest.mark.parametrize("axis", ["columns", "rows"])
def test_fig4_bars_are_the_norms(axis: str, results: Results) -> None:
    norms = weight_norms(results, axis)
    figure = figures.fig4_weight_norms.draw(norms, axis=axis)
    before = norms[(norms["series"] == "base model") & (norms["attention"] == "attn1")]
    heights = sorted(bar.get_height() for bar in axes_of(figure, "attn1 before").patches)
    assert_drawn(heights, sorted(before["mean"].astype(float)))
    whiskers = [c for c in axes_of(figure, "attn1 before").collections if isinstance(c, LineCollection)]
    lengths = np.ptp(np.concatenate([c.get_segments() for c in whiskers])[:, :, 1], axis=1)
    assert_drawn(sorted(lengths), sorted(2 * before["sd"].astype(float)))
    assert f"mean {axis.removesuffix('s')} norm" in words_of(figure)
    dots = axes_of(figure, "attn1 after")
    drawn = np.concatenate([line.get_ydata() for line in dots.lines if line.get_linestyle() == "None"])
    after = norms[(norms["series"] != "base model") & (norms["attention"] == "attn1")]
    assert_drawn(sorted(drawn), sorted(100 * after["change"].astype(float)))


def test_fig5_draws_paired_differences(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path, shapes={"dora": Shape(high=1.0), "dora-fixed": Shape(high=0.0)}))
    curves = robustness(results)
    difference = paired_curve(subject_scores(results), "DoRA", "DoRA (fixed magnitude)")
    figure = figures.fig5_dora_magnitude.draw(curves, difference)
    bars = axes_of(figure, "difference").containers
    assert [bar.get_label() for bar in bars] == ["DINO", "CLIP-I", "CLIP-T"]
    assert_drawn(np.concatenate([bar.lines[0].get_ydata(orig=False) for bar in bars]), difference["mean"])
    ends = np.concatenate([bar.lines[2][0].get_segments() for bar in bars])[:, :, 1]
    assert_drawn(ends, difference[["low", "high"]].astype(float))
    assert "paired difference [95 %]: n = 3 pairs" in words_of(figure)


# The sheet of pictures.


def test_sheet_has_a_picture_for_every_cell(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path, multipliers=(1, 4), pictures=True))
    frame = pictures(results)
    own = dict.fromkeys(("cat", "dog", "owl"), frame["file"].iloc[0])
    figure = figures.picture_sheet.draw(frame, own)
    shown = sum(len(ax.images) for ax in figure.axes)
    assert shown == 3 * (1 + 1 + 2), "own picture, base, two multipliers for each of three subjects"
    for subject in own:
        assert subject in words_of(figure)


def test_sheet_says_scores_and_divergence(tmp_path: Path) -> None:
    shapes = {"lora": Shape(diverges_from=4.0)}
    frame = pictures(load(make_runs(tmp_path, shapes=shapes, multipliers=(1, 4), subjects=("cat",), pictures=True)))
    figure = figures.picture_sheet.draw(frame)
    (ax,) = figure.axes
    wanted = [f"{value:.2f}" for value in frame.loc[~frame["diverged"], "value"]]
    assert len(wanted) == 2
    words = [text.get_text() for text in ax.texts]
    assert set(wanted) | {"diverged", "×1", "×4", "cat"} <= set(words)
    title = figure.texts[0].get_text().split("\n")
    assert len(title) > 1, "a sheet of three tiles is too narrow for its title in one line"
    assert "a sks cat on a blue background" in " ".join(title)
    figure.draw_without_rendering()
    assert figure.texts[0].get_window_extent().x1 < figure.bbox.x1
    dashed = [patch for patch in ax.patches if patch.get_linestyle() not in ("-", "solid")]
    assert len(dashed) == 1


def test_sheet_of_a_damaged_picture_shows_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pictures(load(make_runs(tmp_path, multipliers=(1, 4), pictures=True)))
    whole = sum(len(ax.images) for ax in figures.picture_sheet.draw(frame).axes)
    path = Path(frame["file"].iloc[0])
    path.write_bytes(path.read_bytes()[:60])
    figure = figures.picture_sheet.draw(frame)
    assert sum(len(ax.images) for ax in figure.axes) == whole - 1
    assert "damaged" in words_of(figure)
    assert capsys.readouterr().err.startswith(f"{path} is broken or not a picture: ")


# Saving.


def test_saved_files_are_deterministic_and_whole(results: Results, tmp_path: Path) -> None:
    curves = robustness(results)
    first = figures.save(figures.fig2_lr_robustness.draw(curves), tmp_path / "one" / "fig")
    second = figures.save(figures.fig2_lr_robustness.draw(curves), tmp_path / "two" / "fig")
    assert [path.suffix for path in first] == [".png", ".pdf"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["fig.pdf", "fig.png"]


def test_fonts_are_matplotlibs_own_whatever_the_machine_has_or_has_cached(tmp_path: Path) -> None:
    """A list of fonts that another environment has left in the cache, with the system's fonts only."""
    code = """
import matplotlib
from matplotlib import font_manager
manager = font_manager.fontManager
manager.ttflist = [f for f in manager.ttflist if not f.fname.startswith(matplotlib.get_data_path())]
import figures.style
with figures.style.drawing():
    for family in ("DejaVu Sans", "DejaVu Sans Display", "cmr10", "cmti10"):
        found = font_manager.findfont(family, fallback_to_default=False)
        assert found.startswith(matplotlib.get_data_path()), found
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_drawing_changes_nothing_of_the_callers_own(results: Results, tmp_path: Path) -> None:
    """Settings, fonts, units, seaborn's and pandas' options: the same before and after the import, drawing and saving."""
    root = Path(results.runs["path"].iloc[0]).parents[1]
    code = f"""
import copy, warnings
import matplotlib, numpy, pandas, seaborn
from matplotlib import font_manager, units
from pandas._config import config
matplotlib.rcParams["lines.linewidth"] = 7
font_manager.fontManager.ttflist.reverse()
pandas.set_option("display.precision", 3)
def state():
    return (
        dict(matplotlib.rcParams), [font.fname for font in font_manager.fontManager.ttflist], dict(units.registry),
        seaborn.axes_style(), seaborn.plotting_context(), list(seaborn.color_palette()),
        copy.deepcopy(config._global_config), list(warnings.filters), numpy.geterr(), str(numpy.random.get_state()),
    )
before = state()
import figures
from analysis import load, robustness
from figures.note import add_note
figures.style, figures.registry
assert state() == before, "the import"
figure = figures.fig2_lr_robustness.draw(robustness(load({str(root)!r})))
add_note(figure, ["A sentence."])
assert state() == before, "drawing"
figures.save(figure, {str(tmp_path / "fig")!r})
assert state() == before, "saving"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_drift_stands_under_the_prompt_where_it_was_measured(tmp_path: Path) -> None:
    shapes = {"lora": Shape(diverges_from=8.0), "delora": Shape()}
    results = load(make_runs(tmp_path, shapes=shapes, multipliers=(1, 8), drift=True))
    curves = robustness(results)
    assert set(curves.plateaus["metric"]) == {"dino", "clip_i", "clip_t"}, "there is no plateau of it"
    drift = curves.scores[curves.scores["metric"] == "drift"].set_index(["method", "multiplier"])["mean"]
    assert drift["lora", 8.0] == pytest.approx(0.05), "a diverged run keeps its own: the base's 0 would be the best"
    assert curves.base.set_index("metric")["mean"]["drift"] == 0
    table = summary(curves)
    assert table["drift"].notna().all()
    figure = figures.fig2_lr_robustness.draw(curves)
    assert [ax.get_label() for ax in figure.axes] == ["dino", "plateau", "clip_i", "clip_t", "drift", "distance"]
    assert axes_of(figure, "drift").get_title("left") == "drift: change of other pictures"
    assert axes_of(figure, "drift").get_xlabel()
    assert not axes_of(figure, "clip_t").get_xlabel()


def test_what_is_drawn_and_written_does_not_hang_on_the_last_bits(tmp_path: Path) -> None:
    """Another instruction set sums in another order: the last bits differ, and neither bytes of tables nor of figures."""
    results = load(make_runs(tmp_path / "runs", subject_sd=0.1, noise_sd=0.02))
    written = []
    for number, noise in enumerate((0.0, 1e-14)):
        curves = Robustness(*(frame.copy() for frame in robustness(results)))
        curves.scores[["mean", "low", "high"]] *= 1 + noise
        drawn = FigureSet()
        drawn.add("fig2", figures.fig2_lr_robustness.draw(curves), curves.scores)
        drawn.tables["summary"] = curves.scores
        drawn.save(tmp_path / str(number), ("png",))
        written.append({path.name: path.read_bytes() for path in sorted((tmp_path / str(number)).iterdir())})
    assert written[0].keys() >= {"fig2.png", "fig2.csv", "summary.csv", "summary.md"}
    assert written[0] == written[1]


def test_files_do_not_hang_on_the_last_bits_of_the_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constrained layout's solver goes by addresses in memory: one draw in fifteen ended in other last bits."""
    curves = robustness(load(make_runs(tmp_path / "runs", subject_sd=0.1, noise_sd=0.02)))
    plain, written = ConstrainedLayoutEngine.execute, []
    for nudge in (0.0, 1e-14):

        def execute(self: ConstrainedLayoutEngine, fig: Figure, nudge: float = nudge) -> None:
            plain(self, fig)
            for ax in fig.axes:
                ax.set_position(Bbox(ax.get_position(original=True).get_points() + nudge))
                ax.set_in_layout(True)

        monkeypatch.setattr(ConstrainedLayoutEngine, "execute", execute)
        figure = figures.fig2_lr_robustness.draw(curves)
        written.append([path.read_bytes() for path in figures.save(figure, tmp_path / str(nudge), ("svg", "pdf"))])
    assert written[0] == written[1]
