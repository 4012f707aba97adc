"""Stable Diffusion 1.5, 2.1 and XL, as small random pipelines: equal to diffusers' own, and trained, resumed and scored."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler

from adapters import parse_method
from adapters.inject import attach
from sweeps import lr_robustness
from tests.compare_runs import assert_same, weights
from tests.make_driver import drive_studio
from tests.make_kinds import KINDS, make_sdxl_like
from tests.make_pipeline import make_scorers, make_subjects
from tests.make_studio import Studio
from tests.test_loop import make_cell, make_task, train
from training.tasks import pipeline as pipelines
from training.tasks.class_pictures import class_latents
from training.tasks.sampling import sample, start_noise
from training.tasks.scorers import Scorers
from training.tasks.subject import SubjectTask

PROMPTS = ["a photo of a sks dog", "a red cup on the beach"]
EXACT = {"rtol": 1e-5, "atol": 1e-6}
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of model in turn."""
    return request.param


@pytest.fixture(scope="module")
def studio(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline of the kind, scorers and subjects."""
    folder = tmp_path_factory.mktemp(kind)
    KINDS[kind](folder / "pipeline")
    make_scorers(folder)
    make_subjects(folder / "subjects")
    return folder


@pytest.fixture(scope="module")
def parts(studio: Path) -> tuple[pipelines.Pipeline, Scorers]:
    """The loaded pipeline and scorers."""
    folder = pipelines.check_parts(studio / "pipeline")
    return pipelines.load(folder, CPU), Scorers(str(studio / "dino"), str(studio / "clip"), CPU)


@pytest.fixture(scope="module")
def theirs(studio: Path) -> DiffusionPipeline:
    """The same folder as diffusers' own pipeline, with the sampler that is used here."""
    return open_theirs(studio / "pipeline")


def open_theirs(folder: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# Equal to diffusers.


def encode_by_theirs(theirs: Any, prompts: list[str]) -> tuple[torch.Tensor, ...]:
    """Embeddings of prompts and of what guidance leads away from, pooled ones after them, as diffusers has them."""
    given = {"device": CPU, "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    return theirs.encode_prompt(prompts, **given)


def test_embeddings_are_diffusers(parts: tuple, theirs: Any) -> None:
    text, (plain, empty, *pooled) = parts[0].encode_text(PROMPTS), encode_by_theirs(theirs, PROMPTS)
    assert torch.equal(text.sequence, plain)
    assert torch.equal(parts[0].encode_empty().expand(2).sequence, empty)
    assert (text.pooled is None) == (not pooled)
    if text.pooled is not None:
        assert torch.equal(text.pooled, pooled[0])
        assert torch.equal(parts[0].encode_empty().expand(2).pooled, pooled[1])


def test_without_forced_zeros_guidance_leads_away_from_the_empty_prompt(tmp_path: Path) -> None:
    folder = make_sdxl_like(tmp_path, force_zeros=False)
    empty, expected = pipelines.load(folder, CPU).encode_empty(), encode_by_theirs(open_theirs(folder), PROMPTS[:1])
    assert torch.equal(empty.sequence, expected[1])
    assert torch.equal(empty.pooled, expected[3])
    assert empty.sequence.abs().min() > 0


@torch.no_grad()
def test_prediction_is_diffusers(kind: str, parts: tuple, theirs: Any) -> None:
    """Of pictures that are not square, whose height and width SDXL's U-Net is told."""
    noisy = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([7, 501])
    added = {}
    plain, _, *pooled = encode_by_theirs(theirs, PROMPTS)
    if kind == "sdxl":
        sizes = theirs._get_add_time_ids(
            (16, 32), (0, 0), (16, 32), torch.float32, theirs.text_encoder_2.config.projection_dim
        )
        added = {"added_cond_kwargs": {"text_embeds": pooled[0], "time_ids": sizes.repeat(2, 1)}}
    expected = theirs.unet(noisy, times, encoder_hidden_states=plain, **added).sample
    torch.testing.assert_close(parts[0].predict(noisy, times, parts[0].encode_text(PROMPTS)), expected, **EXACT)


def test_pictures_are_diffusers(parts: tuple, theirs: Any) -> None:
    """Two replicas of the base model, each of which draws what diffusers' pipeline draws from the same noise."""
    noise = start_noise(parts[0], [1, 2], 16)
    text = parts[0].encode_text(PROMPTS)
    latents = sample(parts[0], text[None].expand(2, -1), noise, steps=4, guidance=3.0)
    expected = theirs(
        PROMPTS, latents=noise, num_inference_steps=4, guidance_scale=3.0, height=16, width=16, output_type="pt"
    ).images  # fmt: skip
    for replica in latents:
        torch.testing.assert_close(parts[0].decode_latents(replica), expected, rtol=1e-4, atol=1e-5)
    alone = sample(parts[0], text[None], noise, steps=4, guidance=1.0)[0]
    expected = theirs(
        PROMPTS, latents=noise, num_inference_steps=4, guidance_scale=1.0, height=16, width=16, output_type="latent"
    ).images  # fmt: skip
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_loss_is_the_one_that_diffusers_scheduler_gives(kind: str, studio: Path, parts: tuple, theirs: Any) -> None:
    """Noise added, and the velocity where that is predicted, by diffusers' DDPM scheduler."""
    cell = make_cell(train_batch_size=2)
    task = make_task(studio, parts, [cell])
    draw, subject = task._draw(cell.seed, 3, 0), task.subjects[0]
    clean, _ = task._rows(cell, subject, draw)
    scheduler = DDPMScheduler.from_config(theirs.scheduler.config)
    noisy = scheduler.add_noise(clean, draw.noise, draw.times)
    velocity = scheduler.get_velocity(clean, draw.noise, draw.times)
    target = velocity if kind == "sd21" else draw.noise
    text = parts[0].encode_text([subject.instance_prompt] * 2)
    expected = (parts[0].predict(noisy, draw.times, text) - target).square().mean()
    assert float(task.losses(3)) == pytest.approx(float(expected), rel=1e-5)


# Trained, killed, resumed, scored.


@pytest.mark.parametrize("method", ["lora", "delora"])
@pytest.mark.parametrize("kind", ["sd21", "sdxl"], indirect=True)
def test_killed_pack_goes_on_bit_for_bit(
    method: str, studio: Path, parts: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [make_cell(method, steps=4, lr=rate, num_drift_prompts=1, num_prompts=1) for rate in (1e-2, 3e-2)]
    whole = train(studio, parts, tmp_path / "whole", cells, checkpoint_every_s=0.0)
    losses = SubjectTask.losses

    def fall(self: SubjectTask, step: int, micro: int = 0) -> torch.Tensor:
        if step == 3:
            raise KeyboardInterrupt
        return losses(self, step, micro)

    with monkeypatch.context() as patch:
        patch.setattr(SubjectTask, "losses", fall)
        with pytest.raises(KeyboardInterrupt):
            train(studio, parts, tmp_path / "killed", cells, checkpoint_every_s=0.0)
    for left, right in zip(
        whole, train(studio, parts, tmp_path / "killed", cells, checkpoint_every_s=0.0), strict=True
    ):
        assert_same(left, right)
        assert set(left.read_scores()["metric"]) == {"dino", "clip_i", "clip_t", "drift"}
        assert left.read_dynamics().groupby("matrix")["distance"].last().gt(0).all()
    assert any(not torch.equal(one, two) for one, two in zip(*(weights(run).values() for run in whole), strict=True))


def test_pack_and_alone_agree(studio: Path, parts: tuple) -> None:
    """Losses and gradients of two replicas, at rows of two prompts, with a class's pictures beside the subject's."""
    cells = [
        make_cell(seed=seed, prior_loss_weight=1.0, num_class_images=2, subject=name)
        for seed, name in ((0, "cup"), (1, "dog"))
    ]

    def gradients(chosen: list) -> torch.Tensor:
        task = make_task(studio, parts, chosen)
        task.class_latents = {subject.cls: task.latents[subject.name][:2] for subject in task.subjects}
        attached = attach(
            parts[0].unet, parse_method("lora:init=gaussian"), seeds=[cell.seed for cell in chosen], rank=4
        )
        task.losses(2).sum().backward()
        attached.detach()
        return attached.grad.clone()

    together = gradients(cells)
    for row, cell in enumerate(cells):
        torch.testing.assert_close(together[row], gradients([cell])[0], rtol=1e-4, atol=1e-7)
    assert together.abs().max() > 1e-6


@torch.no_grad()
def test_losses_and_pictures_in_bf16_are_near(studio: Path, parts: tuple) -> None:
    plain, half = (make_task(studio, parts, [make_cell(mixed_precision=precision)]) for precision in ("no", "bf16"))
    torch.testing.assert_close(half.losses(1), plain.losses(1), rtol=0.03, atol=0)
    assert not torch.equal(half.losses(1), plain.losses(1))
    text, noise = parts[0].encode_text(PROMPTS)[None], start_noise(parts[0], [1, 2], 16)
    one, two = (
        sample(parts[0], text, noise, steps=2, guidance=3.0, mixed_precision=precision) for precision in ("no", "bf16")
    )
    assert 0 < float((one - two).norm() / one.norm()) < 0.05


def test_class_pictures_are_drawn(parts: tuple, tmp_path: Path) -> None:
    cell = make_cell(num_class_images=2)
    assert torch.isfinite(class_latents(parts[0], "cup", cell, tmp_path)).all()


@pytest.mark.parametrize("kind", ["sdxl"], indirect=True)
def test_the_front_door_takes_it(studio: Path, tmp_path: Path) -> None:
    """Planned, trained, scored beside the base model, and drawn."""
    flags = ("--method", "lora", "--base-lr", "1e-3", "--base-lr-for-all", "--multipliers", "1", "2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        done = drive_studio(Studio(studio), lr_robustness, tmp_path, *flags)
    assert done.code == 0, done.err
    assert "fig2_lr_robustness" in done.drawn
    drawn = done.table("fig2_lr_robustness")
    assert set(drawn["series"]) == {"LoRA", "base model"}
    assert set(drawn["panel"]) == {"dino", "clip_i", "clip_t", "drift", "distance"}
    assert drawn["mean"].notna().all()


def test_defaults_are_the_kinds(kind: str, studio: Path) -> None:
    defaults = pipelines.model_defaults(studio / "pipeline")
    assert (defaults["resolution"], defaults["guidance_scale"]) == (16, 5.0 if kind == "sdxl" else 7.5)
