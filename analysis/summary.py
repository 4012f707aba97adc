"""The table and the sentences at the end of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from adapters.method_words import BASE_MODEL
from adapters.words import counted
from analysis.comparisons import compare
from analysis.control_words import unreliable, with_controls
from analysis.curves import base_line, score_curve, subject_scores
from analysis.distances import distance_curve
from analysis.metrics import UNIT, in_table_order, sign_of, title_of
from analysis.plateau import LEAST_SUBJECTS, TOLERANCE, doubt, exceeds_base, plateau
from analysis.results import Results
from analysis.statistics import Interval, t_interval


class Robustness(NamedTuple):
    """What Fig. 2 shows: `score_curve`, `distance_curve`, `base_line` and `plateau` of the same runs."""

    scores: pd.DataFrame
    distances: pd.DataFrame
    base: pd.DataFrame
    plateaus: pd.DataFrame


def robustness(results: Results, tolerance: float = TOLERANCE, matrix: str = "mean") -> Robustness:
    """Scores, distances, base line and plateaus against the multiplier of the learning rate.

    Raises:
        BadInput: if no run has ended, or a subject has no score of the base model.
    """
    plateaus = plateau(subject_scores(results), tolerance)
    return Robustness(score_curve(results), distance_curve(results, matrix), base_line(results), plateaus)


def summary(curves: Robustness, x: str = "multiplier") -> pd.DataFrame:
    """The table at the end of a sweep: one row for each series and multiplier, the base model first.

    Returns:
        Columns series, multiplier, then every score that was measured (dino, clip_i, ...) and distance, each with _low and _high
        (NaN for one subject), diverged ("2/8": diverged runs of all), num_subjects.
    """
    keys = ["series", x]
    wide = curves.scores[keys].drop_duplicates().reset_index(drop=True)
    for metric in in_table_order(curves.scores["metric"].unique()):
        wide = _beside(wide, curves.scores[curves.scores["metric"] == metric], metric, keys)
    wide = _beside(wide, curves.distances, "distance", keys)
    counts = curves.scores.drop_duplicates(keys).set_index(keys).loc[pd.MultiIndex.from_frame(wide[keys])]
    wide["diverged"] = [f"{d}/{n}" for d, n in zip(counts["num_diverged"], counts["num_runs"], strict=True)]
    wide["num_subjects"] = counts["num_subjects"].to_numpy()
    first = _base_row(curves.base, wide)
    return pd.concat([first, wide], ignore_index=True) if len(curves.base) else wide


def _beside(wide: pd.DataFrame, curve: pd.DataFrame, name: str, keys: list[str]) -> pd.DataFrame:
    columns = {"mean": name, "low": f"{name}_low", "high": f"{name}_high"}
    return wide.merge(curve[[*keys, *columns]].rename(columns=columns), on=keys, how="left")


def _base_row(base: pd.DataFrame, wide: pd.DataFrame) -> pd.DataFrame:
    row: dict[str, Any] = dict.fromkeys(wide.columns, np.nan)
    row |= {"series": BASE_MODEL, "diverged": ""}
    for _, line in base.iterrows():
        metric = str(line["metric"])
        row |= {metric: line["mean"], f"{metric}_low": line["low"], f"{metric}_high": line["high"]}
        row["num_subjects"] = line["num_subjects"]
    return pd.DataFrame([row]).astype({"num_subjects": wide["num_subjects"].dtype}) if len(base) else wide[:0]


def plateau_sentence(
    row: Mapping[str, Any] | pd.Series,
    tolerance: float = TOLERANCE,
    unfit: Sequence[str] = (),
    failing: Sequence[str] = (),
    unit: str = UNIT,
) -> str:
    """One sentence that says what the plateau is, from a row of `plateau`, or why none is named.

    None is named where the data carry none: with fewer than 3 subjects, where the peak's gain over the base model is not
    above 0 with its interval, where the base cannot draw what it is asked for, and where the score takes something else for
    the subject, on every subject.

    Args:
        row: of `plateau`.
        tolerance: the share of the gain that may be lost on the plateau.
        unfit: the subjects of `unfit_subjects`.
        failing: those on which the score takes something else for the subject (`control_words.unreliable`).
        unit: what intervals generalise over (`Results.kind.unit`).
    """
    name, metric, n = row["series"], title_of(row["metric"]), int(row["num_subjects"])
    who = f"n = {counted(n, unit)}" if n > 1 else f"one {unit}, so no interval"
    why = doubt(row, unit)
    is_upright = sign_of(row["metric"]) > 0
    if np.isnan(row["peak"]):
        return f"{name}: some run diverged at every multiplier tried, so there is no plateau ({who})."
    base = f"the base model ({row['base']:.3f})"
    if not exceeds_base(row):
        never = "never exceeds" if is_upright else "is never below"
        return f"{name}: {metric} {never} {base} on this grid, so there is no plateau ({who})."
    best = (
        f"{'highest' if is_upright else 'lowest'}, {row['peak']:.3f}, at {_times(row['best_multiplier'])} its base rate"
    )
    peak = f"{name}: {metric} is {best}; {base}"
    if unfit:
        return f"{peak}. No plateau is named: model or scorers know nothing like {', '.join(unfit)} ({who})."
    if len(failing) >= n:
        return f"{peak}. No plateau is named: {metric} takes other pictures for the {unit}, on every {unit} ({who})."
    if n < LEAST_SUBJECTS:
        return f"{peak}. No plateau is named from fewer than {counted(LEAST_SUBJECTS, unit)} ({who})."
    if why:
        gain = f"{row['gain']:.3f} [{row['gain_low']:.3f}, {row['gain_high']:.3f}]"
        return f"{peak}. No plateau is named: the gain, {gain}, cannot be told from nothing ({who})."
    width = f"{'at least ' if row['open_low'] or row['open_high'] else ''}{row['width_octaves']:.1f} octaves"
    interval = f" [{row['width_low']:.1f}, {row['width_high']:.1f}]"
    low = f"below {_times(row['low_edge'])} (the smallest tried)" if row["open_low"] else _times(row["low_edge"])
    high = f"beyond {_times(row['high_edge'])} (the largest tried)" if row["open_high"] else _times(row["high_edge"])
    return (
        f"{_headline(name, metric, row)} It peaks at {row['peak']:.3f} at {_times(row['best_multiplier'])} its base rate and "
        f"keeps {100 * (1 - tolerance):g} % of its gain over the base model ({row['base']:.3f}) from {low} to {high}: "
        f"a plateau of {width}{interval} ({who})."
    )


def _headline(name: str, metric: str, row: Mapping[str, Any] | pd.Series) -> str:
    """Mean gain over the grid and half-gain width, which the sentence leads with."""
    width = f"{'at least ' if row['half_open_low'] or row['half_open_high'] else ''}{row['half_width']:.1f} octaves"
    interval = f"[{row['half_width_low']:.1f}, {row['half_width_high']:.1f}]"
    return (
        f"{name}: {metric} gains {row['area']:.3f} [{row['area_low']:.3f}, {row['area_high']:.3f}] over the base model on "
        f"average over the grid, and keeps half of its best gain on {width} {interval}."
    )


def plateau_sentences(plateaus: pd.DataFrame, results: Results) -> list[str]:
    """`plateau_sentence` on the headline's plateau of every series, with the subjects whose controls fail."""
    headline, unit = results.kind.headline.name, results.kind.unit
    unfit, failed = unfit_subjects(results), unreliable(results, headline)
    return [
        with_controls(plateau_sentence(row, unfit=unfit, failing=failed, unit=unit), results, [headline])
        for _, row in plateaus[plateaus["metric"] == headline].iterrows()
    ]


