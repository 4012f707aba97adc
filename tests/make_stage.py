"""Tiny stages on which every task trains: the same tests run on each of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from adapters import get_class, parse_method
from tests.make_pipeline import make_pipeline, make_scorers, make_subjects
from tests.make_text import make_domains, make_encoder
from training.cell import Cell
from training.loop import train_pack
from training.run import Run
from training.store import RunFolder
from training.task_kinds import TaskKind, kind_of, parse_task, read_options
from training.tasks import encoder as encoders
from training.tasks import pipeline as pipelines
from training.tasks import sentences
from training.tasks import subjects as subject_folders
from training.tasks.scorers import Scorers
from training.tasks.subject import SubjectTask
from training.tasks.task import TrainingTask
from training.tasks.text_task import TextTask

RATE = {"lora": 1e-3, "dora": 1e-3, "delora": 1e-2, "etherplus": 1e-2}


class Stage(ABC):
    """A tiny model with what it learns from.

    Args:
        folder: where all of it goes.
    """

    name: ClassVar[str]
    units: ClassVar[tuple[str, str]]
    matrices: ClassVar[int]
    task_class: ClassVar[type[TrainingTask]]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def kind(self) -> TaskKind:
        """The task."""
        return kind_of(self.name)

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """What is adapted."""

    @abstractmethod
    def task(self, cells: list[Cell]) -> TrainingTask:
        """The task of a pack."""

    @property
    @abstractmethod
    def own(self) -> dict[str, Any]:
        """Fields of its cells."""

    def cell(self, method: str = "lora", **changes: Any) -> Cell:
        """A short cell."""
        spec = parse_method(method)
        fields: dict[str, Any] = {
            "method": spec.name, "options": spec.canonical, "rank": 4, "subject": self.units[0], "seed": 0, "steps": 6,
            "lr": RATE.get(spec.name, 1e-3), "boundary": 1.0 if get_class(spec.name).uses_boundary else None,
            "norms_every": 3,
        }  # fmt: skip
        return Cell(**(fields | self.own | changes))

    def train(self, folder: Path, cells: list[Cell], **options: Any) -> list[RunFolder]:
        """Train a pack and return its folders."""
        runs = [Run(cell, RunFolder(folder / f"run-{cell.identity()[:10]}"), {"multiplier": 1.0}) for cell in cells]
        train_pack(runs, self.task(cells), **options)
        return [run.folder for run in runs]


class PictureStage(Stage):
    """A tiny Stable Diffusion, its scorers and subjects."""

    name, units, matrices, task_class = "pictures", ("cup", "cup2"), 32, SubjectTask

    @cached_property
    def parts(self) -> tuple[pipelines.Pipeline, Scorers]:
        """The loaded pipeline and scorers."""
        make_pipeline(self.folder / "pipeline")
        make_scorers(self.folder)
        make_subjects(self.folder / "subjects")
        device = torch.device("cpu")
        scorers = Scorers(str(self.folder / "dino"), str(self.folder / "clip"), device)
        return pipelines.load(self.folder / "pipeline", device), scorers

    @property
    def model(self) -> nn.Module:
        """The U-Net."""
        unet: nn.Module = self.parts[0].unet
        return unet

    @property
    def own(self) -> dict[str, Any]:
        """Few and small pictures."""
        return {
            "resolution": 16,
            "num_prompts": 2,
            "num_images": 1,
            "num_inference_steps": 2,
            "guidance_scale": 2.0,
            "num_drift_prompts": 2,
        }

    def task(self, cells: list[Cell]) -> SubjectTask:
        """DreamBooth of the cells' subjects."""
        parts, prompt = self.parts, "a {token} {cls}"
        folder = self.folder / "subjects"
        subjects = {
            cell.subject: subject_folders.load(folder, cell.subject, token="sks", instance_prompt=prompt)
            for cell in cells
        }
        return SubjectTask(*parts, cells, subjects)


class TextStage(Stage):
    """A tiny BERT and two domains of sentences in which one word decides."""

    name, units, matrices, task_class = "text", ("books-1", "games-1"), 12, TextTask

    @cached_property
    def encoder(self) -> encoders.Encoder:
        """The loaded encoder."""
        folder = make_encoder(self.folder / "encoder")
        return encoders.load(encoders.FAMILY.locate(str(folder)), torch.device("cpu"))

    @cached_property
    def sentences(self) -> Path:
        """The folder of domains."""
        return sentences.locate(str(make_domains(self.folder / "domains")))

    @property
    def model(self) -> nn.Module:
        """The encoder."""
        model: nn.Module = self.encoder.model
        return model

    @property
    def own(self) -> dict[str, Any]:
        """Few sentences, in batches of four."""
        _, options = parse_task("text:sentences=40,tokens=16")
        return {"task": "text", "task_options": options, "train_batch_size": 4}

    def task(self, cells: list[Cell]) -> TextTask:
        """Sentiment of the cells' training sets."""
        count = read_options("text", cells[0].task_options)["sentences"]
        sets = {cell.subject: sentences.load(self.sentences, cell.subject, count) for cell in cells}
        return TextTask(self.encoder, cells, sets)


STAGES = {stage.name: stage for stage in (PictureStage, TextStage)}
