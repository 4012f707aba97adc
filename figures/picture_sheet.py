"""The generated pictures, multiplier by multiplier: same prompt, same noise, the subject's own picture at the left."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from adapters.errors import BadInput
from adapters.method_words import BASE_MODEL
from analysis.metrics import title_of
from analysis.series import BASE_AXIS
from figures.labels import width_pt, wrap
from figures.style import ALARM, INK, MUTED, forced_width_in, multiplier_text, styled, text_color
from figures.task_in_use import task_in_use, unit

TILE_IN = 0.9
PITCH_IN = (1.02, 1.16)  # from tile to tile: across, and down, where the score stands between
MARGIN_IN = (0.3, 0.72, 0.34)  # left of the tiles beside the rows' names, above them, below them
BAND_IN = 0.42  # above columns that go on below, for their heads
MOST_LEFT_IN = 2.6  # for the rows' names
TEXT_PT, TITLE_PT, NOTE_PT = 8.5, 9.5, 7.5
MIN_WIDTH_IN = 4.4  # what the note below the tiles needs
FRAME_PT = 2.6
MAP = colormaps["cividis"]  # readable for the colour-blind and in grey


@styled
def draw(
    pictures: pd.DataFrame,
    subject_pictures: Mapping[str, Path | str | bytes] | None = None,
    *,
    rows: str = "subject",
    columns: str = "multiplier",
    metric: str | None = None,
    title: str | None = None,
    xlabel: str = BASE_AXIS,
) -> Figure:
    """A sheet of generated pictures; the frame's colour and the number below say the score, red dashes say divergence.

    Args:
        pictures: what `analysis.pictures` returned: the columns `rows`, `columns`, subject, series, file, value, diverged,
            and the base model's rows (series "base model"), which fill the column "base".
        subject_pictures: a picture of each subject itself, put at the left; None or empty leaves that column out.
        rows: "subject", or "series" for a sheet of one subject by method; of several runs of one tile the first is shown.
        columns: "multiplier" or "step".
        metric: whose score `value` is, for the legend; None: the headline of the task in use.
        title: above the sheet; None says what the sheet shows.
        xlabel: what multipliers multiply (`analysis.series.name_multipliers`), for that title.

    Raises:
        BadInput: if there is no picture, or a file cannot be read (it is named).
    """
    base = pictures[pictures["series"] == BASE_MODEL]
    made = pictures[(pictures["series"] != BASE_MODEL) & pictures[columns].notna()]
    if made.empty:
        raise BadInput(f"no pictures with a {columns} to put on a sheet: run the sweep first")
    names, values = list(dict.fromkeys(made[rows])), sorted(made[columns].unique())
    heads = [*(["subject"] if subject_pictures else []), *(["base"] if len(base) else []), *values]
    score = title_of(metric or task_in_use().headline.name)
    note = f"frame and number: {score} of that prompt's pictures; red dashes: diverged"
    labels = [_row_lines(str(name)) for name in names]
    figure, ax, across = _new_sheet(labels, len(heads), title or _title(made, columns, xlabel), note)
    scale = _scale(pictures["value"])
    for j, head in enumerate(heads):
        x, y = corner(0, j, across, len(names))
        ax.text(x + TILE_IN / 2, y - 0.05, _head_text(head, columns), ha="center", va="bottom", fontsize=TEXT_PT)
    for i, name in enumerate(names):
        for j, head in enumerate(heads):
            place = corner(i, j, across, len(names))
            if j % across == 0:
                x, y = place
                ax.text(x - 0.1, y + TILE_IN / 2, "\n".join(labels[i]), ha="right", va="center", fontsize=TEXT_PT)
            tile = _find(made[made[rows] == name], base, head, columns, subject_pictures)
            _draw_tile(ax, place, tile, scale)
    return figure


def corner(row: int, column: int, across: int = 1000, num_rows: int = 1) -> tuple[float, float]:
    """Upper left corner of a tile, in inches right of and below that of the first; columns beyond `across` go on below."""
    band, place = divmod(column, across)
    return place * PITCH_IN[0], (band * num_rows + row) * PITCH_IN[1] + band * BAND_IN


def _new_sheet(labels: Sequence[Sequence[str]], num_columns: int, title: str, note: str) -> tuple[Figure, Axes, int]:
    """A figure with its title, its note, and one axis whose unit is the inch, y downwards, (0, 0) the corner of the first tile.

    Returns:
        The figure, the axis, and how many columns stand beside each other: all, unless the figure is to have a width.
    """
    left, above, below = MARGIN_IN
    left += max(width_pt(line, TEXT_PT) for lines in labels for line in lines) / 72
    width = forced_width_in() or max(left + num_columns * PITCH_IN[0], MIN_WIDTH_IN)
    across = max(1, min(num_columns, int((width - left) / PITCH_IN[0] + 1e-9)))
    bands = -(-num_columns // across)
    heading = wrap(title, (width - 0.2) * 72, TITLE_PT, bold=True)
    notes = wrap(note, (width - 0.2) * 72, NOTE_PT)
    above += 0.16 * (len(heading) - 1)
    below += 0.13 * (len(notes) - 1)
    height = above + bands * len(labels) * PITCH_IN[1] + (bands - 1) * BAND_IN + below
    figure = Figure(figsize=(width, height))
    figure.text(0.1 / width, 1 - 0.09 / height, "\n".join(heading), fontsize=TITLE_PT, fontweight="bold", va="top")
    figure.text(0.1 / width, 0.09 / height, "\n".join(notes), fontsize=NOTE_PT, color=MUTED, va="bottom")
    ax = figure.add_axes((0, 0, 1, 1), label="sheet")
    ax.set(xlim=(-left, width - left), ylim=(height - above, -above))
    ax.axis("off")
    return figure, ax, across


def _find(
    of_row: pd.DataFrame,
    base: pd.DataFrame,
    head: Any,
    columns: str,
    subject_pictures: Mapping[str, Path | str | bytes] | None,
) -> dict[str, Any] | None:
    """What belongs into one tile: a row with file, value, diverged; None if nothing was made there."""
    subject = of_row["subject"].iloc[0]
    if head == "subject":
        file = (subject_pictures or {}).get(subject)
        return None if file is None else {"file": file, "value": np.nan, "diverged": False}
    found = base[base["subject"] == subject] if head == "base" else of_row[of_row[columns] == head]
    return None if found.empty else found.iloc[0].to_dict()


def _draw_tile(ax: Axes, place: tuple[float, float], tile: dict[str, Any] | None, scale: Normalize) -> None:
    x, y = place
    if tile is None:
        return _draw_empty(ax, place, "none")
    from training.read_picture import read_picture

    try:
        picture = np.asarray(read_picture(tile["file"]).image)
    except BadInput as error:  # the others and all numbers are whole
        print(f"{error}: its place stays empty", file=sys.stderr)
        return _draw_empty(ax, place, "damaged")
    small = max(picture.shape[:2]) < 128  # its pixels go into the PDF as they are
    limits = ax.get_xlim(), ax.get_ylim()
    ax.imshow(
        picture, extent=(x, x + TILE_IN, y + TILE_IN, y), interpolation="none" if small else "antialiased", aspect="auto",
        zorder=2,
    )  # fmt: skip
    ax.set(xlim=limits[0], ylim=limits[1])
    if tile["diverged"]:
        _mark(ax, place, "diverged", ALARM, dashed=True)
    elif np.isfinite(tile["value"]):
        _mark(ax, place, f"{tile['value']:.2f}", MAP(scale(tile["value"])))
    else:
        ax.add_patch(Rectangle(place, TILE_IN, TILE_IN, fill=False, edgecolor=INK, lw=0.8, zorder=3))


def _draw_empty(ax: Axes, place: tuple[float, float], word: str) -> None:
    ax.add_patch(Rectangle(place, TILE_IN, TILE_IN, facecolor="#f4f4f4", edgecolor="#cccccc", lw=0.6))
    ax.text(place[0] + TILE_IN / 2, place[1] + TILE_IN / 2, word, ha="center", va="center", color=MUTED, fontsize=8)


def _mark(ax: Axes, place: tuple[float, float], text: str, color: Any, *, dashed: bool = False) -> None:
    """Colour the frame, and write on a tab of its colour at the lower edge."""
    dashes = (0, (2, 1.2)) if dashed else "-"
    frame = {"fill": False, "edgecolor": color, "lw": FRAME_PT, "linestyle": dashes, "joinstyle": "miter"}
    ax.add_patch(Rectangle(place, TILE_IN, TILE_IN, zorder=3, **frame))
    tab = {"boxstyle": "square,pad=0.18", "facecolor": color, "edgecolor": "none"}
    ax.text(
        place[0] + TILE_IN / 2, place[1] + TILE_IN + 0.035, text, ha="center", va="top", fontsize=7,
        color="white" if dashed else text_color(color), bbox=tab, zorder=4,
    )  # fmt: skip


def _scale(values: pd.Series) -> Normalize:
    finite = values[np.isfinite(values.astype(float))].astype(float)
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return Normalize(low, high if high > low else low + 1e-6)


def _row_lines(name: str) -> list[str]:
    """A row's name in lines: broken before brackets and after commas, and where a line is too long for its margin."""
    parts = name.replace("_", " ").replace(" (", "\n(").replace(", ", ",\n").split("\n")
    most_pt = 72 * (MOST_LEFT_IN if forced_width_in() is None else min(MOST_LEFT_IN, 0.33 * (forced_width_in() or 0)))
    return [line for part in parts for line in wrap(part, most_pt, TEXT_PT)]


def _head_text(head: Any, columns: str) -> str:
    if isinstance(head, str):
        return {"subject": unit(), "base": "base\nmodel"}[head]
    return f"×{multiplier_text(head)}" if columns == "multiplier" else f"step {head:g}"


def common_text(texts: Sequence[str]) -> str:
    """What texts share at both ends: `a sks … on a blue background`."""
    if len(texts) == 1:
        return texts[0]
    start = os.path.commonprefix(list(texts)).rpartition(" ")[0]
    end = os.path.commonprefix([text[::-1] for text in texts])[::-1].partition(" ")[2]
    return f"{start} … {end}".strip()


def _title(made: pd.DataFrame, columns: str, xlabel: str) -> str:
    """What a sheet shows: the method if there is one only, the columns, the prompt."""
    series = made["series"].unique()
    shown = f"{series[0]}: " if len(series) == 1 else ""
    axis = xlabel.replace(" of", "s of") if columns == "multiplier" else "training steps"
    return f"{shown}{axis}; “{common_text(list(made['prompt'].unique()))}”, the same noise"
