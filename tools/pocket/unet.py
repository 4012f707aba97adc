"""Stage ``unet``: a UNet2DConditionModel on 8 x 8 latents, conditioned on the frozen text tower.

v-prediction with min-SNR weighting (Hang et al. 2023, arXiv 2303.09556), caption dropout for guidance, EMA. All views are
painted and encoded once; training reads latents and text states only.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from tools.pocket.runs import StageRun, faster_precision, precision, seeded
from tools.pocket.studio import Studio
from tools.pocket.tokenizer import encode
from tools.pocket.vae import LATENT_CHANNELS

JITTER = {"shift": 1.5, "zoom": 0.03, "turn": 0.0, "flip": 0.0, "light": 0.03}
VIEWS_PER_PICTURE = 160
SNR_CAP = 5.0
CAPTION_DROPOUT = 0.1


def make_unet(cross_attention_dim: int, seed: int = 0) -> UNet2DConditionModel:
    """The untrained U-Net: two levels, attention in the down, mid and up blocks."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(128, 192),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=16,
        cross_attention_dim=cross_attention_dim,
    )


def make_scheduler() -> DDPMScheduler:
    """The noise schedule: cosine betas, v-prediction."""
    return DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False
    )


@dataclass
class Views:
    """Every training view, encoded once.

    latents: scaled, half precision. caption: row of ``states`` for each view. states: the text tower's output; row 0 is "".
    """

    latents: Float[Tensor, "n c 8 8"]
    caption: Int[Tensor, " n"]
    states: Float[Tensor, "c 24 d"]


@torch.no_grad()
def encode_text(text: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]) -> Float[Tensor, "c 24 d"]:
    """Text states as the pipeline makes them, in half precision."""
    ids = encode(tokenizer, captions)
    return torch.cat([text(input_ids=part).last_hidden_state.half() for part in ids.split(256)])


@torch.no_grad()
def encode_views(studio: Studio, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer, seed: int) -> Views:
    """Paint and encode VIEWS_PER_PICTURE random compositions of every picture of the studio."""
    rng, latents, captions = random.Random(seed), [], []
    order = list(range(len(studio.rgba))) * VIEWS_PER_PICTURE
    for start in range(0, len(order), 128):
        indices = order[start : start + 128]
        compositions = studio.compositions(len(indices), rng)
        images = studio.paint(indices, compositions, seeded(seed, start), JITTER)
        latents.append((vae.encode(images).latent_dist.mean * vae.config.scaling_factor).half())
        captions += studio.captions(indices, compositions)
    unique = ["", *sorted(set(captions))]
    row = {caption: i for i, caption in enumerate(unique)}
    states = encode_text(text, tokenizer, unique)
    return Views(torch.cat(latents), torch.tensor([row[c] for c in captions]), states)


def load_frozen(work: Path) -> tuple[AutoencoderKL, CLIPTextModel, CLIPTokenizer]:
    """What the U-Net is trained on top of, as the earlier stages left it."""
    vae = AutoencoderKL.from_pretrained(work / "vae" / "model")
    clip = work / "clip" / "model"
    return vae.eval(), CLIPTextModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)


def view_cache(
    studio: Studio, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer, work: Path, *, seed: int
) -> Views:
    """``encode_views``, made once and kept at ``work/views.safetensors``."""
    path = work / "views.safetensors"
    if not path.exists():
        save_file(vars(encode_views(studio, vae, text, tokenizer, seed)), path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)
    return Views(**load_file(path))


def draw_batch(views: Views, size: int, seed: int, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, noise, timesteps, text states (some rows with the empty caption)."""
    g = seeded(seed, step)
    pick = torch.randint(len(views.latents), (size,), generator=g)
    caption = torch.where(torch.rand(size, generator=g) < CAPTION_DROPOUT, 0, views.caption[pick])
    latents = views.latents[pick].float()
    noise = torch.randn(latents.shape, generator=g)
    strata = (torch.arange(size) + torch.rand(size, generator=g)) / size
    return latents, noise, (strata * 1000).long(), views.states[caption].float()


def diffusion_loss(unet: UNet2DConditionModel, scheduler: DDPMScheduler, batch: tuple) -> Tensor:
    """v-prediction error, weighted by min(SNR, cap) / (SNR + 1)."""
    latents, noise, timesteps, states = batch
    noisy = scheduler.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
    target = scheduler.get_velocity(latents, noise, timesteps)
    error = (unet(noisy, timesteps, states).sample.float() - target).square().mean((1, 2, 3))
    alpha = scheduler.alphas_cumprod[timesteps]
    snr = alpha / (1 - alpha)
    return (error * snr.clamp(max=SNR_CAP) / (snr + 1)).mean() * 2


def train_unet(
    views: Views, work: Path, *, num_steps: int, seed: int = 0, batch_size: int = 64, lr: float = 1e-3
) -> UNet2DConditionModel:
    """Train (or go on training) and return the averaged U-Net."""
    unet = make_unet(views.states.shape[-1], seed).to(memory_format=torch.channels_last)
    unet.set_attn_processor(AttnProcessor())  # the fused kernel's backward pass is slower than this in bfloat16 on CPUs
    scheduler = make_scheduler()
    run = StageRun(work / "unet", unet, num_steps=num_steps, lr=lr, ema=0.999)
    first = draw_batch(views, batch_size, seed, 0)
    dtype = faster_precision(lambda: diffusion_loss(unet, scheduler, first).backward())
    for step in run.steps():
        with precision(dtype):
            loss = diffusion_loss(unet, scheduler, draw_batch(views, batch_size, seed, step))
        run.update(loss)
    unet = run.use_average()
    unet.save_pretrained(work / "unet" / "model")
    return unet
