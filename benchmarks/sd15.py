"""Stable Diffusion 1.5 with random weights: the published configuration, at full width or narrower.

At full width it has the real one's parameters (859,520,964 in the U-Net, of which 128 attention matrices in 6 shapes), and so
its memory, its speed and its file formats. What it draws is noise: nothing about a method's quality can be learned from it.
Narrower, it keeps every name and the depth, and every width is a multiple of 32.
"""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from training.tasks.pipeline import POCKET_MODEL

NUM_PARAMETERS = 859_520_964  # of the U-Net
CHANNELS = (320, 640, 1280, 1280)
VAE_CHANNELS = (128, 256, 512, 512)
TEXT_WIDTH, TEXT_HEADS, NUM_TOKENS, NUM_POSITIONS = 768, 12, 49408, 77


def make_sd15(
    folder: Path, width: Fraction | int = 1, *, text_layers: int = 12, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a pipeline folder in the diffusers layout; the tokenizer is the pocket's, whose ids are all below 49,408.

    Args:
        folder: where `unet/ vae/ text_encoder/ tokenizer/ scheduler/ model_index.json` go.
        width: share of the published widths, 1/10 or a multiple of it; the VAE's and the text encoder's are at least 32.
        text_layers: layers of the text encoder (12 in the real one).
        dtype: of the stored weights.

    Returns:
        The folder.
    """
    from diffusers import PNDMScheduler

    torch.manual_seed(0)
    parts = {"unet": make_unet(width), "vae": make_vae(width), "text_encoder": make_text_encoder(width, text_layers)}
    for name, part in parts.items():
        part.to(dtype=dtype).save_pretrained(folder / name)
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    shutil.copytree(POCKET_MODEL / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=1), encoding="utf-8")
    return folder


def make_unet(width: Fraction | int = 1) -> Any:
    """The U-Net of `runwayml/stable-diffusion-v1-5`'s `unet/config.json`."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=64, in_channels=4, out_channels=4, layers_per_block=2, attention_head_dim=8,
        block_out_channels=tuple(_narrow(channels, width) for channels in CHANNELS),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, cross_attention_dim=_text_width(width),
    )  # fmt: skip


def make_vae(width: Fraction | int = 1) -> Any:
    """The VAE of its `vae/config.json`."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=tuple(_narrow(channels, width) for channels in VAE_CHANNELS), layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4,
        sample_size=512, scaling_factor=0.18215,
    )  # fmt: skip


def make_text_encoder(width: Fraction | int = 1, layers: int = 12) -> Any:
    """The text tower of CLIP ViT-L/14, as its `text_encoder/config.json` has it."""
    from transformers import CLIPTextConfig, CLIPTextModel

    hidden = _text_width(width)
    heads = TEXT_HEADS if hidden % TEXT_HEADS == 0 else 4
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=NUM_TOKENS, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
            num_attention_heads=heads, max_position_embeddings=NUM_POSITIONS, projection_dim=hidden,
        )
    )  # fmt: skip


def _narrow(channels: int, width: Fraction | int) -> int:
    """A width that group norms of 32 groups and 8 heads divide."""
    return max(32, int(channels * width) // 32 * 32)


def _text_width(width: Fraction | int) -> int:
    """Rounded up, so that it is none of the U-Net's own widths, as in the real one."""
    return -(-int(TEXT_WIDTH * width) // 32) * 32


INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
}
