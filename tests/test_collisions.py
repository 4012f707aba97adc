"""No text in a figure meets another or leaves the page, in any style, at any width, with long names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import figures
from analysis import (
    base_line,
    block_curves,
    gauge_curve,
    load,
    loss_curve,
    magnitude_direction,
    magnitude_direction_correlation,
    matched_prompt,
    paired_curve,
    pictures,
    plateau_by_setting,
    robustness,
    score_curve,
    score_vs_distance,
    scores_by_setting,
    sharpness_vs_rate,
    spectrum_curves,
    subject_scores,
    weight_norms,
)
from analysis.notes import notes
from analysis.results import Results
from figures.note import add_note
from figures.plateau_vs_setting import TITLES
from figures.registry import GAUGES
from figures.style import STYLES, use_style
from tests.make_controls import GOOD, make_control_rows
from tests.make_runs import Shape, make_runs

GRID = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
NAMES = {
    "lora": "LoRA with $5 of a longer name than anybody would give",
    "delora": "DeLoRA, as in the second revision of our own paper $_{x}^",
    "dora": r"\textbf{DoRA} & what_else_is_there_in_one_word_without_blanks",
    "etherplus": "ETHER+ with a boundary, a rank, and relaxed on both sides",
}
PLACES = [(name, width_in) for name, style in STYLES.items() for width_in in style.widths_in or (None,)]
TOUCH_PX = 1.0
Drawing = Callable[[], Figure]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Four methods with long names on three subjects."""
    shapes = {name: Shape(high=0.1 * number) for number, name in enumerate(NAMES)}
    more = {"pictures": True, "spectra": True, "sharpness": dict.fromkeys(NAMES, 10.0)}
    found = load(make_runs(tmp_path_factory.mktemp("runs"), shapes=shapes, multipliers=GRID, **more))
    return Results(found.all_runs.assign(label=found.all_runs["method"].map(NAMES)), found.sources)


def boxes_of(figure: Figure) -> Iterator[tuple[str, Bbox]]:
    """The box of every text that is shown: titles, labels, ticks, legends, notes; but for what lies on the data."""
    figure.draw_without_rendering()
    hidden = {label for ax in figure.axes for label in _hidden_ticks(ax)}
    for text in figure.findobj(Text):
        shown = text.get_visible() and text.get_text().strip() and text not in hidden
        if shown and text.get_text() != "never above the base":
            yield text.get_text(), Text.get_window_extent(text)  # without the line that leads to it


def _hidden_ticks(ax: Axes) -> Iterator[Text]:
    """Labels of ticks beyond the limits, which an axis keeps and does not draw."""
    for axis, ends in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not (ax.axison and min(ends) <= tick.get_loc() <= max(ends)):
                yield from (tick.label1, tick.label2)


def find_collisions(figure: Figure) -> Iterator[str]:
    """Two texts that share more than a pixel, and those that leave the figure."""
    found, page = list(boxes_of(figure)), figure.bbox.padded(TOUCH_PX)
    low, high = (np.array([getattr(box, end) for _, box in found]) for end in ("min", "max"))
    shared = (np.minimum(high[:, None], high) - np.maximum(low[:, None], low)).min(-1)
    for one, other in zip(*np.nonzero(np.triu(shared > TOUCH_PX, 1))):
        yield f"{found[one][0]!r} meets {found[other][0]!r}: {found[one][1]}, {found[other][1]}"
    for text, box in found:
        if not (page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1):
            yield f"{text!r} leaves the page: {box}"


def draw_fig2(results: Results) -> Drawing:
    return partial(figures.fig2_lr_robustness.draw, robustness(results))


def draw_fig3(results: Results) -> Drawing:
    results = results.select(multiplier=1)
    gauges = [gauge_curve(results, name) for name in ("distance_rel", "lambda")]
    return partial(figures.fig3_prolonged_training.draw, score_curve(results, x="step"), *gauges, base_line(results))


def draw_fig4(results: Results) -> Drawing:
    return partial(figures.fig4_weight_norms.draw, weight_norms(results))


def draw_fig5(results: Results) -> Drawing:
    pair = results.select(method=["lora", "dora"])
    difference = paired_curve(subject_scores(pair), NAMES["lora"], NAMES["dora"])
    return partial(figures.fig5_dora_magnitude.draw, robustness(pair), difference)


def draw_fig6(results: Results) -> Drawing:
    paths = {name: gauge_curve(results.select(method="delora"), name, by_multiplier=True) for name in GAUGES}
    return partial(figures.fig6_boundary_paths.draw, paths)


