"""Judge the controls of the scorers, subject by subject: is a score of a generated picture to be believed there?

The task says what was scored besides (`training.task_kinds.ControlSet`): of pictures photographs, what is made of them, other
subjects and noise. What is to hold of these scores, and how intervals are made, says docs/statistics.md. How far a finetune lies
above the base model is no criterion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from adapters.errors import BadInput
from adapters.words import counted, plural
from analysis.results import Results
from analysis.statistics import Floats, Ints, count_draws, subject_bootstrap
from training.task_kinds import ControlSet, TaskKind

PASSES, FAILS, OPEN = "passes", "fails", "cannot be told"
MARGIN = 0.02  # of a score: a wrong order by less is none
NEAR = 0.25  # of the photographs' own score: what is at most that is near 0
NOT_BELOW = " not below "  # in the name of each criterion of the order
LEAST_PHOTOGRAPHS = 3  # of which, or of what stands for them, intervals can be made


class Scored(Protocol):
    """What is judged: the controls' scores and those of the base model's pictures, as `Results` has them; hashable."""

    @property
    def controls(self) -> pd.DataFrame: ...
    @property
    def base(self) -> pd.DataFrame: ...
    @property
    def kind(self) -> TaskKind: ...
    def __hash__(self) -> int: ...


class Criterion(NamedTuple):
    """A sum of mean scores that is to be positive.

    Attributes:
        name: as tables have it.
        weights: of the kinds' mean scores.
        least: what the whole interval must lie above for it to pass; None: it passes unless it fails.
        most: it fails where the whole interval lies below.
    """

    name: str
    weights: Mapping[str, float]
    least: float | None
    most: float


def criteria(kinds: Sequence[str], controls: ControlSet) -> list[Criterion]:
    """What is to hold of the kinds that there are; nothing where the real thing is not there (no second photograph)."""
    real, words = controls.real, controls.kinds
    if real not in kinds:
        return []
    order = [kind for kind in controls.order if kind in kinds]
    return [
        *(Criterion(f"{words[real]} > {words[k]}", {real: 1, k: -1}, 0.0, 0.0) for k in controls.apart if k in kinds),
        *(
            Criterion(f"{words[a]}{NOT_BELOW}{words[b]}", {a: 1, b: -1}, None, -MARGIN)
            for a, b in zip(order, order[1:], strict=False)
        ),
        *(Criterion(f"{words[k]} near 0", {real: NEAR, k: -1}, 0.0, 0.0) for k in controls.near if k in kinds),
    ]


def judge_controls(results: Scored) -> pd.DataFrame:
    """Whether the scorers' controls pass on each subject.

    Returns:
        One row a subject and metric whose controls were measured: subject, metric, num_photographs (or what stands for
        them), the mean score of every kind of control with _low and _high (missing where there is none), base (the base model's
        score), verdict ("passes", "fails" or "cannot be told"), why: the criteria that do not hold, or why nothing can be told.

    Raises:
        BadInput: if a file of controls is damaged.
    """
    rows, controls = [row for row, _ in _judge_each(results)], results.kind.controls
    ends = [f"{kind}{end}" for kind in (controls.kinds if controls else ()) for end in ("", "_low", "_high")]
    num = [_count_name(controls)] if controls else []
    return pd.DataFrame(rows, columns=["subject", "metric", *num, *ends, "base", "verdict", "why"])


def _count_name(controls: ControlSet) -> str:
    """The column that counts what intervals draw: `num_photographs`."""
    return f"num_{plural(controls.thing).replace(' ', '_')}"


def control_gaps(results: Scored) -> pd.DataFrame:
    """Every criterion of every subject and metric: rows subject, metric, criterion, mean, low, high, verdict.

    `mean` is the gap that is to be positive, of "near 0" what is left up to a quarter of the photographs' own score.

    Raises:
        BadInput: if a file of controls is damaged.
    """
    rows = [row for _, gaps in _judge_each(results) for row in gaps]
    return pd.DataFrame(rows, columns=["subject", "metric", "criterion", "mean", "low", "high", "verdict"])


def control_tables(results: Results) -> dict[str, pd.DataFrame]:
    """Both tables by their names; none where a file of controls cannot be read, which `describe_controls` tells."""
    try:
        return {"controls": judge_controls(results), "control_gaps": control_gaps(results)}
    except BadInput:
        return {}


def control_scores(results: Results) -> pd.DataFrame:
    """The score of every picture that stands in for a generated one, its mean over the photographs: for the figure.

    Returns:
        Rows subject, metric, kind, picture, value; of the base model's pictures (kind "base") one a prompt.

    Raises:
        BadInput: if a file of controls is damaged.
    """
    keys = ["subject", "metric", "kind", "picture"]
    scored = results.controls.groupby(keys, observed=True, sort=False)["value"].mean().reset_index()
    base = results.base[results.base["metric"].isin(scored["metric"]) & results.base["subject"].isin(scored["subject"])]
    base = base.groupby(["subject", "metric", "prompt"], observed=True, sort=False)["value"].mean().reset_index()
    return pd.concat(
        [scored, base.rename(columns={"prompt": "picture"}).assign(kind="base")[[*keys, "value"]]], ignore_index=True
    )


@lru_cache(maxsize=2)
def _judge_each(results: Scored) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The row of each subject and metric, and those of its criteria; a report asks for them again and again."""
    return list(_judge_rows(results))


