"""The best that a device can do, and what a piece of work takes of it: products per second, and memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import clock

# Dense bf16 products on tensor cores, TFLOP/s, from NVIDIA's data sheets (without sparsity).
DATA_SHEETS = {
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.0,
    "A10": 125.0,
    "4090": 165.2,
}
MATRIX = {"cuda": 8192, "cpu": 1536}  # side of the matrices by which a rate is measured


def count_flop(work: Callable[[], object]) -> int:
    """Floating-point operations of products and convolutions in a piece of work, an addition and a product being two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peak_rate(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """FLOP/s that the device reaches at best, and where the figure comes from: its data sheet, else a large product here."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        if (found := next((key for key in DATA_SHEETS if key in name), None)) is not None:
            return DATA_SHEETS[found] * 1e12, f"NVIDIA's data sheet of the {found}"
    side = MATRIX[device.type]
    return measure_rate(device, dtype), f"the best of ten {side} x {side} products here"


def measure_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of ten large products."""
    side = MATRIX[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(11):
        began = clock(device)
        a @ b
        seconds.append(clock(device) - began)
    return 2 * side**3 / min(seconds[1:])


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """What torch has allocated on a GPU at the most while work ran, what lay there before included; 0 on a CPU."""
    if device.type != "cuda":
        work()
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)
