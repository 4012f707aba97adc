"""Read HF PEFT's LoRA configuration besides the rank: alphas, and starts that change W0.

PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA take their start off the frozen weight: W = (W0 - s B_0 A_0) + s B A. A file holds
A and B alone. PiSSA and OLoRA make A_0 and B_0 from W0, so that PEFT makes them again when it loads the file; the starts of
the others are lost with the data, the random numbers or the quantised weight that they came from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapters.documents import OBJECT, parse_json
from adapters.errors import BadInput
from adapters.layer_names import TEXT_ENCODERS, unwrap

KEEPS_BASE = {"true", "false", "none", "gaussian", "eva", "orthogonal", "mica"}
"""Values of ``init_lora_weights`` after which W0 is still the frozen weight."""
FROM_BASE = {"pissa", "olora"}
"""Values whose start follows from W0, and is taken off it again when PEFT opens the file."""
PLAIN = {"use_rslora", "use_dora", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config",
         "runtime_config"}  # fmt: skip
"""Keys that name no other function than LoRA or DoRA, though others of their kind (``use_*``, ``*_config``) do."""
NOT_OF_LAYERS = {
    "alora_invocation_tokens": "it works only behind the words that call it",
    "layer_replication": "its matrices are those of a model in which layers of W0 stand several times",
    "target_parameters": "it changes parameters that are no linear layer's weight",
    "trainable_token_indices": "it changes words of an embedding",
}
"""Keys after which the factors are no change of one linear layer of W0 each, and why."""
VARIANTS = (*NOT_OF_LAYERS, "lora_bias")


def check_of_layers(config: Mapping[str, Any], source: object) -> None:
    """Refuse an adapter whose matrices do not belong to the linear layers of W0 one to one.

    Raises:
        BadInput: naming the key, its value and what it does.
    """
    for key, why in NOT_OF_LAYERS.items():
        if value := config.get(key):
            raise BadInput(f"{source} has {key}={value!r:.80}: {why}; allowed: one change of each linear layer")


def is_plain(config: Mapping[str, Any], source: object) -> bool:
    """Whether a configuration is of LoRA or DoRA around W0; if not, PEFT itself has to open the folder.

    Args:
        config: PEFT's, of a folder or of diffusers' header.
        source: the file, for the error.

    Raises:
        BadInput: its start was taken off W0 and cannot be made again.
    """
    init = str(config.get("init_lora_weights", True)).lower()
    if init in KEEPS_BASE:
        return variant_of(config) is None
    if init not in FROM_BASE:
        raise BadInput(
            f"{source} has init_lora_weights={init}: W0 was changed before training, by what the file does not say; save it "
            "with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    return False


def starts_off_base(config: Mapping[str, Any]) -> bool:
    """Whether PEFT takes the start off W0 when it opens the folder."""
    return str(config.get("init_lora_weights", True)).lower() in FROM_BASE


def variant_of(config: Mapping[str, Any]) -> str | None:
    """The key that makes a configuration another function than LoRA's or DoRA's; None if there is none."""
    kinds = (key for key in config if is_kind(key) and key not in PLAIN)
    return next((key for key in (*VARIANTS, *kinds) if config.get(key)), None)


def function_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration says what LoRA computes, as far as it is set."""
    named = ("init_lora_weights", "lora_alpha", "r", "rank_pattern", "alpha_pattern", *VARIANTS)
    return {key: config[key] for key in sorted(config) if config[key] and (key in named or is_kind(key))}


def is_kind(key: str) -> bool:
    """Whether a key is one of those that may name another function than LoRA's."""
    return re.fullmatch(r"use_\w+|\w+_config", key) is not None


def read_header(metadata: Mapping[str, str], source: object) -> dict[str, Any]:
    """The configuration in the header of a file of diffusers; empty if there is none.

    Raises:
        BadInput: it is no JSON object.
    """
    config: dict[str, Any] = parse_json(
        metadata.get("lora_adapter_metadata", "{}"), f"damaged header of {source}", OBJECT
    )
    return config


def of_component(config: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The keys of one component, which diffusers' pipelines write as ``unet.lora_alpha``, its layers alone as ``lora_alpha``."""
    return {key.removeprefix(prefix): value for key, value in config.items()}


def set_alphas(layers: Mapping[str, dict[str, Tensor]], config: Mapping[str, Any], source: object) -> None:
    """Give every matrix its alpha, so that the scale is alpha / r: its own tensor, else the configuration's, else r.

    Args:
        layers: tensors by matrix and role.
        config: PEFT's, of a folder or of diffusers' header.
        source: the file, for the error.

    Raises:
        BadInput: the configuration is of other tensors: of another rank, of DoRA without magnitudes, of LoRA with some.
    """
    for path, layer in layers.items():
        prefix = next((prefix for prefix in TEXT_ENCODERS if path.startswith(prefix)), "unet.")
        own, inner = of_component(config, prefix), path.removeprefix(prefix)
        _check_of_tensors(own, inner, layer, source)
        if "alpha" not in layer:
            layer["alpha"] = torch.tensor(_find_alpha(inner, layer["A"].shape[0], own), dtype=torch.float64)


def _check_of_tensors(own: Mapping[str, Any], path: str, layer: Mapping[str, Tensor], source: object) -> None:
    rank, said = len(layer["A"]), _of_pattern(own, "rank_pattern", path, own.get("r"))
    if said is not None and int(said) != rank:
        raise BadInput(f"{source}: matrix {path!r} has rank {rank}, its configuration says {said}")
    dora, magnitude = own.get("use_dora"), "magnitude" in layer
    if dora is not None and bool(dora) != magnitude:
        has = "holds DoRA's magnitudes" if magnitude else "lacks DoRA's magnitudes"
        raise BadInput(f"{source}: matrix {path!r} {has}, its configuration says use_dora={str(bool(dora)).lower()}")


def _of_pattern(own: Mapping[str, Any], name: str, path: str, default: Any) -> Any:
    """A matrix's own value of `rank_pattern` or `alpha_pattern`; the first pattern that fits counts, as in PEFT."""
    patterns = ((unwrap(key), value) for key, value in (own.get(name) or {}).items())
    return next((value for key, value in patterns if re.fullmatch(rf"(.*\.)?({key})", path)), default)


def _find_alpha(path: str, rank: int, own: Mapping[str, Any]) -> float:
    alpha = float(_of_pattern(own, "alpha_pattern", path, own.get("lora_alpha", rank)))
    return alpha * math.sqrt(rank) if own.get("use_rslora") else alpha
