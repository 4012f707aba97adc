"""Recognise Stable Diffusion 1, 2 and XL folders from their configurations, before any weight is read.

What else diffusers has (transformers in place of a U-Net, inpainting, upscaling and distilled U-Nets, SDXL's refiner,
schedules of another kind) would load, and train something else than it says: it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.documents import read_json
from adapters.errors import BadInput

STABLE_DIFFUSION, XL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
XL_PARTS = ("text_encoder_2", "tokenizer_2")
PREDICTION_TYPES = ("epsilon", "v_prediction")
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
UNKNOWN = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim")
"""Settings of U-Nets that take more than latents, time steps and text."""


def read_index(folder: Path) -> dict[str, Any]:
    """`model_index.json` of a pipeline folder.

    Raises:
        BadInput: it is missing or damaged, or of another pipeline than Stable Diffusion or SDXL.
    """
    if not (folder / "model_index.json").is_file():
        raise BadInput(f"model folder {folder} has no model_index.json; give a diffusers pipeline folder")
    index = read_config(folder / "model_index.json")
    if (kind := index.get("_class_name")) not in (STABLE_DIFFUSION, XL):
        raise BadInput(f"model folder {folder} is a {kind}; allowed: {STABLE_DIFFUSION}, {XL}")
    return index


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file.

    Raises:
        BadInput: it is missing or holds no JSON object.
    """
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is missing or damaged: {str(error).splitlines()[0]}") from None
    if not isinstance(config, dict):
        raise BadInput(f"{path} is damaged: it holds no JSON object")
    return config


def is_xl(folder: Path) -> bool:
    """Whether a pipeline folder is an SDXL's.

    Raises:
        BadInput: as `read_index`.
    """
    return read_index(folder)["_class_name"] == XL


def check_parts(folder: Path) -> Path:
    """Check that a folder is a Stable Diffusion pipeline in the diffusers layout, whose parts fit each other.

    Raises:
        BadInput: naming the part that is missing or of another kind, and what is allowed.
    """
    xl = is_xl(folder)
    parts = PARTS + XL_PARTS if xl else PARTS
    for part in parts:
        if not (folder / part).is_dir():
            raise BadInput(f"model folder {folder} has no {part}/; a diffusers pipeline folder has {', '.join(parts)}")
    for part in parts:
        if part.startswith(("unet", "vae", "text_encoder")):
            _check_weights(folder, part)
    texts = [read_config(folder / part / "config.json") for part in parts if part.startswith("text_encoder")]
    _check_unet(folder, texts, xl)
    _check_schedule(folder / "scheduler" / "scheduler_config.json")
    return folder


def _check_weights(folder: Path, part: str) -> None:
    """Check that a part has weights that are read: safetensors, under their plain name."""
    found = sorted((folder / part).glob("*.safetensors"))
    if not found:
        raise BadInput(f"model folder {folder} has no {part}/*.safetensors; only safetensors are read")
    if all("." in path.stem for path in found):
        kept, variant = found[0].stem.split(".", 1)
        raise BadInput(
            f"model folder {folder} has only a variant of {part}/, {found[0].name}; allowed: the plain name "
            f"{kept}.safetensors, whatever the precision (name it so, without {variant.partition('-')[0]!r})"
        )


def _check_unet(folder: Path, texts: list[dict], xl: bool) -> None:
    """Check that the U-Net is of the kind, and takes the latents of the VAE and the embeddings of the text encoders."""
    configs = {part: read_config(folder / part / "config.json") for part in CLASSES}
    for part, cls in CLASSES.items():
        if (own := configs[part].get("_class_name")) != cls:
            raise BadInput(f"{folder / part} is a {own}; allowed: {cls}")
    unet, where = configs["unet"], folder / "unet" / "config.json"
    if (added := unet.get("addition_embed_type")) != (allowed := "text_time" if xl else None):
        raise BadInput(
            f"{where}: addition_embed_type is {added}; allowed in a {XL if xl else STABLE_DIFFUSION}: {allowed}"
        )
    for name in UNKNOWN:
        if unet.get(name) is not None:
            raise BadInput(f"{where}: {name} is {unet[name]}; allowed: none, as in Stable Diffusion and SDXL")
    _agree(where, "in_channels", unet, configs["vae"].get("latent_channels", 4), "the VAE's latents")
    widths = [text["hidden_size"] for text in texts if "hidden_size" in text]
    _agree(where, "cross_attention_dim", unet, sum(widths), "the text embeddings")
    if xl and {"addition_time_embed_dim", "projection_class_embeddings_input_dim"} <= unet.keys():
        wide = 6 * unet["addition_time_embed_dim"] + texts[-1].get("projection_dim", 512)
        given = "six sizes and the pooled text embedding (SDXL's refiner takes fewer)"
        _agree(where, "projection_class_embeddings_input_dim", unet, wide, given)


def _agree(path: Path, name: str, config: Mapping[str, Any], size: int, given: str) -> None:
    """Check a size in a configuration against that of what comes there."""
    if isinstance(own := config.get(name), int) and own != size:
        raise BadInput(f"{path}: {name} is {own}; {given} have {size}")


def _check_schedule(path: Path) -> None:
    """Check that a noise schedule is one of Stable Diffusion's."""
    config = read_config(path)
    if "beta_schedule" not in config:
        raise BadInput(
            f"{path} is a {config.get('_class_name')} without beta_schedule; allowed: DDPM's, DDIM's, Euler's, ..."
        )
    if (kind := config.get("prediction_type", "epsilon")) not in PREDICTION_TYPES:
        raise BadInput(f"{path}: prediction_type is {kind}; allowed: {', '.join(PREDICTION_TYPES)}")
