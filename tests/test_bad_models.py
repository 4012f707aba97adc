"""Folders that are no Stable Diffusion, and scorers of another kind or size: named in one line before any weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from adapters import BadInput
from benchmarks.untrained import make_untrained
from tests.make_kinds import make_sdxl_like
from tests.make_pipeline import make_pipeline, make_scorers
from training.tasks.model_kind import check_parts
from training.tasks.pipeline import POCKET, locate
from training.tasks.scorer_kind import check_scorers
from training.tasks.scorers import POCKET_CLIP, POCKET_DINO


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Stable Diffusion and an SDXL, whole."""
    folder = tmp_path_factory.mktemp("models")
    return {"sd": make_pipeline(folder / "sd"), "xl": make_sdxl_like(folder / "xl")}


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A DINO and a CLIP, whole."""
    return make_scorers(tmp_path_factory.mktemp("scorers"))


def change(path: Path, **fields: Any) -> None:
    """Change fields of a configuration file; None takes one out."""
    config = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}), encoding="utf-8")


def rename(folder: Path) -> None:
    """Weights as they were before safetensors."""
    for path in folder.glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))


def one_line(error: pytest.ExceptionInfo[BadInput]) -> str:
    line = str(error.value)
    assert "\n" not in line
    return line


# Models.

UNET, VAE = "unet/config.json", "vae/config.json"
WEIGHTS, SCHEDULE = "diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"
MODELS: dict[str, tuple[str, Callable[[Path], Any], tuple[str, ...]]] = {
    "no index": ("sd", lambda f: (f / "model_index.json").unlink(), ("has no model_index.json",)),
    "damaged index": ("sd", lambda f: (f / "model_index.json").write_text("{"), ("model_index.json is missing or damaged",)),
    "an index of nothing": ("sd", lambda f: (f / "model_index.json").write_text("[]"), ("holds no JSON object",)),
    "a transformer": (
        "sd", lambda f: (change(f / "model_index.json", _class_name="StableDiffusion3Pipeline"), shutil.rmtree(f / "unet")),
        ("is a StableDiffusion3Pipeline", "allowed: StableDiffusionPipeline, StableDiffusionXLPipeline"),
    ),
    "another pipeline": (
        "sd", lambda f: change(f / "model_index.json", _class_name="StableDiffusionInpaintPipeline"),
        ("is a StableDiffusionInpaintPipeline", "allowed: StableDiffusionPipeline"),
    ),
    "no U-Net": ("sd", lambda f: shutil.rmtree(f / "unet"), ("has no unet/", "unet, vae, text_encoder")),
    "no second text encoder": ("xl", lambda f: shutil.rmtree(f / "text_encoder_2"), ("has no text_encoder_2/", "tokenizer_2")),
    "pickles": ("sd", lambda f: rename(f / "unet"), ("has no unet/*.safetensors", "only safetensors")),
    "a pickle beside": ("xl", lambda f: rename(f / "text_encoder_2"), ("has no text_encoder_2/*.safetensors",)),
    "a variant": (
        "sd", lambda f: (f / UNET).with_name(WEIGHTS).rename((f / UNET).with_name("diffusion_pytorch_model.fp16.safetensors")),
        ("only a variant of unet/, diffusion_pytorch_model.fp16.safetensors", f"the plain name {WEIGHTS}", "without 'fp16'"),
    ),
    "no configuration": ("sd", lambda f: (f / UNET).unlink(), (UNET, "missing or damaged")),
    "a transformer as U-Net": (
        "sd", lambda f: change(f / UNET, _class_name="SD3Transformer2DModel"),
        ("unet is a SD3Transformer2DModel", "allowed: UNet2DConditionModel"),
    ),
    "another VAE": ("sd", lambda f: change(f / VAE, _class_name="VQModel"), ("vae is a VQModel", "allowed: AutoencoderKL")),
    "inpainting": ("sd", lambda f: change(f / UNET, in_channels=9), ("in_channels is 9", "the VAE's latents have 4")),
    "upscaling": ("sd", lambda f: change(f / UNET, num_class_embeds=1000), ("num_class_embeds is 1000", "allowed: none")),
    "distilled": ("xl", lambda f: change(f / UNET, time_cond_proj_dim=256), ("time_cond_proj_dim is 256", "allowed: none")),
    "another text encoder": (
        "sd", lambda f: change(f / "text_encoder" / "config.json", hidden_size=64),
        ("cross_attention_dim is 32", "the text embeddings have 64"),
    ),
    "an SDXL's U-Net": ("sd", lambda f: change(f / UNET, addition_embed_type="text_time"), ("addition_embed_type is text_time",)),
    "no SDXL's U-Net": ("xl", lambda f: change(f / UNET, addition_embed_type=None), ("addition_embed_type is None", "text_time")),
    "the refiner": (
        "xl", lambda f: change(f / UNET, projection_class_embeddings_input_dim=5 * 8 + 20),
        ("projection_class_embeddings_input_dim is 60", "have 68"),
    ),
    "flow matching": (
        "sd", lambda f: (f / SCHEDULE).write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})),
        ("FlowMatchEulerDiscreteScheduler without beta_schedule",),
    ),
    "the clean picture": (
        "sd", lambda f: change(f / SCHEDULE, prediction_type="sample"),
        ("prediction_type is sample", "allowed: epsilon, v_prediction"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", MODELS)
def test_what_is_no_stable_diffusion_is_refused(fault: str, models: dict[str, Path], tmp_path: Path) -> None:
    kind, spoil, said = MODELS[fault]
    folder = Path(shutil.copytree(models[kind], tmp_path / "model"))
    assert check_parts(folder) == folder
    spoil(folder)
    with pytest.raises(BadInput) as error:
        locate(str(folder))
    line = one_line(error)
    assert str(folder) in line
    for text in said:
        assert text in line


PUBLISHED: dict[str, tuple[str, dict[str, Any], list[dict[str, Any]], dict[str, Any]]] = {
    "1.5": ("StableDiffusionPipeline", {"cross_attention_dim": 768}, [{"hidden_size": 768, "projection_dim": 768}],
            {"_class_name": "PNDMScheduler"}),
    "2.1": ("StableDiffusionPipeline", {"cross_attention_dim": 1024, "class_embed_type": None, "num_class_embeds": None},
            [{"hidden_size": 1024, "projection_dim": 512}],
            {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}),
    "XL 1.0": (
        "StableDiffusionXLPipeline",
        {"cross_attention_dim": 2048, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
         "projection_class_embeddings_input_dim": 2816, "class_embed_type": None, "encoder_hid_dim_type": None,
         "num_class_embeds": None, "time_cond_proj_dim": None},
        [{"hidden_size": 768, "projection_dim": 768}, {"hidden_size": 1280, "projection_dim": 1280}],
        {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon"},
    ),
}  # fmt: skip
"""What is checked of the configurations that were published with Stable Diffusion's weights."""


