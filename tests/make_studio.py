"""A studio for whole-program tests: a tiny pipeline with scorers and subjects, and the front door on it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.make_pipeline import make_pipeline, make_scorers, make_subjects

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Studio:
    """The folders that a driver needs.

    Attributes:
        folder: holds ``pipeline``, ``dino``, ``clip`` and ``subjects``.
        cache: stands in for the user's cache folder.
    """

    folder: Path
    cache: Path

    def arguments(self, runs: Path, *more: str, driver: str = "lr_robustness") -> list[str]:
        """The command line of a short sweep."""
        return [
            sys.executable, str(ROOT / "sweeps" / f"{driver}.py"), "--model", str(self.folder / "pipeline"),
            "--dino", str(self.folder / "dino"), "--clip", str(self.folder / "clip"),
            "--subjects", str(self.folder / "subjects"), "--runs", str(runs), "--steps", "6", "--rank", "4",
            "--num-prompts", "2", "--num-images", "1", "--num-inference-steps", "2", "--norms-every", "3", *more,
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """One thread, no network, a cache of its own."""
        own = {"XDG_CACHE_HOME": str(self.cache), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
        return os.environ | own

    def run(self, runs: Path, *more: str, cwd: Path = ROOT, **options: str) -> subprocess.CompletedProcess:
        """Run a driver to its end."""
        return subprocess.run(
            self.arguments(runs, *more, **options), cwd=cwd, env=self.environment(), capture_output=True, text=True
        )

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
    return Studio(folder, folder / "cache")
