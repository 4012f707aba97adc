"""Likeness at matched prompt: how much of the headline a method gains for the share of the prompt's score that it gives up.

A peak of DINO shows the trade between likeness and prompt, CLIP-T, as much as the method. Here every series is a path over its
learning rates, from the base model, which is rate 0, in the plane of gain in the headline and loss of the prompt; its upper front
holds the highest gain that it reaches without losing more than a given share, and series are compared where they lose the same.

Between neighbouring rates the path is straight in that plane: a rate between them could have been tried. Steps in its place would
measure the grid: a series whose smallest rate loses 10 % would have gained nothing before.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from adapters.errors import BadInput
from adapters.words import plural
from analysis.grid import subject_grid
from analysis.metrics import kind_with, prompt_metric_of, side_effect_names, title_of, value_range
from analysis.plateau import PROMPT_LOSS, check_prompt_loss
from analysis.statistics import Floats, Ints, subject_bootstrap

NUM_LEVELS = 101  # losses at which a front is read, evenly spaced; a quarter of the range is one of them
QUARTERS = (25, 50, 75, 100)  # the levels at which series are compared
ROUNDING = 1e-9  # by which a loss may be beyond a level that it is equal to


class MatchedPrompt(NamedTuple):
    """What `matched_prompt` returns.

    Attributes:
        paths: rows series, method, multiplier (0 is the base model), the headline and the prompt's score by their names (dino,
            clip_t), loss (of the prompt, a share of the base's), side effects (drift, where it was measured), num_subjects,
            num_diverged: means over the subjects that have all of it.
        fronts: rows series, method, loss, gain (in the headline over the base) with its ends low, high, num_subjects.
        gains: rows series, method, loss ("0 to 20 %", the mean over these losses, or "5 %", at that loss), mean, low, high,
            least_tried and most_tried (the smallest and largest loss of a multiplier: below the one the front is a straight line
            from the base, beyond the other it is level), num_subjects.
        differences: rows a, b, loss, mean (of a - b, paired by subject), low, high, num_subjects (those that both have).
    """

    paths: pd.DataFrame
    fronts: pd.DataFrame
    gains: pd.DataFrame
    differences: pd.DataFrame


class _Wanted(NamedTuple):
    """The names of the two scores."""

    headline: str
    prompt: str


class _Path(NamedTuple):
    """One series: headline and prompt of every subject at the base (0) and at every multiplier, `[subject, point]`; its method.

    The scores are those of grids, each times its sign: more is better.
    """

    gained: pd.DataFrame
    prompt: pd.DataFrame
    signs: tuple[float, float]
    names: _Wanted
    num_diverged: pd.Series
    method: str


def matched_prompt(
    table: pd.DataFrame, prompt_loss: float = PROMPT_LOSS, *, num_draws: int = 1000, seed: int = 0
) -> MatchedPrompt:
    """The upper front of every series over losses of the prompt, its mean, and paired differences at equal losses.

    Means are taken over the subjects first, the front afterwards: a single subject's front would follow its noise. Losses are
    shares of the mean score of the base, since a single subject's may be close to 0. Intervals are expanded percentiles of
    fronts drawn anew from subjects drawn with replacement, the same ones for both series of a difference. The highest of several
    noisy means lies too high on average, which no bootstrap takes back; whether they cover has not been simulated yet.

    Where a path ends before a loss, its front stays at its highest: no more has to be given up. A diverged run scores by the rule
    of `analysis.curves` and stays on the path. A multiplier that not all kept subjects have is left out.

    Args:
        table: what `subject_scores` returned.
        prompt_loss: the largest loss, as a share of the base model's score of the prompt.
        num_draws: how many times subjects are drawn.
        seed: of the draws.

    Raises:
        BadInput: if the task has no score of the prompt; if either score is missing, of all series or of one; if a subject has no
            score of the base model, or the base's mean score of the prompt is not above 0; if the loss is not between 0 and 1.
    """
    kind = kind_with(table["metric"].unique())
    names = _Wanted(kind.headline.name, prompt_metric_of(kind))
    check_prompt_loss(prompt_loss, names.prompt)
    _check(table, names)
    table = table[table["multiplier"] > 0]
    side_effects = [name for name in side_effect_names(kind) if name in set(table["metric"])]
    paths = {
        str(name): _path(str(name), group, names) for name, group in table.groupby("series", sort=False, observed=True)
    }
    fronts = {name: _front_ends(path, prompt_loss, num_draws, seed) for name, path in paths.items()}
    levels = np.linspace(0, prompt_loss, NUM_LEVELS)
    return MatchedPrompt(
        pd.concat([_path_rows(name, path, table, side_effects) for name, path in paths.items()], ignore_index=True),
        pd.concat([_front_rows(name, paths[name], levels, ends) for name, ends in fronts.items()], ignore_index=True),
        _gains(paths, fronts, prompt_loss),
        _differences(paths, prompt_loss, num_draws, seed),
    )


def try_matched_prompt(table: pd.DataFrame) -> tuple[MatchedPrompt | None, str]:
    """`matched_prompt` for reports that go on without it: where the scores do not allow it, None and a sentence that says why.

    Of a task that has no score of the prompt there is nothing to say: the sentence is empty.
    """
    if not kind_with(table["metric"].unique()).prompt_metric:
        return None, ""
    try:
        return matched_prompt(table), ""
    except BadInput as error:
        return None, f"Nothing is compared at the same loss of prompt: {error}."


def _check(table: pd.DataFrame, names: _Wanted) -> None:
    for series, group in table.groupby("series", sort=False, observed=True):
        if missing := [name for name in names if name not in set(group["metric"])]:
            raise BadInput(f"no scores of {', '.join(missing)} of {series}: matched prompt needs {' and '.join(names)}")
    bare = table[table["metric"].isin(names) & table["base"].isna()]
    if len(bare):
        raise BadInput(f"no score of the base model for subject {bare['subject'].iloc[0]}: run the sweep again")


def _path(series: str, group: pd.DataFrame, names: _Wanted) -> _Path:
    """The path of one series, over the subjects and multipliers that have both scores."""
    grids = [subject_grid(group[group["metric"] == metric], "multiplier") for metric in names]
    gained, prompt = (
        pd.concat([pd.Series(grid.base, grid.scores.index, name=0.0), grid.scores], axis=1) for grid in grids
    )
    subjects = gained.index.intersection(prompt.index)
    gained, prompt = gained.loc[subjects], prompt.loc[subjects]
    points = [p for p in sorted(set(gained) & set(prompt)) if not (gained[p].isna().any() or prompt[p].isna().any())]
    first, second = map(title_of, names)
    if not len(subjects) or len(points) < 2:
        same = plural(kind_with(names).unit)
        raise BadInput(f"no multiplier of {series} has {first} and {second} of the same {same}: run the sweep again")
    base = grids[1].sign * prompt[0.0].mean()
    if not base > 0:
        raise BadInput(f"the base model's {second} is {base:.3g}, no share of which can be lost; above 0 is")
    diverged = pd.Series(grids[0].num_diverged, grids[0].points).reindex(points, fill_value=0).astype(int)
    signs = (grids[0].sign, grids[1].sign)
    return _Path(gained[points], prompt[points], signs, names, diverged, str(group["method"].iloc[0]))


def find_front(losses: Floats, gains: Floats, levels: Floats) -> Floats:
    """The highest gain of paths `[..., point]` at no more than each loss of `levels`; NaN where a path has lost more before.

    A path is straight between its points, in their order. On a straight piece the highest gain up to a loss is at an end of the
    piece or at that loss, so points and crossings are all that has to be looked at.
    """
    reached = np.where(losses[..., None] <= levels + ROUNDING, gains[..., None], -np.inf).max(axis=-2)
    start, end = losses[..., :-1, None], losses[..., 1:, None]
    share = np.divide(
        levels - start, end - start, out=np.full(start.shape[:-1] + levels.shape, np.nan), where=end != start
    )
    crossing = gains[..., :-1, None] + share * np.diff(gains)[..., None]
    crossed = np.where((share >= 0) & (share <= 1), crossing, -np.inf).max(axis=-2, initial=-np.inf)
    front = np.maximum(reached, crossed)
    result: Floats = np.where(np.isfinite(front), front, np.nan)
    return result


def _fronts(path: _Path, draws: Ints, prompt_loss: float) -> Floats:
    """Of every draw of subjects `[draw, subject]`: the mean of its front over the losses, and the front at each level."""
    gained, prompt = (frame.to_numpy(dtype=float)[draws].mean(axis=1) for frame in (path.gained, path.prompt))
    sign = path.signs[1]
    base = np.where(sign * prompt[:, :1] > 0, prompt[:, :1], np.nan)
    levels = np.linspace(0, prompt_loss, NUM_LEVELS)
    front = find_front(sign * (1 - prompt / base), gained - gained[:, :1], levels)
    mean = (front[:, 1:] + front[:, :-1]).mean(axis=1, keepdims=True) / 2  # the trapezoid rule, over the range
    return np.hstack([mean, front])


class _Ends(NamedTuple):
    """The mean of a front and the front, `[1 + level]`, with the ends of their intervals."""

    value: Floats
    low: Floats
    high: Floats


def _front_ends(path: _Path, prompt_loss: float, num_draws: int, seed: int, minus: _Path | None = None) -> _Ends:
    """The front of a path with its intervals, or by how much it lies above that of another one with the same subjects."""

    def statistic(draws: Ints) -> Floats:
        found = _fronts(path, draws, prompt_loss)
        return found if minus is None else found - _fronts(minus, draws, prompt_loss)

    count = len(path.gained)
    low, high = subject_bootstrap(statistic, count, num_draws=num_draws, seed=seed)
    least, most = value_range(path.names.headline)
    span = most - least
    return _Ends(statistic(np.arange(count)[None])[0], low.clip(-span, span), high.clip(-span, span))


def _path_rows(series: str, path: _Path, table: pd.DataFrame, side_effects: Sequence[str]) -> pd.DataFrame:
    means = [frame.mean().to_numpy() for frame in (path.gained, path.prompt)]
    rows = {
        "series": series, "method": path.method, "multiplier": path.gained.columns.to_numpy(dtype=float),
        **{name: sign * mean for name, sign, mean in zip(path.names, path.signs, means, strict=True)}, "loss": _losses(path),
    }  # fmt: skip
    frame = pd.DataFrame(rows)
    for name in side_effects:
        frame[name] = _side_effect(series, path, table, name)
    return frame.assign(num_subjects=len(path.gained), num_diverged=path.num_diverged.to_numpy())


def _losses(path: _Path) -> Floats:
    """The loss of the prompt's mean score at every point of a path, as a share of the base's."""
    prompt: Floats = path.prompt.mean().to_numpy(dtype=float)
    return path.signs[1] * (1 - prompt / prompt[0])


def _side_effect(series: str, path: _Path, table: pd.DataFrame, name: str) -> Floats:
    """Its mean at every point of a path, over the path's subjects; NaN where one of them has none."""
    subjects, points = path.gained.index, path.gained.columns[1:]
    kept = table[(table["series"] == series) & (table["metric"] == name) & table["subject"].isin(subjects)]
    values = kept.pivot(index="subject", columns="multiplier", values="value").reindex(subjects, columns=points)
    base = kept.groupby("subject", observed=True)["base"].mean().reindex(subjects)
    result: Floats = np.r_[base.mean(skipna=False), values.mean(skipna=False).to_numpy(dtype=float)]
    return result


def _front_rows(series: str, path: _Path, levels: Floats, ends: _Ends) -> pd.DataFrame:
    columns = {"gain": ends.value, "low": ends.low, "high": ends.high}
    frame = pd.DataFrame({"loss": levels} | {name: value[1:] for name, value in columns.items()})
    frame.insert(0, "series", series)
    frame.insert(1, "method", path.method)
    return frame.assign(num_subjects=len(path.gained))


def _compared(ends: _Ends, prompt_loss: float) -> list[dict[str, Any]]:
    """The mean over the losses, and the values at every quarter of them: rows loss, mean, low, high."""
    names = {0: f"0 to {100 * prompt_loss:g} %"} | {1 + level: f"{level * prompt_loss:g} %" for level in QUARTERS}
    return [
        {"loss": name, **{k: float(v[at]) for k, v in zip(("mean", "low", "high"), ends, strict=True)}}
        for at, name in names.items()
    ]


def _gains(paths: dict[str, _Path], fronts: dict[str, _Ends], prompt_loss: float) -> pd.DataFrame:
    rows = []
    for name, ends in fronts.items():
        losses = _losses(paths[name])[1:]
        rest = {"least_tried": losses.min(), "most_tried": losses.max(), "num_subjects": len(paths[name].gained)}
        rows += [{"series": name, "method": paths[name].method, **row, **rest} for row in _compared(ends, prompt_loss)]
    return pd.DataFrame(rows)


def _differences(paths: dict[str, _Path], prompt_loss: float, num_draws: int, seed: int) -> pd.DataFrame:
    rows = []
    for a, b in combinations(paths, 2):
        both = paths[a].gained.index.intersection(paths[b].gained.index)
        if not len(both):
            continue
        first, second = (_of(paths[name], both) for name in (a, b))
        ends = _front_ends(first, prompt_loss, num_draws, seed, minus=second)
        rows += [{"a": a, "b": b, **row, "num_subjects": len(both)} for row in _compared(ends, prompt_loss)]
    frame = pd.DataFrame(rows, columns=["a", "b", "loss", "mean", "low", "high", "num_subjects"])
    whole = ~frame["loss"].str.startswith("0 ").astype(bool)
    return frame.sort_values("loss", key=lambda _: whole, kind="stable", ignore_index=True)  # the means first


def _of(path: _Path, subjects: Sequence[Hashable] | pd.Index) -> _Path:
    return path._replace(gained=path.gained.loc[subjects], prompt=path.prompt.loc[subjects])
