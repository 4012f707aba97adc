"""Store trained adapters as folders: HF PEFT's format where PEFT has the method, merged weights where it has not.

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
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from adapters import peft_layout
from adapters.documents import flush
from adapters.errors import BadInput
from adapters.pack import Attached
from adapters.peft_pack import PeftPack
from adapters.tensor_file import open_tensors
from adapters.vera import whole_pair

CONFIG_FILE = "adapter_config.json"
PEFT_FILE = "adapter_model.safetensors"
OWN_FILE = "plateau_adapter.safetensors"
MERGED_FILE = "merged.safetensors"


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
            attached.write(aside, replica, base_model)
        else:
            _write(aside, attached, replica, base_model)
        for name in (*(file.name for file in aside.iterdir()), "."):
            flush(aside / name)
        _put_in_place(aside, folder)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(folder: Path, attached: Attached, replica: int, base_model: str) -> None:
    attached.project()
    with_peft = has_peft_form(attached, replica)
    config, files = _peft(attached, replica) if with_peft else _merged(attached, replica)
    for name, tensors in files.items():
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, {"format": "pt"})
    text = json.dumps({"base_model_name_or_path": base_model, **config}, indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def load(folder: Path | str) -> dict[str, Tensor]:
    """Read the state of a folder that :func:`save`, or PEFT for one of its methods, has written.

    Strengths that are not tensors (LoRA's alpha) stand in ``adapter_config.json`` and are not looked at.

    Returns:
        ``path.name`` tensors, for :meth:`adapters.pack.Attached.load_state`.

    Raises:
        BadInput: The folder holds no adapter, a file of it is damaged, or a tensor belongs to no method.
    """
    folder = Path(folder)
    for name in (OWN_FILE, PEFT_FILE):
        if (folder / name).is_file():
            tensors, _ = open_tensors(folder / name)
            return tensors if name == OWN_FILE else peft_layout.to_own_state(tensors, folder / name)
    raise BadInput(f"{folder} holds no adapter: neither {OWN_FILE} nor {PEFT_FILE}")


def has_peft_form(attached: Attached, replica: int = 0) -> bool:
    """Whether PEFT computes this very function: LoRA, DoRA by rows unless a row of W0 is zero (there PEFT's is NaN),
    DeLoRA that starts from B = 0, OFT, COFT, HRA and VeRA; see :func:`adapters.peft_layout.misses`.
    """
    if attached.spec.name in ("dora", "dora-fixed"):
        norms = [adapter.get_buffer("base_norms") for adapter in attached.adapters.values()]
        if not all(bool((norm > 0).all()) for norm in norms):
            return False
    return peft_layout.misses(attached.spec, attached.state(replica)) is None


def _peft(attached: Attached, replica: int) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Configuration and tensors in PEFT's names."""
    adapters, spec = attached.adapters, attached.spec
    norms, projections = {}, {}
    if spec.name == "delora":
        norms = {path: a.get_buffer("column_norms").to(a.dtype).clone() for path, a in adapters.items()}
    if spec.name == "vera":
        projections = whole_pair(adapters.values())
    tensors = peft_layout.to_peft_names(spec, attached.state(replica), norms, projections)
    rank = next(iter(adapters.values())).rank
    return peft_layout.describe(spec, rank, adapters), {PEFT_FILE: tensors}


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
    flush(folder.parent)
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        if leftover.suffix in (".tmp", ".old"):
            shutil.rmtree(leftover, ignore_errors=True)
