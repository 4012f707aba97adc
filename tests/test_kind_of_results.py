"""The task of results: which it is, and that tables, sentences, figures and the page speak of its scores and its units."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import figures
from adapters import BadInput
from analysis import (
    Results,
    base_line,
    joint_plateau,
    load,
    matched_prompt,
    robustness,
    score_curve,
    subject_scores,
    summary,
    trial_scores,
    tried_settings,
)
from analysis.best_settings import best_settings, describe_rule, rules, trial_columns
from analysis.card import make_card
from analysis.matched_prompt import try_matched_prompt
from analysis.metrics import headline_of, in_table_order, kind_with, main_scores, value_range
from analysis.summary import leading_sentence, plateau_sentences, unfit_subjects
from figures.page import make_page
from figures.registry import draw_best_of_grid, draw_lr_robustness, draw_prolonged_training, draw_rank_robustness
from figures.saving import render
from figures.task_in_use import unit, use_task
from tests.make_runs import Shape, make_runs
from tests.make_tasks import as_text, installed, make_down, turn
from training.task_kinds import PICTURES, kind_of

OF_PICTURES = re.compile(r"\bsubjects?\b|DINO|CLIP|U-Net|likeness|pictures?\b|photograph", re.IGNORECASE)
SHAPES = {"lora": Shape(low=0.0, high=1.0), "delora": Shape(high=3.0, gain=0.8)}


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two methods on four subjects."""
    made = {"subjects": ("a", "b", "c", "d"), "noise_sd": 0.01, "drift": True, "eval_steps": (10, 20), "seeds": (0, 1)}
    return load(
        make_runs(tmp_path_factory.mktemp("runs"), shapes=SHAPES, sharpness={"lora": 1.0, "delora": 2.0}, **made)
    )


@pytest.fixture(scope="module")
def texts(pictured: Results) -> Results:
    """The same as runs of texts."""
    return as_text(pictured)


def words_of(figure: Figure) -> str:
    """All that a figure says."""
    render(figure, ["png"])  # which breaks lines and places them
    return "\n".join(text.get_text() for text in figure.findobj(lambda part: hasattr(part, "get_text")))


# Which task it is.


def test_runs_that_name_no_task_are_of_pictures(pictured: Results) -> None:
    for given in (None, np.nan, "", PICTURES):
        assert Results(pictured.all_runs.assign(task=given), pictured.sources).kind is kind_of(PICTURES)
    assert Results(pictured.all_runs.drop(columns="task", errors="ignore"), pictured.sources).kind is kind_of(PICTURES)


def test_a_task_is_known_by_its_name(pictured: Results) -> None:
    assert Results(pictured.all_runs.assign(task="text"), pictured.sources).kind is kind_of("text")
    with pytest.raises(BadInput, match="unknown task 'sounds'"):
        _ = Results(pictured.all_runs.assign(task="sounds"), pictured.sources).kind


def test_runs_of_two_tasks_are_refused_in_one_line(pictured: Results) -> None:
    tasks = pictured.all_runs["method"].map({"lora": "text"})
    mixed = Results(pictured.all_runs.assign(task=tasks), pictured.sources)
    wanted = (
        r"^runs of (pictures and text|text and pictures) are of two tasks, and cannot be compared: give one of them$"
    )
    with pytest.raises(BadInput, match=wanted):
        _ = mixed.kind
    with pytest.raises(BadInput, match=wanted):
        score_curve(mixed)
    assert mixed.select(method="lora").kind is kind_of("text"), "the base model's runs decide nothing"


def test_scores_know_their_ranges_and_their_order() -> None:
    assert [value_range(name) for name in ("accuracy", "dino", "drift")] == [(0, 1), (-1, 1), (0, 1)]
    assert value_range("distance_rel") == (0, np.inf)
    assert value_range("of another age") == (-np.inf, np.inf)
    assert in_table_order(["drift", "matthews", "accuracy"]) == ["accuracy", "matthews", "drift"]
    assert in_table_order(["drift", "clip_t", "dino", "else"]) == ["dino", "clip_t", "drift"]
    assert headline_of(pd.DataFrame({"metric": ["drift", "matthews", "accuracy"]})) == "accuracy"
    assert headline_of(pd.DataFrame({"metric": []})) == ""
    assert main_scores(kind_of("text")) == ["accuracy", "matthews"]
    assert main_scores(kind_of(PICTURES)) == ["dino", "clip_t"]
    with installed(make_down()):
        assert kind_with(["clip_t", "error"]).name == "down"
        assert in_table_order(["clip_t", "drift", "error"]) == ["error", "clip_t", "drift"]


# Tables and sentences.


def test_tables_have_the_tasks_scores_side_effects_last(texts: Results) -> None:
    assert list(base_line(texts)["metric"]) == ["accuracy", "matthews", "drift"]
    assert list(score_curve(texts)["metric"].unique()) == ["accuracy", "matthews", "drift"]
    columns = [name for name in summary(robustness(texts)) if name in ("accuracy", "matthews", "drift", "dino")]
    assert columns == ["accuracy", "matthews", "drift"]


def test_diverged_runs_are_scored_by_every_score_of_the_task(tmp_path: Path) -> None:
    shapes = {"lora": Shape(diverges_from=8.0)}
    found = subject_scores(as_text(load(make_runs(tmp_path, shapes=shapes, multipliers=(1.0, 8.0)))))
    lost = found[found["num_diverged"] > 0]
    assert set(lost["metric"]) == {"accuracy", "matthews"}
    assert (lost["value"] <= lost["base"]).all()


