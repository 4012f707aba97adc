"""Merge HF PEFT's tuners into copies of a layer's weights, and check that merge and forward agree."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adapters.errors import BadInput
from adapters.pack import Stack
from adapters.peft_tuner import one_line

AGREEMENT = 1e-4
"""Largest relative difference between a layer's forward and its merged weight."""


@torch.no_grad()
def probe(stacks: Sequence[Stack], values: Float[Tensor, "k P"], name: str) -> None:
    """Hold one layer of each shape, a little away from its start, to its own merged weight, in repeated calls and readings.

    What PEFT's ``merge`` changes besides the weight differs from type to type; so no type is trusted.

    Args:
        stacks: PEFT's layers by shape.
        values: What they train, of all replicas; moved meanwhile. The first replica is looked at.
        name: The method's.

    Raises:
        BadInput: Forward, readings and a merge in an untouched copy of the layer disagree.
    """
    kept = values.clone()
    generator = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(kept.shape, generator=generator, dtype=torch.float64)
    values += noise.to(kept)
    for stack in stacks:
        layers: Any = stack.adapter.layers
        if reason := _find_fault(layers[0], stack.paths[0], generator):
            raise BadInput(f"{name} {reason}")
    values.copy_(kept)


def _find_fault(layer: Any, path: str, generator: torch.Generator) -> str | None:
    """Why a layer's distance cannot be measured; None if it can."""
    untouched = copy.deepcopy(layer)
    x = torch.randn(16, layer.get_base_layer().weight.shape[1], generator=generator, dtype=torch.float64)
    x = x.to(layer.get_base_layer().weight)
    out, again = layer(x), layer(x)
    if not torch.allclose(out, again, rtol=1e-5, atol=1e-5, equal_nan=True):
        return "draws random numbers at every call (dropout?): no run could be repeated"
    (weight, bias), (second, _) = merge_to_copy(layer), merge_to_copy(layer)
    _merge(untouched)
    for other in (second, untouched.get_base_layer().weight):
        if not torch.allclose(weight, other, rtol=1e-5, atol=1e-6, equal_nan=True):
            return f"is another layer after each merge of {path!r}: its distance cannot be measured"
    error = float(torch.linalg.vector_norm(layer(x) - nn.functional.linear(x, weight, bias)))
    size = float(torch.linalg.vector_norm(out))
    if not error <= (AGREEMENT if weight.dtype in (torch.float32, torch.float64) else 0.05) * size:
        return (
            f"merges {path!r} into a weight that differs from its forward by {error / max(size, 1e-30):.2g}: its "
            "distance cannot be measured"
        )
    return None


@torch.no_grad()
def merge_to_copy(layer: Any) -> tuple[Float[Tensor, "out in"], Tensor | None]:
    """Weight and bias that PEFT merges into copies of a layer's own, which stay as they are."""
    base = layer.get_base_layer()
    with _copied(base):
        try:
            _merge(layer)
            return base.weight.data, None if base.bias is None else base.bias.data
        finally:
            layer.merged_adapters.clear()


def _merge(layer: Any) -> None:
    try:
        layer.merge()
    except NotImplementedError as error:
        kind = type(layer).__module__.removeprefix("peft.tuners.").partition(".")[0]
        raise BadInput(f"PEFT's {kind} cannot be merged ({one_line(error)}): its distance cannot be measured") from None


@contextlib.contextmanager
def _copied(base: nn.Module) -> Iterator[None]:
    """Let a layer's parameters be copies of themselves."""
    own = {name: (parameter, parameter.data) for name, parameter in base.named_parameters()}
    for parameter, data in own.values():
        parameter.data = data.clone()
    try:
        yield
    finally:
        for name, (parameter, data) in own.items():
            setattr(base, name, parameter)
            parameter.data = data
