"""The pocket's qualities, measured on what is shipped, and its contact sheets.

    python -m tools.pocket.quality --work DIR        # DIR as for tools.pocket.build: it has the class pictures

Every number is read off the float16 files in this folder, loaded as float32, and written to ``qualities.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer, ViTModel

from tools.pocket import dino as dino_stage
from tools.pocket.captions import Composition
from tools.pocket.export import DEFAULTS, weigh
from tools.pocket.linear_code import psnr_db
from tools.pocket.pictures import load_pictures, read_classes
from tools.pocket.runs import seeded
from tools.pocket.sheets import save_sheet, side_by_side, to_bytes
from tools.pocket.studio import Studio, open_studio
from tools.pocket.subjects import PHOTOGRAPHS, photograph_class
from tools.pocket.tokenizer import encode
from tools.pocket.vae import round_trip
from tools.pocket.vae_quality import SHOWN, draw_sheet
from training.command_line import end_well
from training.read_picture import read_picture
from training.tasks.pipeline import POCKET
from training.tasks.subject_tables import read_table

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
        right += classes[clip_similarity(clip, tokenizer, image[None], choices).argmax()] == noun
    return {"caption_top1_of_128": top1, "noun_top1_of_65": right / len(nouns)}


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


def measure_vae(vae: AutoencoderKL, images: Float[Tensor, "b 3 64 64"]) -> tuple[dict[str, float], Tensor]:
    """Mean of the pictures' signal-to-noise ratios (decibels) after encoding and decoding, and the decoded pictures."""
    decoded = round_trip(vae, images)
    found = psnr_db(decoded, images)
    return {"psnr_db": found.mean().item(), "worst_psnr_db": found.min().item()}, decoded


def generate(captions: list[str], seed: int = 0) -> Float[Tensor, "b 3 64 64"]:
    """One picture of the base for each caption, by the pipeline's own sampler setting."""
    pipe = StableDiffusionPipeline.from_pretrained(POCKET / "pipeline", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    settings = {key: DEFAULTS[key] for key in ("num_inference_steps", "guidance_scale")}
    made = []
    for start in range(0, len(captions), 64):
        part = captions[start : start + 64]
        generators = [torch.Generator().manual_seed(seed * 100_003 + start + i) for i in range(len(part))]
        made.append(pipe(part, generator=generators, output_type="pt", **settings).images)
    return torch.cat(made) * 2 - 1


def measure_base(studio: Studio, clip: CLIPModel, tokenizer: CLIPTokenizer) -> tuple[dict[str, float], Tensor]:
    """How often CLIP agrees with the caption of 128 generated pictures (held-out compositions), and the pictures."""
    indices, compositions = held_out(studio)
    captions = studio.captions(indices, compositions)
    images = generate(captions)
    return agreement(clip, tokenizer, images, captions, [str(studio.pictures.names[i]) for i in indices]), images


def subject_photographs(
    splits: Sequence[str] = ("tuning", "evidence", "test"),
) -> tuple[Float[Tensor, "n 3 64 64"], list[str]]:
    """Shipped photographs, subject after subject, and the subjects' names."""
    folder = POCKET / "subjects"
    names = [name for name, row in read_table(folder).items() if row["split"] in splits]
    files = [folder / name / f"{i:02d}.png" for name in names for i in range(PHOTOGRAPHS)]
    return torch.stack([to_tensor(read_picture(path).image) for path in files]), names


def to_tensor(image: Image.Image) -> Float[Tensor, "3 64 64"]:
    """A picture in [-1, 1]."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1).permute(2, 0, 1)


def draw_class_sheet(docs: Path) -> None:
    """One picture of each class without a caption, in a shuffled order; the key goes into a file of its own."""
    names = [name for name, _ in read_classes().values()]
    random.Random(0).shuffle(names)
    captions = [Composition(background="on a white background", say_style=False).caption(n, "google") for n in names]
    save_sheet(to_bytes(generate(captions, seed=1)), 13, docs / "base.png")
    rows = [", ".join(names[i : i + 13]) for i in range(0, len(names), 13)]
    (docs / "base_key.md").write_text(
        "Row by row, what base.png was asked for:\n\n" + "\n".join(f"1. {r}" for r in rows) + "\n", encoding="utf-8"
    )


def main() -> int:
    """Measure everything, write ``qualities.json`` and the sheets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("~/.cache/plateau/pocket"))
    parser.add_argument("--docs", type=Path, default=POCKET.parents[1] / "docs" / "pocket")
    arguments = parser.parse_args()
    pictures = load_pictures(arguments.work.expanduser())
    studio = open_studio(pictures)
    clip, tokenizer = CLIPModel.from_pretrained(POCKET / "clip").eval(), CLIPTokenizer.from_pretrained(POCKET / "clip")
    dino = ViTModel.from_pretrained(POCKET / "dino", add_pooling_layer=False).eval()
    photographs, names = subject_photographs(("tuning", "evidence"))
    other = torch.cat([photograph_class(pictures, name, vendor="google") for name in names])
    with torch.no_grad():
        cosines = subject_cosines(dino_stage.embed(dino, photographs), dino_stage.embed(dino, other), len(names))
    vae, decoded = measure_vae(AutoencoderKL.from_pretrained(POCKET / "pipeline" / "vae").eval(), photographs)
    base, images = measure_base(studio, clip, tokenizer)
    found = {
        "clip": measure_clip(studio, clip, tokenizer),
        "dino": cosines,
        "vae": vae,
        "base": base,
        "megabytes": weigh(POCKET),
    }
    text = json.dumps(found, indent=1)
    print(text)
    (POCKET / "qualities.json").write_text(text + "\n", encoding="utf-8")
    save_sheet(to_bytes(photographs), 4 * PHOTOGRAPHS, arguments.docs / "subjects.png")
    save_sheet(side_by_side(photographs[::PHOTOGRAPHS], decoded[::PHOTOGRAPHS]), 12, arguments.docs / "vae.png")
    few = slice(None, None, len(photographs) // SHOWN)
    draw_sheet(photographs[few][:SHOWN], decoded[few][:SHOWN], arguments.docs / "vae_4x.png")
    save_sheet(to_bytes(images), 16, arguments.docs / "compositions.png")
    draw_class_sheet(arguments.docs)
    return 0


if __name__ == "__main__":
    sys.exit(end_well(main))
