"""Count how often the host waits for a device inside a piece of work.

On CUDA the device itself says so (`torch.cuda.set_sync_debug_mode`). Elsewhere the operations are counted that would make it
wait: those that hand a value of a tensor to Python, or make a size of one.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ASKING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_consecutive", "_unique2", "bincount"}
# Places that ask only where asking is free.
SPARING = ("adapters.oft", "training.dynamics", "training.optimizer", "training.prodigy")


class Questions(TorchDispatchMode):
    """Counts the operations that ask a device for a value, by name, in `asked`."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ASKING or (name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])):
            self.asked[name] += 1
        return func(*args, **(kwargs or {}))


def count_waits(work: Callable[[], object], device: torch.device) -> int:
    """Run a piece of work and count how often the host waited, or would have if the CPU were an accelerator."""
    if device.type == "cuda":
        return _count_warnings(work)
    with contextlib.ExitStack() as stack:
        for place in SPARING:
            stack.enter_context(patch(f"{place}.is_free_to_ask", lambda tensor: False))
        questions = stack.enter_context(Questions())
        work()
    return questions.asked.total()


def _count_warnings(work: Callable[[], object]) -> int:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in said)
