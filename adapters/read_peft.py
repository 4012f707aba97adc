"""Read HF PEFT's OFT, HRA and VeRA as native methods where they are the same function; any other tuner as PEFT's own.

So is a LoRA that is no plain one around W0: PiSSA and OLoRA, whose start PEFT takes off W0 again, KaSA, VeLoRA and others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters import MethodSpec, parse_method
from adapters.checkpoint import Checkpoint
from adapters.errors import BadInput
from adapters.lora_config import starts_off_base
from adapters.peft_folder import find_paths, name_tuner
from adapters.peft_layout import NAMES, PROJECTIONS, SERIES_TERMS, from_peft_name, to_own_state
from adapters.peft_tuner import one_line

FORM = "HF PEFT"
Layers = dict[str, dict[str, Tensor]]


def read_peft(file: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint of a folder whose type is neither DeLoRA nor a plain LoRA.

    Args:
        file: its safetensors.
        tensors: what they hold.
        config: ``adapter_config.json``.

    Raises:
        BadInput: PEFT has no such type or is not installed, a tensor is none of the type's, or the folder is damaged.
    """
    try:
        return _read(file, tensors, config)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{file} or its configuration is damaged: {one_line(error)}") from None


def _read(file: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Checkpoint:
    single = {key: value if value.dtype == torch.float64 else value.float() for key, value in tensors.items()}
    kind = str(config["peft_type"]).lower()
    readers = {"oft": _oft, "hra": _hra, "vera": _vera}
    layers = _sort(kind, single) if kind in readers else None
    if layers:
        spec = readers[kind](layers, single, config)
        if spec is not None:
            return _native(file, spec, layers, single)
    spec, paths = name_tuner(config, file), find_paths(config, single, file)
    rank = next((size for size in (config.get("r"),) if isinstance(size, int)), 0)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(paths, ())
    notes = ("its start is taken off W0, as PEFT does",) if kind == "lora" and starts_off_base(config) else ()
    return Checkpoint(
        file, FORM, spec, rank, single, shapes, dict.fromkeys(paths, rank), notes=notes, config=dict(config)
    )


def _sort(kind: str, tensors: Mapping[str, Tensor]) -> Layers | None:
    """Tensors by matrix and PEFT's name; None if there are others, or if matrices have different ones."""
    layers: Layers = {}
    names = NAMES[kind].values()
    for key in sorted(tensors.keys() - set(PROJECTIONS.values())):
        found = from_peft_name(key, names)
        if found is None:
            return None
        layers.setdefault(found[0], {})[found[1]] = tensors[key]
    return layers if all(layer.keys() == set(names) for layer in layers.values()) else None


def _native(file: Path, spec: MethodSpec, layers: Layers, tensors: Mapping[str, Tensor]) -> Checkpoint:
    rank = _rank(spec, layers)
    pair = {name: tensors[key] for name, key in PROJECTIONS.items() if key in tensors}
    return Checkpoint(
        file, FORM, spec, rank, to_own_state(tensors, file), {path: _shape(layer) for path, layer in layers.items()},
        dict.fromkeys(layers, rank), pair=pair,
    )  # fmt: skip


def _rank(spec: MethodSpec, layers: Layers) -> int:
    first = next(iter(layers.values()))
    return {"hra": lambda: first["hra_u"].shape[1], "vera": lambda: len(first["vera_lambda_d"])}.get(
        spec.name, lambda: 0
    )()


def _shape(layer: Mapping[str, Tensor]) -> tuple[int, int]:
    """``(out, in)``, 0 for what the tensors leave open."""
    if "hra_u" in layer:
        return 0, len(layer["hra_u"])
    if "vera_lambda_b" in layer:
        return len(layer["vera_lambda_b"]), 0
    blocks, entries = layer["oft_R.weight"].shape
    return 0, blocks * _width(entries)


def _width(entries: int) -> int:
    """Side of a block with so many entries above its diagonal."""
    return (1 + math.isqrt(1 + 8 * entries)) // 2


def _oft(layers: Layers, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> MethodSpec | None:
    """OFT with as many blocks in every matrix, exact or the series of five terms, or COFT with the exact form."""
    blocks = {len(layer["oft_R.weight"]) for layer in layers.values()}
    series = config.get("use_cayley_neumann", True)
    if len(blocks) > 1 or config.get("block_share") or (series and config.get("coft")):
        return None
    if series and config.get("num_cayley_neumann_terms", SERIES_TERMS) != SERIES_TERMS:
        return None
    (count,) = blocks
    if config.get("coft"):
        return parse_method(f"coft:blocks={count},eps={float(config['eps'])!r},radius=peft")
    return parse_method(f"oft:blocks={count},cayley={'series' if series else 'exact'}")


def _hra(layers: Layers, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> MethodSpec | None:
    """HRA of one even rank without Gram-Schmidt."""
    ranks = {layer["hra_u"].shape[1] for layer in layers.values()}
    return None if config.get("apply_GS") or len(ranks) > 1 or min(ranks) % 2 else parse_method("hra")


def _vera(layers: Layers, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> MethodSpec | None:
    """VeRA whose random pair lies in the file (otherwise it depends on the model's largest matrix), of a rank that fits."""
    if not set(PROJECTIONS.values()) <= tensors.keys():
        return None
    rank, sizes = len(tensors[PROJECTIONS["A"]]), [len(layer["vera_lambda_b"]) for layer in layers.values()]
    if rank > min(sizes) or rank > tensors[PROJECTIONS["A"]].shape[1]:
        return None
    return parse_method(f"vera:d_initial={float(config.get('d_initial', 0.1))!r}")
