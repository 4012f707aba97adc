"""The pictures themselves, multiplier by multiplier: same prompt, same noise, the subject's own picture at the left."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from adapters import BadInput
from figures.style import ALARM, INK, METRIC_TITLES, MUTED, multiplier_text, new_figure, styled, text_color

TILE_IN = 0.95
MAP = colormaps["cividis"]  # readable for the colour-blind and in grey


@styled
def draw(
    pictures: pd.DataFrame,
    subject_pictures: Mapping[str, Path | str] | None = None,
    *,
    rows: str = "subject",
    columns: str = "multiplier",
    metric: str = "dino",
    title: str | None = None,
) -> Figure:
    """A sheet of generated pictures; the frame's colour and the number below say the score, red dashes say divergence.

    Args:
        pictures: what `analysis.pictures` returned: the columns `rows`, `columns`, subject, series, file, value, diverged, and the
            untouched base's rows (series "untouched base"), which fill the column "base".
        subject_pictures: a picture of each subject itself, put at the left; None leaves that column out.
        rows: "subject", or "series" for a sheet of one subject by method; a list of runs of one cell shows the first.
        columns: "multiplier" or "step".
        metric: whose score `value` is, for the legend.
        title: above the sheet; None says what the sheet shows.

    Raises:
        BadInput: if there is no picture, or a file cannot be read (it is named).
    """
    base = pictures[pictures["series"] == "untouched base"]
    made = pictures[(pictures["series"] != "untouched base") & pictures[columns].notna()]
    if made.empty:
        raise BadInput(f"no pictures with a {columns} to put on a sheet: run the sweep first")
    names, values = list(dict.fromkeys(made[rows])), sorted(made[columns].unique())
    heads = [*(["subject"] if subject_pictures else []), *(["base"] if len(base) else []), *values]
    scale = _scale(pictures["value"])
    figure = new_figure(0.9 + TILE_IN * len(heads), 0.75 + (TILE_IN + 0.16) * len(names))
    grid = figure.add_gridspec(len(names), len(heads))
    for i, name in enumerate(names):
        of_row = made[made[rows] == name]
        for j, head in enumerate(heads):
            ax = figure.add_subplot(grid[i, j])
            ax.set_label(f"{name} {head}")
            _draw_tile(ax, _find(of_row, base, head, columns, subject_pictures), scale)
            if i == 0:
                ax.set_title(_head_text(head, columns), fontsize=8.5, fontweight="normal", loc="center", pad=3)
            if j == 0:
                ax.set_ylabel(str(name).replace("_", " ").replace(" (", "\n("), fontsize=8.5)
    _caption(figure, made, metric, columns, title)
    return figure


def _find(
    of_row: pd.DataFrame, base: pd.DataFrame, head: Any, columns: str, subject_pictures: Mapping[str, Path | str] | None
) -> dict[str, Any] | None:
    """What belongs into one tile: a row with file, value, diverged; None if nothing was made there."""
    subject = of_row["subject"].iloc[0]
    if head == "subject":
        file = (subject_pictures or {}).get(subject)
        return None if file is None else {"file": file, "value": np.nan, "diverged": False, "plain": True}
    found = base[base["subject"] == subject] if head == "base" else of_row[of_row[columns] == head]
    return None if found.empty else found.iloc[0].to_dict()


def _draw_tile(ax: Axes, tile: dict[str, Any] | None, scale: Normalize) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set(visible=True, linewidth=2.6 if tile else 0.6, color=INK if tile else "#cccccc")
    if tile is None:
        ax.set_facecolor("#f4f4f4")
        ax.set_box_aspect(1)
        ax.text(0.5, 0.5, "none", transform=ax.transAxes, ha="center", va="center", color=MUTED, fontsize=8)
        return
    ax.imshow(read_picture(tile["file"]), interpolation="nearest" if _is_small(tile["file"]) else "antialiased")
    if tile["diverged"]:
        _mark(ax, "diverged", ALARM, dashed=True)
    elif np.isfinite(tile["value"]):
        _mark(ax, f"{tile['value']:.2f}", MAP(scale(tile["value"])))
    elif tile.get("plain"):
        ax.spines[:].set_linewidth(0.8)


def _mark(ax: Axes, text: str, color: Any, *, dashed: bool = False) -> None:
    """Colour the frame, and write on a tab of its colour at the lower edge."""
    ax.spines[:].set_color(color)
    if dashed:
        ax.spines[:].set_linestyle((0, (2, 1.2)))
    ink = "white" if dashed else text_color(color)
    ax.text(
        0.5, -0.015, text, transform=ax.transAxes, ha="center", va="top", fontsize=7, color=ink,
        bbox={"boxstyle": "square,pad=0.18", "facecolor": color, "edgecolor": "none"},
    )  # fmt: skip


def read_picture(file: Path | str) -> np.ndarray:
    """A picture as an RGB array.

    Raises:
        BadInput: if it is missing or damaged; the message names it.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError):
        raise BadInput(f"cannot read the picture {file}: it is missing or damaged") from None


def _is_small(file: Path | str) -> bool:
    return max(read_picture(file).shape[:2]) < 128


def _scale(values: pd.Series) -> Normalize:
    finite = values[np.isfinite(values.astype(float))].astype(float)
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return Normalize(low, high if high > low else low + 1e-6)


def _head_text(head: Any, columns: str) -> str:
    if isinstance(head, str):
        return {"subject": "subject", "base": "untouched base"}[head].replace(" ", "\n")
    return f"×{multiplier_text(head)}" if columns == "multiplier" else f"step {head:g}"


def common_text(texts: Sequence[str]) -> str:
    """What texts share at both ends: `a sks … on a blue background`."""
    if len(texts) == 1:
        return texts[0]
    start = os.path.commonprefix(list(texts)).rpartition(" ")[0]
    end = os.path.commonprefix([text[::-1] for text in texts])[::-1].partition(" ")[2]
    return f"{start} … {end}".strip()


def _caption(figure: Figure, made: pd.DataFrame, metric: str, columns: str, title: str | None) -> None:
    series = made["series"].unique()
    shown = f"{series[0]}: " if len(series) == 1 else ""
    prompt = f"“{common_text(list(made['prompt'].unique()))}”, the same noise"
    axis = "multiples of the base learning rate" if columns == "multiplier" else "training steps"
    figure.suptitle(title or f"{shown}{axis}; {prompt}", fontsize=9.5, x=0.01, ha="left", fontweight="bold")
    figure.supxlabel(
        f"frame and number: {METRIC_TITLES.get(metric, metric)} of that prompt's pictures; red dashes: diverged", fontsize=7.5, color=MUTED,
        x=0.01, ha="left",
    )  # fmt: skip
