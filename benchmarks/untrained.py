"""The pocket pipeline's parts before training, in a folder: the same shapes and speed, without its weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

SUBJECTS = ("bird", "boat", "cat", "cup", "dog", "drum", "fish", "frog")
CAPTIONS = tuple(f"a {word} on a {colour} background" for word in SUBJECTS for colour in ("red", "blue", "white"))


def make_untrained(folder: Path) -> Path:
    """Write `pipeline/ clip/ dino/ subjects/` under a folder, as `training/pocket` holds them; returns the folder."""
    from transformers import CLIPTextModel

    from tools.pocket.clip import make_clip, save_clip
    from tools.pocket.dino import image_processor, make_dino
    from tools.pocket.tokenizer import train_tokenizer
    from tools.pocket.unet import make_scheduler, make_unet
    from tools.pocket.vae import make_vae

    tokenizer = train_tokenizer(list(CAPTIONS), list(SUBJECTS))
    clip, dino = make_clip(tokenizer), make_dino()
    save_clip(clip, tokenizer, folder / "clip")
    dino.save_pretrained(folder / "dino")
    image_processor().save_pretrained(folder / "dino")
    pipeline = folder / "pipeline"
    text = CLIPTextModel(clip.config.text_config)
    for name, part in (("text_encoder", text), ("vae", make_vae()), ("unet", make_unet(text.config.hidden_size))):
        part.save_pretrained(pipeline / name)
    tokenizer.save_pretrained(pipeline / "tokenizer")
    make_scheduler().save_pretrained(pipeline / "scheduler")
    (pipeline / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}), encoding="utf-8")
    _make_subjects(folder / "subjects")
    return folder


def _make_subjects(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for name in SUBJECTS:
        (folder / name).mkdir(parents=True)
        for number in range(5):
            pixels = draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    with open(folder / "subjects.csv", "w", encoding="utf-8", newline="") as file:
        rows = [(name, name, "object", "evidence") for name in SUBJECTS]
        csv.writer(file).writerows([("subject", "class", "kind", "split"), *rows])
