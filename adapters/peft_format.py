"""Trained adapters as folders: HF PEFT's format where PEFT has the method, merged weights where it has not.

A PEFT folder holds ``adapter_config.json`` and ``adapter_model.safetensors``; ``PeftModel.from_pretrained(unet, folder)``
loads it. Any other holds

- ``merged.safetensors``: the effective weights, ``<path>.weight``, for ``unet.load_state_dict(..., strict=False)``;
- ``plateau_adapter.safetensors``: the method's own tensors, frozen starts included, for :func:`load`;
- ``adapter_config.json``: method, options, rank and matrices.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters import BadInput
from adapters.inject import Attached
from adapters.peft_pack import PeftPack

CONFIG_FILE = "adapter_config.json"
PEFT_FILE = "adapter_model.safetensors"
OWN_FILE = "plateau_adapter.safetensors"
MERGED_FILE = "merged.safetensors"

PEFT_PREFIX = "base_model.model."
LORA_NAMES = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
DELORA_NAMES = {"A": "delora_A", "B": "delora_B", "lam": "delora_lambda"}
OWN_NAMES = {theirs: own for names in (LORA_NAMES, DELORA_NAMES) for own, theirs in names.items()}


def save(folder: Path | str, attached: Attached, replica: int, *, base_model: str) -> None:
    """Write one replica as a folder, all of it or nothing; a folder of that name is replaced.

    Args:
        folder: Where; its parent is made if need be.
        attached: The pack.
        replica: Which of its replicas, from 0.
        base_model: Name or path of the base model, for the configuration.

    Raises:
        BadInput: The disk is full or the folder cannot be written. What stood there before still does.
    """
    folder = Path(folder)
    aside = folder.with_name(f".{folder.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        aside.mkdir(parents=True, exist_ok=True)
        if isinstance(attached, PeftPack):
            attached.write(aside, base_model)
        else:
            _write(aside, attached, replica, base_model)
        for name in (*(file.name for file in aside.iterdir()), "."):
            _flush(aside / name)
        _put_in_place(aside, folder)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(folder: Path, attached: Attached, replica: int, base_model: str) -> None:
    config, files = _peft(attached, replica) if has_peft_form(attached) else _merged(attached, replica)
    for name, tensors in files.items():
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, {"format": "pt"})
    text = json.dumps({"base_model_name_or_path": base_model, **config}, indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def load(folder: Path | str) -> dict[str, Tensor]:
    """Read the state of a folder that :func:`save`, or PEFT for one of its methods, has written.

    Strengths that are not tensors (LoRA's alpha) stand in ``adapter_config.json`` and are not looked at.

    Returns:
        ``path.name`` tensors, for :meth:`adapters.inject.Attached.load_state`.

    Raises:
        BadInput: The folder holds no adapter, a file of it is damaged, or a tensor belongs to no method.
    """
    folder = Path(folder)
    for name in (OWN_FILE, PEFT_FILE):
        if (folder / name).is_file():
            try:
                tensors = load_file(folder / name)
            except (SafetensorError, OSError) as error:
                raise BadInput(f"{folder / name} is damaged: {error}") from error
            return tensors if name == OWN_FILE else _own_state(tensors, folder / name)
    raise BadInput(f"{folder} holds no adapter: neither {OWN_FILE} nor {PEFT_FILE}")


def has_peft_form(attached: Attached) -> bool:
    """Whether PEFT computes this very function: LoRA, DoRA by rows unless a row of W0 is zero (there PEFT's is NaN),
    and DeLoRA that starts from B = 0, with either norm.
    """
    name, options = attached.spec.name, attached.spec.options
    if name in ("dora", "dora-fixed"):
        norms = [adapter.get_buffer("base_norms") for adapter in attached.adapters.values()]
        return options["axis"] == "rows" and all(bool((norm > 0).all()) for norm in norms)
    return name == "lora" or (name == "delora" and options["start"] == "zero_b")


def _peft(attached: Attached, replica: int) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Configuration and tensors in PEFT's names."""
    first = next(iter(attached.adapters.values()))
    config: dict[str, Any] = {
        "task_type": None,
        "inference_mode": True,
        "bias": "none",
        "r": first.rank,
        "target_modules": list(attached.adapters),
    }
    tensors = {}
    if attached.spec.name == "delora":
        config |= {"peft_type": "DELORA", "module_dropout": 0.0, "init_weights": True}
        for path, adapter in attached.adapters.items():
            norms = adapter.get_buffer("column_norms").to(adapter.dtype)
            tensors[f"{PEFT_PREFIX}{path}.delora_w_norm"] = norms.clone()
        names = DELORA_NAMES
    else:
        alpha, init = attached.spec.options["alpha"], attached.spec.options["init"]
        config |= {
            "peft_type": "LORA",
            "lora_alpha": 2 * first.rank if alpha == "2r" else alpha,
            "lora_dropout": 0.0,
            "use_rslora": attached.spec.options["divisor"] == "sqrt_r",
            "use_dora": attached.spec.name != "lora",
            "init_lora_weights": "gaussian" if init == "gaussian" else True,
        }
        names = LORA_NAMES
    for key, tensor in attached.state(replica).items():
        path, _, name = key.rpartition(".")
        tensors[f"{PEFT_PREFIX}{path}.{names[name]}"] = tensor.reshape(-1) if tensor.ndim == 0 else tensor
    return config, {PEFT_FILE: tensors}


def _merged(attached: Attached, replica: int) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Configuration, merged weights and the method's own tensors."""
    config = {
        "format": "plateau",
        "about": f"HF PEFT has no such method: {MERGED_FILE} holds the weights to use, {OWN_FILE} the trained tensors",
        "method": attached.spec.name,
        "options": dict(attached.spec.options),
        "r": next(iter(attached.adapters.values())).rank,
        "target_modules": list(attached.adapters),
    }
    merged = {f"{path}.weight": weight for path, weight in attached.merged(replica).items()}
    return config, {MERGED_FILE: merged, OWN_FILE: attached.state(replica)}


def _own_state(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """PEFT's keys, with or without their prefix, as ``path.name``; what follows from W0 is left out."""
    state = {}
    for key, tensor in tensors.items():
        theirs = next((name for name in (*OWN_NAMES, "delora_w_norm") if key.endswith(f".{name}")), None)
        if theirs is None:
            raise BadInput(f"{file}: tensor {key!r} belongs to none of LoRA, DoRA, DeLoRA")
        if theirs == "delora_w_norm":
            continue
        path = key.removeprefix(PEFT_PREFIX).removesuffix(f".{theirs}")
        own = OWN_NAMES[theirs]
        state[f"{path}.{own}"] = tensor.reshape(()) if own == "lam" else tensor
    return state


def _put_in_place(aside: Path, folder: Path) -> None:
    """Rename; what stood there steps aside until the new one stands. Leftovers of killed processes go last."""
    replaced = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    existed = folder.exists()
    if existed:
        os.rename(folder, replaced)
    try:
        os.rename(aside, folder)
    except OSError:
        if existed:
            os.rename(replaced, folder)
        raise
    _flush(folder.parent)
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        if leftover.suffix in (".tmp", ".old"):
            shutil.rmtree(leftover, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until a file's or folder's content is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
