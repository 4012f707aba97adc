"""Fig. 3 of the DeLoRA paper: score, distance and lambda when training continues long after the optimum.

The paper's claim: DeLoRA moves away quickly until it reaches its boundary and stays there; LoRA goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from adapters.errors import BadInput
from analysis.metrics import describe_metric, main_scores, sign_of, title_of
from figures.labels import End, fit_text, from_zero
from figures.looks import Look, looks
from figures.panels import draw_base_line, draw_curves, draw_legend, limit_to_means
from figures.style import MUTED, new_figure, pt, room_in, styled
from figures.task_in_use import task_of

WIDTH_IN = 9.2


@styled
def draw(
    scores: pd.DataFrame,
    distances: pd.DataFrame,
    lambdas: pd.DataFrame | None,
    base: pd.DataFrame,
    *,
    matrix: str = "mean over matrices",
) -> Figure:
    """The task's two main scores (DINO over CLIP-T), and distance over lambda, against the training step.

    Args:
        scores: `analysis.score_curve(results, "step")`.
        distances: `analysis.gauge_curve(results)`.
        lambdas: `analysis.gauge_curve(results, "lambda")`; None or empty leaves its panel out.
        base: `analysis.base_line(results)`.
        matrix: which matrix the distances are of, for the label.

    Raises:
        BadInput: if there is nothing to draw.
    """
    if scores.empty:
        raise BadInput("no finished run to draw: run python sweeps/prolonged_training.py first")
    styles = looks(pd.concat([scores, distances]))
    has_lambda = lambdas is not None and len(lambdas) > 0
    beside = room_in(WIDTH_IN) >= 6.0
    metrics = main_scores(task_of(scores["metric"].unique()))
    figure, places = _new_panels(metrics, has_lambda, beside)
    for metric in metrics:
        ax = figure.add_subplot(places[metric], label=metric)
        _draw_scores(ax, scores[scores["metric"] == metric], base, metric, styles)
        if metric == metrics[0]:
            _mark_best(ax, scores[scores["metric"] == metric], sign_of(metric), styles)
    distance = figure.add_subplot(places["distance"], label="distance")
    _draw_gauge(distance, distances, styles, f"distance ‖Wₜ − W₀‖ / ‖W₀‖, {matrix}")
    distance.set_ylim(bottom=0)
    gauges = {distance: distances}
    if lambdas is not None and has_lambda:
        gauges[figure.add_subplot(places["lambda"], label="lambda")] = lambdas
        _draw_gauge(figure.axes[-1], lambdas, styles, f"λ, {matrix}")
        from_zero(figure.axes[-1])
    last = float(max(scores["step"].max(), distances["step"].max() if len(distances) else 0))
    for ax in figure.axes:
        ax.set_xlim(-0.02 * last, 1.02 * last)
        ax.set_xlabel("training step")
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    best = f"best step by {title_of(metrics[0])}"
    ring = Line2D([], [], ls="none", marker="o", ms=pt(10), mfc="none", mew=pt(1.3), color=MUTED, label=best)
    draw_legend(figure, scores, styles, marks=[ring] if scores["step"].nunique() > 1 else [])
    named = {ax: _ends(curves, styles) for ax, curves in gauges.items()}
    fit_text(figure, named if beside else None)
    return figure


def _new_panels(metrics: Sequence[str], has_lambda: bool, beside: bool) -> tuple[Figure, dict[str, SubplotSpec]]:
    """The figure and the place of each panel: the scores at the left, distance and lambda at the right, or all in one column."""
    if not beside:
        names = [*metrics, "distance", *(["lambda"] if has_lambda else [])]
        figure = new_figure(WIDTH_IN, 0.6 + 2.3 * len(names))
        column = figure.add_gridspec(len(names), 1)
        return figure, {name: column[row] for row, name in enumerate(names)}
    figure = new_figure(WIDTH_IN, 5.6)
    grid = figure.add_gridspec(2, 2, height_ratios=[1.5, 1.0], width_ratios=[1.0, 1.0])
    right = {"distance": grid[0, 1], "lambda": grid[1, 1]} if has_lambda else {"distance": grid[:, 1]}
    left = [grid[0, 0], grid[1, 0]] if len(metrics) > 1 else [grid[:, 0]]
    return figure, {**dict(zip(metrics, left, strict=True)), **right}


def _draw_scores(ax: Axes, scores: pd.DataFrame, base: pd.DataFrame, metric: str, styles: dict[str, Look]) -> None:
    draw_curves(ax, scores, "step", styles)
    draw_base_line(ax, base, metric)
    limit_to_means(ax, [scores], float(base.set_index("metric")["mean"].get(metric, np.nan)))
    ax.set_title(describe_metric(metric, task_of([metric])))


def _mark_best(ax: Axes, scores: pd.DataFrame, sign: float, styles: dict[str, Look]) -> None:
    """A ring around every series' best mean of several, among the steps before any run diverged; -1 where less is better."""
    for series, curve in scores.groupby("series", sort=False):
        whole = curve[curve["num_diverged"] == 0]
        if whole.empty or len(curve) == 1:
            continue
        best = whole.loc[(sign * whole["mean"]).idxmax()]
        ring: dict[str, Any] = {"ms": pt(12), "color": styles[str(series)].color, "label": f"_best {series}"}
        ax.plot(
            [best["step"]],
            [best["mean"]],
            ls="none",
            marker="o",
            mfc="none",
            mew=pt(1.3),
            zorder=6,
            clip_on=False,
            **ring,
        )


def _draw_gauge(ax: Axes, curve: pd.DataFrame, styles: dict[str, Look], title: str) -> None:
    draw_curves(ax, curve, "step", styles, markers=False)
    if len(curve):
        limit_to_means(ax, [curve])
    ax.set_title(title)


def _ends(curves: pd.DataFrame, styles: dict[str, Look]) -> list[End]:
    """Where every series' curve ends, with its name and colour."""
    return [
        (*_last(curve), str(name), styles[str(name)].color) for name, curve in curves.groupby("series", sort=False)
    ][::-1]


def _last(curve: pd.DataFrame) -> tuple[float, float]:
    row = curve.sort_values("step").iloc[-1]
    return float(row["step"]), float(row["mean"])
