"""What stands behind a figure: committed results of others, where they can be compared."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import pytest

from adapters import BadInput
from analysis import load
from sweeps.report import evidence

EVIDENCE = Path(__file__).resolve().parents[1] / "docs" / "results" / "lr_robustness"


def test_evidence_stands_behind_runs_of_its_model_and_length_alone() -> None:
    own = load(EVIDENCE)
    assert evidence(EVIDENCE, own) is not None
    for changed in ({"steps": 60}, {"model_hash": "another"}):
        assert evidence(EVIDENCE, dataclasses.replace(own, all_runs=own.all_runs.assign(**changed))) is None


def test_evidence_is_of_the_subjects_that_were_run_and_of_no_others() -> None:
    own = load(EVIDENCE)
    behind = evidence(EVIDENCE, own.select(subject=["snail", "cake"]))
    assert behind is not None
    assert set(behind.runs["subject"]) == {"snail", "cake"}
    other = own.all_runs.assign(subject=own.all_runs["subject"].replace("snail", "my cat"))
    assert evidence(EVIDENCE, dataclasses.replace(own, all_runs=other)) is None


def test_nothing_stands_behind_where_there_is_no_evidence(tmp_path: Path) -> None:
    assert evidence(tmp_path, load(EVIDENCE)) is None


def test_evidence_is_scored_by_the_prompts_that_were_asked_for() -> None:
    own = load(EVIDENCE)
    asked = set(sorted(set(own.scores["prompt"]))[::2])
    behind = evidence(EVIDENCE, own.at_prompts(asked))
    assert behind is not None
    assert set(behind.scores["prompt"]) == set(behind.base["prompt"]) == asked
    whole, few = (r.table().groupby(["run_id", "metric"])["value"].first() for r in (own, behind))
    wanted = (
        own.scores[own.scores["prompt"].isin(asked) & (own.scores["metric"] == "dino")]
        .groupby("run_id")["value"]
        .mean()
    )
    pd.testing.assert_series_equal(
        few.xs("dino", level="metric")[wanted.index], wanted, check_names=False, check_dtype=False
    )
    assert (few != whole).any()


def test_nothing_stands_behind_prompts_that_the_evidence_was_not_asked_for() -> None:
    own = load(EVIDENCE)
    others = own.at_prompts(set(own.scores["prompt"]))
    others.__dict__["scores"] = own.scores.assign(prompt=own.scores["prompt"].astype(str) + "!")
    assert evidence(EVIDENCE, others) is None
    with pytest.raises(BadInput, match="no picture of these runs was asked for 'a flying fox'"):
        own.at_prompts({"a flying fox"})
