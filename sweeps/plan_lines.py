"""What a plan says beside cells and time: base rates, the load under which the machine was measured, memory.

On a busy machine packs come out too small, and times too long.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from adapters import counted
from analysis.series import method_label
from slurm.forecast import Cost, count_values, state_mib
from sweeps.grid import Planned
from training.cell import Cell
from training.tasks.pipeline import attention_shapes

BUSY = 0.25  # of the cores


def describe_rates(planned: Sequence[Planned]) -> list[str]:
    """A line for each method and base rate of a plan: the rate, and where it comes from."""
    lines = []
    for p in planned:
        if p.labels.get("rate_source") and p.cell.steps:
            name = p.labels.get("label") or method_label(p.cell.method, p.cell.options)
            lines.append(f"base rate of {name}: {p.labels['base_lr']:g}, {p.labels['rate_source']}")
    return list(dict.fromkeys(lines))


def describe_load(costs: Mapping[int, Cost], now: float | None, again: Path, cores: int | None = None) -> list[str]:
    """What a plan says of the machine's load when its costs were measured, and now.

    Args:
        costs: what was measured, by pack size.
        now: the present load; None where nobody counts.
        again: the file without which it is measured again.
        cores: of the machine; None counts them.

    Returns:
        One line or two; none where nothing was measured.
    """
    cores = cores or os.cpu_count() or 1
    if not costs:
        return []
    loads = [cost.load for cost in costs.values() if cost.load is not None]
    on = f"on {counted(cores, 'core')}"
    if not loads:
        lines = [f"measured under a load that was not noted; remove {again} to measure again"]
    elif max(loads) <= BUSY * cores:
        lines = [f"measured under a load of {max(loads):.1f} {on}"]
    else:
        lines = [
            f"measured under a load of {max(loads):.1f} {on}: the machine was busy, and the size of packs and the time may be "
            f"wrong; remove {again} to measure again"
        ]
    if now is not None and now > BUSY * cores:
        lines.append(f"the load is {now:.1f} {on} now: while it is, all takes longer than that")
    return lines


def describe_memory(cells: Sequence[Cell], model: Path, pack_size: int) -> list[str]:
    """A line for each method that trains about as many values as the matrices themselves have: what a pack of it holds.

    HF PEFT's tuners are left out: they hold no pack.

    Args:
        cells: what is to be trained.
        model: the pipeline's folder.
        pack_size: runs in a pack.
    """
    shapes, lines = attention_shapes(model).values(), []
    for kind in dict.fromkeys((str(model), cell.method, cell.options, cell.rank) for cell in cells):
        method, count = kind[1], count_values(*kind)
        if count > sum(num_out * num_in for num_out, num_in in shapes) / 2:
            each = state_mib(*kind)
            lines.append(
                f"{method}: {counted(count, 'trained value', ',')} a run; with gradients, moments and copies {each:,.0f} MiB, "
                f"{each * pack_size:,.0f} MiB in a pack of {pack_size}"
            )
    return lines
