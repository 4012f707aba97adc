"""The packed loop on a tiny pipeline: same results in a pack and alone, exact distances, resumption, divergence."""

from __future__ import annotations

import dataclasses
import unittest.mock
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel

from adapters import get_class, parse_method
from tests.compare_runs import weights
from tests.make_checkpoints import load_unet
from tests.make_pipeline import make_pipeline, make_scorers, make_subjects
from training.cell import Cell
from training.loop import train_pack
from training.run import Run
from training.seeds import seed_of
from training.store import RunFolder
from training.tasks import pipeline as pipelines
from training.tasks import subjects as subject_folders
from training.tasks.sampling import sample, start_noise
from training.tasks.scorers import Scorers
from training.tasks.subject import SubjectTask

RATE = {"lora": 1e-3, "dora": 1e-3, "delora": 1e-2, "etherplus": 1e-2}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny pipeline, its scorers and subjects."""
    folder = tmp_path_factory.mktemp("studio")
    make_pipeline(folder / "pipeline")
    make_scorers(folder)
    make_subjects(folder / "subjects")
    return folder


@pytest.fixture(scope="module")
def parts(studio: Path) -> tuple[pipelines.Pipeline, Scorers]:
    """The loaded pipeline and scorers."""
    device = torch.device("cpu")
    return (
        pipelines.load(studio / "pipeline", device),
        Scorers(str(studio / "dino"), str(studio / "clip"), device),
    )


def make_cell(method: str = "lora", **changes: object) -> Cell:
    """A short cell on the tiny pipeline."""
    spec = parse_method(method)
    fields: dict = {
        "method": spec.name, "options": spec.canonical, "rank": 4, "subject": "cup", "seed": 0, "steps": 6,
        "lr": RATE.get(spec.name, 1e-3), "boundary": 1.0 if get_class(spec.name).uses_boundary else None,
        "resolution": 16, "num_prompts": 2, "num_images": 1, "num_inference_steps": 2, "norms_every": 3, "guidance_scale": 2.0,
    }  # fmt: skip
    return Cell(**(fields | changes))


def make_task(studio: Path, parts: tuple, cells: list[Cell], **options: bool) -> SubjectTask:
    """The task of a pack."""
    subjects = {
        cell.subject: subject_folders.load(
            studio / "subjects", cell.subject, token="sks", instance_prompt="a {token} {cls}"
        )
        for cell in cells
    }
    return SubjectTask(parts[0], parts[1], cells, subjects, **options)


def train(studio: Path, parts: tuple, folder: Path, cells: list[Cell], **options: object) -> list[RunFolder]:
    """Train a pack and return its folders."""
    runs = [Run(cell, RunFolder(folder / f"run-{cell.identity()[:10]}"), {"multiplier": 1.0}) for cell in cells]
    train_pack(runs, make_task(studio, parts, cells), **options)
    return [run.folder for run in runs]


def test_caches_change_nothing_but_the_time(studio: Path, parts: tuple) -> None:
    """The caches of latents and texts, as options: without them every step encodes anew, to the same losses."""
    cells = [make_cell(), make_cell(seed=1)]
    cached = make_task(studio, parts, cells)
    plain = make_task(studio, parts, cells, cache_latents=False, cache_texts=False)
    seen: list[int] = []
    encode = parts[0].encode_pictures
    with (
        unittest.mock.patch.object(
            type(parts[0]), "encode_pictures", lambda self, pictures: seen.append(len(pictures)) or encode(pictures)
        ),
        torch.no_grad(),
    ):
        for step in (1, 2, 3):
            torch.testing.assert_close(plain.losses(step), cached.losses(step), rtol=1e-5, atol=1e-6)
    assert len(seen) >= 6, "without the cache each replica encodes its pictures at each step"


def test_lora_plus_trains_b_at_its_own_rate(studio: Path, parts: tuple, tmp_path: Path) -> None:
    """At the first step Adam moves B by its rate, whatever the gradient; A's gradient is zero, so only decay moves it."""
    plain, plus = (
        weights(train(studio, parts, tmp_path / name, [make_cell(name, steps=1)])[0])
        for name in ("lora", "lora:lr_ratio=4")
    )
    assert plain.keys() == plus.keys()
    for name, tensor in plain.items():
        factor = 4 if "lora_B" in name else 1
        assert tensor.norm() > 0
        torch.testing.assert_close(plus[name], factor * tensor, rtol=1e-5, atol=0)


