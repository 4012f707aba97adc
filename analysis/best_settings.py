"""Choose a method's best setting of those tried, and compare the best settings on other subjects."""

from __future__ import annotations

import numpy as np
import pandas as pd

from adapters.errors import BadInput
from adapters.words import plural
from analysis.curves import run_scores, score_curve
from analysis.metrics import in_table_order, is_side_effect, kind_with, score_names, sign_of, signs_of, title_of
from analysis.plateau import PROMPT_LOSS
from analysis.results import BASE_KEY, Results
from training.states import RunStatus
from training.task_kinds import PICTURES, TaskKind, kind_of

SETTING = ("method", "options", "lr", "boundary")
SUM, MATCHED_PROMPT = "sum", "matched-prompt"


def trial_columns(kind: TaskKind) -> tuple[str, ...]:
    """The columns of a task's `trial_scores`."""
    scores = score_names(kind)
    return (*SETTING, "rank", "steps", "subject", "seed", "status", *scores, *(f"base_{name}" for name in scores))


def rules(kind: TaskKind) -> dict[str, str]:
    """What may be best in a task, in words: "sum", the headline by its name, and, where it has a prompt, "matched-prompt"."""
    headline = kind.headline
    highest = f"{'lowest' if sign_of(headline.name) < 0 else 'highest'} mean of {headline.title}"
    found = {SUM: f"highest mean of {_sum_in_words(kind)}", headline.name: highest}
    if kind.prompt_metric:
        sign = sign_of(kind.prompt_metric)
        kept = f"at {'least' if sign > 0 else 'most'} {1 - sign * PROMPT_LOSS:.0%} of the base model's"
        found[MATCHED_PROMPT] = f"{highest} with {kept} {title_of(kind.prompt_metric)}"
    return found


def _sum_in_words(kind: TaskKind) -> str:
    """`DINO + CLIP-I + CLIP-T`; a score of which less is better is taken off."""
    words = "".join(f" {'-' if sign_of(name) < 0 else '+'} {title_of(name)}" for name in score_names(kind))
    return words.removeprefix(" + ").strip()


def describe_rule(rule: str, subjects: str = "", kind: TaskKind | None = None) -> str:
    """A rule in words.

    Args:
        rule: of `rules`.
        subjects: over what; "": over the tuning split.
        kind: the task; None: that of cells which name none.

    Raises:
        BadInput: if the task has no such rule.
    """
    kind = kind or kind_of(PICTURES)
    subjects = subjects or f"the tuning {plural(kind.unit)}"
    return f"{_find_rule(rule, kind)} over {subjects} at the last step; settings with a diverged run are out"


def _find_rule(rule: str, kind: TaskKind) -> str:
    known = rules(kind)
    if rule not in known:
        raise BadInput(f"unknown rule {rule!r} of the task {kind.name!r}; allowed: {', '.join(known)}")
    return known[rule]


def trial_scores(results: Results) -> pd.DataFrame:
    """The scores of every run of a search, from which any rule can choose.

    Returns:
        Rows method, options, lr, boundary, rank, steps, subject, seed, status, the task's scores (dino, clip_i, clip_t: means
        over prompts at the last step), and those of the base model on the subject (base_dino, base_clip_i, base_clip_t).
    """
    scores = results.scores.groupby(["run_id", "metric"], observed=True)["value"].mean().unstack().astype(float)
    base = results.base.groupby([*BASE_KEY, "metric"], observed=True, dropna=False)["value"].mean().unstack()
    names = score_names(results.kind)
    runs = results.runs.join(scores[names], on="run_id")
    runs = runs.merge(base[names].add_prefix("base_").reset_index(), on=list(BASE_KEY), how="left")
    return runs[list(trial_columns(results.kind))]


