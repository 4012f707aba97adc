"""Figures as files: PNG, PDF, SVG, with the same bytes whenever the figure is the same."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backend_bases import get_registered_canvas_class
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from adapters.errors import BadInput
from figures.style import DPI, drawing, lay_out
from training.store import writing

METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": "Plateau"},
    "pdf": {"Creator": "Plateau", "CreationDate": None},
    "svg": {"Creator": "Plateau", "Date": None},
}


def save(figure: Figure, stem: Path | str, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Write `<stem>.png` and so on, each whole or not at all, with the same bytes whenever the figure is the same.

    Args:
        figure: the figure.
        stem: path without the suffix.
        formats: of png, pdf, svg.

    Returns:
        The paths, in the order of the formats.

    Raises:
        BadInput: for another format.
        StoreError: if the folder cannot be written.
    """
    if unknown := [name for name in formats if name not in METADATA]:
        raise BadInput(f"unknown format {unknown[0]!r} of figures; allowed: {', '.join(METADATA)}")
    with drawing():
        contents = render(figure, formats)
    paths = []
    for suffix, content in contents.items():
        path = Path(f"{os.fspath(stem)}.{suffix}")
        with writing(path) as aside:
            aside.write_bytes(content)
        paths.append(path)
    return paths


def render(figure: Figure, formats: Sequence[str]) -> dict[str, bytes]:
    """A figure's files by format: laid out once, then drawn; `Figure.savefig` lays out, and draws twice, for each format."""
    own_dpi, engine = figure.dpi, figure.get_layout_engine()
    contents = {}
    try:
        figure.dpi = DPI
        get_registered_canvas_class("png")(figure)
        lay_out(figure)
        figure.set_layout_engine("none")
        for suffix in formats:
            written, canvas = io.BytesIO(), get_registered_canvas_class(suffix)(figure)
            if isinstance(canvas, FigureCanvasAgg):
                save_png(canvas, written)
            else:
                getattr(canvas, f"print_{suffix}")(written, metadata=METADATA[suffix])
            contents[suffix] = written.getvalue()
    finally:
        figure.dpi = own_dpi
        figure.set_layout_engine(engine)
    return contents


def save_png(canvas: FigureCanvasAgg, written: io.BytesIO) -> None:
    """Write a figure as PNG: of lines and text its 256 main colours, which look the same in a third of the bytes."""
    canvas.draw()
    texts = PngInfo()
    for key, value in METADATA["png"].items():
        texts.add_text(key, str(value))
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    if any(ax.images for ax in canvas.figure.axes):
        strategy = zlib.Z_RLE  # of pictures as small as any, in a third of the time
    else:
        picture = picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        strategy = zlib.Z_DEFAULT_STRATEGY
    picture.save(written, "PNG", compress_type=strategy, dpi=(DPI, DPI), pnginfo=texts)
