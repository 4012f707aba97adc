"""Choose a method's best setting of those tried, and compare the best settings on other subjects."""

from __future__ import annotations

import numpy as np
import pandas as pd

from adapters.errors import BadInput
from analysis.curves import run_scores, score_curve
from analysis.results import METRICS, Results
from training.states import RunStatus

RULE = "highest mean of DINO + CLIP-I + CLIP-T over the tuning subjects at the last step; settings with a diverged run are out"


def tried_settings(results: Results) -> pd.DataFrame:
    """The mean scores of every setting that was tried.

    Returns:
        Rows method, options, lr, boundary, dino, clip_i, clip_t, diverged (runs), num_subjects, sum (of the three scores).
    """
    scores = results.scores.groupby(["run_id", "metric"], observed=True)["value"].mean().unstack().astype(float)
    runs = results.runs.join(scores[list(METRICS)], on="run_id")
    runs["diverged"] = runs["status"] == RunStatus.DIVERGED
    means = {metric: (metric, "mean") for metric in METRICS}
    tried = runs.groupby(["method", "options", "lr", "boundary"], dropna=False, sort=False)
    frame = tried.agg(**means, diverged=("diverged", "sum"), num_subjects=("subject", "nunique")).reset_index()
    return frame.assign(sum=frame[list(METRICS)].sum(axis=1))


def best_settings(tried: pd.DataFrame) -> pd.DataFrame:
    """The best of every method by `RULE`, the best method first; a method whose settings all diverged has none.

    Raises:
        BadInput: if every setting diverged.
    """
    whole = tried[tried["diverged"] == 0].sort_values("sum", ascending=False)
    if whole.empty:
        raise BadInput("every setting tried diverged: give smaller --rates")
    return whole.drop_duplicates(["method", "options"])


def best_table(results: Results) -> pd.DataFrame:
    """Tables 3 and 6 of the DeLoRA paper: scores of the best settings, with the number of parameters and the seeds' spread.

    Returns:
        One row a series: num_parameters, lr, boundary, then dino, clip_i, clip_t each with _low and _high (95 % t interval
        over subjects) and _seed_sd (of the seeds' means over subjects; NaN for one seed), num_subjects, num_seeds, diverged.
    """
    curve, seeds = (
        score_curve(results),
        run_scores(results).groupby(["series", "metric", "seed"], observed=True)["value"],
    )
    spread = seeds.mean().groupby(["series", "metric"], observed=True).std(ddof=1)
    runs = results.runs.groupby("series", sort=False)
    table = runs[["num_parameters", "lr", "boundary"]].first()
    for metric in METRICS:
        rows = curve[curve["metric"] == metric].set_index("series")
        table[metric], table[f"{metric}_low"], table[f"{metric}_high"] = rows["mean"], rows["low"], rows["high"]
        table[f"{metric}_seed_sd"] = [spread.get((name, metric), np.nan) for name in table.index]
    table["num_subjects"], table["num_seeds"] = runs["subject"].nunique(), runs["seed"].nunique()
    table["diverged"] = runs["status"].agg(lambda statuses: (statuses == RunStatus.DIVERGED).sum())
    return table.reset_index()
