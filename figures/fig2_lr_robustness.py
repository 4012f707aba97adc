"""Fig. 2 of the DeLoRA paper: scores and weight distances against the learning rate's multiplier.

The paper's claim: LoRA and DoRA degrade from 4x on, LoRA's distance keeps growing, DoRA's stops, DeLoRA stays.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adapters import BadInput
from analysis import Robustness
from figures.labels import label_ends
from figures.panels import (
    draw_background,
    draw_base_line,
    draw_curves,
    draw_legend,
    draw_plateaus,
    limit_to_means,
    plain_log_axis,
)
from figures.style import METRIC_TITLES, MUTED, Look, looks, multiplier_axis, new_figure, pt, styled


@styled
def draw(curves: Robustness, background: Robustness | None = None, *, tolerance: float = 0.05) -> Figure:
    """DINO with its plateaus; CLIP-I, CLIP-T and (where it was measured) drift; and the distance; against the multiplier.

    Args:
        curves: what `analysis.robustness` returned.
        background: the same of other runs of the same model, drawn behind in grey; series of the same name are left out.
        tolerance: with which the plateaus were measured, for the label.

    Raises:
        BadInput: if there is nothing to draw.
    """
    if curves.scores.empty:
        raise BadInput("no finished run to draw: run python sweeps/lr_robustness.py first")
    behind = _without(background, set(curves.scores["series"]))
    styles = looks(pd.concat([curves.scores, *([behind.scores] if behind else [])]))
    dino = curves.plateaus[curves.plateaus["metric"] == "dino"]
    beside = [metric for metric in METRIC_TITLES if metric != "dino" and metric in set(curves.scores["metric"])]
    figure = new_figure(11.0, 2.7 + 0.8 * len(beside) + 0.19 * len(dino), wspace=0.06)
    grid = figure.add_gridspec(len(beside), 3, width_ratios=[1.55, 1.0, 1.15])
    left = grid[:, 0].subgridspec(2, 1, height_ratios=[8, 0.5 + 0.5 * len(dino)], hspace=0.06)
    axes = {
        "dino": figure.add_subplot(left[0]),
        "plateau": figure.add_subplot(left[1]),
        **{metric: figure.add_subplot(grid[row, 1]) for row, metric in enumerate(beside)},
        "distance": figure.add_subplot(grid[:, 2]),
    }
    for name, ax in axes.items():
        ax.set_label(name)
        multiplier_axis(ax, curves.scores["multiplier"])
    for metric in ("dino", *beside):
        _draw_scores(axes[metric], metric, curves, behind, styles)
    _draw_plateau_strip(axes["dino"], axes["plateau"], dino, styles, tolerance)
    for metric in beside[:-1]:
        axes[metric].set_xlabel("")
    _draw_distances(axes["distance"], curves, behind, styles)
    draw_legend(figure, curves.scores, styles, behind=behind.scores if behind else None)
    _label_series(axes["distance"], curves, behind, styles)
    return figure


def _without(background: Robustness | None, drawn: set[str]) -> Robustness | None:
    if background is None:
        return None
    kept = Robustness(*(f[~f["series"].isin(drawn)] if "series" in f else f for f in background))
    return kept if len(kept.scores) else None


def _draw_scores(ax: Axes, metric: str, curves: Robustness, behind: Robustness | None, styles: dict[str, Look]) -> None:
    scores = curves.scores[curves.scores["metric"] == metric]
    if behind is not None:
        draw_background(ax, _on_grid(behind.scores[behind.scores["metric"] == metric], scores), "multiplier", styles)
    draw_curves(ax, scores, "multiplier", styles)
    draw_base_line(ax, curves.base, metric, label=metric == "dino")
    grey = [behind.scores.loc[behind.scores["metric"] == metric, ["mean"]]] if behind else []
    limit_to_means(ax, [scores, *grey], float(curves.base.set_index("metric")["mean"].get(metric, np.nan)))
    meanings = {"clip_t": "likeness to the prompt", "drift": "change of other pictures"}
    ax.set_title(f"{METRIC_TITLES[metric]}: {meanings.get(metric, 'likeness to the subject')}")


def _draw_plateau_strip(ax: Axes, strip: Axes, dino: pd.DataFrame, styles: dict[str, Look], tolerance: float) -> None:
    """The plateaus' bars share DINO's x axis and stand on it."""
    ax.set_xlabel("")
    ax.tick_params(labelbottom=False, bottom=False)
    strip.spines["left"].set_visible(False)
    strip.grid(True, axis="x")
    draw_plateaus(strip, dino, styles)
    strip.grid(True, axis="x")
    several = (dino["num_subjects"] > 2).any()
    heads = {
        0: f"plateau: ≥ {100 * (1 - tolerance):g} % of the best gain",
        1.03: "octaves" + (" [95 %]" if several else ""),
    }
    for x, text in heads.items():
        strip.text(x, 1.02, text, transform=strip.transAxes, fontsize=pt(7.5), color=MUTED, va="bottom")


def _draw_distances(ax: Axes, curves: Robustness, behind: Robustness | None, styles: dict[str, Look]) -> None:
    shown = [
        curves.distances,
        *([_on_grid(behind.distances, curves.distances)[["series", "multiplier", "mean"]]] if behind else []),
    ]
    plain_log_axis(ax, pd.concat([frame["mean"] for frame in shown]))
    draw_background(ax, shown[1] if behind else None, "multiplier", styles)
    draw_curves(ax, curves.distances, "multiplier", styles)
    limit_to_means(ax, shown)
    ax.set_title("distance ‖W$_t$ − W$_0$‖ / ‖W$_0$‖")


def _on_grid(frame: pd.DataFrame, shown: pd.DataFrame) -> pd.DataFrame:
    """Background points beyond the axis' limits would widen it."""
    low, high = shown["multiplier"].min(), shown["multiplier"].max()
    return frame[frame["multiplier"].between(low / 1.2, high * 1.2)]


def _label_series(ax: Axes, curves: Robustness, behind: Robustness | None, styles: dict[str, Look]) -> None:
    """Every series' name at the right end of its distance, the ones behind in grey."""
    ends = [
        (*_last(curve), str(series), styles[str(series)].color)
        for series, curve in curves.distances.groupby("series", sort=False)
    ]
    if behind is not None:
        shown = _on_grid(behind.distances, curves.distances)
        ends += [(*_last(curve), str(series), MUTED) for series, curve in shown.groupby("series", sort=False)]
    label_ends(ax, ends[::-1])  # ends that meet are labelled from above in the legend's order


def _last(curve: pd.DataFrame) -> tuple[float, float]:
    row = curve.sort_values("multiplier").iloc[-1]
    return float(row["multiplier"]), float(row["mean"])
