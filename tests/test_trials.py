"""The search for base rates: where it tries next, as many trials for every method, and any rule chooses from its table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from adapters import BadInput
from analysis import best_settings, tried_settings
from analysis.best_settings import trial_columns
from sweeps import base_lr
from sweeps.report_tuning import read_trials, show_choice
from sweeps.trials import PER_ROUND, Trial, find_edges, next_trials
from tests.make_driver import drive_studio
from tests.make_studio import Studio
from training.tasks.kinds import PICTURES

RATES = [Trial(rate) for rate in (0.001, 0.004, 0.016)]
GRID = [Trial(rate, start) for rate in (0.001, 0.004, 0.016, 0.064) for start in (4.0, 16.0)]


def test_rates_go_on_beyond_the_edge_that_the_best_lies_at() -> None:
    assert [trial.lr for trial in next_trials(RATES, RATES[0])] == [0.00025, 6.25e-05, 1.56e-05, 3.91e-06]
    assert [trial.lr for trial in next_trials(RATES, RATES[-1])] == [0.064, 0.256, 1.02, 4.1]


def test_inside_the_grid_the_neighbours_of_the_best_come_first() -> None:
    assert [trial.lr for trial in next_trials(RATES, RATES[1])] == [0.002, 0.008, 0.00283, 0.00566]
    again = [*RATES, Trial(0.002), Trial(0.008)]
    assert [trial.lr for trial in next_trials(again, Trial(0.004))] == [0.00283, 0.00566, 0.00336, 0.00476]


def test_lambdas_grid_is_open_at_both_ends() -> None:
    assert set(next_trials(GRID, Trial(0.004, 4.0))) == {Trial(rate, 1.0) for rate in (0.001, 0.004, 0.016, 0.064)}
    assert set(next_trials(GRID, Trial(0.004, 16.0))) == {Trial(rate, 64.0) for rate in (0.001, 0.004, 0.016, 0.064)}
    wider = [*GRID, *next_trials(GRID, Trial(0.004, 16.0))]
    assert set(next_trials(wider, Trial(0.064, 16.0))) == {
        Trial(0.256, 16.0), Trial(0.256, 4.0), Trial(0.256, 64.0), Trial(1.02, 16.0),
    }  # fmt: skip
    assert set(next_trials(wider, Trial(0.004, 16.0))) == {
        Trial(0.002, 16.0), Trial(0.008, 16.0), Trial(0.004, 8.0), Trial(0.004, 32.0),
    }  # fmt: skip


@pytest.mark.parametrize("tried", [RATES, GRID])
def test_every_round_has_as_many_new_trials_wherever_the_best_lies(tried: list[Trial]) -> None:
    for best in tried:
        new = next_trials(tried, best)
        assert len({*new} - {*tried}) == PER_ROUND
        assert find_edges(tried, best) or all(0.4 < trial.lr / best.lr < 2.1 for trial in new)


def test_rounds_go_on_having_trials_while_the_best_stays() -> None:
    tried, best = [*RATES], RATES[1]
    for _ in range(7):
        new = next_trials(tried, best)
        assert len(new) == PER_ROUND
        tried += new
    assert len({*tried}) == len(tried)


def table(**columns: list) -> pd.DataFrame:
    """Trials of LoRA at three rates on one subject."""
    count = len(columns["lr"])
    rows = dict.fromkeys(trial_columns(PICTURES), [0.5] * count) | {
        "method": ["lora"] * count, "options": [""] * count, "boundary": [None] * count, "subject": ["cat"] * count,
        "seed": [0] * count, "status": ["finished"] * count, "base_clip_t": [0.8] * count,
    }  # fmt: skip
    return pd.DataFrame(rows | columns)


@pytest.mark.parametrize(("rule", "lr"), [("sum", 2.0), ("dino", 3.0), ("matched-prompt", 1.0)])
def test_rules_choose_what_they_say(rule: str, lr: float) -> None:
    trials = table(lr=[1.0, 2.0, 3.0], dino=[0.3, 0.5, 0.6], clip_i=[0.2, 0.4, 0.3], clip_t=[0.65, 0.6, 0.2])
    assert best_settings(tried_settings(trials), rule)["lr"].tolist() == [lr]


def test_a_rule_that_nothing_meets_is_said() -> None:
    trials = tried_settings(table(lr=[1.0], clip_t=[0.1]))
    with pytest.raises(BadInput, match="no setting tried keeps 80% of the base model's CLIP-T"):
        best_settings(trials, "matched-prompt")


def test_a_file_that_is_no_table_of_trials_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("no")
    table(lr=[1.0]).drop(columns="dino").to_parquet(tmp_path / "b")
    for name, said in (("a", "cannot be read"), ("b", "without the column dino"), ("c", "cannot be read")):
        with pytest.raises(BadInput, match=f"--trials is .*{name}, .*{said}"):
            read_trials(tmp_path / name)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"dino": ["high", "0.5", "0.5"]}, "whose column dino is no number"),
        ({"status": ["finished", "failed", "finished"]}, "where lora at lr 2 is failed with dino 0.5"),
        ({"dino": [0.5, 0.5, float("nan")]}, "where lora at lr 4 is finished with dino nan"),
        ({"dino": [float("inf"), 0.5, 0.5]}, "where lora at lr 1 is finished with dino inf"),
        (
            {"lr": [1.0, 1.0, 4.0], "subject": ["cat", "dog", "cat"]},
            "where lora at lr 4 was tried on other subjects than",
        ),
    ],
)
def test_trials_that_no_rule_can_choose_from_are_refused(changed: dict, said: str, tmp_path: Path) -> None:
    table(**{"lr": [1.0, 2.0, 4.0]} | changed).to_parquet(tmp_path / "trials.parquet")
    with pytest.raises(BadInput, match=said):
        read_trials(tmp_path / "trials.parquet")


def test_trials_of_the_named_methods_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = pd.concat([table(lr=[1.0, 2.0]), table(lr=[1.0]).assign(method="dora")])
    both.to_parquet(tmp_path / "trials.parquet")
    assert set(read_trials(tmp_path / "trials.parquet")["method"]) == {"lora", "dora"}
    assert set(read_trials(tmp_path / "trials.parquet", methods=["dora", "oft"])["method"]) == {"dora"}
    assert capsys.readouterr().err == "--trials has lora too: name them by --method\n"
    with pytest.raises(BadInput, match="which has lora, dora, and none of --method"):
        read_trials(tmp_path / "trials.parquet", methods=["oft"])


def test_a_method_whose_every_setting_diverged_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    lost = table(lr=[1.0, 2.0]).assign(method="dora", status="diverged")
    show_choice(tried_settings(pd.concat([table(lr=[1.0, 2.0]), lost])), "sum", PICTURES)
    assert "dora: no setting may be chosen, of 2 trials, of which 2 diverged" in capsys.readouterr().out


def test_the_search_leaves_trials_from_which_another_rule_chooses(studio: Studio, tmp_path: Path) -> None:
    flags = (
        "--method", "lora", "delora", "--rates", "0.001", "0.01", "--boundary-rates", "0.001", "0.01", "--boundaries", "4",
        "--rounds", "1", "--no-write", "--docs", str(tmp_path / "docs"),
    )  # fmt: skip
    driven = drive_studio(studio, base_lr, tmp_path, *flags)
    assert driven.code == 0, driven.err
    assert "round 1: four more trials of each; at an edge of its grid: " in driven.out
    kept = read_trials(tmp_path / "docs" / "trials.parquet")
    assert kept.groupby("method")[["lr", "boundary"]].apply(lambda own: len(own.drop_duplicates())).to_dict() == {
        "delora": 2 + PER_ROUND, "lora": 2 + PER_ROUND,
    }  # fmt: skip
    again = drive_studio(
        studio, base_lr, tmp_path, "--trials", str(tmp_path / "docs" / "trials.parquet"), "--rule", "dino"
    )
    assert again.code == 0, again.err
    top = tried_settings(kept).sort_values("dino", ascending=False).iloc[0]
    assert "rule: highest mean of DINO over the tuning subjects" in again.out
    assert f"{top['method']}: lr {top['lr']:g}" in again.out
