"""Results of other tasks than pictures, made of a folder of pictures' runs: scores renamed, turned, or dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pandas as pd

from analysis import Results
from training import task_kinds
from training.task_kinds import Metric, TaskKind, metrics

ERROR = Metric("error", "error", "what is missing", -1.0, 1.0, lower_is_better=True)
BLUR = Metric("blur", "blur", "what is not sharp", -1.0, 1.0, lower_is_better=True)
TURNED = {"dino": "error", "clip_i": "blur"}  # of `make_down`: their values with the sign turned
AS_TEXT = {"dino": "accuracy", "clip_i": "matthews", "drift": "drift"}


def make_down() -> TaskKind:
    """A stranger's task whose headline is the better the less there is of it, with a prompt of which more is better."""
    scores = (ERROR, BLUR, metrics()["clip_t"], metrics()["drift"])
    return TaskKind(
        "down", "a task for tests", scores, "nowhere:WORK", prompt_metric="clip_t", unit="puzzle", part="solver"
    )


@contextmanager
def installed(*kinds: TaskKind) -> Iterator[None]:
    """Tasks of installed packages, for as long as it lasts."""
    entries = [SimpleNamespace(name=kind.name, value="nowhere", load=mock.Mock(return_value=kind)) for kind in kinds]
    task_kinds.all_kinds.cache_clear()
    try:
        with mock.patch.object(task_kinds, "entry_points", return_value=entries):
            yield
    finally:
        task_kinds.all_kinds.cache_clear()


class Rescored:
    """A source of results whose scores are changed; all else is the other source's."""

    def __init__(self, source: Any, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        self._source, self._change = source, change

    def scores(self) -> pd.DataFrame:
        """The source's scores, changed."""
        frame = self._source.scores()
        return self._change(frame.assign(metric=frame["metric"].astype(str), value=frame["value"].astype(float)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def unchanged(results: Results) -> Results:
    """The same runs, their scores as float64 as those of the others here."""
    return _rescored(results, task_kinds.PICTURES, lambda frame: frame)


def turn(results: Results) -> Results:
    """The same runs as those of `make_down`: DINO and CLIP-I under other names, with the sign turned."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        values = frame["value"].where(~frame["metric"].isin(list(TURNED)), -frame["value"])
        return frame.assign(metric=frame["metric"].replace(TURNED), value=values)

    return _rescored(results, "down", change)


def as_text(results: Results) -> Results:
    """The same runs as those of the task of texts, with the scores that have a name there."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        kept = frame[frame["metric"].isin(list(AS_TEXT))].reset_index(drop=True)
        return kept.assign(metric=kept["metric"].replace(AS_TEXT))

    return _rescored(results, "text", change)


def _rescored(results: Results, task: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Results:
    sources: Any = tuple(Rescored(source, change) for source in results.sources)
    return Results(results.all_runs.assign(task=task), sources)
