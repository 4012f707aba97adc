"""Find the inputs of the text task, an encoder and training sets, and make its packs."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapters.errors import BadInput
from training.accelerator import autocast, round_base
from training.run import Run
from training.setting import Setting
from training.store import RunFolder
from training.task_kinds import read_options
from training.tasks import encoder as encoders
from training.tasks import sentences
from training.tasks.task import Check, Found, MeasuredModel
from training.tasks.text_task import ROWS, TextTask, find_layers

CONTROLS_KEY = "1"  # of what is measured: another one is measured anew
TYPICAL_SHARE = 0.5  # of the limit of tokens that a batch's longest sentence has, roughly


class TextMaker:
    """The text task, to planning and to workers (`training.tasks.task.TaskMaker`)."""

    name = "text"
    task = TextTask

    def load(self, folder: Path, name: str, options: Mapping[str, Any]) -> Any:
        """What a finetune learns: the set of that name.

        Raises:
            BadInput: for a name or a number of sentences that the folder does not have.
        """
        return sentences.load(folder, name, options["sentences"])

    def locate(self, model: str) -> Path:
        """The folder of an encoder."""
        return encoders.FAMILY.locate(model)

    def where(self, path: str) -> Mapping[str, str]:
        """Layer and kind of a matrix, from its path."""
        return encoders.FAMILY.where(path)

    def weights(self, model: str, options: str) -> Iterator[tuple[str, Tensor]]:
        """The matrices that the option `targets` names, with their paths."""
        return encoders.FAMILY.read_weights(Path(model), self.shapes(model, options))

    def find(self, asked: Any, names: Sequence[str], folder: Path) -> Found:
        """Locate and check the encoder, and load the training sets.

        Raises:
            BadInput: for anything that is missing or broken.
        """
        options = read_options(self.name, asked.kind[1])
        model = encoders.FAMILY.locate(asked.model)
        sets = [self.load(folder, name, options) for name in names]
        return Found(
            {"model": str(model), "subjects": str(folder)}, {"model_hash": encoders.FAMILY.hash_of(model)}, sets
        )

    def folder(self, asked: Sequence[str]) -> tuple[Path, list[str]]:
        """The archive or folder of sentences that the words begin with, or the default archive; and the rest of the words."""
        rest = list(asked)
        named = rest.pop(0) if rest and ("/" in rest[0] or Path(rest[0]).exists()) else ""
        return sentences.locate(named), rest

    def pool(self, folder: Path, split: str) -> tuple[list[str], str]:
        """Training sets of a split, the domains in turns."""
        return sentences.names(folder, split), f" of split {split!r}"

    def shapes(self, model: str, options: str) -> Mapping[str, tuple[int, int]]:
        """The matrices of an encoder's folder that the option `targets` names."""
        return encoders.FAMILY.target_shapes(Path(model), read_options(self.name, options)["targets"])

    def make(self, setting: Setting, runs: Sequence[Run]) -> TextTask:
        """Encoder and training sets of a pack.

        Raises:
            BadInput: if the encoder cannot be loaded, or sentences have changed.
        """
        encoder = _encoder(setting.model, setting.device, runs[0].cell.mixed_precision)
        if setting.gradient_checkpointing:
            encoder.model.gradient_checkpointing_enable()
        options = read_options(self.name, runs[0].cell.task_options)
        place, cells = Path(setting.subjects), [run.cell for run in runs]
        sets = {name: self.load(place, name, options) for name in dict.fromkeys(cell.subject for cell in cells)}
        for cell in cells:
            if sets[cell.subject].content_hash() != cell.subject_hash:
                raise BadInput(f"the sentences of {cell.subject} changed since the sweep was planned")
        return self.task(encoder, cells, sets)

    def leave_controls(
        self, task: TextTask, folders: Sequence[RunFolder | None], may_go_on: Check, before_write: Check
    ) -> None:
        """Leave how far the probe is above chance, in the base model's run of each training set."""
        for folder, one in zip(folders, task.sets, strict=True):
            if folder is not None:
                rows = task.controls(one, may_go_on)
                before_write()
                folder.write_controls(rows, CONTROLS_KEY)

    def forget(self) -> None:
        """Load the encoder anew next time."""
        _encoder.cache_clear()

    def bench(self, load: Any) -> TextModel:
        """The frozen encoder on random tokens."""
        return TextModel(load)

    def remarks(self, inputs: Any) -> list[str]:
        """How many sentences are cut at the limit of tokens."""
        options = read_options(self.name, inputs.shared["task_options"])
        texts = list(dict.fromkeys(s.text for one in inputs.subjects for s in (*one.train, *one.test)))
        cut = encoders.count_cut(Path(inputs.setting.model), texts, options["tokens"])
        return [f"{cut} of {len(texts):,} sentences are cut at {options['tokens']} tokens"] if cut else []


class TextModel(MeasuredModel):
    """An encoder on which packs are measured.

    Args:
        load: a `training.probe.Load`.
    """

    def __init__(self, load: Any) -> None:
        self.load, options = load, read_options(load.task, load.task_options)
        self._encoder = encoders.load(Path(load.model), torch.device(load.device))
        self.model: nn.Module = self._encoder.model
        self.targets = find_layers(self.model, options["targets"])
        if load.precision == "bf16":
            round_base(self.model, kept=self.targets.keys())
        most = min(options["tokens"], self._encoder.max_tokens)
        self._tokens = max(encoders.SHORTEST, round(TYPICAL_SHARE * most))

    def train(self, rows: int) -> Tensor:
        """Send random tokens through the encoder."""
        size = (rows, self._tokens)
        ids = torch.randint(0, self._encoder.model.config.vocab_size, size, device=self._encoder.device)
        with autocast(self._encoder.device, self.load.precision):
            return self._encoder.pooled(ids, torch.ones_like(ids))

    @torch.no_grad()
    def evaluate(self, size: int, row_s: float) -> None:
        """One forward call as large as those of an evaluation."""
        self.train(max(size, ROWS))


@functools.cache
def _encoder(model: str, device: str, mixed_precision: str) -> encoders.Encoder:
    encoder = encoders.load(Path(model), torch.device(device))
    if mixed_precision == "bf16":
        round_base(encoder.model, kept=find_layers(encoder.model, "all").keys())
    return encoder


MAKER = TextMaker()
