"""A pack: its runs, the settings that all packs of a sweep share, and the task that trains it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

import torch

from adapters.errors import BadInput
from training.cell import Cell
from training.run import Run
from training.setting import Setting
from training.shared_file_system import wait_for_file
from training.store import RunFolder, join_inside, method_file
from training.task_kinds import kind_of
from training.tasks.task import TrainingTask

__all__ = ["Setting", "forget_model", "list_runs", "make_task"]


def list_runs(sweep: Path, contents: dict) -> list[Run]:
    """The runs of a specification; each row's `folder`, relative to the sweep's, says where it lies (else its name)."""
    return [
        Run(
            Cell.from_dict(row["cell"]),
            RunFolder(join_inside(sweep, row.get("folder") or row["run_id"])),
            row.get("labels") or {},
        )
        for row in contents["runs"]
    ]


def make_task(setting: Setting, runs: Sequence[Run]) -> TrainingTask:
    """The task of a pack's cells, with its model loaded once in a process.

    Raises:
        BadInput: if it is to train on cuda, and there is none; if a part cannot be loaded, or its units have changed.
    """
    if setting.device == "cuda" and not torch.cuda.is_available():
        place = f"{socket.gethostname()} (torch {torch.__version__})"
        raise BadInput(f"packs of this sweep train on cuda, and no CUDA device is usable on {place}: docs/real_runs.md")
    for run in runs:
        if "@" in run.cell.method:
            wait_for_file(method_file(run.folder.sweep, run.cell.method))
    task: TrainingTask = kind_of(runs[0].cell.task).open().make(setting, runs)
    return task


def forget_model(task: str) -> None:
    """Load a task's model anew next time: after an error it may be left with half an adapter, or hold memory."""
    kind_of(task).open().forget()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
