"""Keep an accelerator from waiting for the host, and set its arithmetic.

A value that the host asks for makes the device finish everything first; a copy from pageable memory does the same. So a step
asks for nothing, and what it brings along comes from pinned memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS reads it when it starts


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, without waiting for what the device is doing."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def autocast(device: torch.device, mixed_precision: str) -> contextlib.AbstractContextManager:
    """Products in bf16 for "bf16"; nothing for "no"."""
    if mixed_precision == "no":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def round_base(model: nn.Module, kept: Collection[str]) -> None:
    """Keep the frozen weights of products and convolutions in bf16, which halves them and spares a cast at every call.

    Autocast rounds them the same way, so that results stay the same to the bit. Norms stay float32, and so do the matrices
    that are adapted: the methods read them.

    Args:
        model: the U-Net, changed in place; from now on it runs under :func:`autocast` only.
        kept: paths of the layers that stay as they are.
    """
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and path not in kept:
            layer.to(torch.bfloat16)


@contextlib.contextmanager
def arithmetic(*, allow_tf32: bool, deterministic: bool) -> Iterator[None]:
    """Set how a device computes, for a pack: float32 products as they are or rounded to TF32, and the same sums each time.

    Args:
        allow_tf32: let NVIDIA's tensor cores round the factors of float32 products and convolutions to 10 bits. Torch's own
            default does so for convolutions alone.
        deterministic: take only algorithms whose sums have one order. What has no such algorithm raises, naming itself.
    """
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (
        matmul.allow_tf32, conv.allow_tf32, conv.deterministic, conv.benchmark,
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
    )  # fmt: skip
    matmul.allow_tf32 = conv.allow_tf32 = allow_tf32
    if deterministic:
        os.environ.setdefault(WORKSPACE, ":4096:8")
        conv.deterministic, conv.benchmark = True, False
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        matmul.allow_tf32, conv.allow_tf32, conv.deterministic, conv.benchmark = before[:4]
        torch.use_deterministic_algorithms(before[4], warn_only=before[5])


def describe_arithmetic() -> dict[str, bool]:
    """The settings of :func:`arithmetic` as they are now."""
    return {
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
