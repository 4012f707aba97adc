"""A method's card: what it reaches at a fair rate, how it compares with others by pairs, and what the numbers cannot show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from adapters.errors import BadInput
from adapters.words import counted, plural
from analysis.comparisons import compare, power_sentence
from analysis.control_words import describe_controls, with_controls
from analysis.curves import subject_scores
from analysis.matched_prompt import MatchedPrompt, try_matched_prompt
from analysis.metrics import side_effect_names, sign_of, title_of
from analysis.notes import notes
from analysis.plateau import LEAST_SUBJECTS, PROMPT_LOSS
from analysis.power import effect_size
from analysis.results import Results
from analysis.summary import Robustness, robustness, unfit_subjects
from analysis.tables import format_table, rounded, to_markdown
from training.task_kinds import TaskKind

MEASURES = {"area": "mean gain over the grid", "half_width": "half-gain width", "at_best": "{} at its best rate"}
AT_PROMPT = "matched_prompt"
IN_WORDS = MEASURES | {AT_PROMPT: "gain at the same loss of prompt"}
FACTS_IN_WORDS = {
    "area": "mean gain in {} over the grid", "peak": "{} at the best rate", "worst": "{} at the worst rate", "lr": "best rate",
    "distance / ‖W0‖": "distance / ‖W0‖ at the best rate",
}  # fmt: skip
LEVEL = 0.05
OWN = ("area", "half_width", "peak", "worst")  # of a row of `plateau`, each with its interval


@dataclass(frozen=True)
class Card:
    """A method beside others. In words of measures and facts {} stands for the task's headline.

    Attributes:
        name: the method's series; others: those that it is compared with.
        facts: one row a series, the method first: series, area, half_width (octaves), peak, worst, each with _low and _high;
            best_multiplier, lr; at_prompt with its ends (mean gain in the headline over losses of the prompt from 0 to 20 %),
            where the task has a prompt; the prompt's score (clip_t), side effects (drift) and distance at the best multiplier
            with theirs; parameters, diverged ("2/8"), num_subjects.
        differences: rows measure (keys of `MEASURES`, then `AT_PROMPT`), a (the method), b, mean, low, high, p, p_holm (over all
            rows that have a p), smallest_p, detectable, num_subjects; paired by subject.
        verdict: sentences. caveats: what they rest on, and what so few subjects cannot show.
        kind: the task.
    """

    name: str
    others: tuple[str, ...]
    facts: pd.DataFrame
    differences: pd.DataFrame
    verdict: tuple[str, ...]
    caveats: tuple[str, ...]
    kind: TaskKind

    def to_markdown(self, cost: Sequence[tuple[str, str]] = ()) -> str:
        """The card as a page, with further lines on what it cost."""
        parts = [f"# {self.name}: a method card", *self.verdict]
        parts += ["## Beside the others", to_markdown(self.facts_in_words())]
        if len(self.differences):
            parts += [f"## Differences, paired by {self.kind.unit}", to_markdown(self.differences_in_words())]
        parts += ["## What this rests on", "\n".join(f"- {text}" for text in self.caveats)]
        if cost:
            parts += ["## Cost", "\n".join(f"- {what}: {words}" for what, words in cost)]
        return "\n\n".join(parts) + "\n"

    def facts_in_words(self) -> pd.DataFrame:
        """The facts as people read them: a column each method, a row each fact."""
        table = format_table(self.facts).set_index("series").T
        return table.rename_axis(None, axis=1).rename(index=facts_in_words(self.kind)).reset_index(names="")

    def differences_in_words(self) -> pd.DataFrame:
        """The differences with their measures as people say them."""
        words = {name: text.format(self.kind.headline.title) for name, text in IN_WORDS.items()}
        return self.differences.assign(measure=self.differences["measure"].map(words))

    def to_json(self) -> dict[str, Any]:
        """The card as plain values; a number that there is none of is null."""
        return {
            "method": self.name,
            "compared_with": list(self.others),
            "verdict": list(self.verdict),
            "facts": _records(self.facts),
            "differences": _records(self.differences),
            "caveats": list(self.caveats),
        }


def facts_in_words(kind: TaskKind) -> dict[str, str]:
    """What people call the facts of a card, by what tables call them."""
    headline = kind.headline.title
    words = {name: text.format(headline) for name, text in FACTS_IN_WORDS.items()} | {"n": plural(kind.unit)}
    if kind.prompt_metric:
        words["at prompt"] = f"gain in {headline}, 0 to {100 * PROMPT_LOSS:g} % of {title_of(kind.prompt_metric)} lost"
    return words | {title_of(name): f"{title_of(name)} at the best rate" for name in _beside(kind)}


def _beside(kind: TaskKind) -> list[str]:
    """The scores that stand beside the headline: the prompt's, and side effects."""
    return [*([kind.prompt_metric] if kind.prompt_metric else []), *side_effect_names(kind)]


