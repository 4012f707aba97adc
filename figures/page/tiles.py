"""The pictures of a page: as many as its size allows, small, with their scores."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import Normalize, to_hex

from adapters.method_words import BASE_MODEL
from analysis import Results, pictures
from figures.style import multiplier_text
from training.read_picture import read_picture

SIDE_PX, QUALITY = 128, 85
MOST_BYTES = 3_500_000  # of all pictures together, as text
MOST_PROMPTS = 4
MAP = colormaps["cividis"]


def describe_pictures(results: Results, names: Sequence[str], metric: str | None = None) -> dict[str, Any]:
    """The pictures of the first seed by series, subject, prompt, multiplier and step, as WebP.

    Args:
        results: the runs; a compact copy holds few pictures, or none.
        names: of the series, whose places stand for them.
        metric: whose score stands on the frame; None: the task's headline.

    Returns:
        subjects, own (a photograph of each), prompts (numbers), multipliers, steps, tiles ("series/subject/prompt/multiplier/
        step", each a place, with picture, words and the frame's colour; series -1 is the base model), images (data URLs), and
        left_out, the number of pictures that would have made the page too large. Empty where there are no pictures.

    Raises:
        BadInput: if a file is no picture; it is named.
    """
    found = _find(results, metric)
    if found.empty:
        return {}
    made = found[found["series"] != BASE_MODEL]
    subjects = sorted(made["subject"].unique())
    rates, steps = sorted(made["multiplier"].dropna().unique()), sorted(made["step"].unique())
    scale = Normalize(found["value"].min(), found["value"].max())
    images, tiles, size, left_out = [], {}, 0, 0
    for row in found[found["subject"].isin(subjects)].sort_values("number", kind="stable").itertuples():
        base = row.series == BASE_MODEL
        if size > MOST_BYTES or (not base and pd.isna(row.multiplier)):
            left_out += 1
            continue
        images.append(_data_url(row.file))
        size += len(images[-1])
        place = (0, 0) if base else (rates.index(row.multiplier), steps.index(row.step))
        series = -1 if base else names.index(row.series)
        key = f"{series}/{subjects.index(row.subject)}/{row.number}/{place[0]}/{place[1]}"
        score = "" if pd.isna(row.value) else f"{row.value:.2f}"
        color = "" if pd.isna(row.value) else to_hex(MAP(scale(row.value)))
        tiles[key] = {"image": len(images) - 1, "score": score, "color": color, "prompt": row.prompt}
        if row.diverged:
            tiles[key]["diverged"] = True
    own: Mapping[str, Path | bytes] = results.own_pictures()
    return {
        "subjects": subjects,
        "own": {subjects.index(name): _data_url(own[name]) for name in subjects if name in own},
        "prompts": int(found["number"].max()) + 1,
        "multipliers": [multiplier_text(rate) for rate in rates],
        "steps": [int(step) for step in steps],
        "tiles": tiles,
        "images": images,
        "left_out": left_out,
    }


def _find(results: Results, metric: str | None) -> pd.DataFrame:
    """Rows of `analysis.pictures` of the first seed, of the first prompts, with the prompt's `number`."""
    drawn = results.images().groupby(["run_id", "step"], observed=True)["prompt"].nunique()
    if drawn.empty:
        return pd.DataFrame(columns=["series"])
    found = pictures(results, metric=metric, prompt=range(min(MOST_PROMPTS, int(drawn.max()))))
    of_one = found.groupby(["run_id", "series", "multiplier", "step"], sort=False, dropna=False)
    found = found.assign(number=of_one.cumcount())  # they come in the order of their prompts
    return found[found["seed"].isna() | (found["seed"] == found["seed"].min())]


def _data_url(file: str | Path | bytes) -> str:
    small = read_picture(file).image.convert("RGB")
    small.thumbnail((SIDE_PX, SIDE_PX))
    written = io.BytesIO()
    small.save(written, format="WEBP", quality=QUALITY, method=2)
    return f"data:image/webp;base64,{base64.b64encode(written.getvalue()).decode()}"
