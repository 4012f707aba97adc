"""Sample pictures from a packed U-Net: all replicas' prompts and noises pass through it together."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from training.accelerator import autocast
from training.tasks.pipeline import Pipeline
from training.tasks.text import Text


def start_noise(pipeline: Pipeline, seeds: list[int], resolution: int) -> Float[Tensor, "n c h w"]:
    """One starting latent for each seed, drawn on the CPU, so that every device starts from the same."""
    side = resolution // pipeline.vae_factor
    shape = (pipeline.unet.config.in_channels, side, side)
    draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws).to(pipeline.device)


@torch.no_grad()
def sample(
    pipeline: Pipeline,
    text: Text,
    noise: Float[Tensor, "n c h w"],
    *,
    steps: int,
    guidance: float,
    mixed_precision: str = "no",
) -> Float[Tensor, "k n c h w"]:
    """Latents by DPM-Solver++ (arXiv 2211.01095) with classifier-free guidance (arXiv 2207.12598).

    Args:
        text: embeddings of the n prompts of each of k replicas.
        noise: starting latents, the same for every replica.
        steps: sampler steps.
        guidance: weight of the guidance; 1 switches it off.
        mixed_precision: "no", or "bf16" for the U-Net's passes; the sampler itself stays in the latents' precision.
    """
    from diffusers import DPMSolverMultistepScheduler

    k, n = text.places
    scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler_config)
    scheduler.set_timesteps(steps, device=pipeline.device)
    latents = (noise * scheduler.init_noise_sigma).expand(k, *noise.shape).flatten(0, 1)
    context = text
    if guidance != 1:
        context = Text.cat([pipeline.encode_empty().expand(k, n), text], dim=1)
    context = context.flatten()
    for step in scheduler.timesteps:
        rows = latents.unflatten(0, (k, n))
        doubled = rows if guidance == 1 else torch.cat([rows, rows], dim=1)
        inputs = scheduler.scale_model_input(doubled.flatten(0, 1), step)
        with autocast(pipeline.device, mixed_precision):
            output = pipeline.predict(inputs, step, context)
        output = output.to(latents.dtype).unflatten(0, (k, -1))
        if guidance != 1:
            unconditional, conditional = output.chunk(2, dim=1)
            output = unconditional + guidance * (conditional - unconditional)
        latents = scheduler.step(output.flatten(0, 1), step, latents).prev_sample
    return latents.unflatten(0, (k, n))
