"""Whether the host can read a tensor without waiting for its device."""

from __future__ import annotations

from torch import Tensor


def is_free_to_ask(tensor: Tensor) -> bool:
    """Whether the host can have a value of this tensor without making a device finish first what it was sent."""
    return tensor.device.type == "cpu"
