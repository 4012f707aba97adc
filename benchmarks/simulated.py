"""Simulated studies whose truth is known: grids of scores with a plateau, and effects of subjects, seeds and runs.

score[series, i, s, j] = base + gain shape[series, j] + subject_i + subject_i x series + subject_i x series x multiplier_j
                         + seed_s + run[series, i, s, j]

A seed's own effect is common to all subjects and series, as common random numbers make it. The standard deviations are near
those of DINO on the pocket: subjects differ by 0.13 to 0.17, subject x multiplier and run together by 0.05 to 0.11.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.plateau import Plateau, find_plateau
from analysis.statistics import Floats

OCTAVES = np.arange(-2.0, 6.0)
SHAPES: dict[str, Floats] = {
    "flat": np.clip(1 - 0.4 * (np.maximum(-1 - OCTAVES, 0) + np.maximum(OCTAVES - 2, 0)), 0, 1),
    "hill": np.array([0.7, 0.85, 0.95, 1.0, 0.97, 0.8, 0.4, 0.1]),
    "peak": np.clip(1 - 0.15 * np.abs(OCTAVES - 1), 0, 1),
}
# Shares of the peak's gain at 0.25x to 32x, as found on the pocket (docs/results/lr_robustness): what power is asked of.
FOUND: dict[str, Floats] = {
    "LoRA": np.array([0.52, 0.79, 0.91, 1.0, 0.85, 0.28, -0.05, -0.18]),
    "DeLoRA": np.array([0.55, 0.76, 0.97, 1.0, 0.98, 0.96, 0.84, 0.70]),
    "ETHER+": np.array([0.375, 0.50, 0.69, 0.98, 1.0, 0.90, 0.80, 0.79]),
}
PROMPT = np.array([0.94, 0.92, 0.90, 0.86, 0.78, 0.60, 0.40, 0.20])  # of the base's CLIP-T


@dataclass(frozen=True)
class World:
    """Standard deviations of every effect, and the levels.

    Attributes:
        subject: between subjects.
        series_subject: of a subject in one series against another.
        point: of a subject at one multiplier.
        seed: of a seed, alike for all subjects.
        run: of one run; more seeds average it down.
        base: of the base model's scores beyond what the subject explains.
        image: of one picture around its run.
        level, gain: the base's mean score, and what the best multiplier adds to it.
        prompt: the base model's CLIP-T.
    """

    subject: float = 0.14
    series_subject: float = 0.04
    point: float = 0.05
    seed: float = 0.01
    run: float = 0.05
    base: float = 0.12
    image: float = 0.15
    level: float = 0.2
    gain: float = 0.4
    prompt: float = 0.85

    def curve(self, shape: str) -> Floats:
        """The true mean scores on the grid."""
        result: Floats = self.level + self.gain * (SHAPES | FOUND)[shape]
        return result

    def truth(self, shape: str, tolerance: float) -> Plateau:
        """The true plateau."""
        none = np.zeros(len(OCTAVES), dtype=bool)
        return find_plateau(np.exp2(OCTAVES), self.curve(shape), self.level, none, tolerance)

    def study(
        self, draw: np.random.Generator, num_subjects: int, num_seeds: int, series: Mapping[str, str]
    ) -> pd.DataFrame:
        """One study, as `subject_scores` would return it, with DINO for every series and CLIP-T.

        Args:
            draw: of the effects.
            num_subjects, num_seeds: its size.
            series: names of the series with the names of their shapes.
        """
        size = (num_subjects, len(OCTAVES))
        subject, seeds = draw.normal(0, self.subject, num_subjects), draw.normal(0, self.seed, num_seeds).mean()
        base = self.level + 0.8 * subject + draw.normal(0, self.base, num_subjects)
        prompt = self.prompt + draw.normal(0, 0.04, num_subjects)
        frames = []
        for name, shape in series.items():
            own = subject + draw.normal(0, self.series_subject, num_subjects) + seeds
            noise = draw.normal(0, self.point, size) + draw.normal(0, self.run / np.sqrt(num_seeds), size)
            dino = self.curve(shape) + own[:, None] + noise
            clip_t = self.prompt * PROMPT + (prompt - self.prompt)[:, None] + draw.normal(0, self.point, size)
            for metric, values, start in (("dino", dino, base), ("clip_t", clip_t, prompt)):
                frames.append(_table(values, start, num_seeds).assign(series=name, method=name, metric=metric))
        return pd.concat(frames, ignore_index=True)

    def images(self, draw: np.random.Generator, num_subjects: int, num_seeds: int, num_images: int = 16) -> Floats:
        """Scores of single pictures `[subject, seed, image]` at one multiplier, around a true mean of 0."""
        size = (num_subjects, num_seeds, num_images)
        subject = draw.normal(
            0, np.sqrt(self.subject**2 + self.series_subject**2 + self.point**2), (num_subjects, 1, 1)
        )
        seed, run = draw.normal(0, self.seed, (1, num_seeds, 1)), draw.normal(0, self.run, (num_subjects, num_seeds, 1))
        result: Floats = subject + seed + run + draw.normal(0, self.image, size)
        return result


def _table(values: Floats, base: Floats, num_seeds: int) -> pd.DataFrame:
    """One series and metric `[subject, point]` as rows."""
    subjects, points = values.shape
    return pd.DataFrame(
        {
            "multiplier": np.tile(np.exp2(OCTAVES), subjects),
            "subject": np.repeat(np.arange(subjects), points),
            "value": values.ravel(),
            "base": np.repeat(base, points),
            "num_seeds": num_seeds,
            "num_diverged": 0,
        }
    )
