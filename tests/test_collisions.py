"""No text in a figure meets another or leaves the page, in any style, at any width, with long names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from analysis import load, robustness
from analysis.load import Results
from analysis.notes import notes
from figures import fig2_lr_robustness
from figures.note import add_note
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
            yield text.get_text(), text.get_window_extent()


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
    return fig2_lr_robustness.draw(robustness(results))


@pytest.mark.parametrize("draw", [draw_fig2])
@pytest.mark.parametrize("width_in", WIDTHS)
@pytest.mark.parametrize("style", STYLES)
def test_long_names_meet_nothing(
    draw: Callable[[Results], Figure], width_in: float, style: str, results: Results
) -> None:
    with use_style(style, width_in):
        figure = draw(results)
        add_note(figure, notes(results))
    assert_apart(figure, width_in)


@pytest.mark.parametrize("style", STYLES)
def test_names_are_drawn_as_they_stand(style: str, results: Results) -> None:
    """Dollars and backslashes are no mathematics: `$_{x}^` would be refused by its parser."""
    with use_style(style):
        words = " ".join(" ".join(text for text, _ in boxes_of(draw_fig2(results))).split())
    for name in NAMES.values():
        assert name in words, name