def make_card(results: Results, name: str, others: Sequence[str]) -> Card:
    """Judge a series by runs over multiples of its base rate.

    Args:
        results: the runs, those of the others too.
        name: the series that is judged.
        others: series that it is compared with; those without runs are left out, and a caveat says so.

    Raises:
        BadInput: if no run of the series has ended, or a subject has no score of the base model.
    """
    curves, scores = rounded(robustness(results)), rounded(subject_scores(results))
    known = list(dict.fromkeys(curves.plateaus["series"]))
    if name not in known:
        raise BadInput(f"no runs of {name}; there are {', '.join(map(str, known))}")
    there = tuple(other for other in others if other in known)
    matched, why_not = try_matched_prompt(scores[scores["series"].isin((name, *there))])
    facts = _facts(results, curves, matched, (name, *there))
    differences = _differences(scores, matched, name, there, results.kind.headline.name)
    cut = curves.plateaus[curves.plateaus["half_open_low"] | curves.plateaus["half_open_high"]]
    cut_names = set(cut.loc[cut["metric"] == results.kind.headline.name, "series"])
    bounds = [one for one in (name, *there) if one in cut_names]
    return Card(
        name,
        there,
        facts,
        differences,
        tuple(_verdict(results, name, facts.iloc[0], differences, name in bounds)),
        (
            *_caveats(results, name, differences, [other for other in others if other not in known], bounds),
            *filter(None, [why_not]),
        ),
        results.kind,
    )


def _facts(results: Results, curves: Robustness, matched: MatchedPrompt | None, names: Sequence[str]) -> pd.DataFrame:
    mean = _means(matched.gains).set_index("series") if matched else pd.DataFrame()
    kind, rows = results.kind, []
    plateaus = curves.plateaus[curves.plateaus["metric"] == kind.headline.name]
    for name in names:
        found = plateaus[plateaus["series"] == name].iloc[0]
        at = found["best_multiplier"]
        runs = results.runs[results.runs["series"] == name].drop_duplicates("run_id")
        best = runs[np.isclose(runs["multiplier"].astype(float), at)] if pd.notna(at) else runs[:0]
        row: dict[str, Any] = {"series": name}
        for key in OWN:
            row |= {key: found[key], f"{key}_low": found[f"{key}_low"], f"{key}_high": found[f"{key}_high"]}
        row |= {"best_multiplier": at, "lr": best["lr"].iloc[0] if len(best) else np.nan}
        if kind.prompt_metric:
            row |= _ends("at_prompt", mean.loc[name] if name in mean.index else None)
        for metric in _beside(kind):
            row |= _ends(metric, _at(curves.scores[curves.scores["metric"] == metric], name, at))
        row |= _ends("distance", _at(curves.distances, name, at))
        row["parameters"] = int(runs["num_parameters"].max()) if runs["num_parameters"].notna().any() else np.nan
        row["diverged"] = f"{int(runs['diverged_step'].notna().sum())}/{len(runs)}"
        row["num_subjects"] = int(found["num_subjects"])
        rows.append(row)
    return pd.DataFrame(rows)


def _means(table: pd.DataFrame) -> pd.DataFrame:
    """The rows over all losses of prompt."""
    return table[table["loss"].str.startswith("0 to ").astype(bool)]


def _at(curve: pd.DataFrame, name: str, multiplier: float) -> pd.Series | None:
    """The point of a curve at a multiplier; None where there is none."""
    own = curve[(curve["series"] == name) & np.isclose(curve["multiplier"].astype(float), multiplier)]
    return own.iloc[0] if len(own) else None


def _ends(name: str, row: pd.Series | None) -> dict[str, float]:
    values = (np.nan,) * 3 if row is None else (row["mean"], row["low"], row["high"])
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _differences(
    scores: pd.DataFrame, matched: MatchedPrompt | None, name: str, others: Sequence[str], metric: str
) -> pd.DataFrame:
    columns = ["measure", "a", "b", "mean", "low", "high", "p", "p_holm", "smallest_p", "detectable", "num_subjects"]
    if not others:
        return pd.DataFrame(columns=columns)
    pairs = [(name, other) for other in others]
    by_measure = compare(scores, tuple(MEASURES), metric=metric, pairs=pairs)
    rows = []
    for _, row in _means(matched.differences).iterrows() if matched else ():
        if row["a"] == name:
            rows.append({**row, "measure": AT_PROMPT})
        elif row["b"] == name:
            ends = {"mean": -row["mean"], "low": -row["high"], "high": -row["low"]}
            rows.append({**row, **ends, "a": name, "b": row["a"], "measure": AT_PROMPT})
    return pd.concat([by_measure, pd.DataFrame(rows)], ignore_index=True).reindex(columns=columns)


