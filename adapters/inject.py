"""Put a pack of adapters into a U-Net: which layers, and which kind of pack."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from adapters import PEFT, MethodSpec, get_class
from adapters.base import Adapter
from adapters.errors import BadInput
from adapters.pack import Attached
from adapters.peft_pack import attach_peft

ATTENTION_PROJECTIONS = (r"attn[12]\.to_[qkv]", r"attn[12]\.to_out\.0")
"""Every query, key, value and output projection of Stable Diffusion's U-Net: 128 matrices in 1.5."""


def find_targets(unet: nn.Module, patterns: Sequence[str] = ATTENTION_PROJECTIONS) -> dict[str, nn.Linear]:
    """Find the linear layers whose names end in one of the patterns, in module order.

    Args:
        unet: Any module.
        patterns: Regular expressions, each matched against the end of a module's name after a dot.

    Raises:
        BadInput: Nothing matches, or the module already has adapters.
    """
    matcher = re.compile(rf"(?:.*\.)?(?:{'|'.join(patterns)})")
    targets: dict[str, nn.Linear] = {}
    for path, module in unet.named_modules():
        if isinstance(module, Adapter):
            raise BadInput(f"the model already has an adapter at {path!r}: detach it first")
        if isinstance(module, nn.Linear) and matcher.fullmatch(path):
            targets[path] = module
    if not targets:
        raise BadInput(f"no linear layer of {type(unet).__name__} has a name that ends in {' or '.join(patterns)}")
    return targets


def attach(
    unet: nn.Module,
    spec: MethodSpec,
    *,
    seeds: Sequence[int],
    rank: int,
    boundary: Sequence[float] | None = None,
    targets: Mapping[str, nn.Linear] | None = None,
) -> Attached:
    """Freeze a U-Net and put K replicas of a method around each target. Move the U-Net to its device before.

    Args:
        unet: The model; changed in place, restored by :meth:`Attached.detach`.
        spec: Method and options, from :func:`adapters.parse_method`.
        seeds: One per replica; their number is K.
        rank: Number of directions per matrix; methods without a rank ignore it.
        boundary: DeLoRA's lambda at the start, one per replica; None for the other methods.
        targets: Layers by path; None means every attention projection.

    Raises:
        BadInput: No target is found, or rank, boundary or options do not fit one of them (it is named).
    """
    found = find_targets(unet) if targets is None else dict(targets)
    if spec.name.startswith(PEFT):
        return attach_peft(unet, spec, seeds, found)
    method = get_class(spec.name)
    shapes = [tuple(base.weight.shape) for base in found.values()]
    largest = max(num_out for num_out, _ in shapes), max(num_in for _, num_in in shapes)
    adapters = {
        path: method(base, path=path, seeds=seeds, rank=rank, boundary=boundary, largest=largest, options=spec.options)
        for path, base in found.items()
    }
    return Attached(unet, spec, adapters)


@torch.no_grad()
def try_on(spec: MethodSpec, shapes: Mapping[str, tuple[int, int]], rank: int) -> None:
    """Put a method around one small stand-in for every shape of matrix, so that what does not fit is said early.

    Args:
        shapes: ``(out, in)`` of the matrices, by path.

    Raises:
        BadInput: As :func:`attach` does.
    """
    first = {shape: path for path, shape in reversed(list(shapes.items()))}
    layers = {
        path: nn.Linear(shape[1], shape[0], bias=path.endswith(".0")) for shape, path in reversed(list(first.items()))
    }
    model = bare_model(layers)
    boundary = [1.0] if get_class(spec.name).uses_boundary else None
    attach(model, spec, seeds=[0], rank=rank, boundary=boundary, targets=_linears(model)).detach()


def bare_model(layers: Mapping[str, nn.Linear]) -> nn.Module:
    """Nothing but these layers, each under its path."""
    model = nn.Module()
    for path, layer in layers.items():
        parent = model
        *folders, name = path.split(".")
        for folder in folders:
            if not hasattr(parent, folder):
                parent.add_module(folder, nn.Module())
            parent = parent.get_submodule(folder)
        parent.add_module(name, layer)
    return model


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
