"""A sheet of finetuned pictures, out of the lossless ones in docs/results: does it draw the subject, and what was asked for?

    python -m tools.pocket.finetunes

A row a subject: its photograph; then, for two prompts, the base model's picture and that of each method at the rate at which its
mean DINO is highest.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from tools.pocket.sheets import save_sheet
from training.tasks.pipeline import POCKET_SUBJECTS

METHODS = ("lora", "dora", "delora", "etherplus")
PROMPTS = (0, 2)
SHEET = Path("docs/pocket/finetunes.png")


def read(png: bytes | Path) -> np.ndarray:
    """A picture as uint8 `[h, w, 3]`."""
    return np.asarray(Image.open(io.BytesIO(png) if isinstance(png, bytes) else png).convert("RGB"))


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
        found.append(read(sorted((POCKET_SUBJECTS / subject).glob("*.png"))[0]))
        for prompt in base["prompt"].unique()[list(PROMPTS)]:
            found.append(read(base.set_index("prompt").loc[prompt, "png"]))
            for method in METHODS:
                drawn = pd.read_parquet(results / "pictures" / f"{method}-{subject}.parquet")
                at = drawn[(drawn["prompt"] == prompt) & (drawn["multiplier"] == drawn["series"].map(best))]
                found.append(read(at["png"].iloc[0]))
    return found


def main() -> int:
    """Draw the sheet."""
    pictures = rows(Path("docs/results"))
    save_sheet(np.stack(pictures), 1 + len(PROMPTS) * (1 + len(METHODS)), SHEET)
    print(SHEET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