def _verdict(results: Results, name: str, facts: pd.Series, differences: pd.DataFrame, is_open: bool) -> list[str]:
    """What can be said, at the level of 5 % after Holm's correction, and what cannot."""
    n, headline, unit = int(facts["num_subjects"]), results.kind.headline, results.kind.unit
    if n < LEAST_SUBJECTS:
        who = f"one {unit}" if n == 1 else counted(n, unit)
        return [f"No verdict on {name} from {who}: at least {LEAST_SUBJECTS} are needed."]
    said = [
        f"{name} gains {_number(facts, 'area')} in {headline.title} over the base model on average over the grid, and keeps half "
        f"of its best gain on {'at least ' * is_open}{_number(facts, 'half_width')} octaves (n = {counted(n, unit)})."
    ]
    for measure, text in MEASURES.items():
        words = text.format(headline.title)
        rows = differences[differences["measure"] == measure]
        if len(rows):
            said.append(f"{words[0].upper()}{words[1:]}: {_order(name, rows, rows['p_holm'] <= LEVEL)}")
    rows = differences[differences["measure"] == AT_PROMPT]
    if len(rows):
        clear = (rows["low"] > 0) | (rows["high"] < 0)
        said.append(f"At the same loss of prompt (no correction): {_order(name, rows, clear)}")
    return [with_controls(text, results, [headline.name]) for text in said]


def _order(name: str, rows: pd.DataFrame, clear: pd.Series) -> str:
    """Which others the method is above, below, and which it cannot be told from."""
    groups = {
        f"{name} is above": rows[clear & (rows["mean"] > 0)],
        f"{name} is below": rows[clear & (rows["mean"] < 0)],
        f"{name} cannot be told from": rows[~clear],
    }
    parts = []
    for words, own in groups.items():
        if len(own):
            listed = [f"{row['b']} ({_number(row, 'mean')})" for _, row in own.iterrows()]
            parts.append(f"{words} {', '.join(listed)}")
    return f"{'; '.join(parts)}."


def _number(row: pd.Series | Mapping[str, Any], key: str) -> str:
    low, high = ("low", "high") if key == "mean" else (f"{key}_low", f"{key}_high")
    return f"{row[key]:.2g} [{row[low]:.2g}, {row[high]:.2g}]"


def _caveats(
    results: Results, name: str, differences: pd.DataFrame, lacking: Sequence[str], bounds: Sequence[str]
) -> list[str]:
    controls = describe_controls(results)
    said = [f"Half-gain widths of {', '.join(bounds)} are lower bounds: the grid ends first."] if bounds else []
    said += [text for text in notes(results) if text != controls]
    if len(differences):
        said.append(power_sentence(differences, "area", results.kind.unit))
    if controls or results.kind.controls:
        said.append(controls or "The scorers' controls were not measured, or none fails.")
    if unfit := unfit_subjects(results):
        said.append(f"Model or scorers know nothing like {', '.join(unfit)}.")
    if lacking:
        said.append(f"No runs of {', '.join(lacking)}: nothing is compared with them.")
    runs = results.runs[results.runs["series"] == name]
    most = "at most" if sign_of(results.kind.headline.name) > 0 else "at least"
    if (lost := runs.loc[runs["diverged_step"].notna(), "run_id"].nunique()) > 0:
        said.append(
            f"{lost} of {name}'s {counted(runs['run_id'].nunique(), 'run')} diverged: it counts {most} what the base scores."
        )
    return said


def detectable_area(results: Results, num_subjects: int) -> float:
    """The difference in area between two series that so many subjects find with 80 % power: the median over the pairs there are.

    Args:
        results: runs of several methods on at least 3 subjects; their spreads are taken.
        num_subjects: for how many subjects.

    Returns:
        In units of the headline; NaN with fewer than 2 subjects, or where the results have fewer than two series or 3 subjects.
    """
    scores = subject_scores(results)
    if num_subjects < 2 or scores["series"].nunique() < 2 or scores["subject"].nunique() < LEAST_SUBJECTS:
        return float("nan")
    found = compare(scores, ("area",), metric=results.kind.headline.name)
    spread = found["detectable"] / found["num_subjects"].map(lambda n: effect_size(int(n)))
    return float(spread.median() * effect_size(num_subjects))


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    plain = frame.astype(object).where(frame.notna(), None)
    return [{str(key): _plain(value) for key, value in row.items()} for row in plain.to_dict("records")]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
