"""Weight-norm heterogeneity: the mean column or row norm of every adapted matrix, by block, kind and attention."""

from __future__ import annotations

import re

import pandas as pd

from adapters import METHODS
from adapters.errors import BadInput
from adapters.method_words import BASE_MODEL
from analysis.results import BASE, Results
from analysis.series import by_number
from training.states import ENDED

AXES = {"columns": "colnorm", "rows": "rownorm"}


def weight_norms(results: Results, axis: str = "columns") -> pd.DataFrame:
    """The norms before and after training.

    Args:
        results: the runs; without any but the base's own, its norms alone come back.
        axis: "columns" (one norm for each input, torch's dim 0) or "rows" (one for each output).

    Returns:
        Rows series ("base model" before training), method, multiplier, block, attention, kind, mean (over the block's
        matrices of that kind, and over runs), sd (within a matrix), cv (coefficient of variation over the block's matrices;
        NaN for one), base (the same mean before training), change (mean / base - 1, per run, then averaged), num_matrices,
        num_runs. Methods stand as registered, blocks in the order of the U-Net.

    Raises:
        BadInput: if the axis is unknown, or no run left norms.
    """
    if axis not in AXES:
        raise BadInput(f"unknown axis {axis!r} of the norms; allowed: {', '.join(AXES)}")
    norms = results.norms()
    if norms.empty:
        raise BadInput("no run has left weight norms: python sweeps/weight_norms.py writes them")
    norms = norms.rename(columns={f"{AXES[axis]}_mean": "norm", f"{AXES[axis]}_sd": "within"})
    norms = norms.merge(results.matrices[["run_id", "matrix", "block", "attention", "kind"]], on=["run_id", "matrix"])
    rows = pd.concat([_before(norms), _after(norms, results)], ignore_index=True)
    methods = {name: number for number, name in enumerate([BASE, *METHODS])}
    place = {"method": methods.get, "series": by_number, "block": block_order}
    return rows.sort_values(
        ["method", "series", "multiplier", "block"], kind="stable", ignore_index=True,
        key=lambda column: column.map(place[column.name]) if column.name in place else column,
    )  # fmt: skip


KEYS = ["block", "attention", "kind"]


def _before(norms: pd.DataFrame) -> pd.DataFrame:
    """The base's norms: step 0 of any run, since all runs start from the same model."""
    start = norms[norms["step"] == norms["step"].min()]
    start = start[start["run_id"].astype(str) == str(start["run_id"].iloc[0])]
    grouped = start.groupby(KEYS, observed=True, sort=False)["norm"]
    frame = pd.DataFrame(
        {
            "mean": grouped.mean(),
            "sd": start.groupby(KEYS, observed=True, sort=False)["within"].mean(),
            "cv": grouped.std() / grouped.mean(),
            "base": grouped.mean(),
            "change": 0.0,
            "num_matrices": grouped.size(),
            "num_runs": 1,
        }
    ).reset_index()
    return frame.assign(series=BASE_MODEL, method=BASE, multiplier=float("nan"))


def _after(norms: pd.DataFrame, results: Results) -> pd.DataFrame:
    """The norms at the last snapshot of every ended run, averaged over runs of one series and multiplier."""
    runs = results.runs.loc[results.runs["status"].isin(ENDED), ["run_id", "series", "method", "multiplier"]]
    norms = norms.assign(run_id=norms["run_id"].astype(str)).merge(runs, on="run_id")
    steps = norms.groupby("run_id")["step"]
    start, end = norms[norms["step"] == steps.transform("min")], norms[norms["step"] == steps.transform("max")]
    keys = ["run_id", "series", "method", "multiplier", *KEYS]
    grouped = end.groupby(keys, observed=True, sort=False, dropna=False)
    per_run = pd.DataFrame(
        {
            "mean": grouped["norm"].mean(),
            "sd": grouped["within"].mean(),
            "cv": grouped["norm"].std() / grouped["norm"].mean(),
            "base": start.groupby(keys, observed=True, sort=False, dropna=False)["norm"].mean(),
            "num_matrices": grouped.size(),
        }
    )
    per_run["change"] = per_run["mean"] / per_run["base"] - 1
    keys.remove("run_id")
    averaged = per_run.reset_index().groupby(keys, observed=True, sort=False, dropna=False)
    return (
        averaged[["mean", "sd", "cv", "base", "change", "num_matrices"]]
        .mean()
        .assign(num_runs=averaged.size())
        .reset_index()
    )


def block_order(block: str) -> tuple[int, int]:
    """Sort key of a U-Net's blocks: down_blocks.0 ... mid_block ... up_blocks.N."""
    number = re.search(r"\d+", str(block))
    place = {"down": 0, "mid": 1, "up": 2}.get(str(block).split("_")[0], 3)
    return place, int(number.group()) if number else 0
