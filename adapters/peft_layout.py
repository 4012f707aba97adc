"""Native methods in HF PEFT's layout: which methods PEFT has too, its tensor names and its configuration.

PEFT's OFT with ``r`` blocks, HRA without Gram-Schmidt and VeRA are the functions of ``oft``, ``hra`` and ``vera``: block k
turns the k-th share of the input by the same Q, S is filled row by row above its diagonal, reflections stand in the same
order, and VeRA's random pair is cut in the same way. What PEFT computes otherwise, :func:`misses` says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from adapters import MethodSpec
from adapters.errors import BadInput
from adapters.hra import FLOOR

PREFIX = "base_model.model."
LORA_NAMES = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
DELORA_NAMES = {"A": "delora_A", "B": "delora_B", "lam": "delora_lambda"}
LARGEST_SINGLE = torch.finfo(torch.float32).eps ** (-2 / 3)
"""The norm of S beyond which I + S cannot be solved in single precision: 4e4."""

OFT_NAMES = {"R": "oft_R.weight"}
NAMES: Mapping[str, Mapping[str, str]] = {
    "lora": LORA_NAMES, "dora": LORA_NAMES, "dora-fixed": LORA_NAMES, "delora": DELORA_NAMES,
    "oft": OFT_NAMES, "coft": OFT_NAMES, "hra": {"U": "hra_u"}, "vera": {"d": "vera_lambda_d", "b": "vera_lambda_b"},
}  # fmt: skip
"""PEFT's names of a method's tensors."""
PROJECTIONS = {"A": "base_model.vera_A", "B": "base_model.vera_B"}
"""VeRA's random pair, once for the whole model."""
FOLLOWS = ("delora_w_norm", *PROJECTIONS.values())
"""Tensors that follow from W0 or from a fixed seed, and are no part of a state."""
SERIES_TERMS = 5
"""Terms of PEFT's Cayley-Neumann series at its default, which is our ``cayley=series``; so since PEFT 0.18."""


def misses(spec: MethodSpec, state: Mapping[str, Tensor]) -> str | None:
    """Why PEFT does not compute this function; None if it does.

    Args:
        spec: method and options.
        state: its tensors by ``path.name``.
    """
    name, options = spec.name, spec.options
    if name not in NAMES:
        return f"HF PEFT has no {spec.label}; it has LoRA, DoRA, DeLoRA (start=zero_b), OFT, HRA and VeRA"
    if name in ("dora", "dora-fixed") and options["axis"] != "rows":
        return "HF PEFT's DoRA has one magnitude an output row (axis=rows)"
    if name == "delora" and options["start"] != "zero_b":
        return "HF PEFT's DeLoRA starts from B = 0 (start=zero_b)"
    if name == "hra" and any(bool((u.norm(dim=0) < FLOOR).any()) for u in state.values()):
        return "HF PEFT's HRA is NaN where a vector is zero"
    if name in ("oft", "coft") and any(_is_too_large(tensor) for tensor in state.values()):
        return "HF PEFT's OFT solves in single precision, which ends where ||S|| is 4e4"
    return None


def _is_too_large(entries: Tensor) -> bool:
    norms = math.sqrt(2) * torch.linalg.vector_norm(entries, dim=-1)
    return not bool((norms <= LARGEST_SINGLE).all())


def describe(spec: MethodSpec, rank: int, paths: Iterable[str]) -> dict[str, Any]:
    """PEFT's configuration of a method that it has.

    Args:
        spec: method and options.
        rank: r.
        paths: the adapted matrices.
    """
    shared = {"task_type": None, "inference_mode": True, "bias": "none", "target_modules": list(paths)}
    name, options = spec.name, spec.options
    if name == "delora":
        own = {"peft_type": "DELORA", "r": rank, "module_dropout": 0.0, "init_weights": True}
    elif name in ("oft", "coft"):
        own = _describe_oft(spec)
    elif name == "hra":
        own = {"peft_type": "HRA", "r": rank, "apply_GS": False, "init_weights": True}
    elif name == "vera":
        own = {
            "peft_type": "VERA", "r": rank, "d_initial": options["d_initial"], "vera_dropout": 0.0,
            "save_projection": True, "projection_prng_key": 0, "init_weights": True, "fan_in_fan_out": False,
        }  # fmt: skip
    else:
        alpha = alpha_of(spec, rank)
        own = {
            "peft_type": "LORA", "r": rank, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "lora_dropout": 0.0, "use_rslora": options["divisor"] == "sqrt_r", "use_dora": name != "lora",
            "init_lora_weights": "gaussian" if options["init"] == "gaussian" else True,
        }  # fmt: skip
    return shared | own


def _describe_oft(spec: MethodSpec) -> dict[str, Any]:
    """COFT of the authors' radius, which PEFT's one eps cannot say at every width, is an OFT whose values lie in the ball."""
    limited = spec.name == "coft" and spec.options["radius"] == "peft"
    return {
        "peft_type": "OFT", "r": spec.options["blocks"], "oft_block_size": 0, "block_share": False,
        "use_cayley_neumann": spec.options.get("cayley") == "series", "num_cayley_neumann_terms": SERIES_TERMS,
        "coft": limited, "eps": spec.options["eps"] if limited else 6e-5, "module_dropout": 0.0, "init_weights": True,
        "fan_in_fan_out": False, "peft_version": "0.18.0",
    }  # fmt: skip


def alpha_of(spec: MethodSpec, rank: int) -> float:
    """LoRA's alpha as a number."""
    alpha = spec.options["alpha"]
    return 2.0 * rank if alpha == "2r" else float(str(alpha))


def rename(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """A state in another program's names, without a prefix."""
    tensors = {}
    for key, tensor in state.items():
        path, _, name = key.rpartition(".")
        tensors[f"{path}.{names[name]}"] = tensor.reshape(-1) if tensor.ndim == 0 else tensor
    return tensors


def to_peft_names(
    spec: MethodSpec,
    state: Mapping[str, Tensor],
    norms: Mapping[str, Tensor],
    projections: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Everything that PEFT's file of a method holds.

    Args:
        spec: method and options.
        state: its tensors by ``path.name``.
        norms: DeLoRA's column norms of W0 by path.
        projections: VeRA's random pair, A and B, whole.
    """
    tensors = {f"{PREFIX}{key}": tensor for key, tensor in rename(state, NAMES[spec.name]).items()}
    if spec.name == "delora":
        tensors |= {f"{PREFIX}{path}.delora_w_norm": norm for path, norm in norms.items()}
    if spec.name == "vera":
        tensors |= {PROJECTIONS[name]: tensor for name, tensor in projections.items()}
    return tensors


def from_peft_name(key: str, names: Iterable[str]) -> tuple[str, str] | None:
    """``(path, PEFT's name)`` of a tensor, if it is one of these names."""
    for name in names:
        if key.endswith(f".{name}"):
            return key.removeprefix(PREFIX).removesuffix(f".{name}"), name
    return None


def to_own_state(tensors: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """PEFT's tensors, with or without their prefix, as ``path.name``.

    Raises:
        BadInput: one of them belongs to no method that is known here.
    """
    theirs = {name: own for names in NAMES.values() for own, name in names.items()}
    state = {}
    for key, tensor in tensors.items():
        if key.endswith(FOLLOWS):
            continue
        found = from_peft_name(key, theirs)
        if found is None:
            raise BadInput(f"{source}: tensor {key!r} belongs to none of LoRA, DoRA, DeLoRA, OFT, HRA, VeRA")
        path, own = found[0], theirs[found[1]]
        state[f"{path}.{own}"] = tensor.reshape(()) if own == "lam" else tensor
    return state
