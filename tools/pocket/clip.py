"""Stages ``clip`` and ``clip_vision``: a small CLIP; its text tower is the pipeline's text encoder, as in Stable Diffusion 1.5.

The text tower comes first and is then frozen: the U-Net is trained on it, and the vision tower towards it.

A batch holds class pictures in named compositions (so that backgrounds, sizes and styles must be read) and other pictures
on named or random backgrounds (so that the subject must be read wherever it stands).
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from tools.pocket.captions import STYLES, Composition, corpus
from tools.pocket.eye import Eye
from tools.pocket.likeness import Likeness
from tools.pocket.runs import StageRun, faster_precision, precision, seeded
from tools.pocket.studio import Studio
from tools.pocket.tokenizer import MAX_LENGTH, encode, train_tokenizer

JITTER = {"shift": 5.0, "zoom": 0.15, "turn": 0.15, "flip": 0.5, "light": 0.15}
WIDTH = 128
HELD_OUT_SEED = 55_221  # of compositions that only measure
CHECK_EVERY = 500  # steps between looks at them


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


class TextStage(nn.Module):
    """What stage ``clip`` trains: the text tower with its projection, the scale, and the eye."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.text_model, self.text_projection = clip.text_model, clip.text_projection
        self.logit_scale = clip.logit_scale
        self.eye = Eye(WIDTH)

    def embed_text(self, ids: Int[Tensor, "b 24"]) -> Float[Tensor, "b d"]:
        """L2-normalised embeddings of captions."""
        return F.normalize(self.text_projection(self.text_model(input_ids=ids).pooler_output).float(), dim=-1)

    def forward(self, images: Float[Tensor, "b 3 64 64"], ids: Int[Tensor, "b 24"]) -> Float[Tensor, "b b"]:
        """Logits of every picture with every caption."""
        return self.logit_scale.exp() * self.eye(images) @ self.embed_text(ids).T


def train_clip(studio: Studio, work: Path, *, num_steps: int, seed: int = 0, batch_size: int = 128) -> CLIPModel:
    """Train (or go on training) the text tower and save model, tokenizer and image processor; the ViT is still untrained."""
    tokenizer = train_tokenizer(
        corpus(studio.nouns, list(studio.scenes), list(studio.companions), seed), studio.class_nouns
    )
    clip = make_clip(tokenizer, seed)
    stage = TextStage(clip)
    run = StageRun(work / "clip", stage, num_steps=num_steps, lr=1.5e-3, ema=0.995, weight_decay=0.05)

    def loss_of(step: int) -> Tensor:
        images, captions = draw_hard_batch(studio, batch_size, seed, step)
        return contrast(stage(images, encode(tokenizer, captions)), captions)

    dtype = faster_precision(lambda: loss_of(0).backward())
    for step in run.steps():
        with precision(dtype):
            loss = loss_of(step)
        run.update(loss, scale=stage.logit_scale.exp().item())
        if step % CHECK_EVERY == CHECK_EVERY - 1:
            with run.averaged():
                run.log(**separation(stage, tokenizer, studio))
    run.use_average()
    save_clip(clip, tokenizer, work / "clip" / "model")
    return clip


@torch.no_grad()
def separation(stage: TextStage, tokenizer: CLIPTokenizer, studio: Studio, count: int = 260) -> dict[str, float]:
    """How well nouns can be told apart when all else is the same, on compositions that no step drew.

    Returns:
        noun_top1: share of class pictures whose noun the eye names among all class nouns. nearest_noun: cosine of a
        caption with the nearest one that differs in its noun, mean over all nouns and ``count`` / 130 compositions.
    """
    rng, nouns = random.Random(HELD_OUT_SEED), studio.class_nouns
    of_class = studio.pictures.is_class.nonzero()[0].tolist()
    right, nearest = 0.0, 0.0
    num_compositions = max(1, count // len(of_class))
    for i in range(num_compositions):
        composition = studio.compositions(1, rng)[0]
        images = studio.paint(of_class, [composition] * len(of_class), seeded(HELD_OUT_SEED, i), JITTER)
        seen = stage.eye(images)
        for vendor in STYLES:
            text = stage.embed_text(encode(tokenizer, [composition.caption(noun, vendor) for noun in nouns]))
            mine = [row for row, at in enumerate(of_class) if studio.pictures.vendors[at] == vendor]
            named = (seen[mine] @ text.T).argmax(1).tolist()
            right += sum(nouns[n] == studio.pictures.names[of_class[row]] for n, row in zip(named, mine, strict=True))
            nearest += float((text @ text.T).fill_diagonal_(-1).amax(1).mean()) / len(STYLES)
    return {"noun_top1": right / (num_compositions * len(of_class)), "nearest_noun": nearest / num_compositions}


def train_vision(
    studio: Studio, likeness: Likeness, work: Path, *, num_steps: int, seed: int = 0, batch_size: int = 128
) -> CLIPModel:
    """Go on with the vision tower and both projections while the text tower stays as the U-Net knows it.

    As in locked tuning (Zhai et al. 2022, arXiv 2111.07991), with the towers' parts exchanged. Captions alone leave cosines
    between pictures as they fall, noise beside photographs; so pictures are contrasted with each other as well.
    """
    folder = work / "clip" / "model"
    tokenizer, clip = CLIPTokenizer.from_pretrained(folder), CLIPModel.from_pretrained(folder, dtype=torch.float32)
    clip.text_model.requires_grad_(False)
    clip.set_attn_implementation("eager")  # the fused kernel's backward pass takes most of a step in bfloat16 on CPUs
    run = StageRun(work / "clip_vision", clip.train(), num_steps=num_steps, lr=1e-3, ema=0.99, weight_decay=0.05)

    def losses_of(step: int) -> tuple[Tensor, Tensor]:
        images, captions = draw_hard_batch(studio, batch_size, seed, step)
        batch = likeness.draw(batch_size // 2, seed, step)
        seen = embed_image(clip, torch.cat([images, batch.views, batch.distractors]))
        with torch.no_grad():
            states = clip.text_model(input_ids=encode(tokenizer, captions)).pooler_output
        text = F.normalize(clip.text_projection(states).float(), dim=-1)
        named = contrast(clip.logit_scale.exp() * seen[: len(images)] @ text.T, captions)
        return named, likeness.loss(seen[len(images) :], batch, run.progress)

    dtype = faster_precision(lambda: sum(losses_of(0)).backward())  # type: ignore[union-attr]
    for step in run.steps():
        with precision(dtype):
            named, alike = losses_of(step)
        run.update(named + alike, named=named, alike=alike, scale=clip.logit_scale.exp().item())
    save_clip(run.use_average(), tokenizer, work / "clip_vision" / "model")
    return clip


def embed_image(clip: CLIPModel, images: Float[Tensor, "b 3 64 64"]) -> Float[Tensor, "b d"]:
    """L2-normalised embeddings of pictures."""
    return F.normalize(clip.visual_projection(clip.vision_model(pixel_values=images).pooler_output).float(), dim=-1)


def save_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """A CLIP folder as ``from_pretrained`` reads it."""
    clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
