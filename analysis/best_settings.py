"""Choose a method's best setting of those tried, and compare the best settings on other subjects."""

from __future__ import annotations

import numpy as np
import pandas as pd

from adapters.errors import BadInput
from analysis.curves import run_scores, score_curve
from analysis.plateau import PROMPT_LOSS
from analysis.results import BASE_KEY, METRICS, Results
from training.states import RunStatus

SETTING = ("method", "options", "lr", "boundary")
TRIAL_COLUMNS = (
    *SETTING, "rank", "steps", "subject", "seed", "status", *METRICS, *(f"base_{metric}" for metric in METRICS),
)  # fmt: skip
RULES = {
    "sum": "highest mean of DINO + CLIP-I + CLIP-T",
    "dino": "highest mean of DINO",
    "matched-prompt": f"highest mean of DINO with at least {1 - PROMPT_LOSS:.0%} of the base model's CLIP-T",
}


def describe_rule(rule: str, subjects: str = "the tuning subjects") -> str:
    """A rule of `RULES` in words."""
    return f"{RULES[rule]} over {subjects} at the last step; settings with a diverged run are out"


def trial_scores(results: Results) -> pd.DataFrame:
    """The scores of every run of a search, from which any rule can choose.

    Returns:
        Rows method, options, lr, boundary, rank, steps, subject, seed, status, dino, clip_i, clip_t (means over prompts at the
        last step), base_dino, base_clip_i, base_clip_t (of the base model's pictures of the subject).
    """
    scores = results.scores.groupby(["run_id", "metric"], observed=True)["value"].mean().unstack().astype(float)
    base = results.base.groupby([*BASE_KEY, "metric"], observed=True, dropna=False)["value"].mean().unstack()
    runs = results.runs.join(scores[list(METRICS)], on="run_id")
    runs = runs.merge(base[list(METRICS)].add_prefix("base_").reset_index(), on=list(BASE_KEY), how="left")
    return runs[list(TRIAL_COLUMNS)]


def tried_settings(trials: Results | pd.DataFrame) -> pd.DataFrame:
    """The mean scores of every setting that was tried.

    Args:
        trials: a search, or what `trial_scores` returned.

    Returns:
        Rows method, options, lr, boundary, dino, clip_i, clip_t, diverged (runs), num_subjects, sum (of the three scores),
        prompt_kept (CLIP-T as a share of the base model's).
    """
    runs = trials if isinstance(trials, pd.DataFrame) else trial_scores(trials)
    runs = runs.assign(diverged=runs["status"] == RunStatus.DIVERGED)
    means = {metric: (metric, "mean") for metric in (*METRICS, "base_clip_t")}
    tried = runs.groupby(list(SETTING), dropna=False, sort=False)
    frame = tried.agg(**means, diverged=("diverged", "sum"), num_subjects=("subject", "nunique")).reset_index()
    kept = frame["clip_t"] / frame.pop("base_clip_t")
    return frame.assign(sum=frame[list(METRICS)].sum(axis=1), prompt_kept=kept)


def best_settings(tried: pd.DataFrame, rule: str = "sum") -> pd.DataFrame:
    """The best of every method by a rule of `RULES`, the best method first; a method with no setting that may be chosen has none.

    Raises:
        BadInput: if every setting diverged, or none keeps the prompt.
    """
    whole = tried[tried["diverged"] == 0]
    if whole.empty:
        raise BadInput("every setting tried diverged: give smaller --rates")
    if rule == "matched-prompt":
        whole = whole[whole["prompt_kept"] >= 1 - PROMPT_LOSS]
        if whole.empty:
            raise BadInput(
                f"no setting tried keeps {1 - PROMPT_LOSS:.0%} of the base model's CLIP-T: give smaller --rates"
            )
    whole = whole.sort_values("sum" if rule == "sum" else "dino", ascending=False)
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
