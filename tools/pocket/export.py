"""Stage ``export``: put the trained parts into this folder, float16 on disk, in the layout that ``from_pretrained`` reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer, ViTModel

from tools.pocket import clip as clip_stage
from tools.pocket import dino as dino_stage
from tools.pocket.runs import checkpoint_path, read_group
from tools.pocket.unet import make_scheduler, make_unet
from training.tasks.pipeline import POCKET

DEFAULTS = {
    "num_inference_steps": 8,
    "guidance_scale": 4.0,
    "resolution": 64,
    "instance_prompt": "a {token} {cls}",
}


def sampler() -> DPMSolverMultistepScheduler:
    """The pipeline's scheduler: DPM-Solver++ (2M) over the training schedule."""
    return DPMSolverMultistepScheduler.from_config(make_scheduler().config, **SAMPLER)


SAMPLER = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "timestep_spacing": "trailing",
    "lambda_min_clipped": -5.1,
}


def assemble(work: Path) -> StableDiffusionPipeline:
    """The pipeline of the trained parts, in float32; the U-Net is the average of the newest checkpoint."""
    clip = work / "clip" / "model"
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae" / "model"),
        text_encoder=CLIPTextModel.from_pretrained(clip, dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(clip),
        unet=newest_unet(work),
        scheduler=sampler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def newest_unet(work: Path) -> UNet2DConditionModel:
    """The averaged U-Net of ``work/unet``'s checkpoint, also while it is still training; without one, the stage's model."""
    if not checkpoint_path(work / "unet").exists():
        return UNet2DConditionModel.from_pretrained(work / "unet" / "model")
    average = read_group(checkpoint_path(work / "unet"), "ema")
    unet = make_unet(average["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"].shape[1])
    unet.load_state_dict(average)
    return unet


def export(work: Path, target: Path = POCKET) -> dict[str, float]:
    """Write pipeline, clip and dino under ``target``; returns megabytes per part."""
    for name in ("pipeline", "clip", "dino"):
        shutil.rmtree(target / name, ignore_errors=True)
    assemble(work).to(torch.float16).save_pretrained(target / "pipeline")
    clip = work / "clip_vision" / "model"
    clip_stage.save_clip(CLIPModel.from_pretrained(clip).half(), CLIPTokenizer.from_pretrained(clip), target / "clip")
    ViTModel.from_pretrained(work / "dino" / "model", add_pooling_layer=False).half().save_pretrained(target / "dino")
    dino_stage.image_processor().save_pretrained(target / "dino")
    load_as_float32(target)
    drop_local_paths(target)
    (target / "defaults.json").write_text(json.dumps(DEFAULTS, indent=1) + "\n", encoding="utf-8")
    return weigh(target)


def load_as_float32(target: Path, parts: Sequence[str] = ("pipeline/text_encoder", "clip", "dino")) -> None:
    """Say float32 in the configs of transformers' models, so that they load in float32 from the float16 file."""
    for part in parts:
        path = target / part / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        for section in (config, config.get("text_config"), config.get("vision_config")):
            if section is not None:
                section["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def drop_local_paths(target: Path) -> None:
    """Take out of the configs where on this machine a part came from."""
    for path in target.rglob("*config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def weigh(target: Path) -> dict[str, float]:
    """Megabytes of weights per part, and in all."""
    sizes = {
        str(path.relative_to(target).parent): path.stat().st_size / 1e6
        for path in sorted(target.rglob("*.safetensors"))
    }
    return sizes | {"all": sum(sizes.values())}