def tried_settings(trials: Results | pd.DataFrame) -> pd.DataFrame:
    """The mean scores of every setting that was tried.

    Args:
        trials: a search, or what `trial_scores` returned.

    Returns:
        Rows method, options, lr, boundary, the scores (dino, clip_i, clip_t), diverged (runs), num_subjects, sum (of the scores;
        one of which less is better is taken off), and, where the task has a prompt, prompt_kept (its score as a share of the
        base model's, what is lost of it below 1).
    """
    runs = trials if isinstance(trials, pd.DataFrame) else trial_scores(trials)
    runs = runs.assign(diverged=runs["status"] == RunStatus.DIVERGED)
    scores = _scores_of(runs)
    prompt = kind_with(scores).prompt_metric
    means = {metric: (metric, "mean") for metric in (*scores, *([f"base_{prompt}"] if prompt else []))}
    tried = runs.groupby(list(SETTING), dropna=False, sort=False)
    frame = tried.agg(**means, diverged=("diverged", "sum"), num_subjects=("subject", "nunique")).reset_index()
    signs = signs_of(pd.Series(scores, scores))
    total = (frame[scores] * signs).sum(axis=1)
    if not prompt:
        return frame.assign(sum=total)
    kept = frame[prompt] / frame.pop(f"base_{prompt}")
    return frame.assign(sum=total, prompt_kept=kept if sign_of(prompt) > 0 else 2 - kept)


def _scores_of(trials: pd.DataFrame) -> list[str]:
    """The scores in a table of trials or of settings that are no side effects, in the order of tables."""
    return [name for name in in_table_order(trials.columns) if not is_side_effect(name)]


def best_settings(tried: pd.DataFrame, rule: str = SUM) -> pd.DataFrame:
    """The best of every method by a rule of `rules`, the best method first; a method with no setting that may be chosen has none.

    Raises:
        BadInput: if the task has no such rule, every setting diverged, or none keeps the prompt.
    """
    kind = kind_with(_scores_of(tried))
    _find_rule(rule, kind)
    whole = tried[tried["diverged"] == 0]
    if whole.empty:
        raise BadInput("every setting tried diverged: give smaller --rates")
    if rule == MATCHED_PROMPT:
        whole = whole[whole["prompt_kept"] >= 1 - PROMPT_LOSS]
        if whole.empty:
            prompt = title_of(kind.prompt_metric)
            raise BadInput(
                f"no setting tried keeps {1 - PROMPT_LOSS:.0%} of the base model's {prompt}: give smaller --rates"
            )
    column = SUM if rule == SUM else kind.headline.name
    whole = whole.sort_values(column, ascending=sign_of(column) < 0)
    return whole.drop_duplicates(["method", "options"])


def best_table(results: Results) -> pd.DataFrame:
    """Tables 3 and 6 of the DeLoRA paper: scores of the best settings, with the number of parameters and the seeds' spread.

    Returns:
        One row a series: num_parameters, lr, boundary, then the scores (dino, clip_i, clip_t) each with _low and _high (95 %
        t interval over subjects) and _seed_sd (of the seeds' means over subjects; NaN for one seed), num_subjects, num_seeds,
        diverged.
    """
    curve, seeds = (
        score_curve(results),
        run_scores(results).groupby(["series", "metric", "seed"], observed=True)["value"],
    )
    spread = seeds.mean().groupby(["series", "metric"], observed=True).std(ddof=1)
    runs = results.runs.groupby("series", sort=False)
    table = runs[["num_parameters", "lr", "boundary"]].first()
    for metric in score_names(results.kind):
        rows = curve[curve["metric"] == metric].set_index("series")
        table[metric], table[f"{metric}_low"], table[f"{metric}_high"] = rows["mean"], rows["low"], rows["high"]
        table[f"{metric}_seed_sd"] = [spread.get((name, metric), np.nan) for name in table.index]
    table["num_subjects"], table["num_seeds"] = runs["subject"].nunique(), runs["seed"].nunique()
    table["diverged"] = runs["status"].agg(lambda statuses: (statuses == RunStatus.DIVERGED).sum())
    return table.reset_index()
