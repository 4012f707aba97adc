"""Find the inputs of the text task, an encoder and training sets, and make its packs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from training.setting import Setting
from training.store import RunFolder
from training.task_kinds import read_options
from training.tasks import encoder as encoders
from training.tasks import sentences, training_sets
from training.tasks.language_maker import LanguageMaker, LanguageModel, round_opened
from training.tasks.pretrained import count_cut
from training.tasks.task import Check
from training.tasks.text_task import ROWS, TextTask

CONTROLS_KEY = "1"  # of what is measured: another one is measured anew


class TextMaker(LanguageMaker):
    """The text task, to planning and to workers."""

    name, family, rows, task = "text", encoders.FAMILY, "sentences", TextTask

    def load(self, folder: Path, name: str, options: Mapping[str, Any]) -> Any:
        """A training set.

        Raises:
            BadInput: for a name or a number of sentences that the folder does not have.
        """
        return sentences.load(folder, name, options["sentences"])

    def open(self, setting: Setting, mixed_precision: str) -> encoders.Encoder:
        """The encoder."""
        encoder = _encoder(setting.model, setting.device, mixed_precision)
        if setting.gradient_checkpointing:
            encoder.model.gradient_checkpointing_enable()
        return encoder

    def folder(self, asked: Sequence[str]) -> tuple[Path, list[str]]:
        """The archive or folder of sentences that the words begin with, or the default archive; and the rest of the words."""
        rest = list(asked)
        named = rest.pop(0) if rest and ("/" in rest[0] or Path(rest[0]).exists()) else ""
        return sentences.locate(named), rest

    def pool(self, folder: Path, split: str) -> tuple[list[str], str]:
        """Training sets of a split, the domains in turns."""
        return sentences.names(folder, split), f" of split {split!r}"

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

    def bench(self, load: Any) -> LanguageModel:
        """The frozen encoder on random tokens."""
        encoder = encoders.load(Path(load.model), torch.device(load.device))
        return LanguageModel(load, encoder, self.family, encoders.Encoder.pooled, ROWS)

    def remarks(self, inputs: Any) -> list[str]:
        """What is left out of a folder, and how many sentences are cut at the limit of tokens."""
        options = read_options(self.name, inputs.shared["task_options"])
        texts = list(dict.fromkeys(s.text for one in inputs.subjects for s in (*one.train, *one.test)))
        cut, most = count_cut(Path(inputs.setting.model), texts, options["tokens"])
        said = [f"{cut} of {len(texts):,} sentences are cut at {most} tokens"] if cut else []
        return [*self.left_out(Path(inputs.setting.subjects)), *said]

    def left_out(self, folder: Path) -> list[str]:
        """What is not read of a folder of one's own."""
        return training_sets.left_out(folder, sentences.ENDING)


@functools.cache
def _encoder(model: str, device: str, mixed_precision: str) -> encoders.Encoder:
    return round_opened(encoders.load(Path(model), torch.device(device)), encoders.FAMILY, mixed_precision)


MAKER = TextMaker()
