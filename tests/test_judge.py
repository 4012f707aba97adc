"""A method judged by one command: rate, grid, pairs, card; and what is refused before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest

from adapters import BadInput
from analysis import load
from analysis.card import AT_PROMPT, MEASURES, detectable_area, make_card
from sweeps import base_lr, judge, judging
from sweeps.judge import JudgeOptions
from sweeps.judging import read_budget
from tests.make_driver import Driven, drive_here
from tests.make_runs import Maker, Shape
from tests.make_studio import Studio
from training import step_price
from training.probe import Load
from training.step_price import StepPrice

PRICE = StepPrice(1.2, 1.1, 1.3, 15, 600.0, 500.0)
SUBJECTS = tuple(f"subject{i}" for i in range(8))
BROKEN = '''
import torch

from adapters.base import Adapter


class Broken(Adapter):
    """Starts away from the base, and does not say so."""

    def draw(self, generator):
        return {"shift": torch.ones(self.shape)}

    def weight(self):
        return self.base_weight() + self.shift
'''


def judge_studio(studio: Studio, runs: Path, *more: str) -> Driven:
    """The command on a tiny model, its search as short as can be."""
    short = (
        "--pack-size", "8", "--steps", "3", "--subjects", f"{studio.folder / 'subjects'}/", "2", "--choosing-subjects", "1",
        "--rounds", "0", "--rates", "0.01", "0.1", "--boundary-rates", "0.01", "0.1", "--boundaries", "1",
        "--multipliers", "1", "4",
    )  # fmt: skip
    with mock.patch.object(step_price, "price", return_value=PRICE):
        program, *flags = studio.arguments(runs, *short, driver="judge")[1:]
        driven = drive_here(judge, [program, *more, *flags], runs)
    driven.folder = next(iter(runs.glob("judge-*")), driven.folder)
    return driven


def test_one_command_tunes_compares_and_leaves_a_card(studio: Studio, tmp_path: Path) -> None:
    driven = judge_studio(studio, tmp_path, "hra", "--against", "lora:base_lr=0.01")
    assert driven.code == 0, driven.err
    assert "searching for the rate of HRA on 1 subject" in driven.out
    assert "base rate of HRA" in driven.out, "the plan says it"
    text = (driven.folder / "card.md").read_text()
    assert "# HRA: a method card" in text
    assert "best of 2 trials" in text
    assert "1.20 (quartiles 1.10 to 1.30, n = 15 laps in turns)" in text
    page = (driven.folder / "report.html").read_text()
    assert "HRA beside the others" in page
    chosen = set(load(driven.folder).runs.loc[lambda runs: runs["multiplier"].isna(), "subject"])
    shown = set(
        pd.DataFrame(json.loads((driven.folder / "card.json").read_text())["meta_info"]["dataset_info"])["subjects"]
    )
    assert chosen
    assert not chosen & shown, "a subject that chose the rate is on the card"


def test_a_rate_that_is_given_is_not_searched_for(studio: Studio, tmp_path: Path) -> None:
    driven = judge_studio(studio, tmp_path, "hra:base_lr=0.05", "--against")
    assert driven.code == 0, driven.err
    assert "searching" not in driven.out
    card = json.loads((driven.folder / "card.json").read_text())
    assert card["plateau"]["rate_source"] == "given on the command line"
    assert card["plateau"]["differences"] == []


def test_the_json_has_what_pefts_comparison_reads(studio: Studio, tmp_path: Path) -> None:
    """The keys of huggingface/peft's method_comparison/processing.py, `image-gen`, and its status."""
    row = json.loads((judge_studio(studio, tmp_path, "hra:base_lr=0.05", "--against").folder / "card.json").read_text())
    run, train, meta = row["run_info"], row["train_info"], row["meta_info"]
    assert {"experiment_name", "train_config", "peft_config", "total_time", "peft_branch", "created_at"} <= run.keys()
    assert run["train_config"]["model_id"]
    assert run["peft_config"]["peft_type"] == "HRA"
    needed = {
        "accelerator_memory_reserved_avg",
        "accelerator_memory_max",
        "accelerator_memory_reserved_99th",
        "train_time",
    }
    assert needed | {"file_size", "num_trainable_params"} <= train.keys()
    assert train["status"] == "success"
    last = train["metrics"][-1]
    assert {"train loss", "train samples", "test dino_similarity", "drift"} <= last.keys()
    assert np.isfinite(last["train loss"])
    assert -1 <= last["test dino_similarity"] <= 1
    versions = ("peft", "transformers", "datasets", "torch", "diffusers")
    assert {f"{name}-version" for name in versions} <= meta["package_info"].keys()
    assert meta["system_info"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "takes one method, as its first word, and got 0"),
        (["lora", "dora"], "and got 2"),
        (["lorra"], "unknown method 'lorra'; did you mean"),
        (["hra", "--budget", "soon"], "--budget is 'soon'; allowed: a number with s, min or h"),
        (["hra", "--budget", "1s"], "--budget is 1s; one subject at 4 rates takes"),
        (["hra", "--against", "nobody"], "unknown method 'nobody'"),
    ],
)
def test_what_cannot_be_judged_is_refused(words: list[str], said: str, studio: Studio, tmp_path: Path) -> None:
    driven = judge_studio(studio, tmp_path, *words)
    assert driven.code == 2
    assert said in driven.err, driven.err


