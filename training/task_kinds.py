"""What a task is to everything that does not train it: its scores, its words, how cells of it count. Imports no torch.

A task is one `TaskKind`. Plateau's own stand in `training.tasks.kinds`; an installed package may bring others by an entry point
of the group `plateau.tasks`, whose name is the task's and whose object is a `TaskKind`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from math import inf
from types import MappingProxyType
from typing import Any

from adapters.errors import BadInput

PICTURES = "pictures"  # the task of cells that name none
OWN = "training.tasks.kinds"  # where Plateau's own tasks are declared
GROUP = "plateau.tasks"


@dataclass(frozen=True)
class Metric:
    """A score.

    Attributes:
        name: as it stands in tables.
        title: as figures call it.
        says: what it tells, in a few words.
        low, high: the values that it can have: no interval goes beyond them.
        lower_is_better: whether less of it is better.
        is_side_effect: whether it tells what training did to everything else: it has no peak, and a diverged run keeps its own.
    """

    name: str
    title: str
    says: str
    low: float = -inf
    high: float = inf
    lower_is_better: bool = False
    is_side_effect: bool = False


@dataclass(frozen=True)
class ControlSet:
    """Things whose score is known to be high or low, by which a score is controlled (`analysis.control_verdicts`).

    Attributes:
        kinds: what there is, each in words, in the order of tables; the first is the real thing.
        order: kinds in the order in which a score should put them.
        apart: kinds that the real thing must lie above.
        near: kinds that must lie near 0.
        needed: kinds without which nothing can be told.
        thing: what is drawn for intervals, in the singular.
    """

    kinds: Mapping[str, str]
    order: tuple[str, ...]
    apart: tuple[str, ...]
    near: tuple[str, ...]
    needed: tuple[str, ...]
    thing: str

    @property
    def real(self) -> str:
        """The real thing."""
        return next(iter(self.kinds))


@dataclass(frozen=True)
class TaskKind:
    """A task.

    Attributes:
        name: by which `--task` and cells call it.
        title: what it is, in a few words.
        metrics: its scores, the one that conclusions rest on first.
        prompt_metric: the score that is given up as the first one is gained, at which methods are compared; "" if there is none.
        num_units: how many units the front door takes where no flag says: what minutes on two cores allow.
        unit: what an interval generalises over, in the singular ("subject").
        part: the part of the model that is adapted, as figures call it ("U-Net").
        maker: `package.module:NAME` of its `training.tasks.task.TaskMaker`, which finds inputs and makes packs.
        options: what may stand behind its name, as in `text:tokens=48`, with the defaults.
        choices: the words that an option may be, where it is one.
        least: the smallest number that an option may be, where it is one.
        defaults: flags of a sweep that have other defaults for it.
        flags: flags of a sweep that this task alone reads.
        rows: how many rows of a micro-batch a run's cell sends through the model.
        passes: how many rows one evaluation of it sends through the model, forward alone.
        shape: what of a cell decides the cost of a row, as a short text.
        published_rates: the table of `sweeps/base_rates.toml` that models without one of their own read; "" for none.
        has_pictures: whether its runs leave pictures.
        controls: those of its scores that the base model's runs leave; None for none.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    maker: str
    prompt_metric: str = ""
    unit: str = "subject"
    num_units: int = 4
    part: str = "model"
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    least: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    flags: frozenset[str] = frozenset()
    rows: Callable[[Any], int] = lambda cell: cell.train_batch_size
    passes: Callable[[Any], int] = lambda cell: 0
    shape: Callable[[Any], str] = lambda cell: cell.mixed_precision
    published_rates: str = ""
    has_pictures: bool = False
    controls: ControlSet | None = None

    @property
    def headline(self) -> Metric:
        """The score that conclusions rest on."""
        return self.metrics[0]

    def sweep_name(self, driver: str) -> str:
        """How a driver's sweep is called where no flag says: by the driver, and by the task where there are others."""
        return driver if self.name == PICTURES else f"{driver}-{self.name}"

    def open(self) -> Any:
        """Its `training.tasks.task.TaskMaker`; imports what trains."""
        module, _, name = self.maker.partition(":")
        return getattr(importlib.import_module(module), name)


@functools.cache
def own_kinds() -> Mapping[str, TaskKind]:
    """Plateau's own tasks, by name."""
    kinds: tuple[TaskKind, ...] = importlib.import_module(OWN).KINDS
    return {kind.name: kind for kind in kinds}


@functools.cache
def all_kinds() -> Mapping[str, TaskKind]:
    """All tasks by name, those of installed packages behind Plateau's own; a name that is taken stays Plateau's.

    Raises:
        BadInput: if an entry point cannot be loaded, or is no task.
    """
    found = dict(own_kinds())
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            kind = entry.load()
        except Exception as error:
            raise BadInput(f"task {entry.name!r} ({entry.value}) cannot be loaded: {error}") from None
        if not isinstance(kind, TaskKind) or kind.name != entry.name:
            raise BadInput(f"task {entry.name!r} ({entry.value}) is no TaskKind of that name")
        found.setdefault(kind.name, kind)
    return found


def kind_of(name: str) -> TaskKind:
    """A task by its name; packages are searched only for one that is not Plateau's own.

    Raises:
        BadInput: for an unknown task; the known ones are listed.
    """
    kind = own_kinds().get(name) or all_kinds().get(name)
    if kind is None:
        raise BadInput(f"unknown task {name!r}; allowed: {', '.join(all_kinds())}")
    return kind


def parse_task(text: str) -> tuple[TaskKind, str]:
    """Read a task as the command line gives it, `name` or `name:key=value,...`.

    Returns:
        The task, and its options in canonical form, `key=value,...` with the defaults filled in.

    Raises:
        BadInput: for an unknown task or option, an option that is given twice, or a value that is not allowed.
    """
    name, _, rest = (part.strip() for part in text.partition(":"))
    kind = kind_of(name)
    said: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or key not in kind.options:
            known = ", ".join(f"{option}={default}" for option, default in kind.options.items()) or "none"
            raise BadInput(f"--task {name} has no option {item!r}; allowed: {known}")
        if key in said:
            raise BadInput(f"--task {name}: option {key!r} is given twice")
        said[key] = _read_option(kind, key, value)
    return kind, ",".join(f"{key}={said.get(key, default)}" for key, default in kind.options.items())


def read_options(name: str, canonical: str) -> dict[str, Any]:
    """The options of a cell's task, each of its type."""
    kind = kind_of(name)
    pairs = (pair.partition("=")[::2] for pair in canonical.split(",") if pair)
    return dict(kind.options) | {key: _read_option(kind, key, value) for key, value in pairs}


def _read_option(kind: TaskKind, key: str, value: str) -> Any:
    default, choices, least = kind.options[key], kind.choices.get(key), kind.least.get(key, -inf)
    number = {int: "a whole number", float: "a number"}.get(type(default), "a word")
    allowed = ", ".join(choices) if choices else number + (f" from {least:g} on" if key in kind.least else "")
    try:
        found = type(default)(value)
        if (choices and found not in choices) or (key in kind.least and not least <= found < inf):
            raise ValueError
    except ValueError:
        raise BadInput(f"--task {kind.name}: {key} is {value}; allowed: {allowed}") from None
    return found


def metrics() -> Mapping[str, Metric]:
    """Every score of every task by name, in the order in which tables have them."""
    found: dict[str, Metric] = {}
    for kind in all_kinds().values():
        for metric in kind.metrics:
            found.setdefault(metric.name, metric)
    return found
