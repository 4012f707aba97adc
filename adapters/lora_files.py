"""Convert trained adapters to the layouts of other programs, as tensors and headers; the caller writes them.

DeLoRA, ETHER+ and others that no other program knows become a LoRA by truncated SVD first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from adapters import parse_method
from adapters.checkpoint import Checkpoint
from adapters.errors import BadInput
from adapters.layer_names import to_kohya
from adapters.peft_layout import LORA_NAMES, alpha_of, describe, misses, rename, to_peft_names

LORAS = ("lora", "dora", "dora-fixed")
RESOLUTION = 1e-9
"""Singular values below this share of the largest are rounding errors of the change, which is computed in float64."""


def strength(checkpoint: Checkpoint) -> float:
    """The alpha that gives this LoRA its strength where the scale is alpha / r: times sqrt(r) for rank-stabilised ones."""
    alpha, options = alpha_of(checkpoint.spec, checkpoint.rank), checkpoint.spec.options
    return alpha * math.sqrt(checkpoint.rank) if options["divisor"] == "sqrt_r" else alpha


def to_diffusers(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a file for ``pipeline.load_lora_weights``.

    Alpha stands in the header, as diffusers' ``save_lora_weights`` puts it; readers that do not know it (diffusers
    before 0.34) load an adapter with alpha = 2r at half strength.

    Raises:
        BadInput: the method is neither LoRA nor DoRA.
    """
    _need_lora(checkpoint, "diffusers")
    tensors = {f"unet.{key}": value for key, value in rename(checkpoint.state, LORA_NAMES).items()}
    described = describe(checkpoint.spec, checkpoint.rank, checkpoint.shapes)
    config = {f"unet.{key}": value for key, value in described.items()}
    return tensors, {"format": "pt", "lora_adapter_metadata": json.dumps(config, sort_keys=True)}


def to_kohya_layout(checkpoint: Checkpoint, xl: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a file for kohya's sd-scripts, ComfyUI and A1111; DoRA's magnitudes as in LyCORIS.

    Args:
        checkpoint: LoRA or DoRA.
        xl: whether the U-Net is SDXL's, whose blocks kohya counts as Stability's code does.

    Raises:
        BadInput: the method is neither LoRA nor DoRA.
    """
    _need_lora(checkpoint, "kohya")
    tensors = {}
    for path in checkpoint.shapes:
        parts, name = checkpoint.tensors(path), to_kohya(path, xl)
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = parts["A"], parts["B"]
        tensors[f"{name}.alpha"] = torch.tensor(strength(checkpoint))
        if "magnitude" in parts:
            tensors[f"{name}.dora_scale"] = parts["magnitude"][:, None]  # one for each output row
    rank, alpha = str(checkpoint.rank), f"{strength(checkpoint):g}"
    return tensors, {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": alpha,
        **({"ss_base_model_version": "sdxl_base_v1-0"} if xl else {}),
    }


def to_peft(
    checkpoint: Checkpoint, norms: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and ``adapter_config.json`` of an HF PEFT folder.

    Args:
        checkpoint: of any method that PEFT has.
        norms: DeLoRA's column norms of W0 by path, where the checkpoint does not hold them.

    Raises:
        BadInput: PEFT has no such method.
    """
    if checkpoint.config:
        return checkpoint.state, dict(checkpoint.config)
    if reason := misses(checkpoint.spec, checkpoint.state):
        raise BadInput(f"{reason}: export this {checkpoint.spec.label} to merged or lora-svd")
    stored = {**(norms or {}), **checkpoint.norms}
    if checkpoint.spec.name == "delora" and (bare := next((p for p in checkpoint.shapes if p not in stored), None)):
        raise BadInput(f"{checkpoint.source} lacks the column norms of {bare!r}: name the base model with --model")
    tensors = to_peft_names(checkpoint.spec, checkpoint.state, stored, checkpoint.random_pair())
    return tensors, describe(checkpoint.spec, checkpoint.rank, checkpoint.shapes)


class Approximation(NamedTuple):
    """A LoRA in place of another adapter.

    Attributes:
        checkpoint: the LoRA, with alpha = r.
        errors: by path, the norm of what is lost as a share of the norm of the change (0 where nothing changed).
        error: the same over all matrices together.
    """

    checkpoint: Checkpoint
    errors: dict[str, float]
    error: float


def to_lora(checkpoint: Checkpoint, deltas: Mapping[str, Float[Tensor, "out in"]], rank: int | None) -> Approximation:
    """The best LoRA of a rank for each matrix (Eckart and Young 1936): the singular values are shared evenly by A and B.

    Args:
        checkpoint: where the changes come from.
        deltas: W_t - W_0 by path, in double precision.
        rank: of the LoRA; None means the rank of the changes, so that nothing but rounding is lost.

    Raises:
        BadInput: the rank is not possible, or a change is not finite.
    """
    smallest = min(min(delta.shape) for delta in deltas.values())
    if rank is not None and not 1 <= rank <= smallest:
        raise BadInput(f"rank {rank} is not possible: the smallest matrix allows 1 to {smallest}")
    parts = {path: _decompose(path, delta) for path, delta in deltas.items()}
    full = max(int((s > RESOLUTION * s.max()).sum()) for _, s, _ in parts.values())
    kept = max(full, 1) if rank is None else rank
    state: dict[str, Tensor] = {}
    lost: dict[str, float] = {}
    whole: dict[str, float] = {}
    for path, (u, s, v) in parts.items():
        root = s[:kept].sqrt()
        a, b = (root[:, None] * v[:kept]).float(), (u[:, :kept] * root).float()
        if kept > len(root):
            padding = kept - len(root)
            a, b = torch.nn.functional.pad(a, (0, 0, 0, padding)), torch.nn.functional.pad(b, (0, padding))
        state |= {f"{path}.A": a.contiguous(), f"{path}.B": b.contiguous()}
        lost[path], whole[path] = float((b.double() @ a.double() - deltas[path]).norm()), float(s.norm())
    errors = {path: lost[path] / whole[path] if whole[path] else 0.0 for path in lost}
    total = sum(value**2 for value in whole.values()) ** 0.5
    shapes: dict[str, tuple[int, ...]] = {path: tuple(delta.shape) for path, delta in deltas.items()}
    made = Checkpoint(
        checkpoint.source,
        "lora-svd",
        parse_method(f"lora:alpha={kept}"),
        kept,
        state,
        shapes,
        dict.fromkeys(shapes, kept),
    )
    return Approximation(made, errors, sum(value**2 for value in lost.values()) ** 0.5 / total if total else 0.0)


def _decompose(path: str, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not bool(delta.isfinite().all()):
        raise BadInput(f"the change of matrix {path!r} is not finite: its run has diverged")
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    return u, s, v


def _need_lora(checkpoint: Checkpoint, layout: str) -> None:
    spec = checkpoint.spec
    if spec.name not in LORAS or spec.options.get("axis") == "columns":
        raise BadInput(
            f"the {layout} layout has no {spec.label}; it has LoRA and DoRA: export this one to merged or lora-svd"
        )
