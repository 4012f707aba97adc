"""Synthetic sweeps for status and planning: specifications, claims, heartbeats, endings and records, without training."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slurm.store.layout import PackFiles, SweepFolder
from slurm.store.leases import Owner
from training.cell import Cell

FAR = Owner("node7", "ada", "another-boot", 4242, 17)


@dataclass(frozen=True)
class Job:
    """One job of a pretended SLURM."""

    state: str
    reason: str = ""
    name: str = ""


@dataclass
class Slurm:
    """A pretended scheduler that counts how often it is asked."""

    states: dict[str, Job] = field(default_factory=dict)
    calls: int = 0

    def jobs(self, wanted: Any) -> dict[str, Job]:
        """Every known job."""
        self.calls += 1
        return dict(self.states)


@dataclass
class Sweep:
    """Writes the files of one sweep's packs by hand."""

    path: Path

    @property
    def folder(self) -> SweepFolder:
        """As the package sees it."""
        return SweepFolder(self.path)

    def pack(self, name: str, cells: int = 2, steps: int = 100, **more: Any) -> PackFiles:
        """A planned pack."""
        rows = [
            {
                "run_id": f"{name}-run{n}",
                "cell": Cell(method="lora", options="", rank=4, subject="dog", seed=n, steps=steps, lr=1e-3).to_dict(),
                "labels": {},
            }
            for n in range(cells)
        ]
        self.put(self.files(name).spec, {"schema": 1, "pack": name, "setting": {}, "runs": rows, **more})
        return self.files(name)

    def files(self, name: str) -> PackFiles:
        """A pack's files, freshly looked up."""
        return PackFiles.of(self.folder.packs / f"{name}.json")

    def claim(self, name: str, holder: Owner | None = None, **more: Any) -> int:
        """One more turn; returns its number."""
        turn = self.files(name).turn + 1
        self.put(
            self.files(name).claim(turn), {"holder": dataclasses.asdict(holder or Owner.me()), "began": 1.0, **more}
        )
        return turn

    def beat(self, name: str, step: int, **more: Any) -> None:
        """A heartbeat of the newest turn."""
        beat = {"turn": self.files(name).turn, "count": step, "time": time.time(), "phase": "training", "step": step}
        self.put(self.files(name).beat, {**beat, "steps": 100, **more})

    def end(self, name: str, statuses: list[str], seconds: float = 10.0, **more: Any) -> None:
        """How a pack ended."""
        runs = {f"{name}-run{n}": status for n, status in enumerate(statuses)}
        ending = {"pack": name, "runs": runs, "turns": 1, "seconds": seconds, "reason": None}
        self.put(self.files(name).ended, {**ending, "errors": {}, **more})

    def send(self, job: str | None, tasks: list[list[str]], token: str = "t1", **more: Any) -> None:
        """A record of a job array."""
        record = {
            "token": token, "user": "ada", "host": "login", "made": "2026-01-01T00:00:00", "cluster": "slurm",
            "executor": "slurm", "code": "", "folder": str(self.path / "logs"), "job": job, "tasks": tasks,
            "time_min": 60, "state": "sent" if job else "intent", "error": None,
        }  # fmt: skip
        self.put(self.folder.submissions / f"{token}.json", record | more)

    @staticmethod
    def put(path: Path, value: dict) -> None:
        """Write a file at once."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.tmp")
        aside.write_text(json.dumps(value))
        os.replace(aside, path)
