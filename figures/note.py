"""Write notes below a figure, in a strip of its own."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from figures.labels import wrap
from figures.style import MUTED, drawing, pt

SIZE_PT, MARGIN_PT, SPACING = 7.0, 5.0, 1.25


def add_note(figure: Figure, sentences: Sequence[str]) -> None:
    """Make a figure that lays itself out higher, and write sentences into the new strip at its foot."""
    engine = figure.get_layout_engine()
    if not sentences or not isinstance(engine, ConstrainedLayoutEngine):
        return
    width = figure.get_figwidth() * 72 - 2 * pt(MARGIN_PT)
    lines = [line for sentence in sentences for line in wrap(sentence, width, pt(SIZE_PT))]
    more = (len(lines) * SPACING * pt(SIZE_PT) + 2 * pt(MARGIN_PT)) / 72
    height = figure.get_figheight() + more
    figure.set_figheight(height)
    engine.set(rect=(0, more / height, 1, 1 - more / height))
    with drawing():
        figure.text(
            pt(MARGIN_PT) / 72 / figure.get_figwidth(), pt(MARGIN_PT) / 72 / height, "\n".join(lines), fontsize=pt(SIZE_PT),
            linespacing=SPACING, color=MUTED, va="bottom", parse_math=False,
        )  # fmt: skip
