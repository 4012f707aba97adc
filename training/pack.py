"""A pack: its runs, the settings that all packs of a sweep share, and the task that trains it."""

from __future__ import annotations

import functools
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapters.errors import BadInput
from adapters.inject import find_targets
from training.accelerator import round_base
from training.cell import Cell, RunningFlags
from training.run import Run
from training.shared_file_system import wait_for_file
from training.store import RunFolder, StoreError, join_inside, method_file
from training.tasks import pipeline as pipelines
from training.tasks import scorers as scoring
from training.tasks import subjects as subject_folders
from training.tasks.class_pictures import class_latents
from training.tasks.subject import SubjectTask

CHECKPOINT_S = float(os.environ.get("PLATEAU_CHECKPOINT_S", "30"))


@dataclass(frozen=True)
class Setting(RunningFlags):
    """What every pack of a sweep shares, besides its cells: this, and how the work is done.

    Attributes:
        model, dino, clip: folders or hub ids, already located.
        subjects: folder of subjects.
        token, instance_prompt: how a subject is called in prompts.
        runs: the runs folder (class pictures are kept in it).
        device: "cpu" or "cuda".
        threads: CPU threads of one worker; 0 leaves torch's choice.
        checkpoint_every_s: seconds between checkpoints.
    """

    model: str
    dino: str
    clip: str
    subjects: str
    token: str
    instance_prompt: str
    runs: str
    device: str = "cpu"
    threads: int = 0
    checkpoint_every_s: float = CHECKPOINT_S

    @classmethod
    def read(cls, path: Path, contents: dict[str, Any]) -> Setting:
        """The setting of a pack's specification.

        Raises:
            StoreError: if a field is missing or unknown; the message names the file.
        """
        try:
            return cls(**contents["setting"])
        except TypeError as error:
            raise StoreError(f"damaged file {path}: setting: {str(error).partition(') ')[2]}") from None


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


def make_task(setting: Setting, runs: list[Run]) -> SubjectTask:
    """Model, scorers, subjects and class pictures of a pack, loaded once in a process.

    Raises:
        BadInput: if it is to train on cuda, and there is none; if a part cannot be loaded, or pictures have changed.
    """
    if setting.device == "cuda" and not torch.cuda.is_available():
        place = f"{socket.gethostname()} (torch {torch.__version__})"
        raise BadInput(f"packs of this sweep train on cuda, and no CUDA device is usable on {place}: docs/real_runs.md")
    for run in runs:
        if "@" in run.cell.method:
            wait_for_file(method_file(run.folder.sweep, run.cell.method))
    pipeline = _pipeline(setting.model, setting.device, runs[0].cell.mixed_precision)
    if setting.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    load = functools.partial(
        subject_folders.load, Path(setting.subjects), token=setting.token, instance_prompt=setting.instance_prompt
    )
    cells = [run.cell for run in runs]
    subjects = {cell.subject: load(cell.subject) for cell in cells}
    for cell in cells:
        if subjects[cell.subject].content_hash(cell.num_drift_prompts) != cell.subject_hash:
            raise BadInput(f"the pictures or prompts of {cell.subject} changed since the sweep was planned")
    pool = Path(setting.runs) / "class_pictures"
    classes = {subjects[cell.subject].cls for cell in cells if cell.prior_loss_weight > 0}
    return SubjectTask(
        pipeline, _scorers(setting.dino, setting.clip, setting.device), cells, subjects,
        {cls: class_latents(pipeline, cls, cells[0], pool) for cls in classes},
        cache_latents=setting.cache_latents, cache_texts=setting.pre_compute_text_embeddings,
    )  # fmt: skip


@functools.cache
def _pipeline(model: str, device: str, mixed_precision: str) -> pipelines.Pipeline:
    pipeline = pipelines.load(Path(model), torch.device(device))
    if mixed_precision == "bf16":
        round_base(pipeline.unet, kept=find_targets(pipeline.unet).keys())
    return pipeline


@functools.cache
def _scorers(dino: str, clip: str, device: str) -> scoring.Scorers:
    return scoring.Scorers(dino, clip, torch.device(device))


def forget_model() -> None:
    """Load the model anew next time: after an error it may be left with half an adapter, or hold memory."""
    _pipeline.cache_clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
