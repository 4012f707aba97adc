"""The task whose results are being drawn: figures take from it what they call subjects, where their frames do not say it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

from adapters.words import plural
from analysis import Results
from analysis.metrics import kind_with
from training.task_kinds import PICTURES, TaskKind, kind_of

_in_use: ContextVar[TaskKind | None] = ContextVar("task", default=None)
P = ParamSpec("P")
R = TypeVar("R")


def task_in_use() -> TaskKind:
    """The task; that of cells which name none, where nothing else was said."""
    return _in_use.get() or kind_of(PICTURES)


def task_of(names: Iterable[str]) -> TaskKind:
    """The task in use; where nothing was said, the one to which scores belong."""
    return _in_use.get() or kind_with(names)


@contextmanager
def use_task(kind: TaskKind) -> Iterator[None]:
    """Draw in the words of a task."""
    token = _in_use.set(kind)
    try:
        yield
    finally:
        _in_use.reset(token)


def of_its_task(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw the results among a function's arguments in the words of their task."""

    @wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        results = next(given for given in (*args, *kwargs.values()) if isinstance(given, Results))
        with use_task(results.kind):
            return draw(*args, **kwargs)

    return wrapped


def unit() -> str:
    """What an interval generalises over, in the singular: `subject`."""
    return task_in_use().unit


def units() -> str:
    """The same in the plural: `subjects`."""
    return plural(unit())


def capitalised(words: str) -> str:
    """Words as a sentence begins."""
    return f"{words[:1].upper()}{words[1:]}"
