"""Read an adapter saved by HF PEFT, diffusers, kohya, cloneofsimo/lora, the released DeLoRA code or Plateau. Nothing is
ever unpickled."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapters import parse_method
from adapters.adapter_file import find_file, read_config
from adapters.checkpoint import Checkpoint
from adapters.errors import BadInput
from adapters.foreign_names import name_method, name_model
from adapters.layer_names import (
    TEXT_ENCODERS,
    describe_sd15,
    name_clip_number,
    name_numbers,
    split_adapter_name,
    split_key,
    unwrap,
)
from adapters.lora_config import check_of_layers, is_plain, of_component, read_header, set_alphas, variant_of
from adapters.peft_format import CONFIG_FILE, MERGED_FILE, OWN_FILE
from adapters.peft_layout import PREFIX
from adapters.read_peft import read_peft
from adapters.tensor_file import open_safetensors, open_tensors
from adapters.words import counted

Layers = dict[str, dict[str, Tensor]]


def read_checkpoint(path: Path | str, layers: Iterable[str] | None = None) -> Checkpoint:
    """Read a safetensors file, or a folder that HF PEFT, the released DeLoRA code or Plateau has saved.

    Args:
        path: the file or folder.
        layers: ``path:out:in`` of the model's linear layers, for files that number them; None means Stable Diffusion
            1.5's.

    Raises:
        BadInput: it is missing, a pickle, damaged, or of a method that is not known here (the tensor is named).
    """
    file = find_file(Path(path))
    tensors, metadata = open_tensors(file)
    beside = file.with_name(CONFIG_FILE)
    config = read_config(beside) if beside.is_file() else {}
    if file.name == OWN_FILE:
        return _own(file, tensors, config)
    check_of_layers(config, file)
    tensors = _clean(file, tensors)
    if other := name_model(key.removeprefix(PREFIX) for key in tensors):
        raise BadInput(f"{file} is not of a model that Plateau knows: it looks like {other[0]} ({other[1]!r})")
    if str(config.get("peft_type", "LORA")).upper() not in ("LORA", "DELORA"):
        return read_peft(file, tensors, config)
    given, notes = _sort(file, tensors, metadata)
    form = _name_form(given, tensors, metadata)
    if form == NUMBERED:
        given = _named(file, given, layers)
    for name, layer in given.items():
        _check_layer(file, name, layer)
    if any("lam" in layer for layer in given.values()):
        return _delora(file, form, given, notes)
    if form == "HF PEFT":
        if "lora_alpha" not in config:
            raise BadInput(f"{file} needs {CONFIG_FILE} beside it: LoRA's alpha stands there")
        if not is_plain(config, file):
            return read_peft(file, tensors, {"peft_type": "LORA"} | config)
    _set_alphas(file, given, config if form == "HF PEFT" else {}, metadata)
    return _lora(file, form, given, notes)


NUMBERED = "cloneofsimo/lora (numbered layers)"


def _name_form(layers: Layers, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Whose layout it is; HF PEFT's alone hangs on a configuration beside it."""
    if any(":" in name for name in layers):
        return NUMBERED
    if any("A_start" in layer for layer in layers.values()):
        return "released DeLoRA"
    if any(key.startswith(("lora_unet_", "lora_te", "lycoris_")) for key in tensors):
        return "kohya"
    if any(key.startswith(("unet.", *TEXT_ENCODERS)) for key in tensors):
        return "diffusers"
    if any(".processor." in key for key in tensors):
        return "diffusers (attention processors)"
    if "lora_adapter_metadata" in metadata:
        return "diffusers (a U-Net's own)"
    if all("alpha" in layer for layer in layers.values()) or any("diffusion_model." in key for key in tensors):
        return "ComfyUI"
    return "HF PEFT"