def _judge_rows(results: Scored) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    base, controls = results.base.groupby(["subject", "metric"], observed=True)["value"].mean(), results.kind.controls
    if controls is None:
        return
    for (subject, metric), rows in results.controls.groupby(["subject", "metric"], observed=True, sort=False):
        there = set(rows["kind"].unique())
        kinds = [kind for kind in controls.kinds if kind in there]
        asked = criteria(kinds, controls)
        weights = np.array([*np.eye(len(kinds)), *([c.weights.get(kind, 0.0) for kind in kinds] for c in asked)])
        means, low, high = mean_scores(rows, kinds, weights)
        num = rows["against"].nunique()
        key = {"subject": str(subject), "metric": str(metric)}
        gaps = [
            key | {"criterion": c.name, "mean": m, "low": a, "high": b, "verdict": _judge(c, a, b)}
            for c, m, a, b in zip(asked, *(part[len(kinds) :] for part in (means, low, high)), strict=True)
        ]
        ends = {
            f"{kind}{end}": float(part[place])
            for place, kind in enumerate(kinds)
            for end, part in (("", means), ("_low", low), ("_high", high))
        }
        verdict, why = _sum_up(gaps, kinds, num, controls)
        known = float(base.get((subject, metric), np.nan))
        yield key | {_count_name(controls): num} | ends | {"base": known, "verdict": verdict, "why": why}, gaps


def _judge(criterion: Criterion, low: float, high: float) -> str:
    if np.isnan(low):
        return OPEN
    if high < criterion.most:
        return FAILS
    return PASSES if criterion.least is None or low > criterion.least else OPEN


def _sum_up(gaps: Sequence[Mapping[str, Any]], kinds: Sequence[str], num: int, controls: ControlSet) -> tuple[str, str]:
    """The verdict on a subject, and why it is not a pass."""
    if num < LEAST_PHOTOGRAPHS:
        return OPEN, f"{counted(num, controls.thing)}; {LEAST_PHOTOGRAPHS} are needed"
    for verdict in (FAILS, OPEN):
        if names := [gap["criterion"] for gap in gaps if gap["verdict"] == verdict]:
            return verdict, "; ".join(names)
    missing = [controls.kinds[kind] for kind in controls.needed if kind not in kinds]
    return (OPEN, f"there are no {missing[0]}") if missing else (PASSES, "")


def mean_scores(rows: pd.DataFrame, kinds: Sequence[str], weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Weighted sums of the kinds' mean scores, with 95 % intervals by the bootstrap over photographs.

    A photograph is drawn with its place among those that are scored against and with what is made of it; it is never scored
    against itself, however often it was drawn. Other subjects and noise are not drawn: intervals hold for these.

    Args:
        rows: kind, picture, against, value of one subject and metric.
        kinds: those wanted.
        weights: `[number, kind]`.

    Returns:
        The numbers, their low and their high ends; NaN where there are too few photographs.
    """
    across, names = pd.factorize(rows["against"].astype(str), sort=True)
    down, pictures = pd.factorize(rows["picture"].astype(str), sort=True)
    photographs = names.get_indexer(pictures)  # -1: none
    kind_of, values = rows["kind"].to_numpy(dtype=object), rows["value"].to_numpy(dtype=float)
    scores = []
    for kind in kinds:
        own = (kind_of == kind) & ~np.isnan(values)
        scores.append(_square(down[own], across[own], values[own], photographs, len(names)))

    def numbers(draws: Ints) -> Floats:
        counts = count_draws(draws, len(names))
        return np.stack([_mean(score, counts) for score in scores], axis=1) @ weights.T

    means = numbers(np.arange(len(names))[None])[0]
    if len(names) < LEAST_PHOTOGRAPHS:
        return means, np.full_like(means, np.nan), np.full_like(means, np.nan)
    return means, *subject_bootstrap(numbers, len(names))


def _square(down: Ints, across: Ints, values: Floats, photographs: Ints, num_names: int) -> Floats:
    """Scores `[photograph, against]` of what is made of photographs, 0 on the diagonal; of others `[1, against]`, means.

    Args:
        down: of each score its picture's place in `photographs`.
        across: of each score the place of what it is scored against.
        values: the scores.
        photographs: of each picture its place among those that are scored against; -1 where it is none of them.
        num_names: how many are scored against.
    """
    of_photographs = bool((photographs[down] >= 0).all())
    down = photographs[down] if of_photographs else np.unique(down, return_inverse=True)[1]
    shape = (num_names if of_photographs else int(down.max()) + 1, num_names)
    counts, sums = np.zeros(shape), np.zeros(shape)
    np.add.at(counts, (down, across), 1)
    np.add.at(sums, (down, across), values)
    scores: Floats = np.divide(sums, counts, out=np.full(shape, np.nan), where=counts > 0)
    return np.nan_to_num(scores, nan=0.0) if of_photographs else np.nanmean(scores, axis=0, keepdims=True)


def _mean(score: Floats, counts: Floats) -> Floats:
    """The mean score of every draw, NaN where it has no pair."""
    if len(score) == 1 != counts.shape[1]:
        drawn: Floats = counts @ score[0] / counts.sum(axis=1)
        return drawn
    pairs = counts.sum(axis=1) ** 2 - (counts**2).sum(axis=1)
    sums = np.einsum("di,ij,dj->d", counts, score, counts)
    mean: Floats = np.divide(sums, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)
    return mean
