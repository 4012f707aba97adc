"""Means over the adapted matrices of each block of the U-Net, at few steps: what figures by block are drawn from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from training.store import SPECTRA

GAUGES = ("lambda", "distance", "distance_rel")  # of the dynamics
SPREAD = "colnorm_spread"  # s.d. of a matrix' column norms over their mean
QUANTITIES = (*GAUGES, SPREAD)
STORED = (*QUANTITIES, *SPECTRA)
MOST_STEPS = 40  # of a run and table that are kept


def block_means(dynamics: pd.DataFrame, norms: pd.DataFrame, places: pd.DataFrame) -> pd.DataFrame:
    """Average gauges, the spread of column norms and the updates' spectra over the matrices of each block.

    Args:
        dynamics: rows step, matrix and gauges, of one run, or of several with run_id; empty for none.
        norms: the same of the weight norms with their spectra, whose steps may be others.
        places: rows matrix, block, with run_id where the others have it.

    Returns:
        Rows (run_id,) step, block and `STORED`, NaN where a step, a block or a method lacks one.
    """
    keys = [*(["run_id"] if "run_id" in places else []), "step", "block"]
    spread = norms.assign(**{SPREAD: norms["colnorm_sd"] / norms["colnorm_mean"].where(norms["colnorm_mean"] > 0)})
    parts = [_means(dynamics, GAUGES, places, keys), _means(spread, [SPREAD, *SPECTRA], places, keys)]
    return parts[0].merge(parts[1], on=keys, how="outer").sort_values(keys, kind="stable", ignore_index=True)


def _means(frame: pd.DataFrame, names: Sequence[str], places: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    by = [name for name in ("run_id", "matrix") if name in places]
    values = frame[[*by, "step"]].astype(dict.fromkeys(by, object))
    values = values.assign(**{name: frame[name].astype(float) if name in frame else np.nan for name in names})
    rows = values.merge(places[[*by, "block"]].astype(object), on=by)
    return rows.groupby(keys, sort=False)[list(names)].mean().astype("float32").reset_index()


def few_steps(frame: pd.DataFrame, most: int = MOST_STEPS) -> pd.DataFrame:
    """The rows of at most so many of a run's steps, evenly spaced, the first and the last among them."""
    steps = np.unique(frame["step"].to_numpy())
    kept = steps[np.unique(np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int))]
    return frame[frame["step"].isin(kept)]
