"""Beyond the papers: likeness against what it costs in prompt and in drift, and how much is gained where the cost is the same.

A peak shows how much of the prompt was given up as much as how good a method is; at the same loss of prompt methods compare.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from adapters.errors import BadInput
from adapters.method_words import BASE_MODEL
from analysis.matched_prompt import MatchedPrompt
from analysis.metrics import side_effect_names, title_of
from figures.labels import add_subtitle, fit_text
from figures.looks import Look, looks
from figures.panels import draw_legend
from figures.style import ALARM, INK, MUTED, new_figure, num_beside, pt, room_in, styled
from figures.task_in_use import task_of, unit, units
from training.task_kinds import TaskKind

WIDTH_IN = 11.0
LEAST_SUBJECTS = 3  # that an interval is drawn from
LEAST_SPAN = 0.1  # of the axis of bars: series that are alike are drawn so
MOST_BANDS = 4  # beyond so many fronts bands hide each other
SIDE_EFFECT = "side effect"  # the panel of one; of several a task's first is shown
ROOM_OF_NUMBERS_IN = 8.4  # a narrower figure has no numbers beside bars
NUMBERS, NUMBERS_PT = "numbers", 7.5  # what marks the numbers beside bars, and their size
BARS = ("gain", "difference")


@styled
def draw(data: MatchedPrompt) -> Figure:
    """The paths over the learning rates, DINO against loss of CLIP-T and drift (or what else the task has); fronts, their means.

    A mark is a learning rate, a line joins neighbouring ones, beginning at the base model. A front is dotted where no rate was
    tried: before a path's smallest loss and beyond its largest.

    Args:
        data: what `analysis.matched_prompt.matched_prompt` returned.

    Raises:
        BadInput: if there is nothing to draw.
    """
    if data.paths.empty:
        raise BadInput("no finished run to draw: run python sweeps/lr_robustness.py with several methods first")
    styles = looks(data.paths)
    titles = _titles(data)
    names = list(titles)
    beside = num_beside(3, WIDTH_IN, 3.0)
    bars_in = 1.1 + 0.19 * data.paths["series"].nunique()
    rows = [names[start : start + beside] for start in range(0, len(names), beside)]
    heights = [bars_in if set(row) <= set(BARS) else 2.9 for row in rows]
    figure = new_figure(WIDTH_IN, 0.6 + sum(heights), wspace=0.05)
    grid = figure.add_gridspec(len(rows), 1, height_ratios=heights)
    for down, row in enumerate(rows):
        panels = grid[down].subgridspec(1, len(row))  # numbers beside bars take no room from other rows
        for place, name in enumerate(row):
            label = side_effect_of(data) if name == SIDE_EFFECT else name
            ax = figure.add_subplot(panels[place], label=label)
            ax.set_title(titles[name])
            DRAWN[name](ax, data, styles)
    base = Line2D([], [], ls="none", marker="o", ms=pt(7), mfc="white", mec=INK, label=BASE_MODEL)
    draw_legend(figure, data.paths, styles, marks=[base], base=False, title=interval_text(data))
    fit_text(figure)
    for ax in figure.axes:
        _drop_crowded(ax)
    return figure


def _drop_crowded(ax: Axes) -> None:
    """Leave the numbers beside bars out where a page has no room for their lines; the tables have them."""
    numbers = [text for text in ax.texts if text.get_gid() == NUMBERS]
    height = ax.get_window_extent().height * 72 / ax.figure.dpi
    if numbers and height < 2 * pt(NUMBERS_PT) * len(numbers):
        for text in numbers:
            text.remove()


def _kind(data: MatchedPrompt) -> TaskKind:
    return task_of(data.paths.columns)


def _headline(data: MatchedPrompt) -> str:
    return _kind(data).headline.title


def _prompt(data: MatchedPrompt) -> str:
    return title_of(_kind(data).prompt_metric)


def _titles(data: MatchedPrompt) -> dict[str, str]:
    """The panels that there is something for, with their titles."""
    other = side_effect_of(data)
    titles = {
        "loss": f"{_headline(data)} and the loss of {_prompt(data)}",
        "front": f"best gain by loss of {_prompt(data)}",
    }
    titles |= {SIDE_EFFECT: f"{_headline(data)} and {title_of(other)}"} if other else {}
    titles |= {"gain": "mean gain over the front"}
    return titles | ({} if data.differences.empty else {"difference": f"difference of mean gains, paired by {unit()}"})


def side_effect_of(data: MatchedPrompt) -> str:
    """The task's first side effect that was measured; "" where none was."""
    names = [name for name in side_effect_names(_kind(data)) if name in data.paths]
    return next((name for name in names if data.paths[name].notna().any()), "")


