"""Compute readings of the weights without autocast and TF32, whatever the surrounding training uses.

TF32 and bf16 keep 10 and 7 bits of each factor: a distance would be off by a thousandth and more.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
DEVICES = ("cpu", "cuda", "mps", "xpu")


def _list_settings() -> list[tuple[Any, str, Any]]:
    """What rounds the factors of products, with the value that does not; torch before 2.9 has one switch, for CUDA."""
    cuda, cpu = torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)
    if hasattr(cuda, "fp32_precision"):
        return [(cuda, "fp32_precision", "ieee"), (cpu, "fp32_precision", "ieee")]
    return [(cuda, "allow_tf32", False)]


SETTINGS = _list_settings()


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Products of single precision in single precision, on every device; what was set before is set again."""
    before = [(backend, name, getattr(backend, name)) for backend, name, _ in SETTINGS]
    with contextlib.ExitStack() as stack:
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        try:
            for backend, name, exact in SETTINGS:
                setattr(backend, name, exact)
            yield
        finally:
            for backend, name, value in before:
                setattr(backend, name, value)


def exactly(function: Callable[P, R]) -> Callable[P, R]:
    """A function that runs in :func:`full_precision`."""

    @functools.wraps(function)
    def computed(*arguments: P.args, **named: P.kwargs) -> R:
        with full_precision():
            return function(*arguments, **named)

    return computed
