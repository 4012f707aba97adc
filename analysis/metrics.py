"""What is known of a score by its name: range, title, direction; and which scores come first (`training.task_kinds`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import inf

import pandas as pd

from adapters.errors import BadInput
from training.task_kinds import PICTURES, TaskKind, all_kinds, kind_of, metrics

ANY = (-inf, inf)
# The values that gauges of the dynamics can have; those of a score stand in its declaration.
GAUGE_RANGES = {
    "saturation": (0.0, 1.0), "distance_rel": (0.0, inf), "transform_distance": (0.0, inf),
}  # fmt: skip
UNIT = TaskKind.unit  # what an interval generalises over, where no task says otherwise


def value_range(name: str) -> tuple[float, float]:
    """The values that a score, or a gauge of the dynamics, can have: no interval goes beyond them."""
    metric = metrics().get(name)
    return (metric.low, metric.high) if metric else GAUGE_RANGES.get(name, ANY)


def title_of(name: str) -> str:
    """What people call a score; an unknown one's name."""
    metric = metrics().get(name)
    return metric.title if metric else name


def describe_metric(name: str, kind: TaskKind) -> str:
    """A score with what it tells in a task: `DINO: likeness to the subject`."""
    own = {metric.name: metric for metric in kind.metrics}
    metric = own.get(name) or metrics().get(name)
    return f"{metric.title}: {metric.says}" if metric else name


def is_side_effect(name: str) -> bool:
    """Whether a score tells what training did to everything else, and so has no peak."""
    metric = metrics().get(name)
    return metric is not None and metric.is_side_effect


def sign_of(name: str) -> float:
    """-1 for a score of which less is better: times its sign, more of every score is better. A side effect keeps 1."""
    metric = metrics().get(name)
    return -1.0 if metric is not None and metric.lower_is_better and not metric.is_side_effect else 1.0


def signs_of(names: pd.Series) -> pd.Series:
    """`sign_of` of every name of a column."""
    return names.astype(object).map({name: sign_of(str(name)) for name in names.unique()}).astype(float)


def score_names(kind: TaskKind) -> list[str]:
    """The scores of a task that are no side effects, in its order."""
    return [metric.name for metric in kind.metrics if not metric.is_side_effect]


def side_effect_names(kind: TaskKind) -> list[str]:
    """The side effects that a task measures, in its order."""
    return [metric.name for metric in kind.metrics if metric.is_side_effect]


def main_scores(kind: TaskKind) -> list[str]:
    """What is shown where there is room for two: the headline, and the score given up for it, else the next one."""
    second = [kind.prompt_metric] if kind.prompt_metric else score_names(kind)[1:2]
    return [kind.headline.name, *second]


def kind_with(names: Iterable[str]) -> TaskKind:
    """The first task whose headline is among scores; where there is none, that of cells which name none."""
    there: Collection[str] = {str(name) for name in names}
    return next((kind for kind in all_kinds().values() if kind.headline.name in there), kind_of(PICTURES))


def in_table_order(names: Iterable[str]) -> list[str]:
    """Those of some scores that are known, in the order of tables: as their task declares them, side effects last."""
    there = {str(name) for name in names}
    known = sorted([*kind_with(there).metrics, *metrics().values()], key=lambda metric: metric.is_side_effect)
    return [name for name in dict.fromkeys(metric.name for metric in known) if name in there]


def headline_of(frame: pd.DataFrame) -> str:
    """The first score of a frame's column `metric` that is no side effect, else its first one; "" where it has no rows."""
    there = [str(name) for name in frame["metric"].unique()]
    scores = [name for name in in_table_order(there) if not is_side_effect(name)]
    return next(iter([*scores, *there]), "")


def prompt_metric_of(kind: TaskKind) -> str:
    """The score that is given up as the headline is gained.

    Raises:
        BadInput: if the task has none.
    """
    if not kind.prompt_metric:
        raise BadInput(f"the task {kind.name!r} has no score that is given up for {kind.headline.title}")
    return kind.prompt_metric
