"""Estimate seconds and memory of packs.

Before the first pack has ended, seconds follow from steps that were measured with LoRA (`training/probe.py`); then from what
the ended packs took, of the same method where there is one. Memory is the peak that was measured at each size of a pack, and
on top what training keeps of the runs' own values. Imports no torch.
"""

from __future__ import annotations

import heapq
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from training.cell import Cell
from training.demand import PASSES, Costs, Demand, on_line, read_costs, row_s
from training.planned import read_spec_file

START_S = 8.0  # seconds until a worker has loaded everything
NAME = "calibration.json"  # in a sweep's folder


@dataclass(frozen=True)
class Pack:
    """A pack as planned.

    Attributes:
        name: the pack's name.
        demand: what it asks of a machine.
        threads: CPU threads; 0 leaves torch's choice.
        device: "cpu" or "cuda".
    """

    name: str
    demand: Demand
    threads: int = 0
    device: str = "cpu"

    @classmethod
    def read(cls, spec: Path) -> Pack:
        """A pack from its specification."""
        stored = read_spec_file(spec)
        return cls.of(spec.stem, [Cell.from_dict(row["cell"]) for row in stored["runs"]], stored["setting"])

    @classmethod
    def of(cls, name: str, cells: Iterable[Cell], setting: Mapping) -> Pack:
        """A pack from its cells and the fields of a `training.pack.Setting`."""
        demand = Demand.of(list(cells), setting.get("model", ""))
        return cls(name, demand, setting.get("threads", 0), setting.get("device", "cpu"))


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
class Paid:
    """What packs of one kind have taken, beside what they were expected to take by the costs alone.

    Attributes:
        training, pictures: seconds taken over seconds expected; None where none were expected.
    """

    training: float | None
    pictures: float | None


@dataclass(frozen=True)
class Estimate:
    """Seconds and memory of packs.

    Attributes:
        costs: what was measured, by size of a pack; empty where nothing was.
        pack_size: how many runs one should hold.
        workers: how many work side by side.
        paid: how far ended packs were from it, by kind.
    """

    costs: Costs
    pack_size: int = 1
    workers: int = 1
    paid: Mapping[str, Paid] = field(default_factory=dict)

    def seconds(self, packs: Sequence[Pack]) -> float | None:
        """Seconds until all packs are done by workers that take turns; None where nothing was measured."""
        if not self.costs:
            return None
        return makespan([self.pack_s(pack.demand) for pack in packs], self.workers, START_S)

    def need(self, pack: Pack) -> Need:
        """What a process of its own needs for a pack."""
        if not self.costs:
            return Need()
        demand, on_gpu = pack.demand, pack.device == "cuda"
        own = demand.own_mib
        gpu_mib = on_line(self.costs, demand.size, "gpu_mib") + own if on_gpu else None
        seconds = START_S + self.pack_s(demand)
        return Need(seconds, self.peak_mib(demand.size) + (0.0 if on_gpu else own), gpu_mib)

    def pack_s(self, demand: Demand) -> float:
        """Seconds of a pack in a worker that has started."""
        training, pictures = split_s(self.costs, demand)
        return training * self._times(demand.kind, "training") + pictures * self._times(demand.kind, "pictures")

    def peak_mib(self, size: int) -> float:
        """Measured peak of a process, by size of its packs."""
        return on_line(self.costs, size, "peak_mib")

    def _times(self, kind: str, part: str) -> float:
        """How much longer a part takes than by the costs alone: for the kind, else over all kinds, else not at all."""
        known = {name: getattr(paid, part) for name, paid in self.paid.items() if getattr(paid, part) is not None}
        return known[kind] if kind in known else statistics.median(known.values()) if known else 1.0


def split_s(costs: Costs, demand: Demand) -> tuple[float, float]:
    """Seconds of a pack's training and of its pictures, by what was measured with LoRA."""
    each = row_s(costs, demand.size)
    return each * demand.rows, each * demand.passes / PASSES


def learn(costs: Costs, endings: Iterable[Mapping]) -> dict[str, Paid]:
    """What ended packs teach, by kind.

    Args:
        costs: what was measured before.
        endings: as `slurm/store/outcome.py` writes them; those without a cost are left out.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)
    for cost in (ending.get("cost") for ending in endings) if costs else ():
        if cost:
            each = row_s(costs, cost["size"])
            parts = (cost["training_s"], cost["pictures_s"], each * cost["rows"], each * cost["passes"] / PASSES)
            sums[cost["kind"]] = [before + part for before, part in zip(sums[cost["kind"]], parts)]
    return {
        kind: Paid(*(took / expected if expected else None for took, expected in (s[::2], s[1::2])))
        for kind, s in sums.items()
    }


def makespan(durations: Sequence[float], workers: int, start_s: float) -> float:
    """Seconds until all packs are done by workers that take turns.

    Worker n goes through the packs from the n-th on, and takes each that nobody holds (`slurm/worker/pool.py`).

    Args:
        durations: seconds of each pack, in the order in which they are tried.
        workers: how many processes.
        start_s: until each of them has loaded everything.
    """
    if not durations:
        return 0.0
    count, held, end = len(durations), set[int](), start_s
    orders = [iter([*range(n % count, count), *range(n % count)]) for n in range(workers)]
    free = [(start_s, n) for n in range(workers)]
    heapq.heapify(free)
    while free:
        now, worker = heapq.heappop(free)
        end = max(end, now)
        for pack in orders[worker]:
            if pack not in held:
                held.add(pack)
                heapq.heappush(free, (now + durations[pack], worker))
                break
    return end


def predict_by(sweep: Path, endings: Iterable[Mapping] = ()) -> Predict:
    """What packs of a sweep need, by what the sweep was planned with and what its ended packs took."""
    stored, endings = read_costs(sweep / NAME), list(endings)

    def predict(pack: Pack) -> Need:
        tail = f"-{pack.demand.shape}"
        costs = next((costs for shape, costs in stored.items() if shape.endswith(tail)), {})
        return Estimate(costs, paid=learn(costs, endings)).need(pack)

    return predict
