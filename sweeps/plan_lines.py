"""Print a plan: what is done, what is left and how long it takes, base rates, the machine's load, memory.

On a busy machine packs come out too small, and times too long.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from adapters.words import counted
from analysis.series import method_label
from slurm.estimate.calibrate import machine_load, measured_file
from slurm.store.sweep_state import duration
from sweeps.grid import LabelledCell
from sweeps.plan import Plan, is_packable
from sweeps.smaller import LONG_S, offer_smaller
from sweeps.work import Sweep, Work, as_pack
from training.cell import BASE, Cell
from training.demand import Cost, Valued, count_values, state_mib
from training.task_kinds import kind_of

BUSY = 0.25  # of the cores


def describe_rates(planned: Sequence[LabelledCell]) -> list[str]:
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
        model: the model's folder.
        pack_size: runs in a pack.
    """
    lines: list[str] = []
    for kind in dict.fromkeys(map(Valued.of, cells)):
        count, shapes = count_values(str(model), kind), kind_of(kind.task).open().shapes(str(model), kind.task_options)
        if count > sum(num_out * num_in for num_out, num_in in shapes.values()) / 2:
            each = state_mib(str(model), kind)
            lines.append(
                f"{kind.method}: {counted(count, 'trained value', ',')} a run; with gradients, moments and copies "
                f"{each:,.0f} MiB, {each * pack_size:,.0f} MiB in a pack of {pack_size}"
            )
    return lines


def show_plan(sweep: Sweep, work: Work, rates: Sequence[str], smaller: Sequence[str]) -> None:
    """Print what is done, what is left and how long that takes; a long sweep is offered smaller."""
    inputs, estimate = sweep.inputs, work.seconds
    train = [p for p in sweep.cells if p.cell.method != BASE]
    left = sum(p.cell.method != BASE for p in work.todo)
    names = sorted({p.cell.method for p in train})
    subjects = sorted({p.cell.subject for p in train})
    print(
        f"{inputs.model_name}: {', '.join(names)} on {counted(len(subjects), inputs.kind.unit)} ({', '.join(subjects)})"
    )
    steps = counted(max(p.cell.steps for p in train), "step")
    base = len(sweep.cells) - len(train)  # a cell too: it is scored
    also = f"; and {base} of the base model: {len(sweep.cells)} in all" if base else ""
    print(f"{counted(len(train), 'cell')}: {len(train) - left} done, {left} to train, {steps} each{also}")
    lines = list(inputs.kind.open().remarks(inputs))
    if alone := [name for name in names if not is_packable(name)]:
        lines.append(f"unpacked, one run at a time: {', '.join(alone)} (HF PEFT's own layers)")
    if work.todo and work.expected is not None:
        lines += _describe_packs(work, estimate, sweep.options.where.choose() is None)
    lines += rates
    if work.expected is not None and sweep.options.where.choose() is None:
        costs, shape = work.expected.costs, sweep.cells[-1].cell
        lines += describe_load(costs, machine_load(), measured_file(inputs.setting, shape))
        if (estimate or 0.0) > LONG_S:
            take_s = functools.partial(_take_s, sweep, work)
            own = "" if sweep.options.dry_run else f"{sweep.folder.name}-small"
            lines += offer_smaller(sweep.asked, sys.argv, sweep.options.subjects, take_s, smaller, own)
    print("\n".join(lines))


def _describe_packs(work: Work, estimate: float | None, here: bool) -> list[str]:
    assert work.expected is not None
    num_packs, size, setting = len(work.left), work.expected.pack_size, work.setting
    where = f"{counted(num_packs, 'pack') if num_packs else 'packs'} of up to {size}"
    if here:
        said = f"{where}, {counted(work.workers, 'worker')} on {setting.device}: about {duration(estimate)}"
    else:
        said = f"{where} on {setting.device}"
    return [said, *describe_memory([p.cell for p in work.todo], Path(setting.model), size)]


def _take_s(sweep: Sweep, work: Work, kept: set[str]) -> float | None:
    """Seconds of some cells in a sweep of their own."""
    assert work.expected is not None
    fresh = [p for p in sweep.ours if p.cell.identity() in kept]
    groups = Plan(sweep.folder).draft(fresh, work.expected.pack_size, work.workers, early=True)
    return work.expected.seconds([as_pack(group, work.setting) for group in groups])