@pytest.mark.parametrize("version", PUBLISHED)
def test_published_configurations_are_taken(version: str, tmp_path: Path) -> None:
    kind, unet, texts, schedule = PUBLISHED[version]
    parts = {"unet": {"_class_name": "UNet2DConditionModel", "in_channels": 4} | unet,
             "vae": {"_class_name": "AutoencoderKL", "latent_channels": 4}}  # fmt: skip
    for number, text in enumerate(texts, 1):
        end = "" if number == 1 else f"_{number}"
        parts[f"text_encoder{end}"] = text
        (tmp_path / f"tokenizer{end}").mkdir()
    for name, config in parts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "model.safetensors").touch()
    (tmp_path / "scheduler").mkdir()
    (tmp_path / SCHEDULE).write_text(json.dumps({"beta_schedule": "scaled_linear"} | schedule))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    assert check_parts(tmp_path) == tmp_path


def test_what_comes_with_the_repository_is_taken(tmp_path: Path) -> None:
    assert check_parts(POCKET / "pipeline")
    assert check_parts(make_untrained(tmp_path) / "pipeline")
    check_scorers(str(POCKET_DINO), str(POCKET_CLIP))


# Scorers.


def shrink(name: str) -> Callable[[Path], None]:
    """Take a row of a tensor away."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = tensors[name][:-1].clone()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return spoil


def without_tower(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "vis" not in k}, folder / "model.safetensors", {"format": "pt"})


SIDE = "preprocessor_config.json"
SCORERS: dict[str, tuple[str, Callable[[Path], Any], tuple[str, ...]]] = {
    "DINOv2": ("dino", lambda f: change(f / "config.json", model_type="dinov2"), ("of type 'dinov2'", "facebook/dino-vits16")),
    "no DINO": ("dino", lambda f: (f / "config.json").unlink(), ("config.json is missing",)),
    "DINO's pickles": ("dino", rename, ("has no *.safetensors", "only safetensors")),
    "DINO's pictures": ("dino", lambda f: change(f / SIDE, size=64), ("takes pictures of 32 pixels", "makes them 64")),
    "DINO without preprocessor": ("dino", lambda f: (f / SIDE).unlink(), ("preprocessor_config.json is missing",)),
    "SigLIP": ("clip", lambda f: change(f / "config.json", model_type="siglip"), ("of type 'siglip'", "openai/clip-vit")),
    "one tower": ("clip", lambda f: change(f / "config.json", model_type="clip_text_model"), ("of type 'clip_text_model'",)),
    "no vision tower": ("clip", without_tower, ("has no tensor 'vision_model.post_layernorm.weight'", "both towers")),
    "CLIP's pictures": ("clip", lambda f: change(f / SIDE, size={"height": 48}), ("of 32 pixels", "makes them 48")),
    "towers of two CLIPs": ("clip", shrink("text_projection.weight"), ("do not fit", "gives 15 values", "gives 16 values")),
    "a tower's projection": (
        "clip", shrink("vision_model.post_layernorm.weight"), ("'visual_projection.weight' takes 16", "its tower gives 15"),
    ),
    "damaged CLIP": (
        "clip", lambda f: (f / "model.safetensors").write_bytes(b"0" * 20), ("model.safetensors is damaged",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", SCORERS)
def test_scorers_of_another_kind_are_refused(fault: str, scorers: tuple[Path, Path], tmp_path: Path) -> None:
    which, spoil, said = SCORERS[fault]
    dino, clip = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in scorers)
    check_scorers(str(dino), str(clip))
    spoiled = {"dino": dino, "clip": clip}[which]
    spoil(spoiled)
    with pytest.raises(BadInput) as error:
        check_scorers(str(dino), str(clip))
    line = one_line(error)
    assert str(spoiled) in line
    for text in said:
        assert text in line


def test_scorers_in_each_others_place_are_refused(scorers: tuple[Path, Path]) -> None:
    dino, clip = map(str, scorers)
    with pytest.raises(BadInput, match=r"--dino .* is of type 'clip'; allowed: a ViT"):
        check_scorers(clip, clip)
    with pytest.raises(BadInput, match=r"--clip .* is of type 'vit'; allowed: a CLIP of two towers"):
        check_scorers(dino, dino)


def test_a_hub_ids_cached_configuration_is_looked_at(
    scorers: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not on this machine is left to the workers; what is, is checked like a folder."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    check_scorers("org/dino", "org/clip")
    repository = tmp_path / "models--org--dino"
    shutil.copytree(scorers[1], repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    with pytest.raises(BadInput, match="--dino org/dino is of type 'clip'"):
        check_scorers("org/dino", "org/clip")
