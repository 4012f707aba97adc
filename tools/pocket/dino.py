"""Stage ``dino``: a small ViT whose CLS token says which picture it sees, wherever that stands.

Self-supervised: two photographs of one picture (other background, scale, place, turn, light) attract, all other pictures
of the batch repel (InfoNCE, van den Oord et al. 2018, arXiv 1807.03748). No name is used. The held-out vendor is not seen.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from tools.pocket.runs import StageRun, faster_precision, precision, seeded
from tools.pocket.studio import Studio

JITTER = {"shift": 6.0, "zoom": 0.1, "turn": 0.15, "flip": 0.2, "light": 0.15}
SCALE = (0.45, 1.05)
NAMED = 0.5  # share of named scenes: the subjects are photographed on them
TEMPERATURE = 0.07


def make_dino(seed: int = 0) -> ViTModel:
    """The untrained ViT for 64 x 64 pictures."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=128, num_hidden_layers=5, num_attention_heads=4, intermediate_size=512, image_size=64, patch_size=8
    )
    return ViTModel(config, add_pooling_layer=False)


def image_processor() -> ViTImageProcessorPil:
    """Pictures of any size to 64 x 64 in [-1, 1]."""
    half = [0.5, 0.5, 0.5]
    return ViTImageProcessorPil(size={"height": 64, "width": 64}, image_mean=half, image_std=half)


def embed(dino: ViTModel, images: Float[Tensor, "b 3 64 64"]) -> Float[Tensor, "b d"]:
    """The CLS token, L2-normalised, as with facebook/dino-vits16."""
    return F.normalize(dino(pixel_values=images).last_hidden_state[:, 0].float(), dim=-1)


def draw_pair(studio: Studio, size: int, seed: int, step: int) -> Float[Tensor, "2b 3 64 64"]:
    """Two photographs each of ``size`` different pictures."""
    g = seeded(seed, step)
    pick = torch.randperm(len(studio.rgba), generator=g)[:size].tolist()
    return torch.cat([studio.paint_wild(pick, g, SCALE, JITTER, NAMED) for _ in range(2)])


def contrast(embedding: Float[Tensor, "2b d"]) -> Tensor:
    """InfoNCE over the 2b photographs."""
    size = len(embedding) // 2
    logits = (embedding @ embedding.T / TEMPERATURE).masked_fill(torch.eye(2 * size, dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits, torch.arange(2 * size).roll(size))


def train_dino(studio: Studio, work: Path, *, num_steps: int, seed: int = 0, batch_size: int = 96) -> ViTModel:
    """Train (or go on training) and save the averaged ViT with its image processor."""
    dino = make_dino(seed)
    run = StageRun(work / "dino", dino, num_steps=num_steps, lr=1.5e-3, ema=0.99, weight_decay=0.05)
    images = draw_pair(studio, batch_size, seed, 0)
    dtype = faster_precision(lambda: contrast(embed(dino, images)).backward())
    for step in run.steps():
        with precision(dtype):
            loss = contrast(embed(dino, draw_pair(studio, batch_size, seed, step)))
        run.update(loss)
    dino = run.use_average()
    dino.save_pretrained(work / "dino" / "model")
    image_processor().save_pretrained(work / "dino" / "model")
    return dino
