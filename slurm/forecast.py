"""What packs are expected to need: seconds and memory, from what was measured of the model on a machine.

Memory is the peak that was measured with LoRA of rank 4 at each pack size, training and making pictures, and on top what
training keeps of the runs' own values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapters import PEFT, BadInput
from adapters.documents import NUMBER
from slurm.sweep_folder import read_spec_file
from training.cell import BASE, Cell
from training.store import read_json

START_S = 8.0  # seconds until a worker has loaded everything
PASSES = 3.0  # a training step costs about three forward passes
NAME = "calibration.json"  # in a sweep's folder


@dataclass(frozen=True)
class Pack:
    """A pack as planned: its name, its cells, and what it was planned with.

    Attributes:
        threads: CPU threads; 0 leaves torch's choice.
        device: "cpu" or "cuda".
        model: the pipeline's folder, whose matrices are counted; a hub id counts nothing.
    """

    name: str
    cells: tuple[Cell, ...]
    threads: int = 0
    device: str = "cpu"
    model: str = ""

    @classmethod
    def read(cls, spec: Path) -> Pack:
        """A pack from its specification."""
        stored = read_spec_file(spec)
        cells = (Cell.from_dict(row["cell"]) for row in stored["runs"])
        return cls.of(spec.stem, cells, stored["setting"])

    @classmethod
    def of(cls, name: str, cells: Any, setting: Mapping[str, Any]) -> Pack:
        """A pack from its cells and the fields of a `slurm.pack.Setting`."""
        return cls(
            name, tuple(cells), setting.get("threads", 0), setting.get("device", "cpu"), setting.get("model", "")
        )


@dataclass(frozen=True)
class Need:
    """What one process needs for a pack.

    Attributes:
        seconds: from its start to its end; None where nothing was measured.
        mib: peak of resident memory; None where nothing was measured.
        gpu_mib: peak of the memory on the GPU; None on a CPU, or where nothing was measured.
    """

    seconds: float | None = None
    mib: float | None = None
    gpu_mib: float | None = None


Predict = Callable[[Pack], Need]


@dataclass(frozen=True)
class Cost:
    """What was measured of packs of one size.

    Attributes:
        step_s: seconds of a training step.
        peak_mib: the process's peak of resident memory.
        gpu_mib: peak of the memory that torch took on the GPU; 0 on a CPU.
        load: the machine's load (`os.getloadavg`, one minute) when the measurement began; None where it was not noted.
    """

    step_s: float
    peak_mib: float
    gpu_mib: float = 0.0
    load: float | None = None


@dataclass(frozen=True)
class Forecast:
    """Expectations from the costs of packs by size; none where nothing was measured."""

    costs: Mapping[int, Cost]

    def need(self, pack: Pack) -> Need:
        """What a process needs for a pack."""
        if not self.costs:
            return Need()
        size = 1 if pack.cells[0].method.startswith(PEFT) else len(pack.cells)
        own = sum(state_mib(pack.model, cell.method, cell.options, cell.rank) for cell in pack.cells)
        on_gpu = pack.device == "cuda"
        gpu_mib = self._on_line(size, "gpu_mib") + own if on_gpu else None
        return Need(self.seconds(pack.cells, size), self.peak_mib(size) + (0.0 if on_gpu else own), gpu_mib)

    def seconds(self, cells: Sequence[Cell], pack_size: int, workers: int = 1) -> float | None:
        """Expected seconds until all cells are done in packs of one size; None where nothing was measured.

        A cell costs its steps, and its pictures' passes through the U-Net: two for each sampler step with guidance. HF
        PEFT's tuners run alone, at the speed of the smallest pack.
        """
        if not self.costs:
            return None
        total = 0.0
        for cell in cells:
            rows = cell.train_batch_size * cell.gradient_accumulation_steps * (2 if cell.prior_loss_weight > 0 else 1)
            evaluations = len(cell.evaluated_steps()) if cell.method != BASE else 1
            pictures = cell.num_prompts * cell.num_images + cell.num_drift_prompts
            passes = 2 * cell.num_inference_steps * pictures * evaluations
            size = 1 if cell.method.startswith(PEFT) else pack_size
            total += self._each_s(size) * (cell.steps * rows + passes / PASSES)
        return START_S + total / workers if cells else 0.0

    def _each_s(self, pack_size: int) -> float:
        """Seconds of one run's step in a pack of this size, or of the largest one measured below it."""
        size = max((size for size in self.costs if size <= pack_size), default=min(self.costs))
        return self.costs[size].step_s / size

    def step_s(self, pack_size: int) -> float:
        """Measured seconds of a pack's step; between two measured sizes and beyond the largest it lies on their line."""
        return self._on_line(pack_size, "step_s")

    def peak_mib(self, pack_size: int) -> float:
        """Measured peak of a process; between two measured sizes and beyond the largest it lies on their line."""
        return self._on_line(pack_size, "peak_mib")

    def _on_line(self, pack_size: int, name: str) -> float:
        sizes, value = sorted(self.costs), {size: getattr(cost, name) for size, cost in self.costs.items()}
        above = next((size for size in sizes[1:] if size >= pack_size), sizes[-1])
        below = max((size for size in sizes if size < above), default=above)
        slope = (value[above] - value[below]) / max(1, above - below)
        return value[above] + slope * (pack_size - above)


@functools.cache
def state_mib(model: str, method: str, options: str, rank: int) -> float:
    """MiB that training keeps of one run's own values; nothing for the base, for PEFT's tuners, and without a model."""
    from adapters.parameters import COPIES_IN_TRAINING

    return count_values(model, method, options, rank) * 4 * COPIES_IN_TRAINING / 2**20


@functools.cache
def count_values(model: str, method: str, options: str, rank: int) -> int:
    """Values that one run trains on a pipeline's folder; 0 for the base, for PEFT's tuners, and without a model."""
    if method == BASE or method.startswith(PEFT) or not Path(model, "unet").is_dir():
        return 0
    from adapters import parse_method
    from adapters.parameters import count_parameters
    from training.tasks.pipeline import attention_shapes

    try:
        spec = parse_method(f"{method}:{options}")
    except BadInput:  # of a user's own file, which a viewer does not load
        return 0
    return count_parameters(spec, list(attention_shapes(Path(model)).values()), rank)


def shape_of(cell: Cell) -> str:
    """What of a cell decides the cost of a step, as the names in the stored file end."""
    return f"{cell.resolution}-{cell.mixed_precision}-{cell.prior_loss_weight > 0:d}"


def predict_by(sweep: Path) -> Predict:
    """What packs of a sweep need, by what the sweep was planned with."""
    stored = read_costs(sweep / NAME)

    def predict(pack: Pack) -> Need:
        tail = f"-{shape_of(pack.cells[0])}"
        return Forecast(next((costs for shape, costs in stored.items() if shape.endswith(tail)), {})).need(pack)

    return predict


def read_costs(path: Path) -> dict[str, dict[int, Cost]]:
    """Costs by shape and pack size from a file; what is missing or damaged is left out, and measured again."""
    try:
        stored = read_json(path, {"*": {"*": {"*": NUMBER}}})
        return {shape: {int(n): Cost(**cost) for n, cost in costs.items()} for shape, costs in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError, BadInput):
        return {}


def to_json(costs: Mapping[int, Cost]) -> dict[str, dict[str, float]]:
    """Costs as they are stored."""
    return {str(size): asdict(cost) for size, cost in costs.items()}
