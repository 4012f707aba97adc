"""The plateau at each value of a setting: rank, lambda's start, weight decay, number of pictures, prior weight.

Settings are varied one at a time around a default, so each is looked at among the runs in which the others have theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.curves import score_curve, subject_scores
from analysis.plateau import TOLERANCE, plateau
from analysis.results import Results
from analysis.series import name_methods


def plateau_by_setting(
    results: Results, defaults: Mapping[str, Sequence[Any]], tolerance: float = TOLERANCE
) -> pd.DataFrame:
    """The plateau of every method at every value of every setting.

    Args:
        results: runs over learning rates, each with at most one setting away from its default.
        defaults: fields of a run, each with the values that it has where it is not varied (several where methods differ).
        tolerance: of the plateau.

    Returns:
        The rows of `plateau`, series being the method with its options, with setting and value in front; values increase.
        A method that lacks a setting has no rows of it.

    Raises:
        BadInput: as `plateau`, or if no run has all other settings at their defaults.
    """
    return _by_setting(results, defaults, lambda kept: plateau(subject_scores(kept), tolerance))


def scores_by_setting(results: Results, defaults: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """The rows of `score_curve` of every method at every value of every setting, with setting and value in front.

    Raises:
        BadInput: as `plateau_by_setting`.
    """
    return _by_setting(results, defaults, score_curve)


def _by_setting(
    results: Results, defaults: Mapping[str, Sequence[Any]], measure: Callable[[Results], pd.DataFrame]
) -> pd.DataFrame:
    """A measure of the runs that have all other settings at their defaults, for every setting."""
    frames = []
    for setting in defaults:
        others = {name: _as_stored(values) for name, values in defaults.items() if name != setting}
        kept = results.select(**others)
        runs = kept.runs.drop_duplicates("series").set_index("series")
        rows = measure(kept)
        rows = rows[rows["series"].map(runs[setting]).notna()].copy()
        rows.insert(0, "value", rows["series"].map(runs[setting]).astype(float))
        rows.insert(0, "setting", setting)
        names = rows["series"].map(name_methods(runs))
        frames.append(rows.assign(series=names).sort_values("value", kind="stable"))
    return pd.concat(frames, ignore_index=True)


def _as_stored(values: Sequence[Any]) -> list[Any]:
    """A frame of runs holds NaN where a cell has None."""
    return [np.nan if value is None else value for value in values]
