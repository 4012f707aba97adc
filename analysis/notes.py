"""Notes below figures and at the end of a sweep: base rates with their sources, missing runs, controls of the scorers."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from adapters.method_words import clean
from analysis.control_words import describe_controls
from analysis.results import Results
from analysis.series import base_rates, name_methods
from training.states import RunStatus

MOST_NAMED = 3  # missing runs that a sentence names


def notes(results: Results) -> list[str]:
    """The sentences on base rates, missing runs and controls, as far as there is something to say."""
    said = (describe_rates(results.runs), describe_missing(results), describe_controls(results))
    return [text for text in said if text]


def describe_rates(runs: pd.DataFrame) -> str:
    """The rate at multiplier 1 of every method (of every series, where those of a method differ) and its source.

    `Base rates: LoRA 0.000977, DeLoRA 0.004 (tuned on the pocket); mine 0.002 (given on the command line).`
    """
    runs = runs[runs["multiplier"].notna() & (runs["steps"] > 0)]
    if runs.empty:
        return ""
    source = runs["rate_source"] if "rate_source" in runs else pd.Series(None, runs.index, dtype=object)
    frame = runs.assign(rate=base_rates(runs)["base_lr"], name=name_methods(runs), source=source)
    counts = frame.groupby("name")["rate"].nunique()
    frame["name"] = frame["name"].where(frame["name"].map(counts) == 1, frame["series"])
    said: dict[str, dict[str, None]] = {}
    for name, rows in frame.groupby("name", sort=False):
        places = " or ".join(dict.fromkeys(clean(str(place)) for place in rows["source"].dropna()))
        for rate in rows["rate"].unique():
            said.setdefault(places, {})[f"{name} {rate:.3g}"] = None
    parts = [", ".join(rates) + (f" ({place})" if place else "") for place, rates in said.items()]
    return f"Base rates: {'; '.join(parts)}."


def describe_missing(results: Results) -> str:
    """How many planned runs have no result, in which state, and which; "" where all have ended."""
    lost, num_planned = results.missing, results.all_runs["run_id"].nunique()
    if lost.empty:
        return ""
    states = ", ".join(f"{count} {state}" for state, count in Counter(lost["status"].map(_state)).items())
    named = [_name(row) for row in lost.head(MOST_NAMED).to_dict("records")]
    more = f" and {len(lost) - MOST_NAMED} more" if len(lost) > MOST_NAMED else ""
    verb = "is" if len(lost) == 1 else "are"
    return f"Of {num_planned} planned runs {len(lost)} {verb} missing ({states}): {'; '.join(named)}{more}."


def _state(status: object) -> str:
    return "not run" if status == RunStatus.PLANNED else clean(str(status))


def _name(row: dict) -> str:
    times = "" if pd.isna(row["multiplier"]) else f" at {row['multiplier']:g}x"
    return clean(f"{row['series']}{times} on {row['subject']}, seed {row['seed']}")
