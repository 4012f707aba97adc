"""Synthetic run folders of the exact schema, with a known plateau: what analysis and figures are tested on.

The score of a run is base + gain * f(log2 multiplier): f is 1 between the corners of a trapezoid and falls by `slope` an
octave outside it, never below 0. Subjects and seeds add their own effects.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import ArrayLike
from PIL import Image

from training.cell import Cell
from training.store import RunFolder

PROMPTS = ("a sks {} on a blue background", "a sks {} with a red hat")
MATRICES = tuple(
    (f"{block}.attentions.0.transformer_blocks.0.{attention}.{kind}", block, kind.removesuffix(".0"), attention)
    for block in ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1")
    for attention in ("attn1", "attn2")
    for kind in ("to_q", "to_k", "to_v", "to_out.0")
)
OPTIONS = {
    "lora": "alpha=2r,init=kaiming",
    "dora": "alpha=2r,init=kaiming,norm_grad=detached",
    "dora-fixed": "alpha=2r,init=kaiming,norm_grad=detached",
    "delora": "norm=columns,start=eq9",
    "etherplus": "blocks=1,sides=two",
}
BASE_SCORE = {"dino": 0.40, "clip_i": 0.60, "clip_t": 0.28}
GAIN = {"dino": 0.20, "clip_i": 0.10, "clip_t": -0.04}
FROZEN_HEIGHT = -0.5  # of a diverged run
GRID = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class Shape:
    """A method's known behaviour: the plateau's corners in log2 of the multiplier, and where it diverges."""

    low: float = -1.0
    high: float = 2.0
    slope: float = 0.4
    gain: float = 1.0
    diverges_from: float | None = None

    def height(self, multiplier: float) -> float:
        """f of the module's text, at most 1."""
        octave = np.log2(multiplier)
        return self.gain * max(0.0, 1 - self.slope * (max(self.low - octave, 0) + max(octave - self.high, 0)))


