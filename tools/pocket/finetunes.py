"""A sheet of finetuned pictures, out of the lossless ones in docs/results: does it draw the subject, and what was asked for?

    python -m tools.pocket.finetunes

A row a subject: its photograph; then, for two prompts, the base model's picture and that of each method at the rate at which its
mean DINO is highest.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from adapters.ending import end_well
from tools.pocket.sheets import save_sheet
from training.read_picture import read_picture
from training.tasks.pipeline import POCKET_SUBJECTS

METHODS = ("lora", "dora", "delora", "etherplus")
PROMPTS = (0, 2)
SHEET = Path("docs/pocket/finetunes.png")


def read(png: bytes | Path) -> np.ndarray:
    """A picture as uint8 `[h, w, 3]`."""
    return np.asarray(read_picture(png).image)


def best_multipliers(results: Path) -> dict[str, float]:
    """Of each series' curve, the multiplier of its highest mean DINO."""
    plateaus = pd.read_csv(results / "lr_robustness" / "plateau.csv").query("metric == 'dino'")
    return dict(zip(plateaus["series"], plateaus["best_multiplier"], strict=True))


def rows(results: Path) -> list[np.ndarray]:
    """The sheet's pictures, row by row."""
    best, found = best_multipliers(results), []
    for path in sorted((results / "pictures").glob("base-*.parquet")):
        subject = path.stem.removeprefix("base-")
        base = pd.read_parquet(path)
        drawn = [pd.read_parquet(results / "pictures" / f"{method}-{subject}.parquet") for method in METHODS]
        at_best = [frame[frame["multiplier"] == frame["series"].map(best)] for frame in drawn]
        found.append(read(sorted((POCKET_SUBJECTS / subject).glob("*.png"))[0]))
        for prompt in base["prompt"].unique()[list(PROMPTS)]:
            found += [read(frame.set_index("prompt").loc[prompt, "png"]) for frame in (base, *at_best)]
    return found


def main() -> int:
    """Draw the sheet."""
    pictures = rows(Path("docs/results"))
    save_sheet(np.stack(pictures), 1 + len(PROMPTS) * (1 + len(METHODS)), SHEET)
    print(SHEET)
    return 0


if __name__ == "__main__":
    sys.exit(end_well(main))
