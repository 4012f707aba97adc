"""What a sweep is expected to take: by a rehearsal of each kind of its packs, remembered for every machine.

A rehearsal (`slurm/rehearse.py`) runs in processes of its own, as many side by side as the sweep will have. Imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters import BadInput, counted
from adapters.documents import NUMBER, SCALAR
from adapters.own_method import is_own, source
from slurm.calibrate import Calibration, cache_folder, has_device, hash_with_machine
from slurm.forecast import PASSES, Need, Pack
from slurm.pack import Setting
from slurm.sweep_time import ROWS, SAMPLER_STEPS, STEPS, Kind, KindCost, choose_kinds, find_cost, makespan
from slurm.telling import hear, telling
from training.cell import BASE, Cell
from training.store import StoreError, method_file, read_json, write_json, write_signed

WORTH_S, DRY_RUN_WORTH_S = 300.0, 60.0  # a shorter sweep is not rehearsed before it runs, or is only shown
SHORT_S, SHARE = 120.0, 0.02  # a rehearsal may take so long, or such a share of the sweep
CLOCKS = ("wall", "processor")

Costs = Mapping[Kind, KindCost]


@dataclass(frozen=True)
class Expected:
    """What packs are expected to cost: by a rehearsal of their kinds, and where there was none by the coarse forecast.

    Attributes:
        coarse: what was measured to choose the size of packs.
        workers: how many work side by side.
        costs: what was rehearsed, by kind, in seconds that pass.
        processor: the same in seconds that one worker's processor computes.
    """

    coarse: Calibration
    workers: int
    costs: Costs = field(default_factory=dict)
    processor: Costs = field(default_factory=dict)

    def cost(self, pack: Pack) -> KindCost | None:
        """What was rehearsed of a pack's kind."""
        return find_cost(Kind.of(pack), self.costs, self.coarse.step_s)

    def need(self, pack: Pack) -> Need:
        """What a process of its own needs for a pack."""
        need, cost = self.coarse.need(pack), self.cost(pack)
        return need if cost is None else dataclasses.replace(need, seconds=cost.start_s + cost.seconds(pack))

    def seconds(self, packs: Sequence[Pack]) -> float | None:
        """Seconds until all packs are done; None where nothing was measured."""
        durations = [cost.seconds(pack) for pack in packs if (cost := self.cost(pack))]
        if len(durations) < len(packs):
            cells = [cell for pack in packs for cell in pack.cells]
            return self.coarse.seconds(cells, self.coarse.pack_size, min(self.workers, len(packs)))
        return makespan(durations, self.workers, self._start_s(self.costs))

    def processor_s(self, packs: Sequence[Pack]) -> float:
        """Seconds that the workers' processors compute in all; NaN where a kind was not rehearsed."""
        costs = [find_cost(Kind.of(pack), self.processor, self.coarse.step_s) for pack in packs]
        if None in costs:
            return float("nan")
        starts = min(self.workers, len(packs)) * self._start_s(self.processor)
        return starts + sum(cost.seconds(pack) for cost, pack in zip(costs, packs) if cost is not None)

    @staticmethod
    def _start_s(costs: Costs) -> float:
        return statistics.median(cost.start_s for cost in costs.values()) if costs else 0.0


def expect(
    packs: Sequence[Pack], setting: Setting, coarse: Calibration, workers: int, worth_s: float | None = WORTH_S
) -> Expected:
    """What packs will cost; kinds that were never rehearsed on this machine are, if that is short beside the sweep.

    Args:
        packs: the packs.
        setting: what they share, threads of a worker among it.
        coarse: what was measured to choose their size.
        workers: how many work side by side.
        worth_s: seconds that a sweep has to take by the coarse forecast to be worth a rehearsal; None: it always is.
    """
    if not packs or not has_device(setting.device):
        return Expected(coarse, workers)
    team = workers if setting.device == "cpu" else 1  # a GPU's worker shares it with nobody
    path, kinds = _remembered(setting, packs[0].cells[0], team), {Kind.of(pack): pack for pack in packs}
    costs = read_costs(path)
    wanted = choose_kinds(list(kinds), costs["wall"])
    rough = coarse.seconds([cell for pack in packs for cell in pack.cells], coarse.pack_size, workers) or 0.0
    short = rehearsal_s(wanted, coarse) <= max(SHORT_S, SHARE * rough)
    if wanted and (worth_s is None or (rough >= worth_s and short)):
        for clock, found in rehearse([kinds[kind] for kind in wanted], setting, team).items():
            costs[clock] |= found
        with contextlib.suppress(StoreError):  # measured again next time
            write_signed(path, to_json(costs))
    return Expected(coarse, workers, costs["wall"], costs["processor"])


