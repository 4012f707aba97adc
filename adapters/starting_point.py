"""Start new runs from a trained adapter: check that it agrees with method and rank, hash it, copy it to one file.

The file keeps all that training needs, whatever program saved the adapter, so that a run can be resumed where the original
is gone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from adapters import MethodSpec, get_class
from adapters.checkpoint import Checkpoint
from adapters.documents import parse_json
from adapters.errors import BadInput
from adapters.lora_config import function_of
from adapters.peft_layout import alpha_of
from adapters.tensor_file import DamagedTensors, open_tensors

OF_TRAINING = {"init", "lr_ratio", "norm_grad", "d_initial"}
"""Options that say how a method trains or starts, not what it computes."""
SAME_FUNCTION = ({"dora", "dora-fixed"},)
"""Methods that differ in what they train alone."""


def agree(checkpoint: Checkpoint, spec: MethodSpec, rank: int) -> Checkpoint:
    """The adapter as one of the method that is to train it.

    Args:
        checkpoint: the adapter.
        spec: method and options of the runs; those of training alone are free.
        rank: their r.

    Raises:
        BadInput: method, options or rank are not the adapter's; both are named.
    """
    own = checkpoint.spec
    related = own.name == spec.name or any({own.name, spec.name} <= names for names in SAME_FUNCTION)
    if related and get_class(spec.name).uses_rank and rank != checkpoint.rank:
        raise BadInput(f"--rank is {rank}; the adapter {checkpoint.source} has rank {checkpoint.rank}")
    if not related or _function(own, checkpoint.rank) != _function(spec, checkpoint.rank):
        raise BadInput(f"--method is {_name(spec)}; the adapter {checkpoint.source} is {_name(own)}")
    return replace(checkpoint, spec=spec)


def _function(spec: MethodSpec, rank: int) -> dict[str, object]:
    """What of the options changes the function; LoRA's alpha and divisor as the one scale that they make."""
    options: dict[str, object] = {key: value for key, value in spec.options.items() if key not in OF_TRAINING}
    if "divisor" in options:
        power = 0.5 if options.pop("divisor") == "sqrt_r" else 1.0
        del options["alpha"]
        options["scale"] = f"{alpha_of(spec, rank) / rank**power:.6g}"
    return options


def _name(spec: MethodSpec) -> str:
    kept = [pair for pair in spec.canonical.split(",") if pair and pair.partition("=")[0] not in OF_TRAINING]
    return f"{spec.name}:{','.join(kept)}" if kept else spec.name


def content_hash(checkpoint: Checkpoint) -> str:
    """16 hexadecimal digits that follow from the names and values of the adapter's tensors, and from what else makes W0 W.

    A LoRA that PEFT has to open, as PiSSA, is another start than the plain one of the same tensors: its configuration counts.
    """
    digest = hashlib.sha256()
    if str(checkpoint.config.get("peft_type", "")).upper() == "LORA":
        digest.update(json.dumps(function_of(checkpoint.config), sort_keys=True).encode())
    for key, tensor in sorted(_tensors(checkpoint).items()):
        digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def to_bytes(checkpoint: Checkpoint) -> bytes:
    """The adapter as one safetensors file, for :func:`from_file`."""
    described = {
        "method": checkpoint.spec.name, "options": checkpoint.spec.canonical, "rank": checkpoint.rank,
        "source": str(checkpoint.source), "format": checkpoint.format, "shapes": checkpoint.shapes,
        "config": dict(checkpoint.config),
    }  # fmt: skip
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in _tensors(checkpoint).items()}
    return save(tensors, {"format": "pt", "checkpoint": json.dumps(described, sort_keys=True)})


def from_file(file: Path, spec: MethodSpec) -> Checkpoint:
    """Read what :func:`to_bytes` has written.

    Args:
        file: the file.
        spec: the method that is to train it.

    Raises:
        BadInput: the file is missing or damaged, or cannot be read.
    """
    try:
        tensors, about = open_tensors(file)
    except DamagedTensors as error:
        raise BadInput(f"{file}, the adapter that these runs start from, is damaged or missing: {error}") from None
    try:
        described = parse_json(about["checkpoint"], str(file))
    except (KeyError, ValueError) as error:
        raise BadInput(f"{file}, the adapter that these runs start from, is damaged or missing: {error!r}") from None
    parts: dict[str, dict[str, Tensor]] = {"state": {}, "pair": {}, "norms": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = tensor
    shapes = {path: tuple(shape) for path, shape in described["shapes"].items()}
    return Checkpoint(
        Path(described["source"]), described["format"], spec, described["rank"], parts["state"], shapes,
        pair=parts["pair"], norms=parts["norms"], config=described["config"],
    )  # fmt: skip


def _tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Everything by ``part/name``."""
    parts = {"state": checkpoint.state, "pair": checkpoint.pair, "norms": checkpoint.norms}
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
