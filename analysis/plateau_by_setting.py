"""Plateau and best rate at each value of a setting: rank, lambda's start, weight decay, number of pictures, prior weight.

Settings are varied one at a time around a default, so each is looked at among the runs in which the others have theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from adapters.errors import BadInput
from analysis.curves import score_curve, subject_scores
from analysis.metrics import is_side_effect, signs_of
from analysis.plateau import TOLERANCE, plateau
from analysis.results import Results
from analysis.series import name_series
from training.states import ENDED

ONE_RATE = dict.fromkeys(("lr", "lr_lambda", "lr_magnitude", "multiplier"), 1.0)  # which leaves base rates out of names


def plateau_by_setting(
    results: Results, defaults: Mapping[str, Sequence[Any]], tolerance: float = TOLERANCE
) -> pd.DataFrame:
    """The plateau of every method at every value of every setting.

    Args:
        results: runs over learning rates, each with at most one setting away from its default.
        defaults: fields of a run, each with the values that it has where it is not varied (several where methods differ).
        tolerance: of the plateau.

    Returns:
        The rows of `plateau`, series being the method with its options and with what else differs among these runs, with
        setting and value in front; values increase.
        A method that lacks a setting has no rows of it.

    Raises:
        BadInput: as `plateau`, if no setting was varied, or if no run has all other settings at their defaults.
    """
    return _by_setting(results, defaults, lambda kept: plateau(subject_scores(kept), tolerance))


def scores_by_setting(results: Results, defaults: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """The rows of `score_curve` of every method at every value of every setting, with setting and value in front.

    Behind them stand best_multiplier (of this value of the setting, among the rates at which no run diverged), over_best (the
    multiplier over that one) and below_best (how much worse the mean score is than at the best rate, as a number up to 0); NaN
    where there is none, and of side effects.

    Raises:
        BadInput: as `plateau_by_setting`.
    """
    return _beside_best(_by_setting(results, defaults, score_curve))


def scores_by_step(results: Results) -> pd.DataFrame:
    """The same of the training's length: every evaluation on the way, `setting` being "steps" and `value` the step.

    Raises:
        BadInput: as `score_curve`.
    """
    runs = results.runs
    rates = np.sort(runs.loc[runs["status"].isin(ENDED), "multiplier"].dropna().unique())
    curves = [score_curve(results.select(multiplier=rate), x="step").assign(multiplier=rate) for rate in rates]
    rows = pd.concat(curves, ignore_index=True)
    rows = rows[rows["step"] > 0].rename(columns={"step": "value"}).astype({"value": float})
    return _beside_best(rows.assign(setting="steps"))


def _beside_best(rows: pd.DataFrame) -> pd.DataFrame:
    """Add each point's place beside the best rate of its series, metric and value of the setting."""
    keys = ["setting", "series", "metric", "value"]
    has_best = (rows["num_diverged"] == 0) & ~rows["metric"].map(is_side_effect).astype(bool)
    allowed = rows[has_best].dropna(subset=["mean"])
    upright = allowed.assign(mean=allowed["mean"] * signs_of(allowed["metric"]))
    best = allowed.loc[upright.groupby(keys, sort=False)["mean"].idxmax(), [*keys, "multiplier", "mean"]]
    beside = rows.merge(best.rename(columns={"multiplier": "best_multiplier", "mean": "peak"}), on=keys, how="left")
    over = (beside["multiplier"] / beside["best_multiplier"]).map("{:.6g}".format).astype(float)
    below = (beside["mean"] - beside["peak"]) * signs_of(beside["metric"])
    return beside.assign(over_best=over, below_best=below).drop(columns="peak")


def _by_setting(
    results: Results, defaults: Mapping[str, Sequence[Any]], measure: Callable[[Results], pd.DataFrame]
) -> pd.DataFrame:
    """A measure of the runs that have all other settings at their defaults, for every setting.

    Raises:
        BadInput: if there is no setting.
    """
    if not defaults:
        raise BadInput("no setting was varied in these runs")
    frames = []
    for setting in defaults:
        others = {name: _as_stored(values) for name, values in defaults.items() if name != setting}
        kept = results.select(**others)
        named = kept.runs.assign(name=name_series(kept.runs.drop(columns=setting).assign(**ONE_RATE)))
        runs = named.drop_duplicates("series").set_index("series")
        rows = measure(kept)
        rows = rows[rows["series"].map(runs[setting]).notna()].copy()
        rows.insert(0, "value", rows["series"].map(runs[setting]).astype(float))
        rows.insert(0, "setting", setting)
        names = rows["series"].map(runs["name"])
        point = [name for name in ("series", "value", "metric", "multiplier") if name in rows]
        again = set(names[rows.assign(series=names).duplicated(point, keep=False)])  # base rates differ there too
        rows["series"] = names.where(~names.isin(again), rows["series"])
        frames.append(rows.sort_values("value", kind="stable"))
    return pd.concat(frames, ignore_index=True)


def _as_stored(values: Sequence[Any]) -> list[Any]:
    """A frame of runs holds NaN where a cell has None."""
    return [np.nan if value is None else value for value in values]