def interval_text(data: MatchedPrompt) -> str:
    """What bands and bars are, or why there are none."""
    most = int(data.paths["num_subjects"].max())
    if most < LEAST_SUBJECTS:
        return f"One {unit()}: no interval" if most < 2 else f"Means of two {units()}: no interval"
    bands = "bands and bars" if _has_bands(data) else "bars"
    return f"Means over {units()}, a mark a learning rate; {bands}: 95 % bootstrap intervals over {units()}"


def _draw_losses(ax: Axes, data: MatchedPrompt, styles: dict[str, Look]) -> None:
    """The headline along every path against the loss of prompt; what the fronts are taken from is shaded."""
    ax.axvspan(0, 100 * _largest(data), color=INK, alpha=0.06, lw=0, zorder=0, label="_range")
    _draw_paths(ax, data, 100 * data.paths["loss"], styles)
    ax.set(xlabel=_loss_label(data), ylabel=_headline(data))
    add_subtitle(ax, f"shaded: losses up to {100 * _largest(data):g} %, over which the fronts are compared")


def _draw_side_effect(ax: Axes, data: MatchedPrompt, styles: dict[str, Look]) -> None:
    """The headline along every path against the side effect."""
    name = side_effect_of(data)
    _draw_paths(ax, data, data.paths[name], styles)
    ax.set(xlabel=f"{title_of(name)}: change of pictures of other prompts", ylabel=_headline(data))


def _loss_label(data: MatchedPrompt) -> str:
    return f"loss of {_prompt(data)}, % of the base model's"


def _draw_paths(ax: Axes, data: MatchedPrompt, x: pd.Series, styles: dict[str, Look]) -> None:
    """Every path's headline against something that its points have; those that lack it are left out."""
    score = _kind(data).headline.name
    paths = data.paths.assign(x=x).dropna(subset="x")
    for series, path in paths.groupby("series", sort=False):
        look = styles[str(series)]
        ax.plot(path["x"], path[score], color=look.color, ls=look.line_style, lw=pt(1.4), zorder=3, label=series)
        tried = path[path["multiplier"] > 0]
        ax.plot(
            tried["x"], tried[score], ls="none", ms=pt(4.5), color=look.color, zorder=3, label="_rates", **look.marks()
        )
        lost = path[path["num_diverged"] > 0]
        if len(lost):
            ax.plot(
                lost["x"], lost[score], ls="none", marker="x", ms=pt(9), mew=pt(1.8), color=ALARM, zorder=5, label="_diverged"
            )  # fmt: skip
    base = paths[paths["multiplier"] == 0]
    ax.plot(base["x"], base[score], ls="none", marker="o", ms=pt(7), mfc="white", mec=INK, zorder=4, label="_base")


def _draw_fronts(ax: Axes, data: MatchedPrompt, styles: dict[str, Look]) -> None:
    """The highest gain at no more than each loss, with its band; dotted where no rate was tried."""
    tried = data.gains.drop_duplicates("series").set_index("series")
    for series, front in data.fronts.groupby("series", sort=False):
        look, x = styles[str(series)], 100 * front["loss"]
        inside = front["loss"].between(tried.loc[series, "least_tried"], tried.loc[series, "most_tried"])
        ax.plot(x, front["gain"], color=look.color, ls=(0, (1, 1.6)), lw=pt(1.2), zorder=3, label=series)
        ax.plot(
            x, front["gain"].where(inside), color=look.color, ls=look.line_style, zorder=3, label=f"_tried {series}"
        )
        if _has_bands(data) and (front["num_subjects"] >= LEAST_SUBJECTS).all():
            low, high = (front[end].to_numpy(dtype=float) for end in ("low", "high"))
            ax.fill_between(x, low, high, color=look.color, alpha=0.16, lw=0, zorder=2, label=f"_band {series}")
    ax.set(xlabel=_loss_label(data), ylabel=f"gain in {_headline(data)} over the base", xlim=(0, 100 * _largest(data)))
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    said, first = "dotted: before the first and beyond the last loss that a tried rate has", tried["least_tried"].min()
    if first > _largest(data):
        said = f"no rate lost so little: straight lines to the first that was tried ({100 * first:.0f} %)"
    add_subtitle(ax, said)