def leading_sentence(plateaus: pd.DataFrame, scores: pd.DataFrame, results: Results) -> str:
    """Which series gains most over the grid on average, and by how much it is above the next; "" where that cannot be said.

    Args:
        plateaus: what `plateau` returned.
        scores: what `subject_scores` returned.
        results: the same runs, whose controls may fail.
    """
    headline = results.kind.headline
    rows = plateaus[(plateaus["metric"] == headline.name) & plateaus["area"].notna()]
    rows = rows.sort_values("area", ascending=False, kind="stable")
    if len(rows) < 2 or rows["num_subjects"].min() < LEAST_SUBJECTS:
        return ""
    first, second = rows.iloc[0], rows.iloc[1]
    by = compare(scores, ("area",), metric=headline.name, pairs=[(first["series"], second["series"])]).iloc[0]
    text = (
        f"{first['series']} gains most {headline.title} over the base model on average over the grid, {first['area']:.3f} "
        f"[{first['area_low']:.3f}, {first['area_high']:.3f}]; {second['series']} comes next, {by['mean']:.3f} "
        f"[{by['low']:.3f}, {by['high']:.3f}] below (paired, n = {counted(int(by['num_subjects']), results.kind.unit)})."
    )
    return with_controls(text, results, [headline.name])


def unfit_subjects(results: Results) -> list[str]:
    """The subjects from which no plateau can be named, since the model or its scorers know nothing of them.

    Either the base's score of the prompt, one mean a prompt, is not above 0 with its interval over the prompts (with one
    prompt its sign decides): no more than pictures and texts that have nothing to do with each other. Or the model is the
    pocket, which knows emoji, and the subject is none of its own.
    """
    runs = results.runs
    split = runs["split"] if "split" in runs else pd.Series("", runs.index)
    foreign = set(runs.loc[(runs["model"] == "pocket") & split.fillna("").eq(""), "subject"])
    base = results.base[results.base["metric"] == results.kind.prompt_metric]
    blind = {
        subject
        for subject, rows in base.groupby("subject", observed=True)
        if not _lowest(t_interval(rows.groupby("prompt", observed=True)["value"].mean())) > 0
    }
    return [str(name) for name in runs["subject"].unique() if name in foreign | blind]


def _lowest(found: Interval) -> float:
    return found.low if found.num_subjects > 1 else found.mean


def _times(multiplier: float) -> str:
    return f"{multiplier:.2g}x"