def rehearsal_s(kinds: Sequence[Kind], coarse: Calibration) -> float:
    """Roughly how long a rehearsal of some kinds would take, once everything is loaded."""
    if not coarse.costs:
        return math.inf
    total = 0.0
    for kind in kinds:
        step = coarse.step_s(kind.size) * kind.accumulation
        pictures = 2 * SAMPLER_STEPS * ROWS * step / (kind.size * kind.rows * PASSES)
        total += (STEPS if kind.method != BASE else 0) * step + pictures
    return total


def _remembered(setting: Setting, cell: Cell, team: int) -> Path:
    """Where costs of a model on this machine are kept."""
    slower = (setting.gradient_checkpointing, setting.cache_latents, setting.pre_compute_text_embeddings)
    key = hash_with_machine(cell.model_hash, cell.scorer_hash, setting.device, team, setting.threads, slower)
    return cache_folder("rehearsal") / f"{key}.json"


def read_costs(path: Path) -> dict[str, dict[Kind, KindCost]]:
    """What was rehearsed before, by clock; what is missing or damaged is left out, and measured again."""
    try:
        rows = read_json(path, {"costs!": [{"kind!": {"*": SCALAR}, "*": {"*": NUMBER}}]})["costs"]
        return {clock: {Kind(**row["kind"]): KindCost(**row[clock]) for row in rows} for clock in CLOCKS}
    except (OSError, ValueError, TypeError, KeyError, BadInput):
        return {clock: {} for clock in CLOCKS}


def to_json(costs: Mapping[str, Costs]) -> dict[str, Any]:
    """Costs as they are stored."""
    asdict = dataclasses.asdict
    rows = [{"kind": asdict(k), **{clock: asdict(costs[clock][k]) for clock in CLOCKS}} for k in costs["wall"]]
    return {"costs": rows}


def rehearse(packs: Sequence[Pack], setting: Setting, team: int) -> dict[str, dict[Kind, KindCost]]:
    """Measure a pack of each kind in several processes at once; nothing if one of them fails.

    Returns:
        The processes' means, by clock and kind.
    """
    what = f"measuring {counted(len(packs), 'kind')} of packs on this machine, once, for a better forecast"

    def name(number: str) -> str:
        cell, size = packs[int(number)].cells[0], len(packs[int(number)].cells)
        return f"{int(number) + 1}/{len(packs)}, {counted(size, 'run')} of {cell.method}"

    with telling() as tell, tempfile.TemporaryDirectory(prefix="plateau-rehearsal-") as folder:
        tell(what)
        processes = [_start(Path(folder) / f"runs-{n}" / "rehearsal", packs, setting) for n in range(team)]
        first, *others = processes  # one tells for all
        try:
            said = [
                hear(first, lambda number: tell(f"{what}: {name(number)}")),
                *(hear(p, lambda _: None) for p in others),
            ]
        finally:  # after Ctrl-C nobody would wait for them
            for process in processes:
                process.kill()
                process.wait()
    if any(process.returncode for process in processes):
        return {}
    parts = [json.loads(found) for found in said]
    return {
        clock: {Kind.of(pack): _mean([part[n][clock] for part in parts]) for n, pack in enumerate(packs)}
        for clock in CLOCKS
    }


def _mean(rows: Sequence[Mapping[str, float]]) -> KindCost:
    return KindCost(**{name: statistics.mean(row[name] for row in rows) for name in rows[0]})


def _start(sweep: Path, packs: Sequence[Pack], setting: Setting) -> subprocess.Popen[str]:
    """One worker's process, with the packs written down for it."""
    shared, specs = dataclasses.asdict(setting) | {"runs": str(sweep.parent)}, []
    for number, pack in enumerate(packs):
        runs = [{"run_id": f"p{number}-{n}", "cell": c.to_dict(), "labels": {}} for n, c in enumerate(pack.cells)]
        specs.append(sweep / "packs" / f"{number}.json")
        write_json(specs[-1], {"pack": str(number), "setting": shared, "runs": runs})
        if is_own(method := pack.cells[0].method):
            method_file(sweep, method).parent.mkdir(exist_ok=True)
            method_file(sweep, method).write_bytes(source(method).read_bytes())
    command = [sys.executable, "-m", "slurm.rehearse", repr(time.monotonic()), *map(str, specs)]
    root = Path(__file__).resolve().parents[1]
    return subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8", errors="replace"
    )
