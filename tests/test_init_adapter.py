"""Runs that start from an adapter: same scores, distances from the base, resumption, and what is refused."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import peft
import pytest
import torch
from peft import BOFTConfig
from safetensors.torch import load_file, save_file

from adapters import BadInput, parse_method
from adapters.checkpoint import Checkpoint
from adapters.inject import ATTENTION_PROJECTIONS
from adapters.peft_tuner import no_build_on_cpu
from adapters.starting_point import agree, content_hash, from_file, to_bytes
from sweeps import lr_robustness
from sweeps.options import run_driver
from tests.compare_runs import assert_same
from tests.make_checkpoints import load_unet
from tests.make_driver import drive_studio
from tests.make_pipeline import make_pipeline
from tests.make_studio import Studio
from tests.test_loop import make_cell, train
from training.cell import Cell
from training.export import main as export
from training.open_adapter import open_adapter
from training.store import RunFolder, find_runs, start_file
from training.tasks import pipeline as pipelines
from training.tasks.scorers import Scorers
from training.tasks.subject import SubjectTask

METHODS = ["lora", "dora", "delora", "oft", "vera", "hra", "peft:boft:boft_block_size=8"]
STILL = {"lr": 1e-30, "lr_lambda": 1e-30, "lr_magnitude": 1e-30}


@pytest.fixture(scope="module")
def parts(studio: Studio) -> tuple[pipelines.Pipeline, Scorers]:
    """The loaded pipeline and scorers."""
    device = torch.device("cpu")
    scorers = Scorers(str(studio.folder / "dino"), str(studio.folder / "clip"), device)
    return pipelines.load(studio.folder / "pipeline", device), scorers


@pytest.fixture
def trained(studio: Studio, parts: tuple, tmp_path: Path) -> Callable[[str], RunFolder]:
    """A run of a method that has moved."""
    return lambda method: train(
        studio.folder, parts, tmp_path / "first", [make_cell(method, lr=2e-2, boundary=_lambda(method))]
    )[0]


def _lambda(method: str) -> float | None:
    return 1.0 if method == "delora" else None


def start_from(path: Path, studio: Studio, sweep: Path, method: str) -> str:
    """Put an adapter into a sweep's folder; the hash that cells name it by."""
    opened = open_adapter(path, str(studio.folder / "pipeline"))
    start = agree(opened.checkpoint.of_unet(), parse_method(method), 4)
    file = start_file(sweep, content_hash(start))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(to_bytes(start))
    return content_hash(start)


def scores(run: RunFolder, step: int) -> dict:
    """Value by metric and prompt."""
    table = run.read_scores()
    table = table[table["step"] == step].astype({"metric": str, "prompt": str})
    return table.set_index(["metric", "prompt"])["value"].to_dict()


def distances(run: RunFolder, step: int) -> dict[str, float]:
    table = run.read_dynamics().astype({"matrix": str})
    return table[table["step"] == step].set_index("matrix")["distance"].to_dict()


@pytest.mark.parametrize("method", METHODS)
def test_going_on_at_no_rate_keeps_scores_and_distances(
    method: str, trained: Callable[[str], RunFolder], studio: Studio, parts: tuple, tmp_path: Path
) -> None:
    run, sweep = trained(method), tmp_path / "second"
    start = start_from(run.path, studio, sweep, method)
    seeds = (0,) if method.startswith("peft:") else (0, 5)
    cells = [make_cell(method, steps=2, eval_steps=(0,), seed=seed, init_adapter=start, **STILL) for seed in seeds]
    runs = train(studio.folder, parts, sweep, cells)
    for step in (0, 2):
        for on in runs:
            assert distances(on, step) == pytest.approx(distances(run, 6), rel=1e-5)
        assert scores(runs[0], step) == pytest.approx(scores(run, 6), abs=1e-4)
    assert min(distances(run, 6).values()) > 1e-3, "the adapter does something"


def test_a_foreign_adapter_is_trained_further(studio: Studio, parts: tuple, tmp_path: Path) -> None:
    config = BOFTConfig(boft_block_size=8, target_modules=rf".*({'|'.join(ATTENTION_PROJECTIONS)})")
    with no_build_on_cpu({"": torch.nn.Linear(1, 1)}):
        model = peft.get_peft_model(load_unet(studio.folder / "pipeline"), config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * parameter.requires_grad
    model.save_pretrained(str(tmp_path / "theirs"))
    method = "peft:boft:boft_block_size=8"
    start = start_from(tmp_path / "theirs", studio, tmp_path / "second", method)
    (run,) = train(studio.folder, parts, tmp_path / "second", [make_cell(method, steps=3, init_adapter=start)])
    before, after = distances(run, 0), distances(run, 3)
    assert min(before.values()) > 1e-3
    assert before != after


@pytest.mark.unchecked
@pytest.mark.parametrize("method", ["lora", "delora"])
def test_a_killed_run_goes_on_bit_for_bit(
    method: str,
    trained: Callable[[str], RunFolder],
    studio: Studio,
    parts: tuple,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, cells = trained(method), []
    for sweep in (tmp_path / "whole", tmp_path / "cut"):
        start = start_from(run.path, studio, sweep, method)
        cells = [make_cell(method, steps=8, init_adapter=start, boundary=_lambda(method))]
    undisturbed = train(studio.folder, parts, tmp_path / "whole", cells, checkpoint_every_s=0.0)[0]
    losses = SubjectTask.losses

    def fall(self: SubjectTask, step: int, micro: int = 0) -> torch.Tensor:
        if step == 5:
            raise RuntimeError("killed")
        return losses(self, step, micro)

    with monkeypatch.context() as patch:
        patch.setattr(SubjectTask, "losses", fall)
        with pytest.raises(RuntimeError, match="killed"):
            train(studio.folder, parts, tmp_path / "cut", cells, checkpoint_every_s=0.0)
    (run.adapter / "adapter_config.json").unlink()  # the original is not needed any more
    assert_same(undisturbed, train(studio.folder, parts, tmp_path / "cut", cells, checkpoint_every_s=0.0)[0])


# Identity.


def test_identity_of_cells_without_an_adapter_is_what_it_was() -> None:
    cell = Cell(method="lora", options="alpha=2r", rank=4, subject="dog", seed=0, steps=5, lr=1e-3)
    assert cell.run_id("x1") == "lora-r4-x1-s0-dog-a1b4deb8e2"
    assert "init_adapter" not in cell.to_dict()
    other = dataclasses.replace(cell, init_adapter="00ff")
    assert other.identity() != cell.identity()
    assert Cell.from_dict(other.to_dict()) == other
    assert Cell.from_dict(cell.to_dict()) == cell
    assert other.base().identity() == cell.base().identity(), "the base model is scored once"
    assert other.pack_key() != cell.pack_key()


def test_the_hash_follows_from_the_tensors(trained: Callable[[str], RunFolder], studio: Studio, tmp_path: Path) -> None:
    run, pipeline = trained("lora"), str(studio.folder / "pipeline")
    found = {content_hash(open_adapter(run.path, pipeline).checkpoint)}
    for layout in ("peft", "kohya", "diffusers"):
        out = tmp_path / (layout if layout == "peft" else f"{layout}.safetensors")
        assert export([str(run.path), "--to", layout, "--out", str(out)]) == 0
        found.add(content_hash(open_adapter(out, pipeline).checkpoint))
    assert len(found) == 1
    checkpoint = open_adapter(run.path, pipeline).checkpoint
    next(iter(checkpoint.state.values()))[0] += 1e-6
    assert content_hash(checkpoint) not in found


def test_a_damaged_copy_is_named(tmp_path: Path) -> None:
    (tmp_path / "start.safetensors").write_bytes(b"nothing")
    with pytest.raises(BadInput, match=r"start\.safetensors, the adapter that these runs start from, is damaged"):
        from_file(tmp_path / "start.safetensors", parse_method("lora"))


# The front door.


def test_zero_steps_score_an_adapter_and_train_nothing(
    trained: Callable[[str], RunFolder], studio: Studio, tmp_path: Path
) -> None:
    file = tmp_path / "mine.safetensors"
    assert export([str(trained("lora").path), "--to", "kohya", "--out", str(file)]) == 0
    flags = ("--method", "lora", "--steps", "0", "--init-adapter", str(file), "--base-lr", "1", "--base-lr-for-all",
             "--subjects", str(studio.folder / "subjects"), "1")  # fmt: skip
    done = drive_studio(studio, lr_robustness, tmp_path / "runs", *flags)
    assert done.code == 0, done.err
    assert "1 cell: 0 done, 1 to train, 0 steps each; and 1 of the base model: 2 in all" in done.out
    table = pd.read_csv(tmp_path / "runs" / "lr_robustness" / "summary.csv")
    assert table["dino"].notna().sum() == 2, "the base and the adapter"
    assert table["dino"].nunique() == 2
    (run,) = [run for run in find_runs(tmp_path / "runs") if run.read()["cell"]["method"] == "lora"]
    assert run.read()["cell"]["init_adapter"]
    assert set(run.read_scores()["step"]) == {0}
    again = drive_studio(studio, lr_robustness, tmp_path / "runs", *flags, "--dry-run")
    assert "1 cell: 1 done, 0 to train" in again.out


@pytest.fixture
def refused(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run the front door in this process, check that it refuses with one line and code 2; returns the line."""

    def front(*more: str) -> str:
        capsys.readouterr()
        monkeypatch.setattr(
            sys, "argv", studio.arguments(tmp_path / "runs", "--base-lr", "1e-3", "--base-lr-for-all", *more)[1:]
        )
        assert run_driver(lr_robustness.RobustnessOptions, lr_robustness.drive, "") == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert not list((tmp_path / "runs").rglob("run.json"))
        return lines[0]

    return front


def test_wrong_rank_method_option_or_model_is_refused(
    trained: Callable[[str], RunFolder], refused: Callable[..., str], tmp_path: Path
) -> None:
    start = ("--init-adapter", str(trained("lora").path))
    line = refused("--method", "lora", "--rank", "8", *start)
    assert "--rank is 8" in line
    assert "has rank 4" in line
    line = refused("--method", "etherplus", *start)
    assert "--method is etherplus" in line
    assert "is lora:alpha=2r" in line
    line = refused("--method", "lora:alpha=4", *start)
    assert "--method is lora:alpha=4" in line
    assert "is lora:alpha=2r" in line
    other = make_pipeline(tmp_path / "other", width=64)
    line = refused("--method", "lora", *start, "--model", str(other))
    assert "of another model: matrix 'down_blocks.0.attentions.0" in line


def test_what_is_no_adapter_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no file or folder" in refused("--method", "lora", "--init-adapter", str(tmp_path / "nowhere"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "adapter_model.bin")
    line = refused("--method", "lora", "--init-adapter", str(tmp_path / "adapter_model.bin"))
    assert "is a pickle" in line
    assert "convert it: python -c" in line
    assert "--steps is 0" in refused("--method", "lora", "--steps", "0")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_refused_when_a_sweep_is_planned(
    value: float, trained: Callable[[str], RunFolder], refused: Callable[..., str], tmp_path: Path
) -> None:
    tensors = load_file(trained("lora").adapter / "adapter_model.safetensors")
    last = next(reversed(tensors))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(trained("lora").adapter / name, tmp_path / name)
    save_file(tensors | {last: torch.full_like(tensors[last], value)}, tmp_path / "adapter_model.safetensors")
    assert "holds NaN or infinity in" in refused("--method", "lora", "--init-adapter", str(tmp_path))


def test_hashes_of_starts_that_were_read_right_are_what_they_were() -> None:
    state = {"mid_block.x.A": torch.arange(6.0).view(2, 3), "mid_block.x.B": torch.ones(4, 2)}
    plain = Checkpoint(Path("file"), "kohya", parse_method("lora"), 2, state, {"mid_block.x": (4, 3)})
    assert content_hash(plain) == "5a98dc036d92f297"
    boft = dataclasses.replace(plain, config={"peft_type": "BOFT", "boft_block_size": 8})
    assert content_hash(boft) == content_hash(plain)
    pissa = dataclasses.replace(plain, config={"peft_type": "LORA", "init_lora_weights": "pissa", "r": 2})
    assert content_hash(pissa) != content_hash(plain)


@pytest.mark.parametrize(("own", "asked"), [("dora", "dora-fixed"), ("lora", "lora:init=gaussian,lr_ratio=4"),
                                            ("lora:divisor=sqrt_r", "lora:alpha=16")])  # fmt: skip
def test_options_of_training_alone_are_free(
    own: str, asked: str, trained: Callable[[str], RunFolder], studio: Studio
) -> None:
    checkpoint = open_adapter(trained(own).path, str(studio.folder / "pipeline")).checkpoint
    assert agree(checkpoint, parse_method(asked), 4).spec == parse_method(asked)
