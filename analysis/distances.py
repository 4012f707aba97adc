"""How far weights and gauges have moved, and to which loss, against the multiplier or the step: intervals are over subjects."""

from __future__ import annotations

from math import inf

import pandas as pd

from adapters.errors import BadInput
from analysis.curves import ended_runs, summarise
from analysis.metrics import value_range
from analysis.results import Results
from analysis.statistics import log_interval, t_interval
from training.store import SPECTRA

# The values that a quantity of a spectrum can have.
SPECTRUM_LIMITS = dict.fromkeys(SPECTRA, (0.0, 1.0)) | {"effective_rank": (1.0, inf), "intruders": (0.0, inf)}


def subject_distances(
    results: Results, matrix: str = "mean", x: str = "multiplier", gauge: str = "distance_rel"
) -> pd.DataFrame:
    """The final relative distance ‖W_t - W_0‖_F / ‖W_0‖_F of one matrix, or its mean over the matrices, by subject.

    Args:
        results: the runs.
        matrix: one matrix, or "mean".
        x: "multiplier" or another column of the runs.
        gauge: another column of the dynamics in its place, such as transform_distance; methods that lack it have no rows.

    Returns:
        Rows series, method, x, subject, value, num_seeds, num_diverged.

    Raises:
        BadInput: if there is no such matrix.
    """
    return _by_subject(results, final_distances(results, matrix, gauge), x)


def _by_subject(results: Results, values: pd.Series, x: str) -> pd.DataFrame:
    """The mean of a number of the runs, indexed by run_id, over each subject's seeds."""
    table = ended_runs(results, x).merge(values.dropna().rename("value"), left_on="run_id", right_index=True)
    return (
        table.groupby(["series", "method", x, "subject"], sort=False, observed=True)
        .agg(value=("value", "mean"), num_seeds=("seed", "nunique"), num_diverged=("diverged", "sum"))
        .reset_index()
    )


def final_distances(results: Results, matrix: str = "mean", gauge: str = "distance_rel") -> pd.Series:
    """`distance_rel`, or another gauge, at the last step of every run, by run_id.

    Raises:
        BadInput: if there is no such matrix.
    """
    frame = results.final_dynamics
    if matrix != "mean":
        if matrix not in (known := frame["matrix"].unique()):
            raise BadInput(
                f"unknown matrix {matrix!r}; allowed: mean, {', '.join(map(str, known[:4]))} ... ({len(known)} in all)"
            )
        frame = frame[frame["matrix"] == matrix]
    return frame.groupby("run_id", observed=True)[gauge].mean().astype(float)


def spectrum_curves(results: Results) -> dict[str, pd.DataFrame]:
    """The updates' spectra at the end, their means over the matrices, against the multiplier.

    Returns:
        For each name of `SPECTRA` rows series, method, multiplier, mean, low, high (t intervals over subjects), num_subjects,
        num_diverged, num_runs, least, most; runs without `--spectra` have none.
    """
    frame = results.norms().reindex(columns=["run_id", "step", *SPECTRA])
    frame = frame.astype(dict.fromkeys(SPECTRA, float))
    last = frame[frame["step"] == frame.groupby("run_id", observed=True)["step"].transform("max")]
    final = last.groupby("run_id", observed=True)[list(SPECTRA)].mean()
    tables = {name: _by_subject(results, final[name], "multiplier") for name in SPECTRA}
    return {
        name: summarise(table, "multiplier", [], t_interval, SPECTRUM_LIMITS[name]) for name, table in tables.items()
    }


def loss_curve(results: Results) -> pd.DataFrame:
    """The training loss over the last fifth of the steps, against the multiplier: t intervals over subjects.

    Returns:
        Rows series, method, multiplier, mean, low, high, num_subjects, num_diverged, num_runs, least, most; none in a compact
        copy that came without losses.
    """
    losses = results.losses().astype({"run_id": str}).set_index("run_id")["loss"].astype(float)
    return summarise(_by_subject(results, losses, "multiplier"), "multiplier", [], t_interval, (0.0, inf))


def distance_curve(
    results: Results, matrix: str = "mean", x: str = "multiplier", gauge: str = "distance_rel"
) -> pd.DataFrame:
    """The final relative distance, or another gauge: geometric mean over the subjects, its t interval taken on the logarithms.

    Returns:
        Rows series, method, x, mean, low, high, num_subjects, num_diverged, num_runs.
    """
    return summarise(subject_distances(results, matrix, x, gauge), x, [], log_interval)


def gauge_curve(
    results: Results, gauge: str = "distance_rel", matrix: str = "mean", *, by_multiplier: bool = False
) -> pd.DataFrame:
    """One gauge of the dynamics against the step; a diverged run keeps the value at which it was frozen.

    Args:
        results: the runs.
        gauge: a column of the dynamics, such as distance_rel, lambda, saturation.
        matrix: one matrix, or "mean" for the mean over all of them.
        by_multiplier: whether multipliers stand in a column of their own, and not in the names of the series.

    Returns:
        Rows series, method, (multiplier,) step, mean, low, high, num_subjects, num_diverged, num_runs; empty if no run has
        that gauge.

    Raises:
        BadInput: if there is no such gauge or matrix.
    """
    runs = ended_runs(results, "multiplier" if by_multiplier else "step")
    frame = results.trajectories(matrix, [gauge])
    return curve_of(frame, gauge, runs, ["multiplier"] if by_multiplier else [], value_range(gauge))


def curve_of(
    frame: pd.DataFrame, name: str, runs: pd.DataFrame, by: list[str], limits: tuple[float, float]
) -> pd.DataFrame:
    """One quantity against the step over subjects; a diverged run keeps the value at which it was frozen.

    Args:
        frame: rows run_id, step and the quantity, one for each run and step.
        name: of the quantity.
        runs: `ended_runs(...)`.
        by: further columns of `runs` that tell curves apart.
        limits: the range of the quantity.

    Returns:
        Rows series, method, `by`, step, mean, low, high, num_subjects, num_diverged, num_runs, least, most.
    """
    wide = frame.assign(run_id=frame["run_id"].astype(str)).pivot(index="step", columns="run_id", values=name)
    frozen = [run for run in runs.loc[runs["diverged"], "run_id"].unique() if run in wide]
    wide[frozen] = wide[frozen].ffill()
    table = (
        wide.melt(ignore_index=False, value_name="value")
        .dropna(subset=["value"])
        .reset_index()
        .merge(runs, on="run_id")
    )
    table["diverged"] &= ~(table["step"] < table["diverged_step"])
    table = (
        table.groupby(["series", "method", *by, "step", "subject"], sort=False, observed=True)
        .agg(value=("value", "mean"), num_seeds=("seed", "nunique"), num_diverged=("diverged", "sum"))
        .reset_index()
    )
    return summarise(table.astype({"value": float}), "step", by, t_interval, limits)
