"""How much memory this machine has, and what to suggest when not even a single run fits."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.cell import Cell

USABLE = 0.8  # of the memory there is
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of the control group that this process is in


def machine_mib() -> float:
    """Memory that workers may take together: most of the machine's, or of what its control group is allowed."""
    return USABLE * total_gib() * 1024


def total_gib() -> float:
    """Memory that this machine, or this process's control group, has."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no such limit
        total = min(total, int(MEMORY_LIMIT.read_text(encoding="utf-8")))
    return total / 2**30


def list_smaller(resolution: int, checkpointing: bool) -> list[tuple[str, dict[str, Any]]]:
    """What takes less memory, the mildest first: the flags, and the fields of a load or setting that they change."""
    half = resolution // 2
    flags: list[tuple[str, dict[str, Any]]] = [("--gradient-checkpointing", {"checkpointing": True})] * (
        not checkpointing
    )
    flags += [(f"--resolution {half}", {"resolution": half})]
    both = {"checkpointing": True, "resolution": half}
    return flags + [(f"--gradient-checkpointing --resolution {half}", both)] * (not checkpointing)


def describe_too_large(cell: Cell, checkpointing: bool, place: str, fits: Mapping[str, float] | None) -> str:
    """One line for a run that does not fit even alone.

    Args:
        cell: the run.
        checkpointing: whether its activations are computed again already.
        place: what it does not fit into.
        fits: what was tried and fits, with the MiB that it took; None where nothing was tried.
    """
    rank = f" of rank {cell.rank}" if cell.rank else ""
    said = f"one run of {cell.method}{rank} at {cell.resolution} px does not fit into {place}"
    if fits is None:
        smaller = [flags for flags, _ in list_smaller(cell.resolution, checkpointing)]
        smaller += [f"--rank {cell.rank // 2}"] * (cell.rank > 1)
        return f"{said}; what takes less: {', '.join(smaller)}"
    if not fits:
        tried = ", ".join(flags for flags, _ in list_smaller(cell.resolution, checkpointing))
        return f"{said}, nor does it with {tried}: it needs a larger one"
    return f"{said}; what does: {', '.join(f'{flags} ({mib / 1024:.1f} GiB)' for flags, mib in fits.items())}"
