"""How often runs diverge, with intervals that hold also at none and at all."""

from __future__ import annotations

import pandas as pd

from analysis.curves import in_order, run_scores
from analysis.results import Results
from analysis.statistics import rate_interval


def divergence_rates(results: Results, x: str = "multiplier") -> pd.DataFrame:
    """The share of subjects of which some run diverged, with Wilson's 95 % interval.

    The subject is the unit here too: a subject whose three seeds all diverge is one such subject, not three.

    Args:
        results: the runs; only those that ended count.
        x: the column along which rates are given; "step" counts the runs that have diverged up to each evaluation.

    Returns:
        Rows series, method, x, rate, low, high, num_diverged (subjects), num_subjects, num_runs.

    Raises:
        BadInput: if no run has ended.
    """
    runs = run_scores(results, x).drop_duplicates(["run_id", x])
    rows = []
    for key, group in runs.groupby(["series", "method", x], sort=False, observed=True):
        lost = group.groupby("subject", observed=True)["diverged"].any()
        found = rate_interval(int(lost.sum()), len(lost))
        rows.append([*key, *found[:3], int(lost.sum()), len(lost), len(group)])
    columns = ["series", "method", x, "rate", "low", "high", "num_diverged", "num_subjects", "num_runs"]
    return in_order(pd.DataFrame(rows, columns=columns), x)
