"""The pictures that runs made, with their scores."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from adapters import METHODS
from adapters.errors import BadInput
from adapters.method_words import BASE_MODEL
from analysis.results import BASE, Results
from analysis.series import by_number
from training.states import ENDED, RunStatus


def pictures(
    results: Results,
    *,
    metric: str | None = None,
    prompt: int | Collection[int] = 0,
    image: int = 0,
    step: int | None = None,
) -> pd.DataFrame:
    """One picture for each run and prompt: the same prompts and the same noise in all of them.

    Args:
        results: the runs.
        metric: whose score of that prompt stands with the picture; None: the task's headline.
        prompt: number of the prompt, or several numbers, in the order in which each run drew them.
        image: number of the picture of that prompt.
        step: the evaluation; None for every evaluation, -1 for the last of each run.

    Returns:
        Rows run_id, series ("base model" for the base), method, subject, multiplier, seed, step, prompt, file, value (the
        score, NaN if there is none), diverged.

    Raises:
        BadInput: if no run has left such a picture, or none of one of the prompts.
    """
    metric = metric or results.kind.headline.name
    wanted_prompts = {prompt} if isinstance(prompt, int) else set(prompt)
    rows = results.images()
    number = rows.groupby(["run_id", "step"], observed=True)["prompt"].transform(
        lambda prompts: pd.factorize(prompts)[0]
    )
    again = rows.groupby(["run_id", "step", "prompt"], observed=True).cumcount()
    rows = rows.assign(number=number)[number.isin(wanted_prompts) & (again == image)].drop(columns="seed")
    if step is not None:
        wanted = rows.groupby("run_id", observed=True)["step"].transform("max") if step < 0 else step
        rows = rows[rows["step"] == wanted]
    if missing := sorted(wanted_prompts - set(rows["number"])):
        raise BadInput(
            f"no run has left picture {image} of prompt {missing[0]}: pictures lie in the runs folder, not in a compact copy"
        )
    runs = results.all_runs[results.all_runs["status"].isin(ENDED)]
    runs = runs[["run_id", "series", "method", "subject", "multiplier", "seed", "status"]]
    rows = rows.assign(run_id=rows["run_id"].astype(str)).merge(runs, on="run_id")
    base = results.base.assign(step=0)
    scores = pd.concat([results.scores, base], ignore_index=True)
    scores = scores.loc[scores["metric"] == metric, ["run_id", "step", "prompt", "value"]]
    scores = scores.astype({"run_id": str, "prompt": str}).drop_duplicates(["run_id", "step", "prompt"])
    rows = rows.astype({"prompt": str}).merge(scores, on=["run_id", "step", "prompt"], how="left")
    rows["series"] = rows["series"].where(rows["method"] != BASE, BASE_MODEL)
    rows = rows.assign(diverged=rows["status"] == RunStatus.DIVERGED).drop(columns="status")
    place = rows["method"].map({name: number for number, name in enumerate([BASE, *METHODS])})
    return (
        rows.assign(place=place)
        .sort_values(
            ["place", "series", "subject", "multiplier", "seed", "step", "number"],
            ignore_index=True,
            key=lambda column: column.map(by_number) if column.name == "series" else column,
        )
        .drop(columns=["place", "number"])
    )
