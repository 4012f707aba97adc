"""No text in a figure meets another or leaves the page, in any style, at any width, with long names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import figures
from analysis import (
    base_line,
    gauge_curve,
    load,
    magnitude_direction,
    magnitude_direction_correlation,
    paired_curve,
    pictures,
    plateau_by_setting,
    robustness,
    score_curve,
    score_vs_distance,
    scores_by_setting,
    subject_scores,
    weight_norms,
)
from analysis.load import Results
from analysis.notes import notes
from figures.gallery import GAUGES
from figures.note import add_note
from figures.plateau_vs_setting import TITLES
from figures.style import STYLES, use_style
from tests.make_runs import Shape, make_runs

GRID = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
NAMES = {
    "lora": "LoRA with $5 of a longer name than anybody would give",
    "delora": "DeLoRA, as in the second revision of our own paper $_{x}^",
    "dora": r"\textbf{DoRA} & what_else_is_there_in_one_word_without_blanks",
    "etherplus": "ETHER+ with a boundary, a rank, and relaxed on both sides",
}
WIDTHS = (3.5, 5.2, 7.16)
TOUCH_PX = 1.0


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Four methods with long names on three subjects."""
    shapes = {name: Shape(high=0.1 * number) for number, name in enumerate(NAMES)}
    found = load(make_runs(tmp_path_factory.mktemp("runs"), shapes=shapes, multipliers=GRID, pictures=True))
    return Results(found.all_runs.assign(label=found.all_runs["method"].map(NAMES)), found.sources)


def boxes_of(figure: Figure) -> Iterator[tuple[str, Bbox]]:
    """The box of every text that is shown: titles, labels, ticks, legends, notes; the base's name lies on the data."""
    figure.draw_without_rendering()
    hidden = {label for ax in figure.axes for label in _hidden_ticks(ax)}
    for text in figure.findobj(Text):
        shown = text.get_visible() and text.get_text().strip() and text not in hidden
        if shown and text.get_text() not in ("untouched base", "never above the base"):
            yield text.get_text(), Text.get_window_extent(text)  # without the line that leads to it


def _hidden_ticks(ax: Axes) -> Iterator[Text]:
    """Labels of ticks beyond the limits, which an axis keeps and does not draw."""
    for axis, ends in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not (ax.axison and min(ends) <= tick.get_loc() <= max(ends)):
                yield from (tick.label1, tick.label2)


def assert_apart(figure: Figure, width_in: float) -> None:
    """No two texts share more than a pixel, and none leaves the figure."""
    found, page = list(boxes_of(figure)), figure.bbox
    assert figure.get_figwidth() == pytest.approx(width_in)
    for (one, a), (other, b) in combinations(found, 2):
        shared = Bbox.intersection(a, b)
        if shared is not None and min(shared.width, shared.height) > TOUCH_PX:
            raise AssertionError(f"{one!r} meets {other!r}: {shared}")
    for text, box in found:
        assert page.x0 - TOUCH_PX <= box.x0, text
        assert box.x1 <= page.x1 + TOUCH_PX, text
        assert page.y0 - TOUCH_PX <= box.y0, text
        assert box.y1 <= page.y1 + TOUCH_PX, text


def draw_fig2(results: Results) -> Figure:
    return figures.fig2_lr_robustness.draw(robustness(results))


def draw_fig3(results: Results) -> Figure:
    results = results.select(multiplier=1)
    gauges = [gauge_curve(results, name) for name in ("distance_rel", "lambda")]
    return figures.fig3_prolonged_training.draw(score_curve(results, x="step"), *gauges, base_line(results))


def draw_fig5(results: Results) -> Figure:
    pair = results.select(method=["lora", "dora"])
    difference = paired_curve(subject_scores(pair), NAMES["lora"], NAMES["dora"])
    return figures.fig5_dora_magnitude.draw(robustness(pair), difference)


def draw_fig6(results: Results) -> Figure:
    return figures.fig6_boundary_paths.draw(
        {name: gauge_curve(results.select(method="delora"), name, by_multiplier=True) for name in GAUGES}
    )


def draw_directions(results: Results) -> Figure:
    points = magnitude_direction(results)
    return figures.magnitude_direction.draw(points, magnitude_direction_correlation(points))


def draw_distances(results: Results) -> Figure:
    distances = robustness(results).distances
    return figures.ether_fig4_distances.draw(distances, distances)


def draw_settings(results: Results) -> Figure:
    ranks = plateau_by_setting(results, {"rank": sorted(results.runs["rank"].unique())})
    others = [ranks.assign(setting=name, value=value) for name in TITLES for value in (1.0, 16.0, 0.001)]
    return figures.plateau_vs_setting.draw(pd.concat(others, ignore_index=True))


def draw_rates(results: Results) -> Figure:
    ranks = scores_by_setting(results, {"rank": sorted(results.runs["rank"].unique())})
    return figures.rate_by_setting.draw(pd.concat([ranks.assign(value=value) for value in (2.0, 4.0, 8.0)]))


FIGURES: dict[str, Callable[[Results], Figure]] = {
    "fig2_lr_robustness": draw_fig2,
    "fig3_prolonged_training": draw_fig3,
    "fig4_weight_norms": lambda results: figures.fig4_weight_norms.draw(weight_norms(results)),
    "fig5_dora_magnitude": draw_fig5,
    "fig6_boundary_paths": draw_fig6,
    "magnitude_direction": draw_directions,
    "ether_fig4_distances": draw_distances,
    "plateau_vs_setting": draw_settings,
    "rate_by_setting": draw_rates,
    "norms_by_block": lambda results: figures.norms_by_block.draw(weight_norms(results.select(multiplier=[1, 8]))),
    "scores_by_subject": lambda results: figures.scores_by_subject.draw(subject_scores(results)),
    "score_vs_distance": lambda results: figures.score_vs_distance.draw(score_vs_distance(results)),
    "picture_sheet": lambda results: figures.picture_sheet.draw(pictures(results, step=-1), rows="series"),
}


# Not measured yet at every width, so not promised.
OPEN = {
    "fig4_weight_norms",
    "magnitude_direction",
    "ether_fig4_distances",
    "plateau_vs_setting",
    "score_vs_distance",
}


def test_every_figure_is_known_here() -> None:
    assert set(FIGURES) == set(figures.FIGURES)


def assert_meets_nothing(name: str, width_in: float | None, style: str, results: Results) -> None:
    with use_style(style, width_in):
        figure = FIGURES[name](results)
        add_note(figure, notes(results))
    assert_apart(figure, width_in or figure.get_figwidth())


@pytest.mark.parametrize("width_in", WIDTHS)
@pytest.mark.parametrize("name", sorted(FIGURES.keys() - OPEN))
def test_long_names_meet_nothing_on_paper(name: str, width_in: float, results: Results) -> None:
    assert_meets_nothing(name, width_in, "paper", results)


def test_long_names_meet_nothing_on_the_screen(results: Results) -> None:
    """At the width that the style has of its own."""
    assert_meets_nothing("fig2_lr_robustness", None, "screen", results)


@pytest.mark.parametrize("style", STYLES)
def test_names_are_drawn_as_they_stand(style: str, results: Results) -> None:
    """Dollars and backslashes are no mathematics: `$_{x}^` would be refused by its parser."""
    with use_style(style):
        words = " ".join(" ".join(text for text, _ in boxes_of(draw_fig2(results))).split())
    for name in NAMES.values():
        assert name in words, name
