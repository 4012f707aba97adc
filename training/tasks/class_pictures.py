"""Make class pictures for DreamBooth's prior preservation once, with the base model, and keep them as latents."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save as to_bytes
from torch import Tensor

from adapters.tensor_file import DamagedTensors, open_safetensors
from training.cell import Cell
from training.seeds import seed_of
from training.store import writing
from training.tasks.pipeline import Pipeline
from training.tasks.sampling import sample, start_noise

CHUNK = 64


def class_latents(pipeline: Pipeline, cls: str, cell: Cell, folder: Path) -> Float[Tensor, "n c h w"]:
    """Latents of `cell.num_class_images` pictures of a class, from the cache or made now.

    Args:
        pipeline: the model, without adapters.
        cls: the class in words.
        cell: says how many, at what resolution, and by which sampler setting.
        folder: where they are kept.
    """
    sampler: tuple = (cell.num_inference_steps, cell.guidance_scale, cell.resolution)
    if cell.mixed_precision != "no":
        sampler += (cell.mixed_precision,)
    key = hashlib.sha256(repr((cls, cell.num_class_images, sampler, cell.model_hash)).encode()).hexdigest()[:12]
    path = folder / f"{cls.replace(' ', '_').replace('/', '_')[:60]}-{cell.num_class_images}-{key}.safetensors"
    try:
        with open_safetensors(path) as file:
            kept: Tensor = file.get_tensor("latents")
        return kept.to(pipeline.device)
    except DamagedTensors:
        latents = _make(pipeline, f"a {cls}", cell)
        with writing(path) as aside:
            aside.write_bytes(to_bytes({"latents": latents.cpu().contiguous()}, {"class": cls}))
        return latents


def _make(pipeline: Pipeline, prompt: str, cell: Cell) -> Float[Tensor, "n c h w"]:
    text = pipeline.encode_text([prompt])
    made = []
    for start in range(0, cell.num_class_images, CHUNK):
        count = min(CHUNK, cell.num_class_images - start)
        noise = start_noise(pipeline, [seed_of("class", prompt, start + i) for i in range(count)], cell.resolution)
        context = text.expand(1, count)
        steps, guidance, precision = cell.num_inference_steps, cell.guidance_scale, cell.mixed_precision
        made.append(sample(pipeline, context, noise, steps=steps, guidance=guidance, mixed_precision=precision)[0])
    return torch.cat(made)
