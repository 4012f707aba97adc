"""Compute the effective weight of a layer in any model with any adapter, and its distance from the frozen weight.

| adapter | found by | distance |
|---|---|---|
| HF PEFT's plain LoRA | its tuner layer | closed form, `||s B A||` from Grams in double precision |
| PiSSA and other starts off W0 | PEFT's configuration | from what is applied when it is first seen, W0 at the start |
| any other HF PEFT tuner | its tuner layer | merged into a copy in double precision |
| parametrizations (minLoRA) | `torch.nn.utils.parametrize` | the parametrized weight, computed in double precision |
| Plateau's own | `adapters.base.Adapter` | closed form |
| a trainable linear layer | `requires_grad` | difference from a copy made at the start |
| hooks on a linear layer, wrappers | hooks; a class that the user names | the layer's answer to the identity |

`get_delta_weight` of PEFT is never asked: for DoRA, OFT, BOFT and HRA it is not the change of the weight.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from adapters.base import Adapter, norm_of_product
from adapters.errors import BadInput
from adapters.layer_names import unwrap
from adapters.lora_config import KEEPS_BASE
from adapters.words import counted


class Watched(NamedTuple):
    """One matrix of a foreign model.

    Attributes:
        base: the frozen weight, `[out, in]`; for trainable layers a copy made at the start.
        distance: reads ||W_t - W_0||_F, a scalar in double precision.
        factors: reads the factors as rows (`a` and `b`), where the method is known to have them.
        gauges: reads the method's own dials.
        rank: number of directions, 0 where the method has none.
    """

    base: Float[Tensor, "out in"]
    distance: Callable[[], Tensor]
    factors: Callable[[], dict[str, Float[Tensor, "r dim"]]] = dict
    gauges: Callable[[], dict[str, Tensor]] = dict
    rank: int = 0


def find_watched(model: nn.Module, wrappers: tuple[type[nn.Module], ...] = ()) -> dict[str, Watched]:
    """Every adapted or trainable matrix of a model by path, in module order; what else trains is named on stderr.

    Paths are those of the model itself, whatever compile, DDP, FSDP and PEFT have wrapped around it.

    Args:
        model: any model with its adapters in place.
        wrappers: classes of a user's own that take the place of a linear layer and hold the frozen one.

    Raises:
        BadInput: there is none, or an adapter is merged into its weight.
    """
    watched: dict[str, Watched] = {}
    off = _starts_off_base(model)
    inside: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if path.startswith(inside) and inside:
            continue
        found = _look_at(path, module, wrappers, off)
        if found is not None:
            name = unwrap(path).removeprefix("base_model.model.")
            watched[path if name in watched else name] = found
            inside = (*inside, f"{path}.")
    if not watched:
        raise BadInput(f"{type(model).__name__} has no adapter and no trainable linear layer to watch")
    _say_left_out(model, inside)
    return watched


def _say_left_out(model: nn.Module, inside: tuple[str, ...]) -> None:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if left := [name for name in names if not name.startswith(inside)]:
        what = counted(len(left), "trained parameter")
        print(f"note: {what} not watched, for only linear layers are: {left[0]}, ...", file=sys.stderr)


def _look_at(path: str, module: nn.Module, wrappers: tuple[type[nn.Module], ...], off: bool) -> Watched | None:
    if isinstance(module, Adapter):
        return Watched(module.base_weight(), lambda: module.distance()[0], rank=module.rank)
    if any(cls.__name__ == "BaseTunerLayer" for cls in type(module).__mro__):
        return _look_at_tuner(path, module, off)
    if parametrize.is_parametrized(module, "weight"):
        original = _original(module)
        return _differing(_kept(original), lambda: _parametrized(module)) if original.ndim == 2 else None
    if isinstance(module, wrappers):
        frozen = next(layer for layer in module.modules() if isinstance(layer, nn.Linear))
        return _differing(_kept(frozen.weight), lambda: probe(module, frozen.weight))
    if isinstance(module, nn.Linear) and module.weight.requires_grad:
        return _differing(_kept(module.weight), lambda: module.weight.double())
    if isinstance(module, nn.Linear) and (module._forward_hooks or module._forward_pre_hooks):
        return _differing(_kept(module.weight), lambda: probe(module, module.weight))
    return None


def _starts_off_base(model: nn.Module) -> bool:
    """Whether PEFT has taken an adapter's start off the frozen weights, which then are W0 no more."""
    configs = [
        config for module in model.modules() for config in dict(getattr(module, "peft_config", None) or {}).values()
    ]
    return any(str(getattr(config, "init_lora_weights", True)).lower() not in KEEPS_BASE for config in configs)


