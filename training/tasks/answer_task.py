"""Instruction tuning: a decoder learns to give the answers of prompts, from a few hundred of a user's own.

The loss is that of the answers' tokens alone. What the base model scores is the model as it is. DeLoRA's Table 5 trains so, on
Alpaca, and scores other benchmarks; here scores are of held-out answers.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from adapters.errors import BadInput
from adapters.words import counted
from training.accelerator import autocast, round_base
from training.cell import BASE, Cell
from training.run import Run
from training.setting import Setting
from training.store import RunFolder
from training.task_kinds import read_options
from training.tasks import decoder as decoders
from training.tasks import prompts
from training.tasks.decoder import FAMILY, Decoder, pad_left
from training.tasks.order import alike
from training.tasks.task import Check, Evaluation, Found, MeasuredModel, TrainingTask
from training.tasks.training_sets import TrainingSet

NAME = "answers"
ROWS = 16  # of one forward call in an evaluation
TYPICAL_SHARE = 0.5  # of the limit of tokens that a batch's longest row has, roughly

Coded = tuple[list[int], int]  # token ids of a row, and how many of them, at its end, are the answer's


class AnswerTask(TrainingTask):
    """Losses and evaluations of one pack.

    Args:
        decoder: the model; it may carry adapters.
        cells: the cells of the pack, in its order.
        sets: the cells' training sets, by name.
    """

    def __init__(self, decoder: Decoder, cells: Sequence[Cell], sets: Mapping[str, TrainingSet]) -> None:
        self.decoder, self.cells = decoder, list(cells)
        self.options = read_options(self.shared.task, self.shared.task_options)
        self.sets = [sets[cell.subject] for cell in cells]
        self._coded: dict[prompts.Exchange, Coded] = {}
        self._untouched: dict[prompts.Exchange, Tensor] = {}

    # What the loop asks of every task

    @property
    def model(self) -> nn.Module:
        """The decoder."""
        model: nn.Module = self.decoder.model
        return model

    @property
    def targets(self) -> dict[str, nn.Linear]:
        """The matrices that the option `targets` names."""
        return find_layers(self.model, self.options["targets"])

    @property
    def device(self) -> torch.device:
        """Where the decoder lies."""
        return self.decoder.device

    @torch.no_grad()
    def begin(self) -> None:
        """Keep what the untouched decoder makes of the other domains' prompts, from which drift is measured."""
        others = list(dict.fromkeys(row for one in self.sets for row in one.others))
        for a in range(0, len(others), ROWS):
            some = others[a : a + ROWS]
            self._untouched |= dict(zip(some, self._last(some), strict=True))

    # Training

    def losses(self, step: int, micro: int = 0) -> Float[Tensor, " k"]:
        """The mean over each replica's answer tokens of their negative log-likelihood, in nats."""
        rows = [self._rows(cell, one, step, micro) for cell, one in zip(self.cells, self.sets, strict=True)]
        nats, _, row = self._tell([row for own in rows for row in own])
        owner = row // self.shared.train_batch_size
        total = torch.zeros(len(rows), device=self.device).index_add(0, owner, nats)
        return total / owner.bincount(minlength=len(rows))

    def _rows(self, cell: Cell, one: TrainingSet, step: int, micro: int) -> list[prompts.Exchange]:
        number = (step - 1) * cell.gradient_accumulation_steps + micro
        lengths = tuple(len(ids) for ids, _ in map(self._code, one.train))
        return [one.train[place] for place in alike(cell.seed, "row", number, lengths, cell.train_batch_size)]

    def _code(self, row: prompts.Exchange) -> Coded:
        """Token ids of a row, computed once."""
        if row not in self._coded:
            self._coded[row] = self.decoder.exchange(row.text, row.label, self.options["tokens"])
        return self._coded[row]

    def _tell(self, rows: Sequence[prompts.Exchange]) -> tuple[Tensor, Tensor, Tensor]:
        """Of every answer token of some rows: its nats, whether it was the likeliest, and the place of its row."""
        coded = [self._code(row) for row in rows]
        ids, mask = pad_left([ids for ids, _ in coded])
        width = ids.shape[1]
        wanted = torch.arange(width) >= width - torch.tensor([number for _, number in coded])[:, None]
        row, place = wanted.nonzero(as_tuple=True)
        with self.autocast():
            hidden = self.decoder.hidden(ids, mask)
            logits = self.decoder.logits(hidden[row.to(self.device), place.to(self.device) - 1])
        true = ids[row, place].to(self.device)
        nats = F.cross_entropy(logits, true, reduction="none")
        return nats, logits.argmax(dim=1) == true, row.to(self.device)

    def _last(self, rows: Sequence[prompts.Exchange]) -> Float[Tensor, "n d"]:
        """What the decoder makes of each prompt: the last layer's output at its last token."""
        most = min(self.options["tokens"], self.decoder.max_tokens)
        with self.autocast():
            return self.decoder.hidden(*pad_left([self.decoder.prompt(row.text)[-most:] for row in rows]))[
                :, -1
            ].float()

    def autocast(self) -> contextlib.AbstractContextManager:
        """bf16 autocast where the pack asks for it."""
        return autocast(self.device, self.shared.mixed_precision)

    # Evaluation

    @torch.no_grad()
    def evaluate(self, step: int, may_go_on: Check = lambda: None) -> list[Evaluation]:
        """Loss and right tokens of the held-out answers, over all their tokens, and drift on the other domains' prompts."""
        sums = torch.zeros(3, len(self.sets), dtype=torch.float64)
        for rows, owner in self._parts([one.test for one in self.sets], may_go_on):
            nats, right, row = (part.cpu() for part in self._tell(rows))
            whose = owner[row]
            for total, part in zip(sums, (nats, right, torch.ones_like(nats)), strict=True):
                total.index_add_(0, whose[whose >= 0], part[whose >= 0].double())
        found = []
        for one, (nats, right, count), drift in zip(self.sets, sums.T.tolist(), self._drift(may_go_on), strict=True):
            values = [("answer_loss", one.cls, nats / count), ("right_tokens", one.cls, right / count)]
            values += [("drift", domain, value) for domain, value in drift.items()]
            told = [(step, *value) for value in values]
            found.append(Evaluation(pd.DataFrame(told, columns=["step", "metric", "prompt", "value"])))
        return found

    def _parts(
        self, rows: Sequence[Sequence[prompts.Exchange]], may_go_on: Check
    ) -> Iterator[tuple[list[prompts.Exchange], Int[Tensor, " n"]]]:
        """Rows of every replica for one forward call, as many of each, with the number of the replica that each is of.

        Replicas with fewer are given their last row again; it is of replica -1.
        """
        most, share = max(map(len, rows)), max(1, ROWS // len(rows))
        for a in range(0, most, share):
            may_go_on()
            places = range(a, min(a + share, most))
            some = [own[min(place, len(own) - 1)] for own in rows for place in places]
            owner = [k if place < len(own) else -1 for k, own in enumerate(rows) for place in places]
            yield some, torch.tensor(owner)

    def _drift(self, may_go_on: Check) -> list[dict[str, float]]:
        """By other domain, the mean of (1 - cosine)/2 of what is made of its prompts before and now."""
        others = [one.others for one in self.sets]
        if self.shared.method == BASE or not self._untouched:
            return [dict.fromkeys((row.domain for row in own), 0.0) for own in others]
        values: list[list[float]] = [[] for _ in others]
        for rows, owner in self._parts(others, may_go_on):
            before = torch.stack([self._untouched[row] for row in rows])
            moved = (F.normalize(self._last(rows), dim=1) - F.normalize(before, dim=1)).square().sum(dim=1) / 4
            for whose, value in zip(owner.tolist(), moved.tolist(), strict=True):
                if whose >= 0:
                    values[whose].append(value)
        return [
            pd.Series(own).groupby([row.domain for row in rows], sort=False).mean().to_dict()
            for own, rows in zip(values, others, strict=True)
        ]


def find_layers(model: nn.Module, which: str) -> dict[str, nn.Linear]:
    """The linear layers of a decoder that a set of `training.tasks.decoder.FAMILY.sets` names, by path, in its order."""
    return {p: m for p, m in model.named_modules() if isinstance(m, nn.Linear) and FAMILY.is_target(p, which)}


class AnswerMaker:
    """Instruction tuning, to planning and to workers (`training.tasks.task.TaskMaker`)."""

    def locate(self, model: str) -> Path:
        """The folder of a decoder."""
        return FAMILY.locate(model)

    def where(self, path: str) -> Mapping[str, str]:
        """Layer and kind of a matrix, from its path."""
        return FAMILY.where(path)

    def weights(self, model: str, options: str) -> Iterator[tuple[str, Tensor]]:
        """The matrices that the option `targets` names, with their paths."""
        return FAMILY.read_weights(Path(model), self.shapes(model, options))

    def shapes(self, model: str, options: str) -> Mapping[str, tuple[int, int]]:
        """The matrices of a decoder's folder that the option `targets` names."""
        return FAMILY.target_shapes(Path(model), read_options(NAME, options)["targets"])

    def find(self, asked: Any, names: Sequence[str], folder: Path) -> Found:
        """Locate and check the decoder, and load the training sets.

        Raises:
            BadInput: for anything that is missing or broken.
        """
        model, count = FAMILY.locate(asked.model), read_options(NAME, asked.kind[1])["rows"]
        sets = [prompts.load(folder, name, count) for name in names]
        return Found({"model": str(model), "subjects": str(folder)}, {"model_hash": FAMILY.hash_of(model)}, sets)

    def folder(self, asked: Sequence[str]) -> tuple[Path, list[str]]:
        """The folder of prompts that the words begin with, and the rest of the words."""
        rest = list(asked)
        return prompts.locate(rest.pop(0) if rest else ""), rest

    def pool(self, folder: Path, split: str) -> tuple[list[str], str]:
        """Training sets of a split, the domains in turns."""
        return prompts.names(folder, split), f" of split {split!r}"

    def make(self, setting: Setting, runs: Sequence[Run]) -> AnswerTask:
        """Decoder and training sets of a pack.

        Raises:
            BadInput: if the decoder cannot be loaded, or rows have changed.
        """
        decoder = _decoder(setting.model, setting.device, runs[0].cell.mixed_precision)
        count = read_options(NAME, runs[0].cell.task_options)["rows"]
        place, cells = Path(setting.subjects), [run.cell for run in runs]
        sets = {name: prompts.load(place, name, count) for name in dict.fromkeys(cell.subject for cell in cells)}
        for cell in cells:
            if sets[cell.subject].content_hash() != cell.subject_hash:
                raise BadInput(f"the rows of {cell.subject} changed since the sweep was planned")
        return AnswerTask(decoder, cells, sets)

    def leave_controls(
        self, task: AnswerTask, folders: Sequence[RunFolder | None], may_go_on: Check, before_write: Check
    ) -> None:
        """Nothing: a likelihood needs no scorer."""

    def forget(self) -> None:
        """Load the decoder anew next time."""
        _decoder.cache_clear()

    def bench(self, load: Any) -> DecoderModel:
        """The frozen decoder on random tokens."""
        return DecoderModel(load)

    def remarks(self, inputs: Any) -> Iterator[str]:
        """How many rows are cut at the limit of tokens."""
        from transformers import AutoConfig, AutoTokenizer

        model, limit = Path(inputs.setting.model), read_options(NAME, inputs.shared["task_options"])["tokens"]
        tokenizer = AutoTokenizer.from_pretrained(model)
        most = min(int(AutoConfig.from_pretrained(model).max_position_embeddings), tokenizer.model_max_length)
        rows = list(dict.fromkeys(row for one in inputs.subjects for row in (*one.train, *one.test)))
        ids = tokenizer([f"{row.text}{row.label}" for row in rows], verbose=False)["input_ids"]
        if cut := sum(len(own) + 1 > min(limit, most) for own in ids):
            all_rows = counted(len(rows), "prompt")
            yield f"{cut} of {all_rows} with their answers are cut at {counted(min(limit, most), 'token')}"


class DecoderModel(MeasuredModel):
    """A decoder on which packs are measured.

    Args:
        load: a `training.probe.Load`.
    """

    def __init__(self, load: Any) -> None:
        self.load, options = load, read_options(load.task, load.task_options)
        self._decoder = decoders.load(Path(load.model), torch.device(load.device))
        self.model: nn.Module = self._decoder.model
        self.targets = find_layers(self.model, options["targets"])
        if load.precision == "bf16":
            round_base(self.model, kept=self.targets.keys())
        most = min(options["tokens"], self._decoder.max_tokens)
        self._tokens = max(decoders.SHORTEST, round(TYPICAL_SHARE * most))

    def train(self, rows: int) -> Tensor:
        """Send random tokens through the decoder, and half of its outputs through its head."""
        size = (rows, self._tokens)
        ids = torch.randint(0, self._decoder.model.config.vocab_size, size, device=self._decoder.device)
        with autocast(self._decoder.device, self.load.precision):
            hidden = self._decoder.hidden(ids, torch.ones_like(ids))
            return self._decoder.logits(hidden[:, self._tokens // 2 :])

    @torch.no_grad()
    def evaluate(self, size: int, row_s: float) -> None:
        """One forward call as large as those of an evaluation."""
        self.train(max(size, ROWS))


@functools.cache
def _decoder(model: str, device: str, mixed_precision: str) -> Decoder:
    decoder = decoders.load(Path(model), torch.device(device))
    if mixed_precision == "bf16":
        round_base(decoder.model, kept=find_layers(decoder.model, "all").keys())
    return decoder


MAKER = AnswerMaker()
