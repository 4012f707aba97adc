"""Attach a trained adapter to one matrix or to a U-Net, to measure it, score it, or continue its training."""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor, nn

from adapters import get_class
from adapters.base import Adapter
from adapters.checkpoint import Checkpoint, check_norms, check_shape
from adapters.errors import BadInput
from adapters.inject import attach
from adapters.pack import Attached
from adapters.peft_folder import attach_folder
from adapters.vera import share_pair


def build_adapter(checkpoint: Checkpoint, path: str, weight: Float[Tensor, "out in *kernel"]) -> Adapter:
    """One matrix with its adapter, of one replica, in the weight's precision; a convolution's kernel counts as a matrix.

    Raises:
        BadInput: the weight is of another shape than the adapter.
    """
    check_shape(checkpoint, path, tuple(weight.shape))
    weight = weight.flatten(1)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    method, boundary = get_class(checkpoint.spec.name), _placeholder(checkpoint, 1)
    adapter = method(
        layer, path=path, seeds=[0], rank=checkpoint.rank, boundary=boundary, options=checkpoint.spec.options
    )
    adapter.requires_grad_(False)
    for name, tensor in checkpoint.tensors(path).items():
        getattr(adapter, name)[0].copy_(tensor)
    if pair := checkpoint.random_pair():
        share_pair([adapter], pair)
    return adapter


def attach_checkpoint(unet: nn.Module, checkpoint: Checkpoint, seeds: Iterable[int] = (0,)) -> Attached:
    """Put a trained adapter into a U-Net, to score, measure or go on training; the text encoder's part is left out.

    Args:
        unet: the model; restored by :meth:`adapters.pack.Attached.detach`.
        checkpoint: from :func:`adapters.read_checkpoint.read_checkpoint`.
        seeds: one per replica; every replica begins in the checkpoint's state.

    Raises:
        BadInput: the checkpoint is of another model; the first matrix that does not fit is named.
    """
    part, targets, modules = checkpoint.of_unet(), {}, dict(unet.named_modules())
    for path in part.shapes:
        layer = modules.get(path)
        if not isinstance(layer, nn.Linear):
            what = "no such matrix" if layer is None else f"a {type(layer).__name__}, not a linear layer,"
            raise BadInput(f"{part.source} does not fit {type(unet).__name__}: it has {what} at {path!r}")
        check_shape(part, path, tuple(layer.weight.shape))
        check_norms(part, path, layer.weight)
        targets[path] = layer
    replicas = list(seeds)
    if part.config:
        return attach_folder(unet, part, replicas, targets)
    attached = attach(
        unet, part.spec, seeds=replicas, rank=part.rank, boundary=_placeholder(part, len(replicas)), targets=targets
    )
    if part.pair:
        share_pair([stack.adapter for stack in attached.stacks], part.pair)
        share_pair(attached.adapters.values(), part.pair)
    for replica in range(len(replicas)):
        attached.load_state(replica, part.state)
    return attached


def _placeholder(checkpoint: Checkpoint, replicas: int) -> list[float] | None:
    """A lambda for methods that must be given one; the state's own takes its place."""
    return [1.0] * replicas if get_class(checkpoint.spec.name).uses_boundary else None