def _look_at_tuner(path: str, layer: Any, off: bool) -> Watched | None:
    """A layer of HF PEFT; embeddings and others without a weight of two or more dimensions are left out."""
    base = layer.get_base_layer()
    weight = getattr(base, "weight", None)
    if not isinstance(base, nn.Linear) or weight is None:
        return None
    if layer.merged:
        raise BadInput(f"the adapter of {path!r} is merged into its weight: unmerge it before watching")
    kept, active = _kept(weight), list(layer.active_adapters)
    rank = getattr(layer, "r", {})
    rank = int(rank[active[0]]) if len(active) == 1 and isinstance(rank, dict) and active[0] in rank else 0
    if off and active and active[0] in getattr(layer, "lora_A", {}):
        return _differing(merge_copy(layer).detach(), lambda: merge_copy(layer))._replace(rank=rank)
    if len(active) == 1 and active[0] in getattr(layer, "lora_A", {}) and not getattr(layer, "lora_variant", {}):
        name = active[0]

        def rows() -> dict[str, Tensor]:
            return {"a": layer.lora_A[name].weight.detach(), "b": layer.lora_B[name].weight.detach().mT}

        def distance() -> Tensor:
            factors = rows()
            return abs(layer.scaling[name]) * norm_of_product(factors["b"].double(), factors["a"].double())

        return Watched(kept, distance, rows, rank=rank)
    found = _differing(kept, lambda: merge_copy(layer))
    if len(active) == 1 and active[0] in getattr(layer, "delora_lambda", {}):
        name = active[0]
        return found._replace(
            rank=rank,
            gauges=lambda: {"lambda": layer.delora_lambda[name].detach()[0]},
            factors=lambda: {"a": layer.delora_A[name].detach(), "b": layer.delora_B[name].detach().mT},
        )
    return found._replace(rank=rank)


def merge_copy(layer: Any) -> Float[Tensor, "out in"]:
    """The weight that a tuner layer of HF PEFT applies: its active adapters merged into a copy, in double precision."""
    aside = copy.deepcopy(layer).double()
    aside.merge()
    return aside.get_base_layer().weight


def probe(layer: nn.Module, like: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """The weight of an affine layer from its answers: f(I) - f(0), transposed; in the layer's own precision.

    Args:
        layer: any module, hooks included, that maps `[n, in]` to `[n, out]`; its dropout is off meanwhile.
        like: gives the number of inputs, the dtype and the device.
    """
    training = [module for module in layer.modules() if module.training]
    layer.eval()
    try:
        zero = torch.zeros(1, like.shape[1], dtype=like.dtype, device=like.device)
        unit = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
        return (layer(unit) - layer(zero)).mT.double()
    finally:
        for module in training:
            module.training = True


def _original(module: Any) -> Tensor:
    return module.parametrizations.weight.original


def _parametrized(module: Any) -> Tensor:
    """The parametrized weight, computed on a copy in double precision so that a small change is not rounded away."""
    aside = copy.deepcopy(module.parametrizations.weight).double()
    return aside()


def _kept(weight: Tensor) -> Tensor:
    """The weight itself where it is frozen, else a copy."""
    return weight.detach().clone() if weight.requires_grad else weight.detach()


def _differing(base: Tensor, read: Callable[[], Tensor]) -> Watched:
    return Watched(base, lambda: torch.linalg.vector_norm(read().detach() - base.double()))
