"""A tiny Stable Diffusion pipeline with random weights, its scorers and subjects: the layout of the real ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def make_pipeline(folder: Path, width: int = 32, context: int = 32) -> Path:
    """A pipeline folder with attention in the down, mid and up blocks; 32-pixel pictures, 16x16 latents."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(width, 2 * width), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=context, attention_head_dim=2, norm_num_groups=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, sample_size=16,
    )  # fmt: skip
    vae.register_to_config(scaling_factor=0.5)
    tokens = make_tokenizer(folder / "tokenizer")
    text = CLIPTextModel(
        CLIPTextConfig(vocab_size=tokens, hidden_size=context, intermediate_size=64, num_hidden_layers=1,
                       num_attention_heads=2, max_position_embeddings=16, eos_token_id=1, bos_token_id=0)
    )  # fmt: skip
    for name, part in (("unet", unet), ("vae", vae), ("text_encoder", text)):
        part.save_pretrained(folder / name)
    DDPMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


WORDS = ("a", "sks", "dog", "cup", "photo", "of", "on", "in", "the", "red", "blue", "background", "snow", "beach")


def make_tokenizer(folder: Path) -> int:
    """A CLIP tokenizer folder whose merges spell a few words; returns the size of its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.-"
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    merges: list[str] = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merge, joined = f"{pieces[0]} {pieces[1]}", pieces[0] + pieces[1]
            if merge not in merges:
                merges.append(merge)
                vocabulary.append(joined)
            pieces = [joined, *pieces[2:]]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(dict.fromkeys(vocabulary))}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 16, "pad_token": "<|endoftext|>",
                    "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"})
    )  # fmt: skip
    return len(dict.fromkeys(vocabulary))


def make_scorers(folder: Path) -> tuple[Path, Path]:
    """Folders of a tiny DINO and a tiny CLIP."""
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

    torch.manual_seed(1)
    dino, clip = folder / "dino", folder / "clip"
    ViTModel(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32,
                  patch_size=8), add_pooling_layer=False,
    ).save_pretrained(dino)  # fmt: skip
    size = make_tokenizer(clip)
    shared = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    CLIPModel(
        CLIPConfig(
            text_config=shared | {"vocab_size": size, "max_position_embeddings": 16, "eos_token_id": 1, "bos_token_id": 0},
            vision_config=shared | {"image_size": 32, "patch_size": 8}, projection_dim=16,
        )
    ).save_pretrained(clip)  # fmt: skip
    config = {"size": 32, "crop_size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    for target in (dino, clip):
        (target / "preprocessor_config.json").write_text(json.dumps(config))
    return dino, clip


def make_subjects(folder: Path, names: tuple[str, ...] = ("dog", "dog2", "cup", "cup2", "dog3", "cup3")) -> Path:
    """A folder of subjects with a table; the first two tune, the last is the test subject, the rest are evidence."""
    draw = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        colour = draw.integers(0, 255, 3)
        for number in range(3):
            pixels = np.clip(colour + draw.integers(-20, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    splits = ["tuning"] * 2 + ["evidence"] * (len(names) - 3) + ["test"]
    with open(folder / "subjects.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["subject", "class", "kind", "split"])
        table.writerows([n, n.rstrip("0123456789"), "object", s] for n, s in zip(names, splits, strict=True))
    return folder


def make_place(folder: Path) -> Path:
    """A tiny model laid out as the pocket is, with its defaults, for the benchmarks."""
    make_pipeline(folder / "pipeline")
    make_scorers(folder)
    make_subjects(folder / "subjects")
    defaults = {"num_inference_steps": 2, "guidance_scale": 2.0, "resolution": 16, "instance_prompt": "a {token} {cls}"}
    (folder / "defaults.json").write_text(json.dumps(defaults))
    return folder