def _draw_gains(ax: Axes, data: MatchedPrompt, styles: dict[str, Look]) -> None:
    """One bar a series: its mean gain over the base."""
    rows = mean_gains(data)
    _draw_bars(ax, rows, styles)
    ax.set_xlabel(f"mean gain in {_headline(data)} over the base")
    add_subtitle(ax, f"over losses of {_prompt(data)} of {rows['loss'].iloc[0]}")


def _draw_differences(ax: Axes, data: MatchedPrompt, styles: dict[str, Look]) -> None:
    """One bar a series: its mean gain minus that of the first series."""
    first = str(data.paths["series"].iloc[0])
    rows = data.differences.drop_duplicates(["a", "b"])
    rows = rows[rows["a"] == first].rename(columns={"b": "series"})
    turned = {"mean": -rows["mean"], "low": -rows["high"], "high": -rows["low"]}
    _draw_bars(ax, rows.assign(**turned), styles)
    ax.set_xlabel(f"mean gain in {_headline(data)} minus that of {first}")
    add_subtitle(ax, f"at the same losses of {_prompt(data)}; the table has every pair")


def _draw_bars(ax: Axes, rows: pd.DataFrame, styles: dict[str, Look]) -> None:
    """One bar a row with series, mean, low and high, from the top; the numbers beside it."""
    narrow = room_in(WIDTH_IN) < ROOM_OF_NUMBERS_IN
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_yticks([])
    ax.grid(False, axis="y")
    ax.axvline(0, color=MUTED, lw=pt(0.8), zorder=1, label="_zero")
    for place, row in enumerate(rows.to_dict("records")):
        look, text = styles[row["series"]], f"{row['mean']:.3f}"
        if row["num_subjects"] >= LEAST_SUBJECTS and np.isfinite(row["low"]):
            ax.plot(
                [row["low"], row["high"]], [place] * 2, color=look.color, lw=pt(2), zorder=3, label=f"_{row['series']}"
            )
            text += f" [{row['low']:.3f}, {row['high']:.3f}]"
        ax.plot(
            [row["mean"]], [place], ls="none", ms=pt(7), color=look.color, zorder=4, label=row["series"], **look.marks()
        )
        words: dict[str, Any] = {
            "transform": ax.get_yaxis_transform(),
            "fontsize": pt(NUMBERS_PT),
            "gid": NUMBERS,
            "va": "center",
            "color": look.color,
        }
        if not narrow:
            ax.text(1.03, place, text, **words)
    ax.xaxis.set_major_locator(MaxNLocator(2 if narrow else 4, steps=[1, 2, 5, 10]))
    low, high = ax.get_xlim()
    if high - low < LEAST_SPAN:
        ax.set_xlim((low + high - LEAST_SPAN) / 2, (low + high + LEAST_SPAN) / 2)


def mean_gains(data: MatchedPrompt) -> pd.DataFrame:
    """The rows of the means over the whole range of losses, one a series."""
    return data.gains.drop_duplicates("series", ignore_index=True)


def path_and_front(data: MatchedPrompt) -> pd.DataFrame:
    """What the figure shows, `panel` being "path", "front" or "gain"."""
    parts = {"path": data.paths, "front": data.fronts, "gain": mean_gains(data).drop(columns="loss")}
    return pd.concat([frame.assign(panel=name) for name, frame in parts.items()], ignore_index=True)


def _has_bands(data: MatchedPrompt) -> bool:
    return bool(data.fronts["series"].nunique() <= MOST_BANDS)


def _largest(data: MatchedPrompt) -> float:
    return float(data.fronts["loss"].max())


DRAWN = {
    "loss": _draw_losses, SIDE_EFFECT: _draw_side_effect, "front": _draw_fronts, "gain": _draw_gains,
    "difference": _draw_differences,
}  # fmt: skip
