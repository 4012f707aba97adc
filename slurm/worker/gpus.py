"""The GPUs of this machine, one for each worker process. Imports torch only to count them."""

from __future__ import annotations

import os

VISIBLE = "CUDA_VISIBLE_DEVICES"  # CUDA reads it when it starts


def list_gpus() -> list[str]:
    """What the GPUs that this process may use are called in `CUDA_VISIBLE_DEVICES`; empty where there are none."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def choose_gpu(worker: int, device: str) -> str | None:
    """The GPU of a worker: each has its own while there are enough of them; None where workers train on a CPU."""
    gpus = list_gpus() if device == "cuda" else []
    return gpus[worker % len(gpus)] if gpus else None
