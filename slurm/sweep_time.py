"""How long a whole sweep takes: what a pack of each kind costs, and how workers share the packs.

A pack costs a fixed part, its steps, and for every picture the sampler's passes and what follows them (decoding, scoring,
storing). What decides these numbers is the pack's kind; they are measured with as many workers side by side as the
sweep will have (`slurm/rehearse.py`). Workers then take packs in turn, and the last one to end decides. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from slurm.forecast import Pack
from training.cell import BASE

STEPS, SAMPLER_STEPS, ROWS = 6, 2, 128  # of a rehearsed pack; rows of its one sampler call


@dataclass(frozen=True)
class Kind:
    """What of a pack decides the cost of its steps and pictures, on one model and machine.

    Attributes:
        method, options, rank: what is trained.
        size: runs in the pack.
        rows: rows of one run in a micro-batch, class pictures included.
        accumulation: micro-batches of a step.
        resolution: side of the pictures in pixels.
        mixed_precision: as in a cell.
    """

    method: str
    options: str
    rank: int
    size: int
    rows: int
    accumulation: int
    resolution: int
    mixed_precision: str

    @classmethod
    def of(cls, pack: Pack) -> Kind:
        """The kind of a pack."""
        cell = pack.cells[0]
        rows = cell.train_batch_size * (2 if cell.prior_loss_weight > 0 else 1)
        return cls(
            cell.method, cell.options, cell.rank, len(pack.cells), rows, cell.gradient_accumulation_steps,
            cell.resolution, cell.mixed_precision,
        )  # fmt: skip

    def is_like(self, other: Kind) -> bool:
        """Whether only rank and size differ."""
        return dataclasses.replace(self, rank=other.rank, size=other.size) == other


@dataclass(frozen=True)
class KindCost:
    """What was measured of a kind of packs, in seconds.

    Attributes:
        start_s: until a worker has loaded everything; once for each worker.
        fixed_s: what every pack costs besides, from the encoding of pictures to the stored adapters.
        step_s: one optimiser step of the whole pack.
        pass_s: one row's pass through the U-Net while pictures are made.
        picture_s: what follows those passes, for one picture.
    """

    start_s: float
    fixed_s: float
    step_s: float
    pass_s: float
    picture_s: float

    def seconds(self, pack: Pack) -> float:
        """Expected seconds of a pack in a worker that has started."""
        cell, size = pack.cells[0], len(pack.cells)
        evaluations = len(cell.evaluated_steps()) if cell.method != BASE else 1
        pictures = evaluations * size * (cell.num_prompts * cell.num_images + cell.num_drift_prompts)
        pictures += cell.num_drift_prompts  # of the untouched model, by which drift is measured
        passes = cell.num_inference_steps * (2 if cell.guidance_scale != 1 else 1)
        return self.fixed_s + cell.steps * self.step_s + pictures * (passes * self.pass_s + self.picture_s)


def find_cost(kind: Kind, measured: Mapping[Kind, KindCost], step_of: Callable[[int], float]) -> KindCost | None:
    """The cost of a kind: as measured, or on the line between two ranks; None if nothing near enough was measured.

    Args:
        kind: what is asked for.
        measured: costs by kind.
        step_of: seconds of a step by pack size, of any method: between two sizes steps are in proportion to it.
    """
    near = [k for k in measured if k.is_like(kind) and kind.size <= k.size < 2 * kind.size]
    if not near:
        return None
    size = min(k.size for k in near)
    by_rank = {k.rank: measured[k] for k in near if k.size == size}
    below = max((rank for rank in by_rank if rank <= kind.rank), default=None)
    above = min((rank for rank in by_rank if rank >= kind.rank), default=None)
    if below is None or above is None:
        return None
    share = (kind.rank - below) / (above - below) if above > below else 0.0
    fields = {
        field.name: (1 - share) * getattr(by_rank[below], field.name) + share * getattr(by_rank[above], field.name)
        for field in dataclasses.fields(KindCost)
    }
    if size != kind.size:
        fields["step_s"] *= step_of(kind.size) / step_of(size)
    return KindCost(**fields)


def choose_kinds(kinds: Sequence[Kind], known: Mapping[Kind, KindCost]) -> list[Kind]:
    """The fewest of the kinds that have to be measured, so that the others lie between them."""

    def inside(kind: Kind) -> int:
        ranks = [other.rank for other in kinds if other.is_like(kind)]
        return min(kind.rank - min(ranks), max(ranks) - kind.rank)

    chosen: dict[Kind, KindCost] = {}
    for kind in sorted(kinds, key=lambda kind: (-kind.size, inside(kind))):
        if find_cost(kind, {**known, **chosen}, lambda size: 1.0) is None:
            chosen[kind] = KindCost(0.0, 0.0, 0.0, 0.0, 0.0)
    return list(chosen)


def makespan(durations: Sequence[float], workers: int, start_s: float) -> float:
    """Seconds until all packs are done by workers that take turns.

    Worker n goes through the packs from the n-th on, and takes each that nobody holds (`slurm/inline.py`).

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
