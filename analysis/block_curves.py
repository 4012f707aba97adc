"""Gauges, column norms and the updates' spectra of each U-Net block during training: curves with intervals over subjects."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import pandas as pd

from analysis.block_means import QUANTITIES
from analysis.curves import ended_runs, in_order
from analysis.distances import SPECTRUM_LIMITS, curve_of
from analysis.metrics import ANY
from analysis.norms import block_order
from analysis.results import Results
from training.states import ENDED

EMPTY = pd.DataFrame(columns=["quantity", "block", "series", "method", "step", "mean"])
LIMITS = dict.fromkeys(QUANTITIES, (0.0, inf)) | {"lambda": ANY} | SPECTRUM_LIMITS


def block_curves(
    results: Results, quantities: Sequence[str] = QUANTITIES, *, by_multiplier: bool = False
) -> pd.DataFrame:
    """The mean of each quantity over each block's matrices against the step; a diverged run keeps its last values.

    Args:
        results: the runs; of a compact copy that was made without block means, the last step and the copied norms.
        quantities: of `analysis.block_means.STORED`; `SPECTRA` are there of runs with `--spectra`.
        by_multiplier: whether multipliers stand in a column of their own, and not in the names of the series.

    Returns:
        Rows quantity, block, series, method, (multiplier,) step, mean, low, high, num_subjects, num_diverged,
        num_runs, least, most; none for a quantity that no run has, none at all where no run has ended.
    """
    if not results.runs["status"].isin(ENDED).any():
        return EMPTY
    runs = ended_runs(results, "multiplier" if by_multiplier else "step")
    frame = results.blocks()
    blocks = sorted(frame["block"].dropna().unique(), key=lambda name: (*block_order(name), name))
    by = ["multiplier"] if by_multiplier else []
    curves = [
        curve_of(rows[rows["block"] == block], name, runs, by, LIMITS.get(name, ANY)).assign(quantity=name, block=block)
        for name in quantities
        for rows in [frame.dropna(subset=[name])]
        for block in blocks
        if len(rows)
    ]
    if not any(map(len, curves)):
        return EMPTY
    stacked = pd.concat([curve for curve in curves if len(curve)], ignore_index=True)
    return in_order(stacked[["quantity", "block", *stacked.columns.drop(["quantity", "block"])]], "step")
