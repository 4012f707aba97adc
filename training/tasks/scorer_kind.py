"""Recognise scorers, a ViT for DINO and a CLIP, from their configurations and headers, before any weight is read.

transformers would load another model's folder as well, with random weights in place of what it does not find there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapters.errors import BadInput
from adapters.tensor_file import read_shapes
from adapters.words import counted
from training.tasks.model_kind import read_config

CLIP_TOWERS = {
    "text_projection.weight": "text_model.final_layer_norm.weight",
    "visual_projection.weight": "vision_model.post_layernorm.weight",
}
"""CLIP's projections, `[shared, own]`, and a vector of each tower's own size."""


def check_scorers(dino: str, clip: str) -> None:
    """Check what can be known of two scorers without loading them; of a hub id, what its cached files say.

    Args:
        dino, clip: folders, or hub ids.

    Raises:
        BadInput: naming the flag, the folder, and what is allowed.
    """
    _check_dino(dino)
    _check_clip(clip)


def picture_sides(preprocessor: dict[str, Any]) -> tuple[int, int]:
    """Sides in pixels to which pictures are scaled, and then cut, as a `preprocessor_config.json` says."""
    size = preprocessor.get("size", 224)
    side: Any = size.get("shortest_edge") or size.get("height") if isinstance(size, dict) else size
    crop = preprocessor.get("crop_size", side) if preprocessor.get("do_center_crop", False) else side
    return int(side), int(crop["height"] if isinstance(crop, dict) else crop)


def _check_dino(name: str) -> None:
    config = _read(name, "config.json")
    if config is None:
        return
    if (kind := config.get("model_type")) != "vit":
        raise BadInput(f"--dino {name} is of type {kind!r}; allowed: a ViT ('vit') such as facebook/dino-vits16")
    _check_weights("--dino", name)
    _check_side("--dino", name, config.get("image_size", 224))


def _check_clip(name: str) -> None:
    config = _read(name, "config.json")
    if config is None:
        return
    if (kind := config.get("model_type")) != "clip":
        allowed = "a CLIP of two towers ('clip') such as openai/clip-vit-large-patch14"
        raise BadInput(f"--clip {name} is of type {kind!r}; allowed: {allowed}")
    _check_weights("--clip", name)
    _check_side("--clip", name, (config.get("vision_config") or {}).get("image_size", 224))
    if Path(name).is_dir():
        _check_towers(name)


def _check_side(flag: str, name: str, wanted: int) -> None:
    """Check that pictures are made as large as the model takes them."""
    preprocessor = _read(name, "preprocessor_config.json")
    if preprocessor is not None and (side := picture_sides(preprocessor)[1]) != wanted:
        raise BadInput(
            f"{flag} {name} takes pictures of {wanted} pixels (config.json), and its preprocessor_config.json makes them "
            f"{side}: give both the same"
        )


def _check_weights(flag: str, name: str) -> None:
    if Path(name).is_dir() and not list(Path(name).glob("*.safetensors")):
        raise BadInput(f"{flag} {name} has no *.safetensors; only safetensors are read")


def _check_towers(name: str) -> None:
    """Check that both of CLIP's towers are there, and end in embeddings of one size."""
    shapes = read_shapes(Path(name))
    shared = {}
    for projection, vector in CLIP_TOWERS.items():
        if absent := {projection, vector} - shapes.keys():
            raise BadInput(f"--clip {name} has no tensor {min(absent)!r}; allowed: a CLIP with both towers")
        shared[projection], own = shapes[projection]
        if (own,) != shapes[vector]:
            raise BadInput(
                f"--clip {name}: {projection!r} takes {counted(own, 'value')}; its tower gives {shapes[vector][0]}"
            )
    if len(set(shared.values())) > 1:
        sizes = ", ".join(f"{name!r} gives {counted(size, 'value')}" for name, size in shared.items())
        raise BadInput(f"--clip {name}: its towers do not fit each other: {sizes}")


def _read(name: str, file: str) -> dict[str, Any] | None:
    """A scorer's configuration; None for a hub id of which this machine has no copy."""
    if Path(name).is_dir():
        return read_config(Path(name) / file)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, file)
    return read_config(Path(cached)) if isinstance(cached, str) else None
