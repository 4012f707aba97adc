"""Stage ``vae``: an AutoencoderKL of factor 8, trained on every training picture and composition.

Loss: the logarithm of each picture's squared error, which is its signal-to-noise ratio, the error of its edges, and a KL
term that lets the latents bear some noise. An absolute error alone forgets what is small: eyes, whiskers, strings.
"""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from tools.pocket.linear_code import psnr_db
from tools.pocket.pictures import TRAIN_VENDORS, PictureSet
from tools.pocket.runs import StageRun, faster_precision, precision, seeded
from tools.pocket.studio import Studio
from tools.pocket.subjects import photograph
from tools.pocket.views import premultiply

LATENT_CHANNELS = 32
EDGE_WEIGHT = 0.2
KL_WEIGHT = 0.01  # about the share of the squared error that the latents' noise may make
FLOOR = 1e-5  # squared error (56 dB) below which a picture counts as perfect
CHECK_EVERY = 500  # steps between looks at the pictures kept aside
NAMED_JITTER = {"shift": 4.0, "zoom": 0.12, "turn": 0.08, "flip": 0.0, "light": 0.1}
WILD_JITTER = {"shift": 5.0, "zoom": 0.0, "turn": 0.1, "flip": 0.5, "light": 0.12}


def make_vae(seed: int = 0, latent_channels: int = LATENT_CHANNELS) -> AutoencoderKL:
    """The untrained autoencoder: 64 x 64 x 3 to 8 x 8 x channels and back; narrow where the picture is large."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 96, 192),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    ).to(memory_format=torch.channels_last)


def kept_aside(pictures: PictureSet) -> np.ndarray:
    """Mask of one code in 32 that is no class: its pictures train no autoencoder, so that progress can be judged on them."""
    chosen = np.array([zlib.crc32(str(code).encode()) % 32 == 0 for code in pictures.codes])
    return chosen & ~pictures.is_class


def split_pictures(pictures: PictureSet) -> tuple[Studio, Float[Tensor, "b 3 64 64"]]:
    """A studio of the training vendors' pictures, and two photographs each of those kept aside."""
    known = pictures.of(*TRAIN_VENDORS)
    aside = premultiply(torch.from_numpy(known.where(kept_aside(known)).pixels))
    photographs = [photograph(rgba[None], 1000 + i)[::3] for i, rgba in enumerate(aside)]
    return Studio(known.where(~kept_aside(known)), known), torch.cat(photographs)


def differences(image: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
    """Neighbouring pixels' differences, down and across."""
    return image.diff(dim=2), image.diff(dim=3)


def reconstruction_loss(made: Float[Tensor, "b 3 h w"], real: Float[Tensor, "b 3 h w"]) -> Tensor:
    """Mean logarithm of the pictures' root mean squared error, and with EDGE_WEIGHT the same of their edges."""
    error = made - real
    down, across = (d.square().mean((1, 2, 3)) for d in differences(error))
    return (
        0.5
        * (torch.log(error.square().mean((1, 2, 3)) + FLOOR) + EDGE_WEIGHT * torch.log(down + across + FLOOR)).mean()
    )


def draw_batch(studio: Studio, size: int, seed: int, step: int) -> Float[Tensor, "b 3 64 64"]:
    """Half any picture photographed as subjects are, a quarter compositions of the classes, a quarter recoloured."""
    g, rng = seeded(seed, step), random.Random(seed * 7919 + step)
    every, of_class = range(len(studio.rgba)), studio.pictures.is_class.nonzero()[0].tolist()
    quarter = size // 4
    photographs = studio.paint_wild(rng.choices(every, k=size - 2 * quarter), g, (0.6, 0.95), WILD_JITTER, 0.6)
    named = studio.paint(rng.choices(of_class, k=quarter), studio.compositions(quarter, rng), g, NAMED_JITTER)
    wild = studio.paint_wild(rng.choices(every, k=quarter), g, (0.5, 1.0), WILD_JITTER, 0.2)
    batch = torch.cat([photographs, named, recolour(wild, g)])
    return batch.contiguous(memory_format=torch.channels_last)


def recolour(image: Float[Tensor, "b 3 h w"], g: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Exchange the colour channels, turn some to the negative and half to flat colours, as other vendors draw."""
    size = len(image)
    order = torch.rand(size, 3, generator=g).argsort(1)[:, :, None, None].expand_as(image)
    sign = torch.where(torch.rand(size, 3, 1, 1, generator=g) < 0.3, -1.0, 1.0)
    levels = torch.randint(3, 7, (size, 1, 1, 1), generator=g) / 2
    mixed = image.gather(1, order) * sign
    flat = torch.rand(size, 1, 1, 1, generator=g) < 0.5
    return torch.where(flat, (mixed * levels).round() / levels, mixed).clamp(-1, 1)


def vae_loss(vae: AutoencoderKL, image: Float[Tensor, "b 3 64 64"], g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Total loss, and the reconstruction's part."""
    posterior = vae.encode(image).latent_dist
    latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=g)
    reconstruction = reconstruction_loss(vae.decode(latents).sample.float(), image)
    kl = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    return reconstruction + KL_WEIGHT * kl, reconstruction


@torch.no_grad()
def round_trip(vae: AutoencoderKL, images: Float[Tensor, "b 3 64 64"]) -> Float[Tensor, "b 3 64 64"]:
    """Encode to the latents' means and decode."""
    return torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1) for part in images.split(32)])


def train_vae(
    pictures: PictureSet, work: Path, *, num_steps: int, seed: int = 0, batch_size: int = 16
) -> AutoencoderKL:
    """Train (or go on training) and return the averaged autoencoder with its scaling factor set."""
    studio, aside = split_pictures(pictures)
    vae = make_vae(seed)
    run = StageRun(work / "vae", vae, num_steps=num_steps, lr=1.5e-3, muon=True, ema=0.998, weight_decay=0.0)
    first = draw_batch(studio, batch_size, seed, 0)
    dtype = faster_precision(lambda: vae_loss(vae, first, seeded(seed, 0))[0].backward())
    for step in run.steps():
        with precision(dtype):
            loss, reconstruction = vae_loss(vae, draw_batch(studio, batch_size, seed, step), seeded(seed + 1, step))
        run.update(loss, reconstruction=reconstruction)
        if step % CHECK_EVERY == CHECK_EVERY - 1:
            with run.averaged():
                run.log(aside_db=psnr_db(round_trip(vae, aside), aside).mean().item())
    vae = run.use_average()
    vae.register_to_config(scaling_factor=1 / measure_std(vae, studio, seed))
    vae.save_pretrained(work / "vae" / "model")
    return vae


@torch.no_grad()
def measure_std(vae: AutoencoderKL, studio: Studio, seed: int) -> float:
    """Standard deviation of the latents over 256 training views."""
    return float(vae.encode(draw_batch(studio, 256, seed + 2, 0)).latent_dist.mean.std())
