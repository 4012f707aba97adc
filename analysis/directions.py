"""How DoRA, LoRA and full finetuning move weights: the change of magnitude against the change of direction.

Rebuilds the analysis of Fig. 2 in the DoRA paper (arXiv 2402.09353, Sec. 3.2, Eq. 3 and 4): for every matrix and snapshot, dM
is the mean change of the norms of its rows (or columns), dD the mean of 1 - cos between each and its pretrained self. The paper
finds them positively correlated in LoRA and negatively in DoRA and in full finetuning, of one run each; here a run is one point.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from adapters.errors import BadInput
from analysis.curves import in_order
from analysis.results import Results
from analysis.statistics import t_interval
from training.states import ENDED

ROUNDING = 1e-6  # of float32: what changes no more than that does not change
AXES = {"rows": ("dm_rows", "dd_rows"), "columns": ("dm_cols", "dd_cols")}


def magnitude_direction(results: Results, axis: str = "rows", multiplier: float = 1.0) -> pd.DataFrame:
    """The change of magnitude and of direction of every matrix at every snapshot.

    Args:
        results: the runs; a compact copy holds the snapshots that it was made with.
        axis: "rows" (one norm an output, as DoRA's public code) or "columns" (one an input).
        multiplier: of the base learning rate.

    Returns:
        Rows series, method, run_id, subject, seed, matrix, block, kind, attention, step, dm, dd. Steps from 1 on.

    Raises:
        BadInput: if the axis is unknown, or no ended run at that multiplier has a snapshot after the start.
    """
    if axis not in AXES:
        raise BadInput(f"unknown axis {axis!r} of magnitudes; allowed: {', '.join(AXES)}")
    dm, dd = AXES[axis]
    runs = results.runs[results.runs["status"].isin(ENDED) & (results.runs["multiplier"] == multiplier)]
    norms = results.norms().astype({"run_id": str, "matrix": str})
    norms = norms.loc[norms["step"] > 0, ["run_id", "step", "matrix", dm, dd]].rename(columns={dm: "dm", dd: "dd"})
    rows = norms.merge(runs[["run_id", "series", "method", "subject", "seed"]], on="run_id")
    if rows.empty:
        raise BadInput(f"no ended run at {multiplier:g} times the base rate has weight norms after its start")
    places = results.matrices[["run_id", "matrix", "block", "kind", "attention"]].astype(str)
    rows = rows.merge(places, on=["run_id", "matrix"])
    order = [
        "series",
        "method",
        "run_id",
        "subject",
        "seed",
        "matrix",
        "block",
        "kind",
        "attention",
        "step",
        "dm",
        "dd",
    ]
    return in_order(rows[order], "step")


def magnitude_direction_correlation(points: pd.DataFrame) -> pd.DataFrame:
    """The correlation of the two changes over the matrices and snapshots of a run, over subjects.

    Args:
        points: `magnitude_direction(...)`.

    Returns:
        Rows series, method, kind ("all", then each kind of matrix; the paper shows to_q), rho (mean over subjects of Pearson's
        correlation in a run), rho_low, rho_high (95 %, a t interval of Fisher's z), num_subjects, num_points (of a run).
    """
    rows: list[dict[str, Any]] = []
    for (series, method), group in points.groupby(["series", "method"], sort=False, observed=True):
        for kind in ["all", *sorted(group["kind"].unique())]:
            own = group if kind == "all" else group[group["kind"] == kind]
            runs = own.groupby(["subject", "run_id"], observed=True)[["dm", "dd"]]
            z = runs.apply(_fisher).groupby("subject").mean().dropna()
            found = t_interval(z)
            rows.append(
                {"series": series, "method": method, "kind": kind, "rho": np.tanh(found.mean), "rho_low": np.tanh(found.low),
                 "rho_high": np.tanh(found.high), "num_subjects": found.num_subjects,
                 "num_points": int(own.groupby("run_id", observed=True).size().max())}
            )  # fmt: skip
    return pd.DataFrame(rows)


def _fisher(pairs: pd.DataFrame) -> float:
    """Fisher's z of a run's correlation; NaN where one of the two does not vary."""
    if len(pairs) < 3 or not (pairs.std() > 0).all() or not (pairs.abs().max() > ROUNDING).all():
        return float("nan")
    return float(np.arctanh(np.clip(pairs["dm"].corr(pairs["dd"]), -1 + 1e-9, 1 - 1e-9)))
