"""Tiny pipelines with random weights of every kind that is trained, written by diffusers' own `save_pretrained`.

Each has what sets its kind apart: Stable Diffusion 2.1 another text encoder, linear projections, heads that differ from block
to block and a velocity to predict; SDXL two text encoders, and a U-Net that is also told the prompt as a whole and sizes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.make_pipeline import make_tokenizer

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WITHOUT_CHECKER: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def make_sd15_like(folder: Path) -> Path:
    """Stable Diffusion 1.5: PNDM's configuration, noise to predict."""
    tokenizer = load_tokenizer(folder / "tokenizer")
    text = CLIPTextModel(text_config(tokenizer, 32, "quick_gelu"))
    unet = make_unet(cross_attention_dim=32, attention_head_dim=2, layers_per_block=1)
    scheduler = PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    return save(folder, StableDiffusionPipeline(make_vae(0.18215), text, tokenizer, unet, scheduler, **WITHOUT_CHECKER))


def make_sd21_like(folder: Path) -> Path:
    """Stable Diffusion 2.1 at 768 pixels: OpenCLIP's text encoder, linear projections, velocity to predict."""
    tokenizer = load_tokenizer(folder / "tokenizer", pad=".")
    text = CLIPTextModel(text_config(tokenizer, 48, "gelu"))
    unet = make_unet(
        cross_attention_dim=48, attention_head_dim=(2, 4, 8), use_linear_projection=True, layers_per_block=1
    )
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1,
                              prediction_type="v_prediction")  # fmt: skip
    return save(folder, StableDiffusionPipeline(make_vae(0.18215), text, tokenizer, unet, scheduler, **WITHOUT_CHECKER))


def make_sdxl_like(folder: Path, *, force_zeros: bool = True, **changes: object) -> Path:
    """SDXL's base: two text encoders and tokenizers, added conditions, up to two transformers in a row.

    Args:
        folder: where it goes.
        force_zeros: whether guidance leads away from zeros.
        changes: of the U-Net's configuration.
    """
    tokenizers = load_tokenizer(folder / "tokenizer"), load_tokenizer(folder / "tokenizer_2", pad=".")
    texts = (CLIPTextModel(text_config(tokenizers[0], 32, "quick_gelu")),
             CLIPTextModelWithProjection(text_config(tokenizers[1], 24, "gelu", projection_dim=20)))  # fmt: skip
    setting: dict[str, Any] = {
        "cross_attention_dim": 32 + 24, "attention_head_dim": (2, 4, 8), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 20, "transformer_layers_per_block": (1, 1, 2),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)
    pipe = StableDiffusionXLPipeline(
        make_vae(0.13025), *texts, *tokenizers, make_unet(**(setting | changes)), scheduler,
        force_zeros_for_empty_prompt=force_zeros, add_watermarker=False,
    )  # fmt: skip
    return save(folder, pipe)


KINDS: dict[str, Callable[[Path], Path]] = {"sd15": make_sd15_like, "sd21": make_sd21_like, "sdxl": make_sdxl_like}


def save(folder: Path, pipe: Any) -> Path:
    """Write a pipeline with weights drawn anew, so that none is diffusers' zero."""
    draw = torch.Generator().manual_seed(0)
    for part in pipe.components.values():
        for parameter in part.parameters() if isinstance(part, torch.nn.Module) else ():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=draw)
    pipe.save_pretrained(folder)
    return folder


def make_unet(**setting: Any) -> UNet2DConditionModel:
    """Three levels, of which those with attention are the first two unless they are named."""
    torch.manual_seed(0)
    setting = {"layers_per_block": 2} | setting
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
              "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")}  # fmt: skip
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 32, 64), norm_num_groups=8,
        **(blocks | setting),
    )  # fmt: skip


def make_vae(scaling_factor: float) -> AutoencoderKL:
    """Two pixels a latent."""
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4, norm_num_groups=4, sample_size=16, scaling_factor=scaling_factor,
    )  # fmt: skip


def load_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """The tokenizer of a few words, which fills up with a token of its own: Stable Diffusion 2's and SDXL's take "!"."""
    make_tokenizer(folder)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token": pad}))
    return CLIPTokenizer.from_pretrained(folder)


def text_config(tokenizer: CLIPTokenizer, width: int, act: str, projection_dim: int = 16) -> CLIPTextConfig:
    """Two layers, so that the last but one is another than the last."""
    torch.manual_seed(width)
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, hidden_act=act, projection_dim=projection_dim,
        bos_token_id=0, eos_token_id=1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
