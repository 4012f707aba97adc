"""Say in words on which subjects the scorers' controls fail: every sentence that averages over subjects names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from adapters.errors import BadInput
from adapters.words import counted
from analysis.control_verdicts import FAILS, NOT_BELOW, OPEN, control_gaps, judge_controls
from analysis.metrics import title_of
from analysis.results import Results


def failing(results: Results, metrics: Sequence[str] = ()) -> dict[str, list[str]]:
    """The metrics whose controls fail, by subject, in the order of the runs; of some metrics only, or of all."""
    return _of_verdict(_judged(results), FAILS, metrics)


def unreliable(results: Results, metric: str) -> list[str]:
    """The subjects on which a metric takes something else for the subject: a criterion fails that is none of the order's."""
    try:
        gaps = control_gaps(results)
    except BadInput:
        return []
    wrong = gaps[(gaps["metric"] == metric) & (gaps["verdict"] == FAILS) & ~gaps["criterion"].str.contains(NOT_BELOW)]
    return [str(name) for name in wrong["subject"].unique()]


def failing_words(results: Results, metrics: Sequence[str] = ()) -> str:
    """`controls fail on: snail (DINO), burger (DINO, CLIP-I)`; "" where none does, or none were measured."""
    found = failing(results, metrics)
    return f"controls fail on: {_listed(found)}" if found else ""


def with_controls(sentence: str, results: Results, metrics: Sequence[str] = ()) -> str:
    """A sentence that averages over subjects, and behind it the subjects whose controls fail."""
    words = failing_words(results, metrics)
    return f"{sentence} {words[0].upper()}{words[1:]}." if words else sentence


def describe_controls(results: Results) -> str:
    """The sentences on controls below figures and at a sweep's end; "" where none were measured."""
    try:
        table = judge_controls(results)
    except BadInput as error:
        return f"Controls of the scorers cannot be read: {error}."
    if table.empty:
        return ""
    said = []
    for verdict, words in ((FAILS, "fail on"), (OPEN, "cannot be told on")):
        if found := _of_verdict(table, verdict, ()):
            said.append(f"{words}: {_listed(found)}")
    if unmeasured := unmeasured_subjects(results):
        said.append(f"were not measured on: {', '.join(unmeasured)}")
    passed = f"pass on {counted(table['subject'].nunique(), results.kind.unit)}, all that there are"
    return f"Controls of the scorers {'; '.join(said) if said else passed}{_lacking(results)}."


def _lacking(results: Results) -> str:
    """The controls that nothing was measured of on any subject, in brackets."""
    controls, measured = results.kind.controls, set(results.controls["kind"])
    lacking = [controls.kinds[kind] for kind in controls.apart if kind not in measured] if controls else []
    return f" (not measured: {', '.join(lacking)})" if lacking else ""


def unmeasured_subjects(results: Results) -> list[str]:
    """The subjects without controls: the base model was scored before there were any."""
    try:
        measured = set(results.controls["subject"].astype(str))
    except BadInput:
        return []  # which `describe_controls` tells
    return [str(name) for name in results.runs["subject"].unique() if str(name) not in measured]


def _judged(results: Results) -> pd.DataFrame:
    try:
        return judge_controls(results)
    except BadInput:
        return pd.DataFrame({"subject": [], "metric": [], "verdict": []})


def _of_verdict(table: pd.DataFrame, verdict: str, metrics: Sequence[str]) -> dict[str, list[str]]:
    rows = table[(table["verdict"] == verdict) & (table["metric"].isin(metrics) if metrics else True)]
    return {str(name): list(own["metric"]) for name, own in rows.groupby("subject", sort=False)}


def _listed(found: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{name} ({', '.join(map(title_of, metrics))})" for name, metrics in found.items())
