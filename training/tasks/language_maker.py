"""What the tasks of language models share: how inputs are found and held to the plan, and a model on which packs are measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from adapters.errors import BadInput
from training.accelerator import autocast, round_base
from training.run import Run
from training.setting import Setting
from training.store import RunFolder
from training.task_kinds import read_options
from training.tasks.pretrained import SHORTEST, Family
from training.tasks.task import Check, Found, MeasuredModel, TrainingTask

TYPICAL_SHARE = 0.5  # of the limit of tokens that a batch's longest row has, roughly


class LanguageMaker(ABC):
    """A task of language models, to planning and to workers (`training.tasks.task.TaskMaker`).

    Attributes:
        name: of the task.
        family: of its models.
        rows: what a training set holds, in the plural ("sentences").
        task: makes the task of a pack, from the loaded model, the cells and their training sets by name.
    """

    name: ClassVar[str]
    family: ClassVar[Family]
    rows: ClassVar[str]
    task: Callable[..., TrainingTask]

    @abstractmethod
    def load(self, folder: Path, name: str, options: Mapping[str, Any]) -> Any:
        """What a finetune learns: the set of that name.

        Raises:
            BadInput: for a name or a number of rows that the folder does not have.
        """

    @abstractmethod
    def open(self, setting: Setting, mixed_precision: str) -> Any:
        """The loaded model of a pack, once in a process."""

    def locate(self, model: str) -> Path:
        """The folder of a model."""
        return self.family.locate(model)

    def where(self, path: str) -> Mapping[str, str]:
        """Layer and kind of a matrix, from its path."""
        return self.family.where(path)

    def weights(self, model: str, options: str) -> Iterator[tuple[str, Tensor]]:
        """The matrices that the option `targets` names, with their paths."""
        return self.family.read_weights(Path(model), self.shapes(model, options))

    def shapes(self, model: str, options: str) -> Mapping[str, tuple[int, int]]:
        """The matrices of a model's folder that the option `targets` names."""
        return self.family.target_shapes(Path(model), read_options(self.name, options)["targets"])

    def find(self, asked: Any, names: Sequence[str], folder: Path) -> Found:
        """Locate and check the model, and load the training sets.

        Raises:
            BadInput: for anything that is missing or broken.
        """
        options, model = read_options(self.name, asked.kind[1]), self.family.locate(asked.model)
        sets = [self.load(folder, name, options) for name in names]
        return Found({"model": str(model), "subjects": str(folder)}, {"model_hash": self.family.hash_of(model)}, sets)

    def make(self, setting: Setting, runs: Sequence[Run]) -> TrainingTask:
        """Model and training sets of a pack.

        Raises:
            BadInput: if the model cannot be loaded, or rows have changed.
        """
        cells, place = [run.cell for run in runs], Path(setting.subjects)
        opened, options = self.open(setting, cells[0].mixed_precision), read_options(self.name, cells[0].task_options)
        sets = {name: self.load(place, name, options) for name in dict.fromkeys(cell.subject for cell in cells)}
        hashes = {name: one.content_hash() for name, one in sets.items()}
        for cell in cells:
            if hashes[cell.subject] != cell.subject_hash:
                raise BadInput(f"the {self.rows} of {cell.subject} changed since the sweep was planned")
        return self.task(opened, cells, sets)

    def leave_controls(  # noqa: B027
        self, task: Any, folders: Sequence[RunFolder | None], may_go_on: Check, before_write: Check
    ) -> None:
        """Nothing, where a task has no controls of its scores."""


class LanguageModel(MeasuredModel):
    """A language model on which packs are measured.

    Args:
        load: a `training.probe.Load`.
        opened: the loaded model, with `model`, `max_tokens` and `device`.
        family: that it is of.
        features: what training sends forward, from token ids and their mask.
        rows: of one forward call in an evaluation.
    """

    def __init__(
        self, load: Any, opened: Any, family: Family,
        features: Callable[[Any, Int[Tensor, "n t"], Int[Tensor, "n t"]], Float[Tensor, "n ..."]], rows: int,
    ) -> None:  # fmt: skip
        options = read_options(load.task, load.task_options)
        self.load, self.opened, self.features, self.rows = load, opened, features, rows
        self.model: nn.Module = opened.model
        self.targets = family.find_layers(self.model, options["targets"])
        if load.precision == "bf16":
            round_base(self.model, kept=self.targets.keys())
        self.tokens = max(SHORTEST, round(TYPICAL_SHARE * min(options["tokens"], opened.max_tokens)))

    def train(self, rows: int) -> Tensor:
        """Send random tokens through the model."""
        device = self.opened.device
        ids = torch.randint(0, self.opened.model.config.vocab_size, (rows, self.tokens), device=device)
        with autocast(device, self.load.precision):
            return self.features(self.opened, ids, torch.ones_like(ids))

    @torch.no_grad()
    def evaluate(self, size: int, row_s: float) -> None:
        """One forward call as large as those of an evaluation."""
        self.train(max(size, self.rows))


def round_opened(opened: Any, family: Family, mixed_precision: str) -> Any:
    """A loaded model whose frozen layers are in bf16 where the pack asks for it.

    On a CPU attention is then written out: the backward pass of torch's fused one is 13 times slower in bf16 than in float32
    (torch 2.13, AMX).
    """
    if mixed_precision == "bf16":
        round_base(opened.model, kept=family.find_layers(opened.model, "all").keys())
        if opened.device.type == "cpu":
            opened.model.set_attn_implementation("eager")
    return opened
