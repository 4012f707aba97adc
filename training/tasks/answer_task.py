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

from adapters.words import counted
from training.accelerator import autocast
from training.cell import BASE, Cell
from training.setting import Setting
from training.task_kinds import read_options
from training.tasks import decoder as decoders
from training.tasks import prompts, training_sets
from training.tasks.decoder import FAMILY, Decoder, pad_left
from training.tasks.language_maker import LanguageMaker, LanguageModel, round_opened
from training.tasks.order import alike
from training.tasks.pretrained import count_cut
from training.tasks.task import Check, Evaluation, TrainingTask
from training.tasks.training_sets import TrainingSet

ROWS = 16  # of one forward call in an evaluation

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
        self._known_lengths: dict[str, tuple[int, ...]] = {}
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
        return FAMILY.find_layers(self.model, self.options["targets"])

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
        places = alike(cell.seed, "row", number, self._lengths(one), cell.train_batch_size)
        return [one.train[place] for place in places]

    def _lengths(self, one: TrainingSet) -> tuple[int, ...]:
        """Tokens of each row to learn from, counted once."""
        if one.name not in self._known_lengths:
            self._known_lengths[one.name] = tuple(len(ids) for ids, _ in map(self._code, one.train))
        return self._known_lengths[one.name]

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
        ids = [self.decoder.prompt(row.text, most) for row in rows]
        with self.autocast():
            return self.decoder.hidden(*pad_left(ids))[:, -1].float()

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


class AnswerMaker(LanguageMaker):
    """Instruction tuning, to planning and to workers."""

    name, family, rows, task = "answers", FAMILY, "rows", AnswerTask

    def load(self, folder: Path, name: str, options: Mapping[str, Any]) -> TrainingSet:
        """A training set.

        Raises:
            BadInput: for a name or a number of rows that the folder does not have.
        """
        return prompts.load(folder, name, options["rows"])

    def open(self, setting: Setting, mixed_precision: str) -> Decoder:
        """The decoder."""
        return _decoder(setting.model, setting.device, mixed_precision)

    def folder(self, asked: Sequence[str]) -> tuple[Path, list[str]]:
        """The folder of prompts that the words begin with, and the rest of the words."""
        rest = list(asked)
        return prompts.locate(rest.pop(0) if rest else ""), rest

    def pool(self, folder: Path, split: str) -> tuple[list[str], str]:
        """Training sets of a split, the domains in turns."""
        return prompts.names(folder, split), f" of split {split!r}"

    def forget(self) -> None:
        """Load the decoder anew next time."""
        _decoder.cache_clear()

    def bench(self, load: Any) -> LanguageModel:
        """The frozen decoder on random tokens, the second half of whose outputs go through its head."""

        def features(decoder: Decoder, ids: Tensor, mask: Tensor) -> Tensor:
            return decoder.logits(decoder.hidden(ids, mask)[:, ids.shape[1] // 2 :])

        decoder = decoders.load(Path(load.model), torch.device(load.device))
        return LanguageModel(load, decoder, self.family, features, ROWS)

    def remarks(self, inputs: Any) -> Iterator[str]:
        """What is left out of the folder, and how many rows are cut at the limit of tokens."""
        folder = Path(inputs.setting.subjects)
        yield from training_sets.left_out(folder, prompts.ENDING)
        if repeated := prompts.count_repeated(folder):
            yield f"{counted(repeated, 'row')} left out: the prompt stands before in its file, and the first answer is learned"
        rows = list(dict.fromkeys(row for one in inputs.subjects for row in (*one.train, *one.test)))
        limit = read_options(self.name, inputs.shared["task_options"])["tokens"]
        cut, most = count_cut(Path(inputs.setting.model), [f"{row.text}{row.label}" for row in rows], limit, ending=1)
        if cut:
            yield f"{cut} of {counted(len(rows), 'prompt')} with their answers are cut at {counted(most, 'token')}"


@functools.cache
def _decoder(model: str, device: str, mixed_precision: str) -> Decoder:
    return round_opened(decoders.load(Path(model), torch.device(device)), FAMILY, mixed_precision)


MAKER = AnswerMaker()
