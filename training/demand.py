"""What packs need from a machine, in machine-independent units, and what was measured on one machine.

A training step costs about three forward passes of its rows. Imports no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from adapters import PEFT
from adapters.documents import NUMBER
from adapters.errors import BadInput
from adapters.peft_types import packs
from training.cell import BASE, Cell
from training.task_kinds import PICTURES, kind_of
from training.whole_files import read_json

PASSES = 3.0


@dataclass(frozen=True)
class Demand:
    """What a pack asks for.

    Attributes:
        kind: method, options and shape, which decide how a row's cost compares with LoRA's.
        group: what packs have in common that follow each other in one task.
        shape: what decides the cost of a row, as stored names end.
        num_cells: runs in the pack.
        size: how many of them train at once; some of HF PEFT's tuners train alone.
        rows: rows that training sends through the model, of all runs and steps.
        passes: rows that evaluations send through it.
        own_mib: what training keeps of the runs' own values.
    """

    kind: str
    group: tuple
    shape: str
    num_cells: int
    size: int
    rows: int
    passes: int
    own_mib: float = 0.0

    @classmethod
    def of(cls, cells: Sequence[Cell], model: str = "") -> Demand:
        """The demand of a pack's cells.

        Args:
            cells: the cells.
            model: the pipeline's folder, whose matrices are counted; a hub id counts nothing.
        """
        first = cells[0]
        return cls(
            f"{first.method}:{first.options} {shape_of(first)}",
            (first.method, first.pack_key()),
            shape_of(first),
            len(cells),
            len(cells) if packs(first.method) else 1,
            sum(map(_rows, cells)),
            sum(map(_passes, cells)),
            sum(state_mib(model, Valued.of(cell)) for cell in cells),
        )


def _rows(cell: Cell) -> int:
    return cell.steps * cell.gradient_accumulation_steps * kind_of(cell.task).rows(cell)


def _passes(cell: Cell) -> int:
    evaluations = len(cell.evaluated_steps()) if cell.method != BASE else 1
    return kind_of(cell.task).passes(cell) * evaluations


def shape_of(cell: Cell) -> str:
    """What of a cell decides the cost of a row."""
    return kind_of(cell.task).shape(cell)


class Valued(NamedTuple):
    """What decides how many values a run trains, and how many copies of them training keeps."""

    method: str
    options: str
    rank: int
    optimizer: str = "adamw"
    task: str = PICTURES
    task_options: str = ""

    @classmethod
    def of(cls, cell: Cell) -> Valued:
        """That of a cell."""
        return cls(*(getattr(cell, name) for name in cls._fields))


@functools.cache
def state_mib(model: str, of: Valued) -> float:
    """MiB that training keeps of one run's own values; nothing for the base, for PEFT's tuners, and without a model."""
    from adapters.parameters import COPIES_IN_TRAINING, COPIES_OF_PRODIGY

    copies = COPIES_IN_TRAINING + (COPIES_OF_PRODIGY if of.optimizer == "prodigy" else 0)
    return count_values(model, of) * 4 * copies / 2**20


@functools.cache
def count_values(model: str, of: Valued) -> int:
    """Values that one run trains on a model's folder; 0 for the base, for PEFT's tuners, and without a folder."""
    if of.method == BASE or of.method.startswith(PEFT) or not Path(model).is_dir():
        return 0
    from adapters import parse_method
    from adapters.parameters import count_parameters

    try:
        spec = parse_method(f"{of.method}:{of.options}")
    except BadInput:  # of a user's own file, which a viewer does not load
        return 0
    try:
        shapes = kind_of(of.task).open().shapes(model, of.task_options)
    except BadInput:  # a viewer on a machine where the model is not whole
        return 0
    return count_parameters(spec, list(shapes.values()), of.rank)


@dataclass(frozen=True)
class Cost:
    """What was measured of packs of one size.

    Attributes:
        step_s: seconds of a training step of one row a run: those that a processor computes, which other programs do not
            change; on a GPU, those that pass.
        peak_mib: the process's peak of resident memory.
        gpu_mib: peak of the memory that torch took on the GPU; 0 on a CPU.
        load: the machine's load (`os.getloadavg`, one minute) when the measurement began; None where it was not noted.
    """

    step_s: float
    peak_mib: float
    gpu_mib: float = 0.0
    load: float | None = None


Costs = Mapping[int, Cost]  # by size of the pack


def row_s(costs: Costs, size: int) -> float:
    """Seconds of one row's training step in packs of a size, or of the largest size measured below it."""
    known = max((n for n in costs if n <= size), default=min(costs))
    return costs[known].step_s / known


def on_line(costs: Costs, size: int, field: str) -> float:
    """A field of a size's cost; between two measured sizes and beyond the largest it lies on their line."""
    sizes, value = sorted(costs), {n: float(getattr(cost, field)) for n, cost in costs.items()}
    above = next((n for n in sizes[1:] if n >= size), sizes[-1])
    below = max((n for n in sizes if n < above), default=above)
    slope = (value[above] - value[below]) / max(1, above - below)
    return value[above] + slope * (size - above)


def read_costs(path: Path) -> dict[str, dict[int, Cost]]:
    """Costs by shape and pack size from a file; what is missing or damaged is left out, and measured again."""
    try:
        stored = read_json(path, {"*": {"*": {"*": NUMBER}}})
        return {shape: {int(n): Cost(**cost) for n, cost in costs.items()} for shape, costs in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError, BadInput):
        return {}


def to_json(costs: Costs) -> dict[str, dict[str, float]]:
    """Costs as they are stored."""
    return {str(size): asdict(cost) for size, cost in costs.items()}
