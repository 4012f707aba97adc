"""Controls of the scorers: what each subject's photographs score, and what must score less."""

from __future__ import annotations

from itertools import product

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adapters.errors import BadInput
from analysis.control_verdicts import FAILS, NEAR
from analysis.metrics import in_table_order, title_of
from figures.labels import fit_text, wrap
from figures.panels import place_legend
from figures.style import ALARM, GRID, INK, new_figure, num_beside, pt, room_in, styled
from figures.task_in_use import task_in_use, units

WIDTH_IN = 9.0
COLORS = {
    "real": "#0072B2", "vae": "#56B4E9", "blurred": "#7A5195", "base": "#E69F00", "same_class": "#009E73", "other": "#CC79A7",
    "shuffled": "#D55E00", "flat": "#999933", "noise": "#000000", "latent_noise": "#8C6D31",
}  # fmt: skip
MARKS = dict(zip(COLORS, "oDs^vPX<*>", strict=True))


@styled
def draw(scores: pd.DataFrame, verdicts: pd.DataFrame) -> Figure:
    """A strip a subject, a panel a score: every picture's score by kind of control; subjects whose controls fail in red.

    Args:
        scores: `analysis.control_verdicts.control_scores(results)`.
        verdicts: `analysis.judge_controls(results)`.

    Raises:
        BadInput: if nothing was measured.
    """
    if scores.empty:
        raise BadInput("no controls to draw: python -m training.controls RUNS measures them")
    metrics = in_table_order(scores["metric"].unique())
    kinds = [kind for kind in COLORS if kind in set(scores["kind"])]
    subjects = list(dict.fromkeys(scores["subject"].astype(str)))
    most_pt = 72 * pt(min(2.2, 0.25 * room_in(WIDTH_IN)))
    names = ["\n".join(wrap(name, most_pt, pt(8.5))) for name in subjects]
    lines = len(names) * max(name.count("\n") + 1 for name in names)
    beside = num_beside(len(metrics), WIDTH_IN, 3.4)
    down = -(-len(metrics) // beside)
    figure = new_figure(WIDTH_IN, 0.6 + down * (0.9 + 0.24 * lines))
    grid = figure.add_gridspec(down, beside)
    for place, metric in enumerate(metrics):
        ax = figure.add_subplot(grid[place // beside, place % beside], label=metric)
        _draw_panel(ax, scores[scores["metric"] == metric], verdicts[verdicts["metric"] == metric], subjects, kinds)
        ax.set_yticks(range(len(subjects)), names)
        failed = set(verdicts.loc[(verdicts["metric"] == metric) & (verdicts["verdict"] == FAILS), "subject"])
        for label, subject in zip(ax.get_yticklabels(), subjects, strict=True):
            label.set_color(ALARM if subject in failed else INK)
        ax.set_xlabel(f"{title_of(metric)}; bar: a quarter of the photographs'")
        ax.set_title(f"{title_of(metric)}: {len(failed)} of {len(subjects)} fail")
    controls = task_in_use().controls
    names_of = {**(controls.kinds if controls else {}), "base": "base model's pictures"}
    marks = [
        Line2D(
            [],
            [],
            ls="none",
            marker=MARKS[kind],
            color=COLORS[kind],
            ms=pt(4.5),
            label=f"{names_of[kind]} ({_count(own)})",
        )
        for kind in kinds
        if len(own := scores[scores["kind"] == kind])
    ]
    place_legend(figure, marks, f"Every point is a picture; {units()} whose controls fail are written in red")
    fit_text(figure)
    return figure


def _draw_panel(ax: Axes, scores: pd.DataFrame, verdicts: pd.DataFrame, subjects: list[str], kinds: list[str]) -> None:
    """One score: kinds a little apart within a subject's row, in the order of the legend."""
    step = 0.8 / len(kinds)
    for (number, kind), (row, subject) in product(enumerate(kinds), enumerate(subjects)):
        own = scores[(scores["kind"] == kind) & (scores["subject"] == subject)]
        height = row - 0.4 + step * (number + 0.5)
        ax.plot(
            own["value"], [height] * len(own), ls="none", marker=MARKS[kind], ms=pt(3.2), mew=0, alpha=0.75,
            color=COLORS[kind], label=f"_{kind} {subject}",
        )  # fmt: skip
    for row, subject in enumerate(subjects):
        real = verdicts.loc[verdicts["subject"] == subject, "real"]
        if len(real) and real.notna().all():
            ax.plot([NEAR * real.iloc[0]] * 2, [row - 0.4, row + 0.4], color=INK, lw=pt(1.0), label=f"_near {subject}")
        ax.axhline(row + 0.5, color=GRID, lw=pt(0.7))
    ax.grid(visible=False, axis="y")
    ax.set_ylim(len(subjects) - 0.5, -0.5)


def _count(rows: pd.DataFrame) -> str:
    """How many pictures of a kind a row has, as `n = 5`, or `n = 4 to 6`."""
    counts = rows.groupby(["subject", "metric"], observed=True).size()
    low, high = int(counts.min()), int(counts.max())
    return f"n\u00a0=\u00a0{high}" if low == high else f"n\u00a0=\u00a0{low} to {high}"
