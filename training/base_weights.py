"""Read the pretrained weights of a diffusers pipeline folder directly from its safetensors, one matrix at a time."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from adapters.errors import BadInput
from adapters.layer_names import TEXT_ENCODERS
from adapters.tensor_file import open_safetensors, open_tensors

FILE = "diffusion_pytorch_model.safetensors"


class BaseWeights:
    """Reads `path` as the U-Net's `<path>.weight`, and `text_encoder.<path>` as the text encoder's (SDXL's: `text_encoder_2`).

    Args:
        folder: a diffusers pipeline folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight by path, from the headers alone."""
        return {
            name.removesuffix(".weight"): shape for name, (*_, shape) in self._index.items() if name.endswith(".weight")
        }

    @functools.cached_property
    def _index(self) -> dict[str, tuple[Path, str, tuple[int, ...]]]:
        """File, name in it, and shape of every tensor."""
        index = {}
        for prefix in ("", *TEXT_ENCODERS):
            for file in sorted((self.folder / (prefix.removesuffix(".") or "unet")).glob("*.safetensors")):
                with open_safetensors(file, "np") as handle:
                    for key in handle.keys():  # noqa: SIM118 (safe_open is no mapping)
                        index[prefix + _inner(prefix, key)] = (file, key, tuple(handle.get_slice(key).get_shape()))
        return index

    @property
    def layers(self) -> list[str]:
        """`path:out:in` of every matrix."""
        return [f"{path}:{shape[0]}:{shape[1]}" for path, shape in self.shapes.items() if len(shape) == 2]

    def read(self, path: str, source: object) -> Tensor:
        """One weight in single precision or better.

        Args:
            path: of the matrix.
            source: the checkpoint that asks, for the error.

        Raises:
            BadInput: the model has no such matrix: the checkpoint is of another model.
        """
        if path not in self.shapes:
            raise BadInput(f"{source} is of another model: {self.folder} has no matrix {path!r}")
        return self._read(f"{path}.weight")

    def read_bias(self, path: str) -> Tensor | None:
        """The bias that belongs to a weight, in single precision or better; None if there is none."""
        return self._read(f"{path}.bias") if f"{path}.bias" in self._index else None

    def _read(self, key: str) -> Tensor:
        file, own, _ = self._index[key]
        with open_safetensors(file) as handle:
            tensor = handle.get_tensor(own)
        return tensor if tensor.dtype == torch.float64 else tensor.float()

    def unet_tensors(self) -> dict[str, Tensor]:
        """Every tensor of the U-Net, as it is stored."""
        tensors: dict[str, Tensor] = {}
        for file in sorted((self.folder / "unet").glob("*.safetensors")):
            tensors |= open_tensors(file)[0]
        return tensors


def _inner(prefix: str, key: str) -> str:
    """A tensor's name as all programs have it; newer transformers save a text encoder without `text_model.` before it."""
    return key if not prefix or key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}"
