"""A trained adapter, whichever program saved it, without its model; and whether it fits a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from adapters import MethodSpec, get_class
from adapters.errors import BadInput
from adapters.layer_names import TEXT_ENCODERS
from adapters.vera import RandomPair, draw_projections


@dataclass(frozen=True)
class Checkpoint:
    """One trained adapter, apart from any model.

    Attributes:
        source: the file it was read from.
        format: whose layout that is.
        spec: the method with its options.
        rank: r; where ranks differ, the largest: the others are padded with zeros.
        state: ``path.name`` tensors, as :meth:`adapters.pack.Attached.load_state` takes them.
        shapes: ``(out, in)`` of every matrix by path, or of a convolution's kernel ``(out, in, height, width)``; 0 where
            the file leaves a size open, as OFT's does the number of rows, and nothing where it leaves all open.
        ranks: rank of every matrix in the file.
        norms: DeLoRA's stored column norms of W0 by path, where the file has them.
        notes: what the file holds besides, one line each.
        pair: VeRA's random pair, A and B, whole, where the file has it.
        config: HF PEFT's configuration of a tuner that is not native here; ``state`` then holds PEFT's tensors as they
            are, and :mod:`adapters.peft_folder` computes with them.
    """

    source: Path
    format: str
    spec: MethodSpec
    rank: int
    state: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    ranks: dict[str, int] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    pair: dict[str, Tensor] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self, path: str) -> dict[str, Tensor]:
        """The tensors of one matrix by name."""
        return {key.rpartition(".")[2]: value for key, value in self.state.items() if key.rpartition(".")[0] == path}

    def find_not_finite(self) -> str | None:
        """The first tensor that holds NaN or infinity, as a diverged run leaves it; None if there is none."""
        parts = (self.state, self.pair, self.norms)
        return next((key for part in parts for key, tensor in part.items() if not tensor.isfinite().all()), None)

    def check_finite(self) -> Checkpoint:
        """Itself.

        Raises:
            BadInput: a tensor holds NaN or infinity; it is named.
        """
        if bad := self.find_not_finite():
            raise BadInput(f"{self.source} holds NaN or infinity in {bad!r}: its run has diverged, or it is damaged")
        return self

    def of_unet(self) -> Checkpoint:
        """The part that belongs to the U-Net.

        Raises:
            BadInput: nothing does, or a convolution does: only linear layers can be exported or attached.
        """
        kept = {path: shape for path, shape in self.shapes.items() if not path.startswith(TEXT_ENCODERS)}
        if not kept:
            raise BadInput(f"{self.source} adapts no matrix of a U-Net")
        if kernel := next((path for path, shape in kept.items() if len(shape) > 2), None):
            raise BadInput(
                f"{self.source} adapts the convolution {kernel!r}: only linear layers can be exported or attached"
            )
        state = {key: value for key, value in self.state.items() if not key.startswith(TEXT_ENCODERS)}
        return replace(self, shapes=kept, state=state)

    def sized(self, shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
        """With a model's sizes where the file leaves them open; what does not fit is found where it is used."""
        return replace(self, shapes={path: _filled(own, shapes.get(path, own)) for path, own in self.shapes.items()})

    def random_pair(self) -> dict[str, Tensor]:
        """VeRA's and DVoRA's random pair: the file's, or the one that a run draws for matrices of these sizes."""
        if self.pair or not issubclass(get_class(self.spec.name), RandomPair):
            return self.pair
        largest = (max(sizes) for sizes in zip(*self.shapes.values(), strict=True))
        return dict(zip("AB", draw_projections(self.rank, *largest), strict=True))

    @property
    def needs_base(self) -> bool:
        """Whether the size of the change depends on W0: not for LoRA, VeRA, and DeLoRA that stores W0's column norms."""
        if self.spec.name == "delora":
            return self.spec.options["start"] != "zero_b" or set(self.norms) != set(self.shapes)
        return self.spec.name not in ("lora", "vera") or any(0 in shape for shape in self.shapes.values())


def check_fit(checkpoint: Checkpoint, path: str, weight: Float[Tensor, "out in *kernel"]) -> None:
    """Check that a model's matrix is one that the adapter was trained on, as far as the adapter says.

    Raises:
        BadInput: its shape is another, or the column norms that DeLoRA stores are. The matrix is named.
    """
    check_shape(checkpoint, path, tuple(weight.shape))
    if weight.ndim == 2:
        check_norms(checkpoint, path, weight)


def check_norms(checkpoint: Checkpoint, path: str, weight: Float[Tensor, "out in"]) -> None:
    """Check that W0 has the column norms that a DeLoRA checkpoint stores.

    Raises:
        BadInput: it has others: the checkpoint is of another model. The matrix is named.
    """
    stored = checkpoint.norms.get(path)
    if stored is None:
        return
    own = torch.linalg.vector_norm(weight.detach().double(), dim=0)
    if checkpoint.spec.options["norm"] == "scalar":
        own = torch.linalg.vector_norm(own).expand_as(own)
    if (stored.to(own) - own).norm() > 1e-2 * own.norm():
        raise BadInput(
            f"{checkpoint.source} is of another model: matrix {path!r} has other column norms than it stores"
        )


def check_shape(checkpoint: Checkpoint, path: str, shape: tuple[int, ...]) -> None:
    """Check that a model's matrix has the shape that the adapter was trained on, as far as the adapter says.

    Raises:
        BadInput: it has another. The matrix is named.
    """
    own = checkpoint.shapes[path]
    if own and not _agree(own, shape):
        raise BadInput(
            f"{checkpoint.source} is of another model: matrix {path!r} is {'x'.join(map(str, shape))} in the model, "
            f"{'x'.join(str(size or '?') for size in own)} in the checkpoint"
        )


def _filled(own: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if not own or _agree(own, shape) else own


def _agree(own: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a shape, with 0 for what is open, is another; a matrix and a kernel of one pixel are the same."""
    own, shape = _as_matrix(own), _as_matrix(shape)
    return len(own) == len(shape) and all(size in (0, other) for size, other in zip(own, shape))


def _as_matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else shape
