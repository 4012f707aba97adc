"""The real thing in all but its weights: Stable Diffusion 1.5's configuration, DreamBooth's data set, the paper's preset.

The photographs are the real ones where `PLATEAU_DREAMBENCH` names a copy, else a tiny copy of their layout.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from unittest import mock

from benchmarks.sd15 import make_sd15
from slurm.estimate import calibrate
from sweeps import lr_robustness
from tests.make_dreambench import REAL, make_dreambench
from tests.make_driver import Driven, drive_here
from tests.make_studio import ROOT, Studio
from training.demand import Cost


@dataclass(frozen=True)
class Rehearsal(Studio):
    """A studio of the real names and layouts, with a cache of its own.

    Attributes:
        folder: holds `sd15`, the cache, and a copy of the data set's layout where the real one is not here.
    """

    @property
    def subjects(self) -> Path:
        """The data set."""
        return REAL if REAL.is_dir() else self.folder / "dataset"

    def arguments(self, runs: Path, *more: str, driver: str = "lr_robustness") -> list[str]:
        """The command line of the paper's preset; the scorers are the pocket's unless `more` has others."""
        return [
            sys.executable, str(ROOT / "sweeps" / f"{driver}.py"), "--preset", "paper", "--model", str(self.folder / "sd15"),
            "--dino", "pocket", "--clip", "pocket", "--subjects", str(self.subjects), *more, "--runs", str(runs),
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """As the studio's, with this rehearsal's cache."""
        return super().environment() | {"XDG_CACHE_HOME": str(self.folder / "cache")}


def make_rehearsal(folder: Path, width: Fraction | int, text_layers: int = 12) -> Rehearsal:
    """Make the model, and the data set's layout where the real one is not here."""
    make_sd15(folder / "sd15", width, text_layers=text_layers)
    if not REAL.is_dir():
        make_dreambench(folder / "dataset")
    return Rehearsal(folder)


def drive_rehearsal(rehearsal: Rehearsal, runs: Path, *more: str) -> Driven:
    """The front door in this process, with the rehearsal's cache and threads."""
    with mock.patch.dict("os.environ", rehearsal.environment()):
        return drive_here(lr_robustness, rehearsal.arguments(runs, *more)[1:], runs, ("png", "pdf"))


def plan_rehearsal(rehearsal: Rehearsal, runs: Path, *more: str, costs: Mapping[int, Cost]) -> Driven:
    """`--dry-run` in this process; the speed pretended here is kept in the cache, so that later calls measure none."""
    with mock.patch.object(calibrate, "_measure_elsewhere", return_value=dict(costs)):
        return drive_rehearsal(rehearsal, runs, *more, "--dry-run")
