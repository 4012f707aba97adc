"""A studio for whole-program tests: a tiny pipeline with scorers and subjects, and the front door on it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm.store.layout import spec_id
from tests.make_pipeline import make_pipeline, make_scorers, make_subjects
from tests.warm_program import run_warm
from training.cell import Cell
from training.pack import Setting
from training.store import write_json
from training.tasks.subjects import Subject, load

INSTANCE_PROMPT = "a {token} {cls}"

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Studio:
    """The folders that a driver needs.

    Attributes:
        folder: holds ``pipeline``, ``dino``, ``clip`` and ``subjects``.
    """

    folder: Path

    def arguments(self, runs: Path, *more: str, driver: str = "lr_robustness") -> list[str]:
        """The command line of a short sweep."""
        return [
            sys.executable, str(ROOT / "sweeps" / f"{driver}.py"), "--model", str(self.folder / "pipeline"),
            "--dino", str(self.folder / "dino"), "--clip", str(self.folder / "clip"),
            "--subjects", str(self.folder / "subjects"), "--runs", str(runs), "--steps", "6", "--rank", "4",
            "--num-prompts", "2", "--num-images", "1", "--num-drift-prompts", "1",
            "--num-inference-steps", "2", "--norms-every", "3", *more,
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """One thread, no network, wide lines."""
        return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}

    def run(self, runs: Path, *more: str, cwd: Path = ROOT, **options: str) -> subprocess.CompletedProcess:
        """Run a driver to its end; its imports were made before."""
        return run_warm(self.arguments(runs, *more, **options)[1:], cwd, self.environment())

    def start(self, runs: Path, *more: str, **options: str) -> subprocess.Popen:
        """Start a driver as a process group of its own."""
        return subprocess.Popen(
            self.arguments(runs, *more, **options), cwd=ROOT, env=self.environment(), start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


def build_studio(folder: Path) -> Studio:
    """Make everything, with random weights."""
    make_pipeline(folder / "pipeline")
    make_scorers(folder)
    make_subjects(folder / "subjects")
    return Studio(folder)


def make_pack(studio: Studio, sweep: Path, cells: Sequence[Cell], **setting: object) -> Path:
    """Store a pack's specification as a plan does; returns its path."""
    subjects = {cell.subject: load_subject(studio, cell.subject) for cell in cells}
    cells = [dataclasses.replace(cell, subject_hash=subjects[cell.subject].content_hash()) for cell in cells]
    run_ids = [cell.run_id(f"x{cell.lr:g}") for cell in cells]
    pack = f"{cells[0].method_stem}-{spec_id(run_ids)}"
    rows = [{"run_id": i, "cell": c.to_dict(), "labels": {"multiplier": 1.0}} for i, c in zip(run_ids, cells)]
    fields = {"threads": 1, "checkpoint_every_s": 0.0, **setting}
    shared = Setting(
        str(studio.folder / "pipeline"), str(studio.folder / "dino"), str(studio.folder / "clip"),
        str(studio.folder / "subjects"), "sks", INSTANCE_PROMPT, str(sweep.parent), **fields,
    )  # fmt: skip
    spec = sweep / "packs" / f"{pack}.json"
    write_json(spec, {"schema": 1, "pack": pack, "setting": dataclasses.asdict(shared), "runs": rows})
    return spec


def load_subject(studio: Studio, name: str) -> Subject:
    """One of the studio's subjects."""
    return load(studio.folder / "subjects", name, token="sks", instance_prompt=INSTANCE_PROMPT)