def test_sentences_speak_of_the_tasks_unit(texts: Results) -> None:
    curves, scores = robustness(texts), subject_scores(texts)
    said = [*plateau_sentences(curves.plateaus, texts), leading_sentence(curves.plateaus, scores, texts)]
    assert len(said) == 3
    assert all("balanced accuracy" in text and "4 training sets" in text for text in said)
    assert not OF_PICTURES.search("".join(said))


def test_nothing_is_compared_at_the_same_prompt_where_there_is_none(texts: Results) -> None:
    scores = subject_scores(texts)
    for compare in (matched_prompt, joint_plateau):
        with pytest.raises(BadInput, match="the task 'text' has no score that is given up for balanced accuracy"):
            compare(scores)
    assert try_matched_prompt(scores) == (None, "")
    assert unfit_subjects(texts.select(model="pocket")) == unfit_subjects(texts)


def test_a_card_has_the_tasks_facts_alone(texts: Results) -> None:
    card = make_card(texts, "DeLoRA", ["LoRA"])
    assert {"at_prompt", "clip_t"}.isdisjoint(card.facts)
    text = card.to_markdown()
    assert not OF_PICTURES.search(text.partition("Model or scorers")[0])
    assert "paired by training set" in text
    assert "drift at the best rate" in text


def test_the_best_setting_is_chosen_by_the_tasks_scores(texts: Results) -> None:
    trials = trial_scores(texts)
    assert list(trials) == list(trial_columns(kind_of("text")))
    tried = tried_settings(trials)
    np.testing.assert_allclose(tried["sum"], tried["accuracy"] + tried["matthews"])
    assert "prompt_kept" not in tried
    best = best_settings(tried, "accuracy").set_index("method")["accuracy"]
    pd.testing.assert_series_equal(best.sort_index(), tried.groupby("method")["accuracy"].max())
    for rule in ("matched-prompt", "dino"):
        with pytest.raises(BadInput, match=f"unknown rule '{rule}' of the task 'text'; allowed: sum, accuracy"):
            best_settings(tried, rule)


def test_rules_in_words_stay_as_they_were() -> None:
    end = " over the tuning subjects at the last step; settings with a diverged run are out"
    assert describe_rule("sum") == f"highest mean of DINO + CLIP-I + CLIP-T{end}"
    assert describe_rule("dino") == f"highest mean of DINO{end}"
    assert describe_rule("matched-prompt") == f"highest mean of DINO with at least 80% of the base model's CLIP-T{end}"
    assert "over the tuning training sets at" in describe_rule("accuracy", kind=kind_of("text"))
    with installed(make_down()):
        assert rules(make_down()) == {
            "sum": "highest mean of - error - blur + CLIP-T",
            "error": "lowest mean of error",
            "matched-prompt": "lowest mean of error with at least 80% of the base model's CLIP-T",
        }


def test_the_kept_table_of_trials_is_read(root: Path) -> None:
    kept = pd.read_parquet(root / "docs" / "results" / "base_lr" / "trials.parquet")
    assert set(trial_columns(kind_of("pictures"))) <= set(kept)
    assert len(best_settings(tried_settings(kept), "matched-prompt"))


# Figures and the page.


def test_every_figure_is_in_the_words_of_the_task(texts: Results) -> None:
    drawn = draw_lr_robustness(texts)
    names = {"fig2_lr_robustness", "score_vs_distance", "around_the_best", "rate_by_steps", "sharpness_vs_rate"}
    assert names <= set(drawn.figures)
    assert "matched_prompt" not in drawn.figures
    assert not any("prompt" in note for note in drawn.notes)
    for draw in (draw_prolonged_training, draw_rank_robustness):
        drawn.figures |= draw(texts).figures
    assert not {
        name: found for name, figure in drawn.figures.items() if (found := OF_PICTURES.findall(words_of(figure)))
    }
    labels = [ax.get_label() for ax in drawn.figures["fig2_lr_robustness"].axes]
    assert labels == ["accuracy", "plateau", "matthews", "drift", "distance"]
    assert "accuracy" in draw_best_of_grid(texts.select(multiplier=1.0)).tables["best"]


def test_words_hold_while_a_task_is_drawn() -> None:
    assert unit() == "subject"
    with use_task(kind_of("text")):
        assert unit() == "training set"
    assert unit() == "subject"


def test_a_page_of_texts_has_no_pictures(texts: Results) -> None:
    page = make_page(texts, title="runs", card=make_card(texts, "DeLoRA", ["LoRA"]))
    body = page.partition("<script")[0].partition("<main>")[2]
    assert "Inside the encoder" in body
    assert 'id="chart-subject-matthews"' in body
    assert "Training sets" in body
    found = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert data["subjects"]["charts"] == ["accuracy", "matthews"]
    assert (data["unit"], data["headline"]) == ("training set", "balanced accuracy")
    said = re.sub(r"<[^>]*>", " ", body)
    assert set(OF_PICTURES.findall(said)) <= {"subject", "subjects"}, "columns of tables have the names of the store"


@pytest.fixture
def puzzles(pictured: Results) -> Iterator[Results]:
    """Runs of a stranger's task, of whose headline less is better."""
    with installed(make_down()):
        yield turn(pictured)


def test_a_strangers_task_is_drawn(puzzles: Results) -> None:
    drawn = draw_lr_robustness(puzzles)
    assert "matched_prompt" in drawn.figures
    labels = [ax.get_label() for ax in drawn.figures["fig2_lr_robustness"].axes]
    assert labels == ["error", "plateau", "blur", "clip_t", "drift", "distance"]
    assert "4 puzzles" in plateau_sentences(robustness(puzzles).plateaus, puzzles)[0]
    assert "puzzles" in words_of(drawn.figures["fig2_lr_robustness"])
    assert figures.matched_prompt.side_effect_of(matched_prompt(subject_scores(puzzles))) == "drift"
