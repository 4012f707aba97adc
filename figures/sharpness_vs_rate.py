"""Do methods whose loss is sharper at the start have a lower best rate? Sharpness against best rate (arXiv 2602.04998)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from adapters.errors import BadInput
from analysis.metrics import title_of
from analysis.sharpness_vs_rate import SharpnessVsRate
from figures.labels import fit_text
from figures.looks import looks
from figures.panels import draw_legend, plain_log_axis
from figures.style import new_figure, pt, styled
from figures.task_in_use import task_in_use, units

WIDTH_IN = 6.2


@styled
def draw(found: SharpnessVsRate, metric: str | None = None) -> Figure:
    """One mark a series at its geometric means with intervals over subjects, a dot a subject, log axes.

    Args:
        found: what `analysis.sharpness_vs_rate` returned.
        metric: the score by which rates are best there; None: the headline of the task in use.

    Raises:
        BadInput: if no sharpness was measured.
    """
    if found.points.empty:
        raise BadInput("no run that has measured its sharpness: run python sweeps/lr_robustness.py --sharpness-steps 1")
    styles = looks(found.means)
    figure = new_figure(WIDTH_IN, 4.6)
    ax = figure.add_subplot(label="sharpness")
    plain_log_axis(ax, found.points["sharpness"], "x")
    plain_log_axis(ax, found.points["best_lr"])
    for row in found.means.itertuples():
        name = str(row.series)
        look, own = styles[name], found.points[found.points["series"] == row.series]
        ax.plot(own["sharpness"], own["best_lr"], ls="none", marker=".", ms=pt(4), mew=0, alpha=0.5, color=look.color,
                label=f"_subjects {name}")  # fmt: skip
        if row.num_subjects > 2:
            ax.hlines(
                row.best_lr, row.sharpness_low, row.sharpness_high, color=look.color, lw=pt(1.2), label=f"_x {name}"
            )
            ax.vlines(
                row.sharpness, row.best_lr_low, row.best_lr_high, color=look.color, lw=pt(1.2), label=f"_y {name}"
            )
        ax.plot([row.sharpness], [row.best_lr], ls="none", color=look.color, label=name, zorder=4, **look.marks())
    ax.set_xlabel("sharpness at the start: largest eigenvalue of the loss's Hessian")
    ax.set_ylabel(f"learning rate of the best {title_of(metric or task_in_use().headline.name)}")
    counts = found.means[["series", "num_subjects"]].assign(num_diverged=0)
    draw_legend(figure, counts, styles, title=correlation_text(found), base=False)
    fit_text(figure)
    return figure


def correlation_text(found: SharpnessVsRate) -> str:
    """The rank correlation in words, and what marks and bars are."""
    bars = " and 95 % intervals" if found.means["num_subjects"].max() > 2 else ""
    text = f"Geometric means{bars} over {units()}, dots: {units()}."
    edges = int(found.means["num_at_edge"].sum())
    if edges:
        text += f" {edges} of {len(found.points)} best rates lie at an end of what was tried."
    if found.correlation.empty:
        return f"{text} Too few methods for a rank correlation"
    row = found.correlation.iloc[0]
    ends = f" [{row['low']:.2f}, {row['high']:.2f}]" if np.isfinite(row["low"]) and row["num_subjects"] > 2 else ""
    return f"{text} Rank correlation over {row['num_series']:g} methods: {row['rho']:.2f}{ends}, n = {row['num_subjects']:g}"
