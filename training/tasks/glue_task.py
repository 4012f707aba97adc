"""GLUE with an encoder, as DeLoRA's Table 4 has it: features are the first token's, and the head has RoBERTa's dense layer.

What the base model scores is a probe, as for sentences: logistic regression, or ridge regression where a number is to be told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from training.store import RunFolder
from training.tasks import glue
from training.tasks.probe_head import predict_by_probe, predict_by_regression
from training.tasks.task import Check
from training.tasks.text_maker import TextMaker
from training.tasks.text_task import MOST_PROBED, TextTask


class GlueTask(TextTask):
    """Losses and evaluations of one pack, whose cells may be of several tasks of GLUE."""

    dense = True
    first = True

    def outputs(self, one: glue.GlueSet) -> int:
        """One for each class; one for a number."""
        return one.table.classes

    def loss(self, one: glue.GlueSet, given: Float[Tensor, "n o"], labels: Tensor) -> Float[Tensor, ""]:
        """Cross-entropy; the mean squared error where a number is to be told."""
        return F.mse_loss(given[:, 0], labels) if one.table.classes == 1 else F.cross_entropy(given, labels)

    def told(self, one: glue.GlueSet, given: Float[Tensor, "n o"]) -> Tensor:
        """Classes, or numbers."""
        return given[:, 0] if one.table.classes == 1 else given.argmax(dim=1)

    def probe(
        self, one: glue.GlueSet, train: Float[Tensor, "n d"], labels: Tensor, test: Float[Tensor, "m d"]
    ) -> Tensor:
        """What logistic or ridge regression on the features says of the test rows."""
        if one.table.classes == 1:
            return predict_by_regression(train, labels, test)
        return predict_by_probe(train, labels, test, one.table.classes)

    def probed(self, one: glue.GlueSet) -> Sequence[glue.GlueRow]:
        """The rows that a probe is fitted to: those whose hashes come first, since a file may be sorted by labels."""
        return one.train if len(one.train) <= MOST_PROBED else sorted(one.train, key=glue.order)[:MOST_PROBED]

    def score(self, step: int, one: glue.GlueSet, labels: Tensor, told: Tensor) -> pd.DataFrame:
        """One row: the task's own measure."""
        value = MEASURES[one.table.measure](labels, told)
        return pd.DataFrame([(step, "score", one.cls, value)], columns=["step", "metric", "prompt", "value"])


def accuracy(labels: Tensor, told: Tensor) -> float:
    """The share of rows that are told right."""
    return float((labels == told).double().mean())


def pearson(labels: Tensor, told: Tensor) -> float:
    """Pearson's correlation, 0 where one of the two is constant; of two classes it is Matthews'."""
    x, y = (part.double() - part.double().mean() for part in (labels, told))
    size = float(x.norm() * y.norm())
    return float(x @ y) / size if size > 0 else 0.0


def correlation(labels: Tensor, told: Tensor) -> float:
    """The mean of Pearson's and Spearman's correlation."""
    ranks = (torch.from_numpy(stats.rankdata(part.numpy())) for part in (labels, told))
    return (pearson(labels, told) + pearson(*ranks)) / 2


MEASURES = {"accuracy": accuracy, "matthews": pearson, "correlation": correlation}


class GlueMaker(TextMaker):
    """GLUE, to planning and to workers (`training.tasks.task.TaskMaker`)."""

    name, task = "glue", GlueTask

    def load(self, folder: Path, name: str, options: Mapping[str, Any]) -> glue.GlueSet:
        """One task of GLUE.

        Raises:
            BadInput: as `training.tasks.glue.load`.
        """
        return glue.load(folder, name, options["sentences"])

    def folder(self, asked: Sequence[str]) -> tuple[Path, list[str]]:
        """The folder that the words begin with, or the hub's copy; and the rest of the words."""
        rest = list(asked)
        named = rest.pop(0) if rest and ("/" in rest[0] or Path(rest[0]).is_dir()) else ""
        return glue.locate(named), rest

    def left_out(self, folder: Path) -> list[str]:
        """Nothing: the hub's copy has more than its tasks."""
        return []

    def leave_controls(
        self, task: TextTask, folders: Sequence[RunFolder | None], may_go_on: Check, before_write: Check
    ) -> None:
        """Nothing: Matthews' and Pearson's correlations are of all rows together, and no mean over them."""

    def pool(self, folder: Path, split: str) -> tuple[list[str], str]:
        """The tasks that the folder holds."""
        return glue.names(folder, split), ""


MAKER = GlueMaker()
