"""The subjects behind each mean: every subject's score at its method's best rate, and their spread."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from adapters.errors import BadInput
from analysis.metrics import headline_of, signs_of, title_of
from figures.labels import fit_text, wrap
from figures.looks import looks
from figures.style import INK, multiplier_text, new_figure, pt, room_in, styled
from figures.task_in_use import unit

WIDTH_IN = 7.0
LEAST_BOXEN = 8  # fewer subjects than that are points alone


@styled
def draw(scores: pd.DataFrame, metric: str | None = None) -> Figure:
    """One row a series at the multiplier with its best mean: a point a subject, letter-value boxes, a bar at the mean.

    Args:
        scores: `analysis.subject_scores(results)`.
        metric: the score; None: the headline of those in the frame.

    Raises:
        BadInput: if there is nothing to draw.
    """
    metric = metric or headline_of(scores)
    rows = at_best(scores[scores["metric"] == metric])
    if rows.empty:
        raise BadInput("no finished run to draw: run python sweeps/lr_robustness.py first")
    most_pt = 72 * pt(min(2.6, 0.3 * room_in(WIDTH_IN)))
    names = {name: "\n".join(wrap(name, most_pt, pt(8.5))) for name in rows["row"].unique()}
    colors = {names[row]: looks(rows)[series].color for row, series in zip(rows["row"], rows["series"], strict=True)}
    lines = len(names) * max(2, *(name.count("\n") + 1 for name in names.values()))  # rows are equally high
    figure = new_figure(WIDTH_IN, 0.9 + 0.22 * lines)
    ax = figure.add_subplot(label=metric)
    rows = rows.assign(row=rows["row"].map(names))
    place = {"data": rows, "x": "value", "y": "row", "hue": "row", "palette": colors, "ax": ax, "legend": False}
    if rows.groupby("row").size().min() >= LEAST_BOXEN:
        sns.boxenplot(**place, alpha=0.25, showfliers=False, linewidth=pt(0.6))
    sns.stripplot(**place, jitter=False, alpha=0.7, size=pt(5))
    means = rows.groupby("row", sort=False)["value"].mean()
    ax.plot(means, means.index, ls="none", marker="|", ms=pt(17), mew=pt(2), color=INK, zorder=5, label="_means")
    ax.set_ylim(len(names) - 0.5, -0.5)  # as much room at both ends as between rows
    ax.set(xlabel=f"{title_of(metric)} at the best multiplier; bar: mean, line: median, box: quartiles", ylabel="")
    ax.set_title(f"Every point is a {unit()}")
    fit_text(figure)
    return figure


def at_best(scores: pd.DataFrame) -> pd.DataFrame:
    """A score's rows at every series' multiplier with its best mean, `row` being the series with that multiplier and its n."""
    upright = scores.assign(value=scores["value"] * signs_of(scores["metric"]))
    means = upright.groupby(["series", "multiplier"], sort=False, observed=True)["value"].mean()
    best = {series: part.idxmax()[1] for series, part in means.groupby(level="series", sort=False)}
    kept = scores[scores["multiplier"] == scores["series"].map(best)]
    counts = kept.groupby("series")["subject"].transform("nunique")
    row = [
        f"{series}, ×{multiplier_text(best[series])} (n\u00a0=\u00a0{count})"
        for series, count in zip(kept["series"], counts, strict=True)
    ]
    return kept.assign(row=row)