def _clean(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without wrappers and the adapter's name in their names.

    Raises:
        BadInput: there are several adapters, or two tensors of one name.
    """
    split = {key: split_adapter_name(unwrap(key)) for key in tensors}
    adapters = sorted({adapter for _, adapter in split.values()})
    if len(adapters) > 1:
        names = ", ".join(repr(name) for name in adapters if name)
        raise BadInput(f"{file} holds several adapters, by name {names}: save the one to read alone")
    cleaned = {name: tensors[key] for key, (name, _) in split.items()}
    if len(cleaned) < len(tensors):
        twice = next(key for key, (name, _) in split.items() if key != name and name in tensors)
        raise BadInput(f"{file} holds {twice!r} twice, with a wrapper in its name and without")
    return cleaned


def _own(file: Path, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> Checkpoint:
    """Plateau's own folder: the method's name and options stand in the configuration."""
    try:
        options = ",".join(f"{key}={value}" for key, value in config["options"].items())
        spec, rank = parse_method(f"{config['method']}:{options}"), int(config["r"])
        paths = config["target_modules"]
        with open_safetensors(file.with_name(MERGED_FILE), "np") as merged:
            shapes = {path: tuple(merged.get_slice(f"{path}.weight").get_shape()) for path in paths}
    except (KeyError, AttributeError, TypeError) as error:
        raise BadInput(f"{file.parent} is damaged: {error!r}") from None
    return Checkpoint(file, "Plateau", spec, rank, tensors, shapes, dict.fromkeys(paths, rank))


# Tensors.


def _sort(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[Layers, tuple[str, ...]]:
    """Tensors by matrix and role, in single precision or better; text tokens only leave a note."""
    layers: Layers = {}
    tokens = sorted(key for key in tensors if metadata.get(key) == "<embed>" or re.fullmatch(r"<.+>", key))
    for key in sorted(tensors.keys() - set(tokens)):
        split, tensor = split_key(key), tensors[key]
        if split is None:
            known = f": it is of {of}" if (of := name_method(key)) else ""
            raise BadInput(f"{file}: tensor {key!r} belongs to none of LoRA, DoRA, DeLoRA{known}")
        if not tensor.is_floating_point() and split[1] != "alpha":
            raise BadInput(f"{file}: tensor {key!r} holds {tensor.dtype}, no floating-point numbers")
        layer = layers.setdefault(split[0], {})
        if split[1] in layer:
            raise BadInput(f"{file} holds {split[1]!r} of matrix {split[0]!r} twice, under different names ({key!r})")
        layer[split[1]] = tensor if tensor.dtype == torch.float64 else tensor.float()
    if not layers:
        raise BadInput(f"{file} holds no adapter")
    return layers, (f"text tokens {', '.join(tokens)} are left out",) if tokens else ()


def _check_layer(file: Path, name: str, layer: Mapping[str, Tensor]) -> None:
    if missing := {"A", "B"} - layer.keys():
        raise BadInput(f"{file}: matrix {name!r} lacks factor {min(missing)}")
    a, b = layer["A"], layer["B"]
    if min(a.ndim, b.ndim) < 2 or 0 in (*a.shape, *b.shape) or a.shape[0] != b.shape[1] or b[0, 0].numel() != 1:
        raise BadInput(f"{file}: factors of {name!r} do not multiply: {tuple(b.shape)} and {tuple(a.shape)}")
    for role in ("alpha", "lam", "magnitude", "norms"):
        if role in layer and not 1 <= layer[role].numel() <= (
            1 if role in ("alpha", "lam") else max(a[0].numel(), len(b))
        ):
            raise BadInput(f"{file}: {role} of {name!r} has {layer[role].numel()} values")


def _named(file: Path, layers: Layers, known: Iterable[str] | None) -> Layers:
    """Numbers replaced by paths."""
    named, unet = {}, {}
    for name in sorted(layers, key=lambda name: (len(name), name)):  # numbers in their order
        layer = layers[name]
        _check_layer(file, name, layer)
        component, _, number = name.partition(":")
        if component not in ("unet", "text_encoder") or not number.isdigit():
            raise BadInput(f"{file}: {name!r} is neither unet:<number> nor text_encoder:<number>")
        if component == "unet":
            unet[int(number)] = layer
        else:
            named[name_clip_number(int(number))] = layer
    ordered = [unet[number] for number in sorted(unet)]
    shapes = [(layer["B"].shape[0], layer["A"].shape[1]) for layer in ordered]
    paths = name_numbers(shapes, describe_sd15() if known is None else known) if unet else []
    if paths is None:
        model = "Stable Diffusion 1.5 (name another one with --model)" if known is None else "this model"
        raise BadInput(
            f"{file} numbers {counted(len(shapes), 'matrix')} of the U-Net, whose shapes are not those of {model}"
        )
    return dict(zip(paths, ordered)) | named


def _shape(layer: Mapping[str, Tensor]) -> tuple[int, ...]:
    return (layer["B"].shape[0], *layer["A"].shape[1:])


def _delora(file: Path, form: str, layers: Layers, notes: tuple[str, ...]) -> Checkpoint:
    """DeLoRA from PEFT (B = 0 at the start) or from the released code (frozen copies scaled by the present lambda)."""
    wanted = {"A", "B", "lam"} | ({"A_start", "B_start"} if form == "released DeLoRA" else set())
    ranks: dict[str, int] = {}
    norms: dict[str, Tensor] = {}
    state: dict[str, Tensor] = {}
    for path, layer in layers.items():
        if missing := wanted - layer.keys():
            raise BadInput(f"{file}: matrix {path!r} lacks {min(missing)!r} of DeLoRA")
        ranks[path] = layer["A"].shape[0]
        if "norms" in layer:
            norms[path] = layer["norms"].flatten()
        state |= {f"{path}.{name}": layer[name] for name in wanted}
        state[f"{path}.lam"] = layer["lam"].reshape(())
        if "A_start" in wanted:
            state[f"{path}.lam_start"] = state[f"{path}.lam"].clone()
    if len(set(ranks.values())) > 1:
        raise BadInput(
            f"{file}: DeLoRA's ranks differ from matrix to matrix ({min(ranks.values())} to {max(ranks.values())})"
        )
    scalar = bool(norms) and all(torch.equal(norm, norm[:1].expand_as(norm)) for norm in norms.values())
    start = "live" if form == "released DeLoRA" else "zero_b"
    spec = parse_method(f"delora:start={start},norm={'scalar' if scalar else 'columns'}")
    shapes = {path: _shape(layer) for path, layer in layers.items()}
    return Checkpoint(file, form, spec, next(iter(ranks.values())), state, shapes, ranks, norms, notes)


def _lora(file: Path, form: str, layers: Layers, notes: tuple[str, ...]) -> Checkpoint:
    """LoRA or DoRA; where ranks or alphas differ, factors are padded to the largest rank and B takes up the scale."""
    ranks = {path: layer["A"].shape[0] for path, layer in layers.items()}
    alphas = {path: float(layer["alpha"]) for path, layer in layers.items()}
    rank, alpha = max(ranks.values()), next(iter(alphas.values()))
    uniform = len(set(ranks.values())) == len(set(alphas.values())) == 1 and math.isfinite(alpha) and alpha > 0
    if not uniform:
        alpha = float(rank)
    method = "dora" if any("magnitude" in layer for layer in layers.values()) else "lora"
    state: dict[str, Tensor] = {}
    axes: set[str] = set()
    for path, layer in layers.items():
        a, b = layer["A"].flatten(1), layer["B"].flatten(1)
        if not uniform:
            b = b * (alphas[path] / ranks[path])
            a, b = (
                nn.functional.pad(part, pad)
                for part, pad in ((a, (0, 0, 0, rank - len(a))), (b, (0, rank - b.shape[1])))
            )
        state |= {f"{path}.A": a, f"{path}.B": b}
        if method == "dora":
            if "magnitude" not in layer or layer["magnitude"].numel() not in (len(b), a.shape[1]):
                raise BadInput(f"{file}: DoRA's magnitudes of {path!r} are missing, or not one for each row or column")
            axes.add(_axis(layer["magnitude"], len(b)))
            state[f"{path}.magnitude"] = layer["magnitude"].flatten()
    if len(axes) > 1:
        raise BadInput(f"{file}: DoRA's magnitudes belong to rows of some matrices and to columns of others")
    axis = "".join(f",axis={name}" for name in axes)
    spec = parse_method(f"{method}:alpha={'2r' if alpha == 2 * rank else repr(alpha)}{axis}")
    shapes = {path: _shape(layer) for path, layer in layers.items()}
    return Checkpoint(file, form, spec, rank, state, shapes, ranks, {}, notes)


def _axis(magnitude: Tensor, num_out: int) -> str:
    """Rows, unless LyCORIS' shape ``[1, in]`` (``wd_on_output`` off) or the number of values says columns."""
    single_row = magnitude.ndim > 1 and magnitude.shape[0] == 1 and num_out > 1
    return "columns" if single_row or magnitude.numel() != num_out else "rows"


def _set_alphas(file: Path, layers: Layers, config: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Give every matrix its alpha; the configuration is PEFT's, beside the file or in diffusers' header.

    Raises:
        BadInput: the configuration is damaged or of other tensors, or the header's is of more than LoRA or DoRA.
    """
    try:
        header = {} if config else read_header(metadata, file)
        for prefix in ("unet.", *TEXT_ENCODERS):
            own = of_component(header, prefix)
            check_of_layers(own, file)
            if not is_plain(own, file):
                what = variant_of(own) or f"init_lora_weights={own['init_lora_weights']}"
                raise BadInput(f"{file} has {what}: that is read from HF PEFT's own folders alone (save_pretrained)")
        set_alphas(layers, config or header, file)
    except (ValueError, TypeError, AttributeError, re.error) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{file}: its LoRA configuration is damaged: {error}") from None
