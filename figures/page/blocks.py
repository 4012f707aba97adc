"""What training does to each block of the U-Net, and to the matrices in it, at every rate, for the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import Results
from analysis.block_means import QUANTITIES
from analysis.curves import ended_runs
from analysis.norms import block_order
from figures.page.curves import by_series, numbers
from figures.style import multiplier_text

TITLES = {
    "lambda": "λ, the boundary", "distance_rel": "distance ‖Wₜ − W₀‖ / ‖W₀‖", "distance": "distance ‖Wₜ − W₀‖",
    "colnorm_spread": "spread of the columns' norms (s.d. over mean)",
}  # fmt: skip
MOST_POINTS = 60_000  # of all curves; beyond that only the rates nearest to the base rate are kept


def describe_blocks(results: Results, names: Sequence[str]) -> dict[str, Any]:
    """Curves by quantity, multiplier and block; the matrices' distances at the end by multiplier and block.

    Args:
        results: the runs.
        names: of the series, whose places stand for them.

    Returns:
        Empty where no run has left any; `left_out` counts the multipliers that would have made the page too large.
    """
    rows = _mean_curves(results)
    if rows.empty:
        return {}
    rates = sorted(rows["multiplier"].unique(), key=lambda rate: abs(np.log2(rate)))
    kept = sorted(rates[: max(1, MOST_POINTS * len(rates) // max(len(rows), MOST_POINTS))])
    quantities = [name for name in QUANTITIES if name in TITLES and name in set(rows["quantity"])]
    curves: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for (quantity, rate, block), own in rows[rows["multiplier"].isin(kept)].groupby(
        ["quantity", "multiplier", "block"], sort=False, observed=True
    ):
        curves.setdefault(f"{quantities.index(str(quantity))}/{kept.index(rate)}", {})[str(block)] = by_series(
            own, names, "step"
        )
    return {
        "names": sorted(map(str, rows["block"].unique()), key=lambda name: (*block_order(name), name)),
        "quantities": [TITLES[name] for name in quantities],
        "multipliers": [multiplier_text(rate) for rate in kept],
        "curves": curves,
        "matrices": _matrices(results, names, kept),
        "left_out": len(rates) - len(kept),
    }


def _mean_curves(results: Results) -> pd.DataFrame:
    """Rows quantity, block, series, multiplier, step, mean, low and high (NaN), num_subjects, num_diverged, num_runs.

    The numbers of `analysis.block_curves`, all at once and without intervals, which take most of its time.
    """
    frame = results.blocks().astype({"run_id": str})
    names = [name for name in QUANTITIES if name in TITLES and frame[name].notna().any()]
    if not names:
        return pd.DataFrame()
    runs = ended_runs(results, "multiplier")
    wide = frame.pivot(index="step", columns=["run_id", "block"], values=names)
    lost = wide.columns.get_level_values("run_id").isin(runs.loc[runs["diverged"], "run_id"])
    wide.loc[:, lost] = wide.loc[:, lost].ffill()
    wide.columns.names = ["quantity", "run_id", "block"]
    table = wide.melt(ignore_index=False, value_name="value").dropna(subset=["value"]).reset_index()
    table = table.merge(runs, on="run_id")
    table["lost"] = table["diverged"] & ~(table["step"] < table["diverged_step"])
    keys = ["quantity", "block", "series", "multiplier", "step"]
    by_subject = table.groupby([*keys, "subject"], sort=False).agg(
        value=("value", "mean"), num_runs=("seed", "nunique"), num_diverged=("lost", "sum")
    )
    means = by_subject.groupby(level=keys, sort=False).agg(
        mean=("value", "mean"),
        num_subjects=("value", "size"),
        num_runs=("num_runs", "sum"),
        num_diverged=("num_diverged", "sum"),
    )
    return means.reset_index().sort_values("step", kind="stable").assign(low=np.nan, high=np.nan)


def _matrices(results: Results, names: Sequence[str], rates: Sequence[float]) -> dict[str, list[dict[str, Any]]]:
    """The mean relative distance of each matrix at the end, by the place of the multiplier: its block, its name, by series."""
    places = results.matrices[["matrix", "block"]].astype(str).drop_duplicates().set_index("matrix")["block"]
    means = _final(results).groupby(["multiplier", "matrix", "series"], sort=False)["distance_rel"].mean()
    wide = means.unstack().reindex(columns=list(names))
    found: dict[str, list[dict[str, Any]]] = {}
    for (rate, matrix), row in wide.iterrows():
        if rate in rates and matrix in places.index:
            found.setdefault(str(list(rates).index(rate)), []).append(
                {"block": places[matrix], "matrix": matrix, "values": numbers(row)}
            )
    return found


def final_table(results: Results) -> pd.DataFrame:
    """The same distances to be downloaded: a row a series, multiplier and subject, a column a matrix."""
    keys, found = ["series", "multiplier", "subject", "matrix"], _final(results)
    wide = found.groupby(keys, observed=True)["distance_rel"].mean().unstack("matrix")
    return wide[list(dict.fromkeys(found["matrix"]))].reset_index()


def _final(results: Results) -> pd.DataFrame:
    """The relative distance of each matrix at the end of each run, under every name that the run goes by."""
    runs = results.runs[["run_id", "series", "multiplier", "subject"]].drop_duplicates()
    final = results.final_dynamics[["run_id", "matrix", "distance_rel"]].astype({"run_id": str, "matrix": str})
    return final.merge(runs, on="run_id")
