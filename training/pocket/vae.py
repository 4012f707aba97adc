"""Stage ``vae``: an AutoencoderKL of factor 8 with 24 channels, trained on every training picture and composition.

Loss: L1 of pixels and of their differences, plus a small KL term that keeps the latents smooth.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from training.pocket.runs import Run, faster_precision, precision, seeded
from training.pocket.studio import Studio

KL_WEIGHT = 3e-4
NAMED_JITTER = {"shift": 4.0, "zoom": 0.12, "turn": 0.08, "flip": 0.0, "light": 0.1}
WILD_JITTER = {"shift": 5.0, "zoom": 0.0, "turn": 0.1, "flip": 0.5, "light": 0.1}


def make_vae(seed: int = 0) -> AutoencoderKL:
    """The untrained autoencoder: 64 x 64 x 3 to 8 x 8 x 24 and back."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 80),
        layers_per_block=1,
        latent_channels=24,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    ).to(memory_format=torch.channels_last)


def differences(image: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
    """Neighbouring pixels' differences, down and across."""
    return image.diff(dim=2), image.diff(dim=3)


def reconstruction_loss(made: Float[Tensor, "b 3 h w"], real: Float[Tensor, "b 3 h w"]) -> Tensor:
    """L1 of pixels, of edges, and of the picture at half size."""
    edges = sum(F.l1_loss(a, b) for a, b in zip(differences(made), differences(real), strict=True))
    coarse = F.l1_loss(F.avg_pool2d(made, 4), F.avg_pool2d(real, 4))
    return F.l1_loss(made, real) + edges + coarse + F.mse_loss(made, real)


def draw_batch(studio: Studio, size: int, seed: int, step: int) -> Float[Tensor, "b 3 64 64"]:
    """Five in eight are named compositions of the classes' pictures, the others any picture on any background."""
    g, rng = seeded(seed, step), random.Random(seed * 7919 + step)
    of_class = studio.pictures.is_class.nonzero()[0].tolist()
    count = size * 5 // 8
    named = studio.paint(rng.choices(of_class, k=count), studio.compositions(count, rng), g, NAMED_JITTER)
    every = rng.choices(range(len(studio.rgba)), k=size - count)
    return torch.cat([named, studio.paint_wild(every, g, (0.5, 1.0), WILD_JITTER)])


def vae_loss(vae: AutoencoderKL, image: Float[Tensor, "b 3 64 64"], g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Total loss, and the reconstruction's part."""
    posterior = vae.encode(image).latent_dist
    latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=g)
    reconstruction = reconstruction_loss(vae.decode(latents).sample.float(), image)
    kl = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    return reconstruction + KL_WEIGHT * kl, reconstruction


def train_vae(studio: Studio, work: Path, *, time_min: float, seed: int = 0, batch_size: int = 16) -> AutoencoderKL:
    """Train (or go on training) and return the averaged autoencoder with its scaling factor set."""
    vae = make_vae(seed)
    run = Run(work / "vae", vae, time_min=time_min, lr=1.5e-3, ema=0.995, weight_decay=0.0)
    image = draw_batch(studio, batch_size, seed, 0)
    dtype = faster_precision(lambda: vae_loss(vae, image, seeded(seed, 0))[0].backward())
    for step in run.steps():
        image = draw_batch(studio, batch_size, seed, step).contiguous(memory_format=torch.channels_last)
        with precision(dtype):
            loss, reconstruction = vae_loss(vae, image, seeded(seed + 1, step))
        run.update(loss, reconstruction=reconstruction)
    vae = run.use_average()
    vae.register_to_config(scaling_factor=1 / measure_std(vae, studio, seed))
    vae.save_pretrained(work / "vae" / "model")
    return vae


def train_decoder(studio: Studio, work: Path, *, time_min: float, seed: int = 0, batch_size: int = 16) -> AutoencoderKL:
    """Go on with the decoder alone, on the latents' means: the U-Net's latents stay what they are."""
    vae = AutoencoderKL.from_pretrained(work / "vae" / "model").to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    run = Run(work / "decoder", vae, time_min=time_min, lr=8e-4, ema=0.995, weight_decay=0.0)

    def loss_of(image: Tensor) -> Tensor:
        with torch.no_grad():
            latents = vae.encode(image).latent_dist.mean
        return reconstruction_loss(vae.decode(latents).sample.float(), image)

    first = draw_batch(studio, batch_size, seed, 0)
    dtype = faster_precision(lambda: loss_of(first).backward())
    for step in run.steps():
        image = draw_batch(studio, batch_size, seed + 17, step).contiguous(memory_format=torch.channels_last)
        with precision(dtype):
            loss = loss_of(image)
        run.update(loss)
    vae = run.use_average()
    vae.save_pretrained(work / "decoder" / "model")
    return vae


@torch.no_grad()
def measure_std(vae: AutoencoderKL, studio: Studio, seed: int) -> float:
    """Standard deviation of the latents over 256 training views."""
    return float(vae.encode(draw_batch(studio, 256, seed + 2, 0)).latent_dist.mean.std())
