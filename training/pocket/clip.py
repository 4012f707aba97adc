"""Stage ``clip``: a small CLIP; its text tower becomes the pipeline's text encoder, as in Stable Diffusion 1.5.

A batch holds class pictures in named compositions (so that backgrounds, sizes and styles must be read) and other pictures
on named or random backgrounds (so that the subject must be read wherever it stands).
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from training.pocket.captions import Composition, corpus
from training.pocket.runs import Run, faster_precision, precision, seeded
from training.pocket.studio import Studio
from training.pocket.tokenizer import MAX_LENGTH, encode, train_tokenizer

JITTER = {"shift": 5.0, "zoom": 0.15, "turn": 0.15, "flip": 0.5, "light": 0.15}
WIDTH = 128


def make_clip(tokenizer: CLIPTokenizer, seed: int = 0) -> CLIPModel:
    """The untrained CLIP for 64 x 64 pictures and captions of up to 24 tokens."""
    torch.manual_seed(seed)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=144,
        intermediate_size=576,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        projection_dim=WIDTH,
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH))


def image_processor() -> CLIPImageProcessorPil:
    """Pictures of any size to 64 x 64 in [-1, 1]."""
    half = [0.5, 0.5, 0.5]
    return CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=half, image_std=half
    )


def draw_batch(studio: Studio, size: int, seed: int, step: int) -> tuple[Float[Tensor, "b 3 64 64"], list[str]]:
    """Pictures and their captions: half classes in compositions, a quarter others so, a quarter on nameless backgrounds."""
    g, rng = seeded(seed, step), random.Random(seed * 7919 + step)
    of_class = studio.pictures.is_class.nonzero()[0].tolist()
    others = rng.choices(range(len(studio.rgba)), k=size // 2)
    named = rng.choices(of_class, k=size // 2) + others[: size // 4]
    compositions = studio.compositions(len(named), rng)
    wild = others[size // 4 :]
    images = torch.cat([studio.paint(named, compositions, g, JITTER), studio.paint_wild(wild, g, (0.45, 1.05), JITTER)])
    bare = [Composition(background="", say_style=rng.random() < 0.5) for _ in wild]
    return images, studio.captions(named + wild, compositions + bare)


def contrast(logits: Float[Tensor, "b b"], captions: list[str]) -> Tensor:
    """CLIP's loss; rows with the same caption share the target."""
    keys = {caption: i for i, caption in enumerate(captions)}
    ids = torch.tensor([keys[caption] for caption in captions])
    target = (ids[:, None] == ids[None, :]).float()
    target = target / target.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_clip(studio: Studio, work: Path, *, time_min: float, seed: int = 0, batch_size: int = 128) -> CLIPModel:
    """Train (or go on training) and save model, tokenizer and image processor."""
    tokenizer = train_tokenizer(
        corpus(studio.nouns, list(studio.scenes), list(studio.companions), seed), studio.class_nouns
    )
    clip = make_clip(tokenizer, seed)
    run = Run(work / "clip", clip, time_min=time_min, lr=1.5e-3, ema=0.99, weight_decay=0.05)

    def loss_of(step: int) -> Tensor:
        images, captions = draw_batch(studio, batch_size, seed, step)
        out = clip(input_ids=encode(tokenizer, captions), pixel_values=images)
        return contrast(out.logits_per_image.float(), captions)

    dtype = faster_precision(lambda: loss_of(0).backward())
    for step in run.steps():
        with precision(dtype):
            loss = loss_of(step)
        run.update(loss, scale=clip.logit_scale.exp().item())
    save_clip(run.use_average(), tokenizer, work / "clip" / "model")
    return clip


def draw_hard_batch(studio: Studio, size: int, seed: int, step: int) -> tuple[Float[Tensor, "b 3 64 64"], list[str]]:
    """Half a batch of different classes in one and the same composition, where only the noun tells them apart.

    The other half is that of ``draw_batch``.
    """
    g, rng = seeded(seed + 1, step), random.Random(seed * 104_729 + step)
    images, captions = draw_batch(studio, size - size // 2, seed, step)
    alike = rng.sample(studio.pictures.is_class.nonzero()[0].tolist(), size // 2)
    compositions = studio.compositions(1, rng) * len(alike)
    painted = studio.paint(alike, compositions, g, JITTER)
    return torch.cat([images, painted]), captions + studio.captions(alike, compositions)


def train_vision(studio: Studio, work: Path, *, time_min: float, seed: int = 0, batch_size: int = 128) -> CLIPModel:
    """Go on with the vision tower and both projections while the text tower stays as the U-Net knows it.

    As in locked tuning (Zhai et al. 2022, arXiv 2111.07991), with the towers' parts exchanged.
    """
    folder = work / "clip" / "model"
    tokenizer, clip = CLIPTokenizer.from_pretrained(folder), CLIPModel.from_pretrained(folder, dtype=torch.float32)
    clip.text_model.requires_grad_(False)
    run = Run(work / "clip_vision", clip.train(), time_min=time_min, lr=1e-3, ema=0.99, weight_decay=0.05)

    def loss_of(step: int) -> Tensor:
        images, captions = draw_hard_batch(studio, batch_size, seed, step)
        out = clip(input_ids=encode(tokenizer, captions), pixel_values=images)
        return contrast(out.logits_per_image.float(), captions)

    dtype = faster_precision(lambda: loss_of(0).backward())
    for step in run.steps():
        with precision(dtype):
            loss = loss_of(step)
        run.update(loss, scale=clip.logit_scale.exp().item())
    save_clip(run.use_average(), tokenizer, work / "clip_vision" / "model")
    return clip


def save_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """A CLIP folder as ``from_pretrained`` reads it."""
    clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