def draw_directions(results: Results) -> Drawing:
    points = magnitude_direction(results)
    return partial(figures.magnitude_direction.draw, points, magnitude_direction_correlation(points))


def draw_distances(results: Results) -> Drawing:
    distances = robustness(results).distances
    return partial(figures.ether_fig4_distances.draw, distances, distances)


def draw_settings(results: Results) -> Drawing:
    ranks = plateau_by_setting(results, {"rank": sorted(results.runs["rank"].unique())})
    others = [ranks.assign(setting=name, value=value) for name in TITLES for value in (1.0, 16.0, 0.001)]
    return partial(figures.plateau_vs_setting.draw, pd.concat(others, ignore_index=True))


def draw_rates(results: Results) -> Drawing:
    ranks = scores_by_setting(results, {"rank": sorted(results.runs["rank"].unique())})
    return partial(figures.rate_by_setting.draw, pd.concat([ranks.assign(value=value) for value in (2.0, 4.0, 8.0)]))


def draw_blocks(results: Results) -> Drawing:
    return partial(figures.norms_by_block.draw, weight_norms(results.select(multiplier=[1, 8])))


def draw_dynamics_by_block(results: Results) -> Drawing:
    return partial(figures.dynamics_by_block.draw, block_curves(results.select(multiplier=1)))


def draw_spectra(results: Results) -> Drawing:
    return partial(figures.spectra_vs_rate.draw, spectrum_curves(results))


def draw_sharpness(results: Results) -> Drawing:
    return partial(figures.sharpness_vs_rate.draw, sharpness_vs_rate(results))


def draw_around(results: Results) -> Drawing:
    return partial(figures.around_the_best.draw, robustness(results), loss_curve(results))


def draw_subjects(results: Results) -> Drawing:
    return partial(figures.scores_by_subject.draw, subject_scores(results))


def draw_against_distance(results: Results) -> Drawing:
    return partial(figures.score_vs_distance.draw, score_vs_distance(results))


def draw_controls(results: Results) -> Drawing:
    rows = make_control_rows(GOOD).groupby(["metric", "kind", "picture"])["value"].mean().reset_index()
    scores = pd.concat([rows.assign(subject=name) for name in NAMES.values()], ignore_index=True)
    verdicts = scores[["subject", "metric"]].drop_duplicates().assign(verdict="fails", real=GOOD["real"])
    return partial(figures.controls.draw, scores, verdicts)


def draw_matched(results: Results) -> Drawing:
    return partial(figures.matched_prompt.draw, matched_prompt(subject_scores(results), num_draws=50))


def draw_sheet(results: Results) -> Drawing:
    return partial(figures.picture_sheet.draw, pictures(results, step=-1), rows="series")


FIGURES: dict[str, Callable[[Results], Drawing]] = {
    "fig2_lr_robustness": draw_fig2,
    "fig3_prolonged_training": draw_fig3,
    "fig4_weight_norms": draw_fig4,
    "fig5_dora_magnitude": draw_fig5,
    "fig6_boundary_paths": draw_fig6,
    "magnitude_direction": draw_directions,
    "ether_fig4_distances": draw_distances,
    "plateau_vs_setting": draw_settings,
    "rate_by_setting": draw_rates,
    "norms_by_block": draw_blocks,
    "dynamics_by_block": draw_dynamics_by_block,
    "spectra_vs_rate": draw_spectra,
    "scores_by_subject": draw_subjects,
    "score_vs_distance": draw_against_distance,
    "matched_prompt": draw_matched,
    "controls": draw_controls,
    "sharpness_vs_rate": draw_sharpness,
    "around_the_best": draw_around,
    "picture_sheet": draw_sheet,
}


def test_every_figure_is_known_here() -> None:
    assert set(FIGURES) == set(figures.FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_long_names_meet_nothing_in_any_style_at_any_width(name: str, results: Results) -> None:
    """Numbers are made once: drawing takes all the time."""
    draw = FIGURES[name](results)
    for style, width_in in PLACES:
        with use_style(style, width_in):
            figure = draw()
            add_note(figure, notes(results))
        found = list(find_collisions(figure))
        assert not found, (style, width_in, *found)
        assert width_in is None or figure.get_figwidth() == pytest.approx(width_in)


@pytest.mark.parametrize("style", STYLES)
def test_names_are_drawn_as_they_stand(style: str, results: Results) -> None:
    """Dollars and backslashes are no mathematics: `$_{x}^` would be refused by its parser."""
    with use_style(style):
        words = " ".join(" ".join(text for text, _ in boxes_of(draw_fig2(results)())).split())
    for name in NAMES.values():
        assert name in words, name