def test_a_method_that_breaks_its_contract_gets_a_card_that_says_so(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    driven = judge_studio(studio, tmp_path, str(tmp_path / "broken.py"))
    assert driven.code == 2
    assert "breaks a promise of the adapter contract" in driven.err
    assert "was not judged: it breaks" in (driven.folder / "card.md").read_text()
    assert not list(driven.folder.glob("*/run.json")), "nothing was trained"


def test_budgets_are_read_in_three_units() -> None:
    assert [read_budget(text) for text in ("90s", "10min", "1.5 h")] == [90, 600, 5400]
    for text in ("", "10", "-1h", "0min"):
        with pytest.raises(BadInput, match="--budget"):
            read_budget(text)


def test_a_budget_takes_fewer_subjects_before_fewer_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """With made-up costs: 10 s a cell, and a search of nothing."""
    monkeypatch.setattr(judging, "needs_search", lambda options, spec, inputs: False)
    monkeypatch.setattr(
        judging, "grid_seconds", lambda options, spec: 10.0 * len(options.multipliers) * int(options.subjects[-1])
    )
    spec = JudgeOptions(method=("hra",)).specs()[0]

    def fit(budget: str) -> tuple[int, int]:
        found = judging.fit_budget(JudgeOptions(method=("hra",), budget=budget), spec)
        return int(found.subjects[-1]), len(found.multipliers)

    assert [fit(text) for text in ("1h", "10min", "8min", "3min", "40s")] == [(40, 8), (6, 8), (6, 8), (4, 4), (1, 4)]
    with pytest.raises(BadInput, match="one subject at 4 rates takes 40 s"):
        fit("39s")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Eight subjects, on which the plateau of one method is wider than another's and that of a third is the same."""
    shapes = {"delora": Shape(), "lora": Shape(low=0, high=0, slope=0.8), "dora": Shape()}
    Maker(tmp_path, shapes, subjects=SUBJECTS, noise_sd=0.005).write()
    return tmp_path


def test_the_verdict_says_which_it_is_above_and_which_it_cannot_be_told_from(results: Path) -> None:
    card = make_card(load(results), "DeLoRA", ["LoRA", "DoRA", "OFT"])
    area = card.verdict[1]
    assert "DeLoRA is above LoRA (" in area
    assert "DeLoRA cannot be told from DoRA (" in area
    assert any("No runs of OFT" in text for text in card.caveats)
    assert set(card.differences["measure"]) == {*MEASURES, AT_PROMPT}
    assert (card.differences["a"] == "DeLoRA").all()
    assert list(card.facts["series"]) == ["DeLoRA", "LoRA", "DoRA"]
    other = make_card(load(results), "LoRA", ["DeLoRA"])
    mirrored = other.differences.set_index("measure")["mean"]
    own = card.differences[card.differences["b"] == "LoRA"].set_index("measure")["mean"]
    pd.testing.assert_series_equal(mirrored, -own, check_names=False, rtol=1e-9)


def test_widths_that_the_grid_cuts_are_said_to_be_bounds(results: Path) -> None:
    """DeLoRA keeps half of its gain at the smallest rate, LoRA at neither end."""
    card = make_card(load(results), "DeLoRA", ["LoRA"])
    assert "keeps half of its best gain on at least " in card.verdict[0]
    assert card.caveats[0] == "Half-gain widths of DeLoRA are lower bounds: the grid ends first."
    other = make_card(load(results), "LoRA", [])
    assert "at least" not in other.verdict[0]
    assert not any("lower bounds" in text for text in other.caveats)


def test_no_verdict_from_two_subjects(results: Path) -> None:
    card = make_card(load(results).select(subject=list(SUBJECTS[:2])), "DeLoRA", ["LoRA"])
    assert card.verdict == ("No verdict on DeLoRA from 2 subjects: at least 3 are needed.",)


def test_more_subjects_find_smaller_differences(results: Path) -> None:
    found = load(results)
    few, many = detectable_area(found, 4), detectable_area(found, 40)
    assert 0 < many < few / 2
    assert np.isnan(detectable_area(found, 1))


def test_both_searches_are_the_same(studio: Studio) -> None:
    """The judge's trials are those of base_lr.py: same rates, same starts, same rule."""
    own, committed = JudgeOptions(), base_lr.TuningOptions()
    for flag in ("rates", "boundary_rates", "boundaries", "rounds", "rule"):
        assert getattr(own, flag) == getattr(committed, flag)
    assert judge.NUM_CHOOSING == 12


def test_a_step_is_timed_beside_loras(studio: Studio) -> None:
    found = step_price.measure(Load(str(studio.folder / "pipeline"), "cpu", 16), ["lora", "delora"], 4, laps=3)
    assert [len(laps) for laps in found["laps"]] == [3, 3]
    assert min(map(min, found["laps"])) > 0
    assert found["peak_mib"] > 0
