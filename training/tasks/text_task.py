"""The sentiment task: an encoder learns which sentences people rated positive, from a few hundred of one domain.

Features are the mean of the encoder's last outputs over the tokens; a head of the run's own classifies them. What the base model
scores is a probe: logistic regression on the frozen encoder's features of the same training sentences. A gain counts from there.
What another task of an encoder does in its own way are the methods under "What is told".
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from training.accelerator import autocast
from training.cell import BASE, Cell
from training.seeds import seed_of
from training.task_kinds import read_options
from training.tasks.encoder import FAMILY, Encoder, pad
from training.tasks.head import Head
from training.tasks.order import alike
from training.tasks.pretrained import Text
from training.tasks.probe_head import predict_by_probe
from training.tasks.task import Check, Evaluation, TrainingTask

CLASSES = 2
NUM_SHUFFLES = 5
ROWS = 128  # of one forward call in an evaluation
MOST_PROBED = 4096  # sentences that a probe is fitted to


class TextTask(TrainingTask):
    """Losses and evaluations of one pack.

    Args:
        encoder: the model; it may carry adapters.
        cells: the cells of the pack, in its order.
        sets: what the cells learn (`training.tasks.training_sets.TrainingSet`), by name.
    """

    dense = False  # whether the head has a layer of its own before the classifier
    first = False  # whether features are those of the first token, not the mean over all

    def __init__(self, encoder: Encoder, cells: Sequence[Cell], sets: Mapping[str, Any]) -> None:
        self.encoder, self.cells = encoder, list(cells)
        self.options = read_options(self.shared.task, self.shared.task_options)
        self.sets = [sets[cell.subject] for cell in cells]
        self._tokens: dict[Text, list[int]] = {}
        self._known_lengths: dict[str, tuple[int, ...]] = {}
        self._untouched: dict[Text, Tensor] = {}
        self.head = None if self.shared.method == BASE else self._make_head()

    def _make_head(self) -> Head:
        follows, own = self.options["head"] == "follows", self.options["head_lr"]
        return Head(
            self.encoder.model.config.hidden_size, [self.outputs(one) for one in self.sets],
            [cell.seed for cell in self.cells], [cell.lr if follows else own for cell in self.cells],
            [cell.adam_weight_decay for cell in self.cells], self.device, dense=self.dense,
        )  # fmt: skip

    # What is told

    def outputs(self, one: Any) -> int:
        """How many numbers the head gives for a sentence of a set."""
        return CLASSES

    def loss(self, one: Any, given: Float[Tensor, "n o"], labels: Tensor) -> Float[Tensor, ""]:
        """The loss of a set's micro-batch, from what the head gives."""
        return F.cross_entropy(given, labels)

    def told(self, one: Any, given: Float[Tensor, "n o"]) -> Tensor:
        """What the head says of each sentence `[n]`, to be compared with the labels."""
        return given.argmax(dim=1)

    def probe(self, one: Any, train: Float[Tensor, "n d"], labels: Tensor, test: Float[Tensor, "m d"]) -> Tensor:
        """What a probe that was fitted to features and labels says of the test sentences `[m]`."""
        return predict_by_probe(train, labels, test, CLASSES)

    def probed(self, one: Any) -> Sequence[Any]:
        """The rows that a probe is fitted to: those of a training set stand in nobody's order."""
        rows: Sequence[Any] = one.train[:MOST_PROBED]
        return rows

    def score(self, step: int, one: Any, labels: Tensor, told: Tensor) -> pd.DataFrame:
        """Rows step, metric, prompt, value of a set's test sentences."""
        return score_rows(step, one.cls, labels, told)

    # What the loop asks of every task

    @property
    def model(self) -> nn.Module:
        """The encoder."""
        model: nn.Module = self.encoder.model
        return model

    @property
    def targets(self) -> dict[str, nn.Linear]:
        """The matrices that the option `targets` names."""
        return FAMILY.find_layers(self.model, self.options["targets"])

    @property
    def device(self) -> torch.device:
        """Where the encoder lies."""
        return self.encoder.device

    @property
    def beside(self) -> Head | None:
        """The heads."""
        return self.head

    @torch.no_grad()
    def begin(self) -> None:
        """Keep the untouched encoder's features of the other domains' sentences, from which drift is measured."""
        if texts := [s.text for one in self.sets for s in one.others]:
            self._before(texts)

    # Training

    def losses(self, step: int, micro: int = 0) -> Float[Tensor, " k"]:
        """The mean cross-entropy of each replica on its micro-batch."""
        assert self.head is not None
        rows = [self._rows(cell, one, step, micro) for cell, one in zip(self.cells, self.sets, strict=True)]
        features = self._features([s.text for own in rows for s in own])
        given = self.head.logits(features.unflatten(0, (len(rows), -1)))
        each = zip(self.sets, given, rows, strict=True)
        return torch.stack([self.loss(one, own[:, : self.outputs(one)], self._labels(part)) for one, own, part in each])

    def _rows(self, cell: Cell, one: Any, step: int, micro: int) -> list[Any]:
        number = (step - 1) * cell.gradient_accumulation_steps + micro
        places = alike(cell.seed, "sentence", number, self._lengths(one), cell.train_batch_size)
        return [one.train[place] for place in places]

    def _lengths(self, one: Any) -> tuple[int, ...]:
        """Tokens of each training sentence."""
        if one.name not in self._known_lengths:
            self._known_lengths[one.name] = tuple(len(ids) for ids in self._ids([s.text for s in one.train]))
        return self._known_lengths[one.name]

    def _ids(self, texts: Sequence[Text]) -> list[list[int]]:
        """Token ids of sentences, from the cache where they are there."""
        if unknown := [text for text in dict.fromkeys(texts) if text not in self._tokens]:
            ids = self.encoder.tokens(unknown, self.options["tokens"])
            self._tokens |= dict(zip(unknown, ids, strict=True))
        return [self._tokens[text] for text in texts]

    def _features(self, texts: Sequence[Text]) -> Float[Tensor, "n d"]:
        """Features of sentences, one row each, by whatever adapters the rows meet."""
        ids, mask = pad(self._ids(texts), self.encoder.pad_id)
        with self.autocast():
            return self.encoder.pooled(ids, mask, first=self.first)

    def autocast(self) -> contextlib.AbstractContextManager:
        """bf16 autocast where the pack asks for it."""
        return autocast(self.device, self.shared.mixed_precision)

    # Evaluation

    @torch.no_grad()
    def evaluate(self, step: int, may_go_on: Check = lambda: None) -> list[Evaluation]:
        """The scores on the set's test sentences, and drift on the other domains'."""
        told = self._probe(may_go_on) if self.head is None else self._ask(may_go_on)
        scores = [
            self.score(step, one, torch.tensor([s.label for s in one.test]), said.cpu())
            for one, said in zip(self.sets, told, strict=True)
        ]
        drift = self._drift(step, may_go_on)
        return [Evaluation(pd.concat(both, ignore_index=True)) for both in zip(scores, drift, strict=True)]

    def _ask(self, may_go_on: Check) -> list[Tensor]:
        assert self.head is not None
        given = self._each([[s.text for s in one.test] for one in self.sets], self.head.logits, may_go_on)
        return [self.told(one, own[:, : self.outputs(one)]) for one, own in zip(self.sets, given, strict=True)]

    def _each(
        self, texts: Sequence[Sequence[Text]], work: Callable[[Tensor], Tensor], may_go_on: Check
    ) -> list[Float[Tensor, "n _"]]:
        """What becomes of each replica's texts: `work` takes features `[k, n, d]`.

        Texts go through the encoder by their length, so that little is filled up; replicas with fewer are given their last again.
        """
        orders = [sort_by_length(self._ids(own)) for own in texts]
        most, share = max(map(len, texts)), max(1, ROWS // len(texts))
        filled = [[own[i] for i in (*order, *order[-1:] * (most - len(order)))] for own, order in zip(texts, orders)]
        parts = []
        for a in range(0, most, share):
            may_go_on()
            some = [own[a : a + share] for own in filled]
            features = self._features([text for own in some for text in own])
            parts.append(work(features.unflatten(0, (len(texts), -1))))
        found = torch.cat(parts, dim=1)
        return [row[: len(order)][torch.tensor(order).argsort()] for row, order in zip(found, orders, strict=True)]

    def _probe(self, may_go_on: Check) -> list[Tensor]:
        """What a probe on the untouched encoder says of each set's test sentences."""
        found = []
        for one in self.sets:
            learnt = self.probed(one)
            train, test = (self._before([s.text for s in part], may_go_on) for part in (learnt, one.test))
            with torch.enable_grad():
                found.append(self.probe(one, train, self._labels(learnt), test))
        return found

    def _labels(self, part: Sequence[Any]) -> Tensor:
        """Classes, or numbers, of sentences `[n]`."""
        return torch.tensor([s.label for s in part], device=self.device)

    def _before(self, texts: Sequence[Text], may_go_on: Check = lambda: None) -> Float[Tensor, "n d"]:
        """Features of sentences by the encoder before any adapter was in it, each computed once."""
        unknown = [text for text in dict.fromkeys(texts) if text not in self._untouched]
        ordered = [unknown[place] for place in sort_by_length(self._ids(unknown))]
        for a in range(0, len(ordered), ROWS):
            may_go_on()
            some = ordered[a : a + ROWS]
            self._untouched |= dict(zip(some, self._features(some), strict=True))
        return torch.stack([self._untouched[text] for text in texts])

    @torch.no_grad()
    def controls(self, one: Any, may_go_on: Check = lambda: None) -> pd.DataFrame:
        """The probe of a set beside probes of shuffled labels and the larger class, sentence by sentence.

        A right answer counts the more, the fewer sentences there are of its class: the mean is the balanced accuracy.

        Returns:
            Rows metric, kind, picture (which probe), against (the test sentence), value.
        """
        train, test = (self._before([s.text for s in part], may_go_on) for part in (one.train, one.test))
        labels, true = self._labels(one.train), self._labels(one.test)
        guesses = {("majority", "majority"): torch.full_like(true, int(labels.bincount(minlength=CLASSES).argmax()))}
        asked = {("probe", "probe"): labels} | {
            ("shuffled_labels", f"#{number}"): labels[_shuffle(len(labels), one.name, number).to(self.device)]
            for number in range(1, NUM_SHUFFLES + 1)
        }
        for key, known in asked.items():
            may_go_on()
            with torch.enable_grad():
                guesses[key] = predict_by_probe(train, known, test, CLASSES)
        worth = len(true) / (CLASSES * true.bincount(minlength=CLASSES).double())
        rows = [
            ("accuracy", kind, name, sentence.id, value)
            for (kind, name), said in guesses.items()
            for sentence, value in zip(one.test, ((said == true).double() * worth[true]).tolist(), strict=True)
        ]
        return pd.DataFrame(rows, columns=["metric", "kind", "picture", "against", "value"])

    def _drift(self, step: int, may_go_on: Check) -> list[pd.DataFrame]:
        """Rows of the metric "drift", one for each other domain: the mean of (1 - cosine)/2 of features before and now."""
        columns = ["step", "metric", "prompt", "value"]
        others = [one.others for one in self.sets]
        if not self._untouched or self.head is None:
            zero = [dict.fromkeys((s.domain for s in own), 0.0) for own in others]
            return [pd.DataFrame([(step, "drift", d, v) for d, v in own.items()], columns=columns) for own in zero]
        texts = [[s.text for s in own] for own in others]
        rows = []
        for own, now in zip(others, self._each(texts, lambda features: features, may_go_on), strict=True):
            before = self._before([s.text for s in own])
            moved = (F.normalize(now, dim=1) - F.normalize(before, dim=1)).square().sum(dim=1) / 4
            by_domain = pd.Series(moved.tolist()).groupby([s.domain for s in own], sort=False).mean()
            rows.append(pd.DataFrame([(step, "drift", d, v) for d, v in by_domain.items()], columns=columns))
        return rows


def _shuffle(size: int, name: str, number: int) -> Int[Tensor, " n"]:
    """An order of labels in which they say nothing."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed_of("labels", name, number)))


def sort_by_length(rows: Sequence[Sequence[int]]) -> list[int]:
    """Places of rows, the shortest first."""
    return sorted(range(len(rows)), key=lambda place: len(rows[place]))


def score_rows(step: int, asked: str, labels: Int[Tensor, " n"], guesses: Int[Tensor, " n"]) -> pd.DataFrame:
    """Balanced accuracy, the mean over the classes of the share that is right, and Matthews' correlation.

    A constant guess has a Matthews' correlation of 0.

    Returns:
        Rows step, metric, prompt (`asked`), value.
    """
    table = torch.bincount(labels * CLASSES + guesses, minlength=CLASSES**2).view(CLASSES, CLASSES).double()
    right = (table.diagonal() / table.sum(dim=1)).mean()
    (tn, fp), (fn, tp) = table.tolist()
    size = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    matthews = (tp * tn - fp * fn) / size if size else 0.0
    rows = [(step, "accuracy", asked, float(right)), (step, "matthews", asked, matthews)]
    return pd.DataFrame(rows, columns=["step", "metric", "prompt", "value"])
