"""What the training loop asks of a task, and what planning asks of it: a new task writes these two, and a `TaskKind`."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn

from training.cell import Cell
from training.store import RunFolder

if TYPE_CHECKING:
    from training.run import Run
    from training.setting import Setting

Check = Callable[[], None]  # called between parts of the work; may raise, to break off


@dataclass
class Evaluation:
    """What one evaluation of one replica leaves.

    Attributes:
        scores: rows step, metric, prompt (what was asked: a prompt, or the name of a part of the test), value.
        pictures: (prompt, seed, picture) triples; none where a task draws nothing.
    """

    scores: pd.DataFrame
    pictures: list[tuple[str, int, Image.Image]] = field(default_factory=list)


class Trained(ABC):
    """What trains fully beside the adapter, at rates of its own: a classifier's head."""

    @abstractmethod
    def zero_grad(self) -> None:
        """Set all gradients to zero."""

    @abstractmethod
    def step(self, frozen: Bool[Tensor, " k"], factor: float) -> None:
        """One step of every replica but the frozen ones; `factor` is the schedule's share of the full rates."""

    @abstractmethod
    def state(self) -> Mapping[str, Tensor]:
        """What the next step depends on: tensors `[k, ...]` by name, restored in place from a checkpoint."""

    @abstractmethod
    def distances(self) -> Float[Tensor, " k"]:
        """How far each replica's values have moved, ‖h_t - h_0‖."""

    @abstractmethod
    def save(self, folder: Path, replica: int) -> None:
        """Write one replica's values beside its adapter, as safetensors."""


class TrainingTask(ABC):
    """Losses and evaluations of one pack, whose cells it has in the pack's order.

    Rows of every batch are replica-major. What is random is a function of (cell seed, step), never of the place in the pack.
    """

    cells: list[Cell]

    @property
    def shared(self) -> Cell:
        """Any of the cells: read here what all of the pack agree in."""
        return self.cells[0]

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The module that adapters are put into."""

    @property
    @abstractmethod
    def targets(self) -> Mapping[str, nn.Linear]:
        """The layers that are adapted, by their path in the model."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it trains."""

    @property
    def beside(self) -> Trained | None:
        """What trains beside the adapter; None for nothing."""
        return None

    def begin(self) -> None:  # noqa: B027
        """Note what the model gives before any adapter is in it."""

    @abstractmethod
    def losses(self, step: int, micro: int = 0) -> Float[Tensor, " k"]:
        """The loss of each replica on its micro-batch of `step` (from 1 on): the mean over its own rows."""

    @abstractmethod
    def evaluate(self, step: int, may_go_on: Check = lambda: None) -> list[Evaluation]:
        """Score every replica; of the base model's cells, the model as it is."""


class Unit(Protocol):
    """What intervals generalise over: a subject, a training set."""

    @property
    def name(self) -> str:
        """As `--subjects` and folders call it."""

    @property
    def cls(self) -> str:
        """What kind of thing it is, in words."""

    @property
    def split(self) -> str:
        """ "evidence", "tuning", or ""."""

    @property
    def picture(self) -> Path | None:
        """A picture of it for sheets of pictures; None where there is none; with one comes `is_read_anew`, which says whether a
        small copy is always written again.
        """

    def fields(self, cell: Mapping[str, Any]) -> Mapping[str, Any]:
        """The fields of its cells that it decides, among them `subject`, its name, and `subject_hash`, its content.

        Args:
            cell: the other fields.
        """


@dataclass(frozen=True)
class Found:
    """Inputs of a sweep, located, checked and hashed.

    Attributes:
        setting: fields of a `Setting` that say where things lie.
        shared: fields of every cell that the inputs decide: hashes, and what the model says where no flag does.
        units: in the order asked for.
    """

    setting: Mapping[str, str]
    shared: Mapping[str, Any]
    units: Sequence[Any]


def share(module: nn.Module) -> nn.Module:
    """A copy of a module around the very same tensors."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})


class MeasuredModel(ABC):
    """A model on this machine, to measure what packs on it cost."""

    model: nn.Module
    targets: Mapping[str, nn.Linear]

    def twin(self) -> MeasuredModel:
        """The same around a copy of the model's modules, which share its tensors."""
        kept = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        return copy.deepcopy(self, kept)

    @abstractmethod
    def train(self, rows: int) -> Tensor:
        """Send so many rows forward; returns what a loss is made of."""

    @abstractmethod
    def evaluate(self, size: int, row_s: float) -> None:
        """Work as an evaluation of a pack of `size` does at its largest; `row_s` is what a row's training step takes."""


class TaskMaker(Protocol):
    """How a task's inputs are found, and its packs made."""

    def locate(self, model: str) -> Path:
        """The folder of a model, fetched where it is a hub's.

        Raises:
            BadInput: if it is not there, or of another kind.
        """

    def where(self, path: str) -> Mapping[str, str]:
        """Block, kind and attention of an adapted matrix, from its path in the model."""

    def weights(self, model: str, options: str) -> Iterator[tuple[str, Tensor]]:
        """The adapted matrices `[out, in]` with their paths, read one after the other from a model's folder."""

    def find(self, asked: Any, names: Sequence[str], folder: Path) -> Found:
        """Locate and check what the flags `asked` name, and load the units `names` of `folder`.

        Raises:
            BadInput: for anything that is missing or broken.
        """

    def folder(self, asked: Sequence[str]) -> tuple[Path, list[str]]:
        """The place of the units that `--subjects` begins with, or the task's own, and the words that follow."""

    def pool(self, folder: Path, split: str) -> tuple[list[str], str]:
        """Names of the units of a split, in the order in which they are taken, and words that say what they are of.

        Raises:
            BadInput: if there are none.
        """

    def shapes(self, model: str, options: str) -> Mapping[str, tuple[int, int]]:
        """`(out, in)` of the adapted matrices by path, from the weights' headers alone.

        Raises:
            BadInput: if it has none.
        """

    def make(self, setting: Setting, runs: Sequence[Run]) -> TrainingTask:
        """Model, units and what else a pack needs, loaded once in a process.

        Raises:
            BadInput: if a part cannot be loaded, or has changed since the plan.
        """

    def leave_controls(
        self, task: Any, folders: Sequence[RunFolder | None], may_go_on: Check, before_write: Check
    ) -> None:
        """Leave controls of the scores in the base model's runs of a pack; nothing where a task has none.

        Args:
            task: the pack's.
            folders: the runs, in its order; None for one that is left alone.
            may_go_on: called between units; may raise, to break off.
            before_write: called before anything is written; may raise.
        """

    def forget(self) -> None:
        """Load the model anew next time."""

    def bench(self, load: Any) -> MeasuredModel:
        """What packs like a `training.probe.Load` work on."""

    def remarks(self, found: Any) -> Iterator[str]:
        """Lines on what a user has to know of the inputs of a plan."""
