"""Presets: every value has a source, is a flag's default and no more, and gives way to what a driver or a user says."""

from __future__ import annotations

import dataclasses

import pytest

from adapters import METHODS, BadInput, parse_method
from sweeps import lr_robustness, prolonged_training, weight_norms
from sweeps.options import Options, run_driver
from sweeps.presets import named, read_presets, start_from
from sweeps.rate_file import read_rates
from sweeps.rates import base_rates
from training.tasks.glue import TABLES

PRESETS = read_presets()


@pytest.mark.parametrize("name", PRESETS)
def test_every_setting_has_a_source_and_every_flag_is_one(name: str) -> None:
    preset, fields = PRESETS[name], {field.name for field in dataclasses.fields(Options)}
    titles = [setting.title for setting in preset.settings]
    assert len(titles) == len(set(titles))
    for setting in preset.settings:
        assert len(setting.source) > 5, setting.title
        assert not setting.flag or setting.flag in fields
    start_from(Options, name, Options).check()
    for spec in start_from(Options, name, Options).specs():
        assert spec.name in METHODS


def test_the_papers_numbers_are_those_of_the_protocol() -> None:
    paper = start_from(Options, "paper", Options)
    assert (paper.rank, paper.steps, paper.num_prompts, paper.num_images, paper.resolution) == (16, 1400, 25, 4, 512)
    assert (paper.num_class_images, paper.prior_loss_weight, paper.token) == (200, 1.0, "qwe")
    assert (paper.num_inference_steps, paper.guidance_scale, paper.seeds) == (25, 7.5, (0, 1, 2))
    rates = {
        name: base_rates(parse_method("delora"), "any", "", table=start_from(Options, name, Options).rate_table)
        for name in PRESETS
        if start_from(Options, name, Options).task == "pictures"
    }
    assert rates["paper"].lr == 6e-3
    assert rates["paper-table"].lr == 2e-2
    assert {r.lr_lambda for r in rates.values()} == {1e-3}


def test_glue_is_that_of_table_4() -> None:
    cola = start_from(Options, "glue-cola", Options)
    assert (cola.task, cola.model, cola.subjects) == ("glue", "FacebookAI/roberta-base", ("cola",))
    assert (cola.rank, cola.steps, cola.train_batch_size, cola.seeds) == (8, 85_520, 8, (42, 43, 44, 45, 46))
    qqp = start_from(Options, "glue-qqp", Options)
    assert qqp.train_batch_size * qqp.gradient_accumulation_steps == 256
    found = {
        name: base_rates(parse_method("delora"), "any", "", table=start_from(Options, name, Options).rate_table)
        for name in PRESETS
        if name.startswith("glue-")
    }
    assert {name.removeprefix("glue-") for name in found} == set(TABLES)
    assert (found["glue-mrpc"].lr, found["glue-mrpc"].boundary, found["glue-mrpc"].lr_lambda) == (3e-2, 4.0, 1e-2)
    assert {r.source for r in found.values()} == {"published for GLUE with RoBERTa-base"}
    for name in found:
        assert (
            0.059
            < start_from(Options, name, Options).lr_warmup_steps / start_from(Options, name, Options).steps
            < 0.061
        )


def test_the_task_of_a_preset_has_its_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Options] = []
    assert run(lr_robustness.RobustnessOptions, "--preset", "glue", seen=seen) == 0
    assert (seen[0].kind[0].name, seen[0].norms_every) == ("glue", 200)
    assert run(lr_robustness.RobustnessOptions, "--preset", "glue-rte", "--explain-preset") == 0
    out = capsys.readouterr().out
    assert "4, batch 32; LoRA's" in out, "where the authors' script differs"
    assert "FacebookAI/roberta-base" in out


def test_what_is_not_said_is_marked_and_the_rest_is_inherited(capsys: pytest.CaptureFixture[str]) -> None:
    unsaid = {setting.title for setting in PRESETS["paper"].settings if not setting.says}
    assert {
        "--multipliers",
        "lambda at the start",
        "--prior-loss-weight",
        "--mixed-precision",
        "measured layer",
    } == unsaid
    assert run(lr_robustness.RobustnessOptions, "--preset", "ether", "--explain-preset") == 0
    out = capsys.readouterr().out
    assert "ETHER (arXiv 2405.20271)" in out
    assert "0.1 1 10 100" in out
    assert "openai/clip-vit-large-patch14" in out, "of the preset that it is like"
    assert "not said;" in out


def run(options: type[Options], *words: str, seen: list | None = None) -> int:
    """Run a driver that only keeps what it was given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["driver", *words])
        return run_driver(options, lambda given: (seen if seen is not None else []).append(given) or 0, "")


def test_users_and_drivers_have_the_last_word() -> None:
    seen: list[Options] = []
    assert run(lr_robustness.RobustnessOptions, "--preset", "paper", "--rank", "4", "--steps", "2000", seen=seen) == 0
    assert (seen[0].rank, seen[0].steps, seen[0].num_prompts) == (4, 2000, 25)
    prolonged = start_from(prolonged_training.ProlongedOptions, "paper", Options)
    assert (prolonged.steps, prolonged.multipliers, prolonged.rank) == (2000, (1.0,), 16), (
        "its question's own defaults stay"
    )
    assert start_from(weight_norms.NormOptions, "paper", Options).method == ()
    assert start_from(Options, "none", Options) == Options()
    assert named(["--preset", "paper", "--preset=ether"], "preset") == "ether"
    assert named([], "preset") == named(["--preset"], "preset") == named(["--rank", "4"], "preset") == ""


def test_a_driver_without_a_flag_runs_on_its_defaults() -> None:
    seen: list[Options] = []
    assert run(lr_robustness.RobustnessOptions, seen=seen) == 0
    assert seen == [lr_robustness.RobustnessOptions()]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--preset", "papers"), "--preset is papers; allowed: none, paper, paper-table, ether, diffusers"),
        (("--explain-preset",), "--explain-preset needs --preset; allowed: paper"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lr_robustness.RobustnessOptions, *words) == 2
    assert said in capsys.readouterr().err
    with pytest.raises(BadInput, match=f"--rate-table is mine; allowed: {', '.join(list(read_rates())[:1])}"):
        base_rates(parse_method("lora"), "any", "", table="mine")
