"""An HF PEFT folder of a tuner that is not native here: PEFT itself names it, loads it and merges it.

Whatever PEFT loads can so be measured and exported, BOFT or (IA)^3 as well as OFT with blocks of one size. Its own
``merge`` on copies of the frozen weights says what it does to each.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapters import PEFT, MethodSpec
from adapters.checkpoint import Checkpoint
from adapters.errors import BadInput
from adapters.inject import bare_model
from adapters.lora_config import is_kind
from adapters.peft_layout import PREFIX
from adapters.peft_merge import merge_to_copy
from adapters.peft_pack import PeftPack, attach_peft
from adapters.peft_tuner import (
    OURS,
    SIMPLE,
    checked,
    fields_of,
    list_types,
    load_peft,
    no_build_on_cpu,
    one_line,
    why_not,
)

Merged = tuple[Tensor, Tensor | None]
"""A layer's weight and bias."""


def name_tuner(config: Mapping[str, Any], source: object) -> MethodSpec:
    """``peft:<type>`` with those options that are not the default, as far as a command line can say them.

    Raises:
        BadInput: PEFT is not installed, has no such type, or refuses the configuration.
    """
    kind = str(config["peft_type"]).lower()
    known = list_types()
    if kind not in known:
        raise BadInput(f"{source} cannot be read: {why_not(kind)}")
    fields = set(fields_of(known[kind]))
    if newer := [key for key in config if is_kind(key) and config[key] and key not in fields]:
        raise BadInput(f"{source} has {newer[0]}, which the installed PEFT {load_peft().__version__} does not know")
    options = {key: value for key, value in config.items() if key in fields - set(OURS) and isinstance(value, SIMPLE)}
    return checked(f"{PEFT}{kind}", options)


def find_paths(config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: object) -> list[str]:
    """The matrices that a folder's tensors belong to, in the order of the file.

    Raises:
        BadInput: a tensor is none of the tuner's.
    """
    mark = f".{_prefix(config)}"
    paths: dict[str, None] = {}
    for key in tensors:
        inner = key.removeprefix(PREFIX)
        if inner == key:  # what the whole model shares
            continue
        path, found, _ = inner.partition(mark)
        if not found:
            raise BadInput(f"{source}: tensor {key!r} is not of PEFT's {config['peft_type']}")
        paths[path] = None
    if not paths:
        raise BadInput(f"{source} holds no adapter")
    return list(paths)


def attach_folder(
    unet: nn.Module, checkpoint: Checkpoint, seeds: Sequence[int], targets: Mapping[str, nn.Linear]
) -> PeftPack:
    """The tuner inside a U-Net, in the folder's state, to go on training.

    Raises:
        BadInput: as :func:`adapters.peft_pack.attach_peft`; or the tensors do not fit the model.
    """
    config = _make_config(checkpoint, list(targets))
    pack = attach_peft(unet, checkpoint.spec, seeds, targets, config=config)
    try:
        _load(pack.model, checkpoint)
    except BadInput:
        pack.detach()
        raise
    pack.spread()
    return pack


@torch.no_grad()
def merge(checkpoint: Checkpoint, weights: Mapping[str, Tensor], biases: Mapping[str, Tensor]) -> dict[str, Merged]:
    """What PEFT merges into each of these layers, by path, in single precision, as it opens a folder itself.

    Args:
        checkpoint: the folder.
        weights: W0 of every matrix that it adapts.
        biases: of those that have one.

    Raises:
        BadInput: the tensors do not fit the weights (PEFT's reason is kept); or what they mean hangs on the order of the
            model's modules, as TinyLoRA's and FRoD's does, which the folder does not say.
    """
    merged = _merge_in_order(checkpoint, weights, biases)
    turned = _merge_in_order(checkpoint, dict(reversed(list(weights.items()))), biases)
    for path, (weight, _) in merged.items():
        if not torch.allclose(weight, turned[path][0], rtol=1e-4, atol=1e-5, equal_nan=True):
            raise BadInput(f"{checkpoint.source} hangs on the order of the model's modules: {checkpoint.spec.label}")
    return merged


def _merge_in_order(
    checkpoint: Checkpoint, weights: Mapping[str, Tensor], biases: Mapping[str, Tensor]
) -> dict[str, Merged]:
    layers = {path: _make_layer(weight, biases.get(path)) for path, weight in weights.items()}
    model = bare_model(layers)
    try:
        with torch.random.fork_rng(), warnings.catch_warnings(), no_build_on_cpu(layers):
            warnings.simplefilter("ignore")
            wrapped = load_peft().PeftModel(model, _make_config(checkpoint, list(weights)))
            _load(wrapped, checkpoint)
            return {path: merge_to_copy(model.get_submodule(path)) for path in weights}
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"PEFT cannot merge {checkpoint.source}: {one_line(error)}") from None


def _make_layer(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.float().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.float().clone(), requires_grad=False)
    return layer


def _make_config(checkpoint: Checkpoint, paths: list[str]) -> Any:
    kind = list_types()[checkpoint.spec.name.removeprefix(PEFT)]
    kept = set(fields_of(kind)) - set(OURS)
    values = {key: value for key, value in checkpoint.config.items() if key in kept}
    if isinstance(inner := values.get("feedforward_modules"), list):  # (IA)^3: must be among the targets
        values["feedforward_modules"] = [path for path in paths if path.endswith(tuple(inner))] if inner else []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind(**values, target_modules=paths)
    except (ValueError, TypeError) as error:
        raise BadInput(f"PEFT refuses the configuration of {checkpoint.source}: {one_line(error)}") from None


def _load(model: Any, checkpoint: Checkpoint) -> None:
    """Put the folder's tensors in, in place."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = load_peft().set_peft_model_state_dict(model, dict(checkpoint.state))
    except (RuntimeError, ValueError, KeyError) as error:
        raise BadInput(f"{checkpoint.source} is of another model: {one_line(error)}") from None
    mark = _prefix(checkpoint.config)
    own = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False) if mark in name}
    loaded = {number for name, number in own.items() if name not in outcome.missing_keys}  # some share one tensor
    missing = [name for name, number in own.items() if number not in loaded]
    for key in (*outcome.unexpected_keys, *missing):
        raise BadInput(f"{checkpoint.source} does not fit its configuration: tensor {key!r} is missing or unknown")


def _prefix(config: Mapping[str, Any]) -> str:
    """What the names of a tuner's tensors begin with, as in ``boft_R``."""
    load_peft()
    mapping = importlib.import_module("peft.mapping").PEFT_TYPE_TO_PREFIX_MAPPING
    return mapping[str(config["peft_type"]).upper()]
