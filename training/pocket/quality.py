"""The pocket's qualities, measured on what is shipped: ``python -m training.pocket.quality [clip dino base vae] [--work DIR]``.

Every number is read off the float16 files in this folder, loaded as float32.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer, ViTModel

from training.pocket import dino as dino_stage
from training.pocket.captions import Composition
from training.pocket.pictures import Pictures, read_classes
from training.pocket.runs import seeded
from training.pocket.studio import Studio
from training.pocket.subjects import photograph_class
from training.pocket.tokenizer import encode

STILL = {"shift": 2.0, "zoom": 0.05, "turn": 0.0, "flip": 0.0, "light": 0.05}
HELD_OUT_SEED = 987_654  # of compositions that no stage trained on


@torch.no_grad()
def clip_similarity(
    clip: CLIPModel, tokenizer: CLIPTokenizer, images: Float[Tensor, "b 3 64 64"], captions: list[str]
) -> Float[Tensor, "b c"]:
    """Cosine of every picture with every caption."""
    states = clip.text_model(input_ids=encode(tokenizer, captions)).pooler_output
    text = F.normalize(clip.text_projection(states), dim=-1)
    seen = F.normalize(clip.visual_projection(clip.vision_model(pixel_values=images).pooler_output), dim=-1)
    return seen @ text.T


def held_out(studio: Studio, count: int = 128, seed: int = HELD_OUT_SEED) -> tuple[list[int], list[Composition]]:
    """``count`` different (class picture, composition) pairs."""
    rng = random.Random(seed)
    of_class = studio.pictures.is_class.nonzero()[0].tolist()
    rng.shuffle(of_class)
    indices = (of_class * 2)[:count]
    return indices, studio.compositions(count, rng)


def measure_clip(studio: Studio, clip: CLIPModel, tokenizer: CLIPTokenizer) -> dict[str, float]:
    """Top-1 over 128 held-out compositions: the whole caption, and the noun alone among all class nouns."""
    indices, compositions = held_out(studio)
    images = studio.paint(indices, compositions, seeded(HELD_OUT_SEED, 0), STILL)
    return agreement(
        clip,
        tokenizer,
        images,
        studio.captions(indices, compositions),
        [str(studio.pictures.names[i]) for i in indices],
    )


def agreement(
    clip: CLIPModel, tokenizer: CLIPTokenizer, images: Tensor, captions: list[str], nouns: list[str]
) -> dict[str, float]:
    """How often CLIP picks the picture's own caption among all captions, and its noun among the 65 class nouns.

    For the noun, the caption's other words stay: "a 3d render of a small *fox* on the beach" against all other nouns.
    """
    best = clip_similarity(clip, tokenizer, images, captions).argmax(1).tolist()
    top1 = sum(captions[i] == c for i, c in zip(best, captions, strict=True)) / len(captions)
    classes = sorted(name for name, _ in read_classes().values())
    right = 0
    for image, caption, noun in zip(images, captions, nouns, strict=True):
        choices = [caption.replace(noun, other) for other in classes]
        right += classes[clip_similarity(clip, tokenizer, image[None], choices).argmax().item()] == noun
    return {"caption_top1_of_128": top1, "noun_top1_of_65": right / len(nouns)}


@torch.no_grad()
def measure_dino(pictures: Pictures, dino: ViTModel, names: list[str]) -> dict[str, float]:
    """Nearest neighbours and mean cosines of the subjects' photographs."""
    photos = torch.cat([photograph_class(pictures, name) for name in names])
    other = torch.cat([photograph_class(pictures, name, vendor="google") for name in names])
    return subject_cosines(dino_stage.embed(dino, photos), dino_stage.embed(dino, other), len(names))


def subject_cosines(real: Float[Tensor, "n d"], other: Float[Tensor, "n d"], num_subjects: int) -> dict[str, float]:
    """Same subject, same class by another vendor, other subject; and the share of right nearest neighbours."""
    owner = torch.arange(num_subjects).repeat_interleave(len(real) // num_subjects)
    cosine, across = real @ real.T, real @ other.T
    same, self_ = owner[:, None] == owner[None, :], torch.eye(len(real), dtype=torch.bool)
    nearest = owner[cosine.masked_fill(self_, -2).argmax(1)]
    return {
        "nearest_same_subject": (nearest == owner).float().mean().item(),
        "real_to_real": cosine[same & ~self_].mean().item(),
        "same_class_other_vendor": across[same].mean().item(),
        "other_subject": cosine[~same].mean().item(),
    }