@dataclass
class Maker:
    """Writes run folders below `root`."""

    root: Path
    shapes: Mapping[str, Shape] = field(default_factory=lambda: {"delora": Shape()})
    multipliers: Sequence[float] = GRID
    subjects: Sequence[str] = ("cat", "dog", "owl")
    seeds: Sequence[int] = (0,)
    steps: int = 20
    eval_steps: Sequence[int] = ()
    subject_sd: float = 0.02
    seed_sd: float = 0.0
    noise_sd: float = 0.0
    rank: int = 8
    boundary: float = 0.5  # of DeLoRA
    options: Mapping[str, str] = field(default_factory=lambda: OPTIONS)
    sweep: str = "lr_robustness"
    model_hash: str = "pocket-hash"
    model: str = "pocket"
    scorer_hash: str = "scorers"
    pictures: bool = False
    pictures_on_the_way: bool = False
    drift: bool = False
    dynamics: bool = True
    spectra: bool = False
    sharpness: Mapping[str, float] = field(default_factory=dict)  # of the methods at the base rate, after step 1
    status: str = "finished"

    def write(self) -> Path:
        """Write every run and the base's; returns `root`."""
        for subject in self.subjects:
            self.write_base(subject)
            for method in self.shapes:
                for multiplier in self.multipliers:
                    for seed in self.seeds:
                        self.write_run(method, multiplier, subject, seed)
        return self.root

    def cell(self, method: str, multiplier: float, subject: str, seed: int) -> Cell:
        """The cell of one run; base rates are 1e-3, and 1e-2 for lambda."""
        return Cell(
            method=method, options=self.options[method], rank=self.rank, subject=subject, seed=seed, steps=self.steps,
            lr=1e-3 * multiplier, lr_lambda=1e-2 * multiplier if method == "delora" else None,
            boundary=self.boundary if method == "delora" else None, eval_steps=tuple(self.eval_steps), num_prompts=len(PROMPTS),
            num_images=1, model_hash=self.model_hash, subject_hash=f"hash-of-{subject}", scorer_hash=self.scorer_hash,
            sharpness_steps=(1,) if method in self.sharpness else (),
        )  # fmt: skip

    def write_base(self, subject: str) -> RunFolder:
        """The base model's run of one subject."""
        cell = self.cell("delora" if "delora" in self.options else "lora", 1.0, subject, 0).base()
        folder = RunFolder(self.root / "base" / cell.run_id("base"))
        folder.write(self.run_json(cell, {"model": self.model}, "finished", None))
        folder.write_scores(self.scores(subject, {0: 0.0}, subject_effect(subject, self.subject_sd)))
        if self.dynamics:
            folder.append("norms", norms_columns([0], 0.0), 0)
        if self.pictures:
            self.draw_pictures(folder, cell, 0, 0.0)
        return folder

    def write_run(self, method: str, multiplier: float, subject: str, seed: int) -> RunFolder:
        """One adapter's run, with scores, dynamics, norms and losses."""
        cell, shape = self.cell(method, multiplier, subject, seed), self.shapes[method]
        diverged = shape.diverges_from is not None and multiplier >= shape.diverges_from
        last = self.steps // 2 if diverged else self.steps  # the step at which the weights stop moving
        folder = RunFolder(self.root / self.sweep / cell.run_id(f"x{multiplier:g}"))
        labels = {"multiplier": multiplier, "scale": "both", "base_lr": 1e-3, "model": self.model}
        status = "diverged" if diverged else self.status
        folder.write(self.run_json(cell, labels, status, last if diverged else None))
        if status not in ("finished", "diverged"):
            return folder
        effect = subject_effect(subject, self.subject_sd) + subject_effect(f"{folder.run_id}", self.noise_sd)
        effect += subject_effect(f"{subject}-{seed}", self.seed_sd)
        heights = {
            step: FROZEN_HEIGHT
            if diverged and step >= last
            else shape.height(multiplier) * min(1.0, 2 * step / self.steps)
            for step in cell.evaluated_steps()
        }
        folder.write_scores(self.scores(subject, heights, effect))
        if self.dynamics:
            steps = list(range(self.steps + 1))
            folder.append("dynamics", dynamics_columns(steps, method, multiplier, self.steps, last), self.steps)
            snapshots = [0, self.steps // 2, self.steps] if self.spectra else [0, self.steps]
            norms = norms_columns(snapshots, 0.01 * multiplier)
            if self.spectra:
                norms |= spectra_columns(snapshots, multiplier)
            folder.append("norms", norms, self.steps)
            losses = steps_columns(steps, multiplier)
            if method in self.sharpness:
                start = self.sharpness[method] * multiplier * np.exp(subject_effect(subject, 0.2))
                losses["sharpness"] = np.where(np.asarray(steps) == 1, start, np.nan).astype(np.float32)
            folder.append("steps", losses, self.steps)
        if self.pictures:
            for step in heights if self.pictures_on_the_way else [self.steps]:
                self.draw_pictures(folder, cell, step, heights[step])
        return folder

    def run_json(self, cell: Cell, labels: dict[str, Any], status: str, diverged_step: int | None) -> dict[str, Any]:
        """The contents of run.json."""
        names = ("matrix", "block", "kind", "attention")
        matrices = [dict(zip(names, row)) | {"num_out": 64, "num_in": 64, "base_norm": 8.0} for row in MATRICES]
        return {
            "sweep": "base" if cell.method == "base" else self.sweep, "cell": cell.to_dict(), "labels": labels,
            "status": status, "diverged_step": diverged_step, "num_parameters": 1000, "matrices": matrices,
            "provenance": {"commit": "0" * 40, "dirty": False}, "error": None, "seconds": 1.5,
        }  # fmt: skip

    def scores(self, subject: str, heights: Mapping[int, float], effect: float) -> pd.DataFrame:
        """Rows step, metric, prompt, value; the two prompts lie symmetrically around the mean."""
        rows = [
            (step, metric, prompt.format(subject), BASE_SCORE[metric] + GAIN[metric] * height + effect + side * 0.01)
            for step, height in heights.items()
            for metric in BASE_SCORE
            for prompt, side in zip(PROMPTS, (-1, 1))
        ]
        if self.drift:  # of the weights' height above the base, 0 there
            rows += [(step, "drift", "a cat", 0.1 * abs(height)) for step, height in heights.items()]
        return pd.DataFrame(rows, columns=["step", "metric", "prompt", "value"])

    def draw_pictures(self, folder: RunFolder, cell: Cell, step: int, height: float) -> None:
        """One 16-pixel picture a prompt, the brighter the better the run."""

        def save(path: Path) -> None:
            tint = np.array([0.4 + 0.4 * height, 0.5, 0.8 - 0.4 * height]) * 255
            Image.fromarray(np.full((16, 16, 3), tint, dtype=np.uint8)).save(path, format="png")

        folder.add_images(step, [(prompt.format(cell.subject), 7, save) for prompt in PROMPTS])


def make_runs(root: Path, **changes: Any) -> Path:
    """Write a synthetic runs folder; the arguments are `Maker`'s fields."""
    with mock.patch("os.fsync"):  # hundreds of folders: flushing each to disk takes most of the time
        return Maker(root, **changes).write()


def subject_effect(name: str, sd: float) -> float:
    """A normal number that depends on the name only."""
    return sd * float(np.random.default_rng(zlib.crc32(name.encode())).standard_normal())


def dynamics_columns(steps: Sequence[int], method: str, multiplier: float, num_steps: int, last: int) -> dict[str, Any]:
    """Distances, linear in the rate for LoRA, saturating for the others, at rest after `last`. base_norm is 8."""
    step = np.repeat(np.asarray(steps, dtype=np.int32), len(MATRICES))
    spread = np.tile(np.linspace(0.8, 1.2, len(MATRICES)), len(steps))
    done = np.minimum(step, last) / num_steps
    reach = 0.05 * multiplier * done
    relative = reach if method == "lora" else 0.4 * np.tanh(reach / 0.4)
    columns = {"step": step, "matrix": matrix_names(len(steps)), "distance": 8 * relative * spread}
    if method == "delora":
        columns |= {"lambda": 0.5 + 0.1 * multiplier * done, "saturation": np.minimum(relative * 2, 1.0)}
    return {
        name: value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype == np.float64 else value
        for name, value in columns.items()
    }


def matrix_names(num_steps: int) -> pa.Array:
    """The names of the matrices, once for each step, dictionary-encoded as the store wants them."""
    return pa.array([row[0] for row in MATRICES] * num_steps).dictionary_encode()


def norms_columns(steps: Sequence[int], growth: float) -> dict[str, Any]:
    """Norms that differ by block and kind, grown by `growth` at every step after 0."""
    base = np.array([0.5 + 0.2 * number % 1.3 for number in range(len(MATRICES))])
    factor = np.where(np.repeat(steps, len(MATRICES)) > 0, 1 + growth, 1.0)
    norms = (np.tile(base, len(steps)) * factor).astype(np.float32)
    return {
        "step": np.repeat(np.asarray(steps, dtype=np.int32), len(MATRICES)),
        "matrix": matrix_names(len(steps)),
        "colnorm_mean": norms, "colnorm_sd": norms * 0.1, "rownorm_mean": norms * 2, "rownorm_sd": norms * 0.2,
    }  # fmt: skip


def spectra_columns(steps: Sequence[int], multiplier: float) -> dict[str, Any]:
    """Spectra that fall together as steps and rates rise, other ones in every matrix; none at step 0, intruders at the end."""
    done = np.repeat(np.asarray(steps), len(MATRICES)) / steps[-1]
    rank = 1 + (6 + np.tile(np.arange(len(MATRICES)), len(steps)) % 5) / (1 + multiplier * done)
    values = {"effective_rank": rank, "energy_1": 1 / rank, "energy_2": np.minimum(1, 1.5 / rank),
              "energy_4": np.minimum(1, 3 / rank), "intruders": np.where(done == 1, np.floor(multiplier), np.nan)}  # fmt: skip
    return {name: np.where(done > 0, value, np.nan).astype(np.float32) for name, value in values.items()}


def steps_columns(steps: Sequence[int], multiplier: float) -> dict[str, Any]:
    """Losses that fall."""
    step = np.asarray(steps, dtype=np.int32)
    loss = (0.2 * np.exp(-step / 10.0)).astype(np.float32)
    rate = np.full(len(step), 1e-3 * multiplier, dtype=np.float32)
    return {
        "step": step,
        "loss": loss,
        "grad_norm": loss,
        "lr": rate,
        "seconds": np.full(len(step), 0.1, dtype=np.float32),
    }


def assert_drawn(drawn: ArrayLike, wanted: ArrayLike) -> None:
    """Whether a figure shows numbers: what is drawn has six digits (`analysis.tables.rounded`)."""
    np.testing.assert_allclose(np.asarray(drawn, dtype=float), np.asarray(wanted, dtype=float), rtol=5.1e-6, atol=1e-12)
