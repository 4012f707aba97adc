"""Controls of scorers, made up: rows with a known mean of every kind, in the base model's run folders of a subject."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from training.cell import BASE
from training.store import CONTROL_KINDS, find_runs

GOOD = {
    "real": 0.80, "vae": 0.78, "same_class": 0.30, "other": 0.05, "shuffled": 0.03, "noise": 0.01, "flat": 0.0,
    "latent_noise": -0.02, "blurred": 0.70,
}  # fmt: skip
DERIVED = ("real", "vae", "shuffled", "flat", "blurred")
BLIND = GOOD | {"noise": 0.75}  # a scorer that takes noise for the subject


def make_control_rows(levels: Mapping[str, float], num_photographs: int = 5, sd: float = 0.01) -> pd.DataFrame:
    """Rows metric, kind, picture, against, value of both metrics; kinds that `levels` leaves out are left out."""
    draw = np.random.default_rng(0)
    names = [f"{number:02d}.png" for number in range(num_photographs)]
    rows = []
    for metric in ("dino", "clip_i"):
        for kind in (kind for kind in CONTROL_KINDS if kind in levels):
            pictures = names if kind in DERIVED else [f"{kind}/{number}" for number in range(4)]
            rows += [
                (metric, kind, picture, other, levels[kind] + sd * draw.standard_normal())
                for picture in pictures
                for other in names
                if picture != other
            ]
    return pd.DataFrame(rows, columns=["metric", "kind", "picture", "against", "value"])


def write_controls(root: Path, levels: Mapping[str, Mapping[str, float]], num_photographs: int = 5) -> None:
    """Write controls into the base model's runs below `root` of the subjects that `levels` names."""
    for folder in find_runs(root):
        cell = folder.read()["cell"]
        if cell["method"] == BASE and cell["subject"] in levels:
            folder.write_controls(make_control_rows(levels[cell["subject"]], num_photographs), "made")
