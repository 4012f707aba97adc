"""Stable Diffusion 1.5 as it is published, but for its weights: the real counts, and the same names when it is narrower."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from benchmarks import sd15
from training.tasks.pipeline import attention_shapes, check_parts

PUBLISHED = {(320, 320): 30, (640, 640): 30, (1280, 1280): 36, (320, 768): 10, (640, 768): 10, (1280, 768): 12}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def list_attention(unet: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    ends = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    return {name: tuple(p.shape) for name, p in unet.named_parameters() if ".attn" in name and name.endswith(ends)}


def test_counts_are_the_published_ones() -> None:
    with torch.device("meta"):
        unet, vae, text = sd15.make_unet(), sd15.make_vae(), sd15.make_text_encoder()
    assert count(unet) == sd15.NUM_PARAMETERS
    assert (count(vae), count(text)) == (83_653_863, 123_060_480)
    assert Counter(list_attention(unet).values()) == PUBLISHED


@pytest.mark.parametrize("width", [Fraction(1, 10), Fraction(1, 5), Fraction(1, 2)])
def test_narrower_it_keeps_names_depth_and_distinct_shapes(width: Fraction) -> None:
    with torch.device("meta"):
        whole, narrow = sd15.make_unet(), sd15.make_unet(width)
    assert [name for name, _ in whole.named_parameters()] == [name for name, _ in narrow.named_parameters()]
    assert sorted(Counter(list_attention(narrow).values()).values()) == sorted(PUBLISHED.values())
    assert count(narrow) < count(whole) * float(width) ** 2 * 1.2


def test_folder_is_a_pipeline_of_safetensors(tmp_path: Path) -> None:
    folder = check_parts(sd15.make_sd15(tmp_path, Fraction(1, 10), text_layers=1, dtype=torch.bfloat16))
    assert len(attention_shapes(folder)) == 128
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".ckpt")]