def test_micro_batches_and_prior_loss_are_means_within_a_replica(studio: Path, parts: tuple, tmp_path: Path) -> None:
    cell = make_cell(train_batch_size=2, prior_loss_weight=0.5, num_class_images=3)
    plain = dataclasses.replace(cell, prior_loss_weight=0.0)
    from training.tasks.class_pictures import class_latents

    task = make_task(studio, parts, [cell, dataclasses.replace(cell, seed=1)])
    task.class_latents = {"cup": class_latents(parts[0], "cup", cell, tmp_path)}
    alone = make_task(studio, parts, [cell])
    alone.class_latents = task.class_latents
    torch.testing.assert_close(task.losses(1)[:1], alone.losses(1), rtol=1e-5, atol=1e-6)
    assert task.losses(1)[0] > make_task(studio, parts, [plain]).losses(1)[0]
    again = class_latents(parts[0], "cup", cell, tmp_path)
    assert torch.equal(again, task.class_latents["cup"]), "class pictures are not kept"


def test_drift_is_how_far_pictures_of_other_things_have_moved(studio: Path, parts: tuple, tmp_path: Path) -> None:
    """Against pictures that the merged U-Net and the untouched one draw by themselves; the other scores stay as they are."""
    plain = [make_cell("lora", lr=rate, eval_steps=(0,)) for rate in (5e-2, 5e-3)]
    cells = [dataclasses.replace(cell, num_drift_prompts=3) for cell in plain]
    assert "num_drift_prompts" not in plain[0].to_dict(), "runs made before keep their names"
    folders = train(studio, parts, tmp_path / "drift", cells)
    without = train(studio, parts, tmp_path / "plain", plain)
    untouched = draw_unrelated(*parts, cells[0])
    for folder, other, cell in zip(folders, without, cells, strict=True):
        scores = folder.read_scores()
        pd.testing.assert_frame_equal(
            scores[scores["metric"] != "drift"].reset_index(drop=True).astype({"metric": str, "prompt": str}),
            other.read_scores().astype({"metric": str, "prompt": str}),
        )
        drift = scores[scores["metric"] == "drift"]
        assert list(drift["step"]) == [0, 0, 0, 6, 6, 6]
        assert list(drift["prompt"].astype(str)) == list(subject_folders.UNRELATED[:3]) * 2
        assert drift["value"][:3].abs().max() < 1e-6, "LoRA starts at the base"
        adapted = PeftModel.from_pretrained(load_unet(studio / "pipeline"), folder.adapter)
        moved = draw_unrelated(dataclasses.replace(parts[0], unet=adapted), parts[1], cell)
        expected = (1 - (moved * untouched).sum(dim=1)) / 2
        np.testing.assert_allclose(drift["value"][3:], expected, rtol=1e-3, atol=1e-6)
    assert folders[0].read_scores()["value"].iloc[-1] > 1e-4
    base = make_cell("lora", num_drift_prompts=3).base()
    (folder,) = train(studio, parts, tmp_path / "base", [base])
    scores = folder.read_scores()
    assert scores[scores["metric"] == "drift"]["value"].abs().max() < 1e-6


@torch.no_grad()
def draw_unrelated(pipeline: pipelines.Pipeline, scorers: Scorers, cell: Cell) -> torch.Tensor:
    """Normalised DINO features of the pictures that a U-Net draws for the unrelated prompts."""
    prompts = subject_folders.UNRELATED[: cell.num_drift_prompts]
    noise = start_noise(pipeline, [seed_of("drift", prompt) for prompt in prompts], cell.resolution)
    text = pipeline.encode_text(list(prompts))[None]
    latents = sample(pipeline, text, noise, steps=cell.num_inference_steps, guidance=cell.guidance_scale)[0]
    pictures = (pipeline.decode_latents(latents) * 255).round() / 255
    return scorers.dino_features(pictures)
