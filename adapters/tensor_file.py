"""Open safetensors files, which may be damaged, a stranger's, or not this user's to read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from adapters.documents import NO_FILE
from adapters.errors import BadInput


class DamagedTensors(BadInput):
    """A file that is missing, damaged, or no safetensors; any other `BadInput` of this module is of one that may be whole."""


@contextmanager
def open_safetensors(path: Path, framework: str = "pt") -> Iterator[Any]:
    """Open a file for as long as the block takes; errors of reading inside it are told as those of opening.

    Args:
        path: the file.
        framework: "pt" for torch tensors, "np" for shapes without torch.

    Raises:
        DamagedTensors: it is damaged, missing, or no safetensors, or has no tensor of a name that is asked for.
        BadInput: this user, or this machine now, cannot read it.
    """
    try:
        path.open("rb").close()  # safetensors says of a file without the right to it that it is not there
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number and number not in NO_FILE:
            raise BadInput(f"{path} cannot be read: {os.strerror(number)}") from None
        raise DamagedTensors(f"{path} is damaged or no safetensors file: {error}") from None


def open_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors by name, and its header's texts.

    Raises:
        DamagedTensors, BadInput: as `open_safetensors`.
    """
    with open_safetensors(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no mapping)


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a folder's files by name, from the headers alone.

    Raises:
        DamagedTensors, BadInput: as `open_safetensors`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with open_safetensors(path, "np") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes
