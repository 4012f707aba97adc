"""Stage ``dino``: a small ViT whose CLS token says which picture it sees, wherever that stands.

Self-supervised, as tools.pocket.likeness says. No name is used. The held-out vendor is not seen.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from tools.pocket.likeness import Likeness, LikenessBatch
from tools.pocket.runs import StageRun, faster_precision, precision


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


def train_dino(likeness: Likeness, work: Path, *, num_steps: int, seed: int = 0, batch_size: int = 96) -> ViTModel:
    """Train (or go on training) and save the averaged ViT with its image processor."""
    dino = make_dino(seed)
    dino.set_attn_implementation("eager")  # the fused kernel's backward pass takes most of a step in bfloat16 on CPUs
    run = StageRun(work / "dino", dino, num_steps=num_steps, lr=1.5e-3, ema=0.99, weight_decay=0.05)

    def loss_of(batch: LikenessBatch) -> Tensor:
        return likeness.loss(embed(dino, torch.cat([batch.views, batch.distractors])), batch, run.progress)

    first = likeness.draw(batch_size, seed, 0)
    dtype = faster_precision(lambda: loss_of(first).backward())
    for step in run.steps():
        with precision(dtype):
            loss = loss_of(likeness.draw(batch_size, seed, step))
        run.update(loss)
    dino = run.use_average()
    dino.save_pretrained(work / "dino" / "model")
    image_processor().save_pretrained(work / "dino" / "model")
    return dino
