"""What is left to do of a driver's question: measured, and stored as packs."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm.estimate.calibrate import calibrate, keep_calibration
from slurm.estimate.need import Estimate, Need, Pack, learn
from slurm.submit.arrays import MEMORY_MARGIN
from slurm.worker import pool
from slurm.worker.run import Setting
from sweeps.grid import LabelledCell, ResolvedInputs, base_cells
from sweeps.jobs import Sender
from sweeps.kept_inputs import keep_method_files, keep_own_pictures, keep_start
from sweeps.options import Options
from sweeps.plan import Plan, name_pack, open_sweep
from sweeps.progress import PlanProgress, check_ended
from sweeps.reuse import EarlierResults
from training.demand import Valued, state_mib


@dataclass(frozen=True)
class Sweep:
    """A driver's question, resolved: what is asked, and what of it earlier results do not hold.

    Attributes:
        options, inputs: the flags; model, scorers and subjects.
        folder: `<runs>/<sweep>`.
        asked: every cell under each name that it goes by, those of the base model first.
        cells: each cell once.
        ours: those of them that this sweep has to train.
        plan, earlier: the packs stored in the folder; the results that `--results` names.
    """

    options: Options
    inputs: ResolvedInputs
    folder: Path
    asked: Sequence[LabelledCell]
    cells: Sequence[LabelledCell]
    ours: Sequence[LabelledCell]
    plan: Plan
    earlier: EarlierResults

    @property
    def subjects(self) -> list[str]:
        """The subjects, in the order in which they are asked for."""
        return list(dict.fromkeys(p.cell.subject for p in self.asked))

    @property
    def wanted(self) -> dict[str, int]:
        """Identities of the cells that this sweep has to train, each with the place of its subject."""
        places = {name: place for place, name in enumerate(self.subjects)}
        return {p.cell.identity(): places[p.cell.subject] for p in self.ours}

    def packs_of(self, names: Sequence[str]) -> list[Pack]:
        """Stored packs, with those of their cells that are wanted."""
        cells = {p.cell.identity(): p.cell for p in self.ours}
        plan = self.plan
        return [
            Pack.of(name, [cells[i] for i, _ in plan.packs[name] if i in cells], plan.setting(name)) for name in names
        ]


@dataclass(frozen=True)
class Work:
    """What is left of a sweep, and what it is expected to take.

    Attributes:
        todo: the cells.
        packs: names of the stored packs that hold them.
        left: those packs, and in a dry run the packs that would be stored.
        setting: what the packs share.
        workers: how many work side by side.
        expected: what packs are expected to cost; None where nothing is left.
        sender: sends them to where they run on their own.
    """

    todo: Sequence[LabelledCell]
    packs: list[str]
    left: Sequence[Pack]
    setting: Setting
    workers: int
    expected: Estimate | None
    sender: Sender

    @property
    def seconds(self) -> float | None:
        """Seconds that all of it takes; None where nothing was measured."""
        return self.expected.seconds(self.left) if self.expected else 0.0

    def each_s(self) -> dict[str, float]:
        """Seconds that each pack is expected to take, by name; empty where nothing was measured."""
        expected = self.expected
        return {pack.name: expected.pack_s(pack.demand) for pack in self.left} if expected and expected.costs else {}


def resolve(options: Options, inputs: ResolvedInputs, planned: Sequence[LabelledCell], name: str) -> Sweep:
    """Open the sweep's folder, and look up which cells earlier results hold.

    Raises:
        BadInput: for a folder that cannot be used.
    """
    folder = open_sweep(options.runs, options.sweep or inputs.kind.sweep_name(name), inputs)
    asked = [*base_cells(planned), *planned]
    cells = list({p.cell.identity(): p for p in asked}.values())
    plan, earlier = Plan.read(folder), EarlierResults.read(options.results, inputs)
    ours = [p for p in cells if earlier.find(p.cell) is None]
    if options.results and not any(earlier.find(p.cell) for p in planned):
        print(earlier.describe_unlike(planned[0].cell), file=sys.stderr)
    return Sweep(options, inputs, folder, asked, cells, ours, plan, earlier)


def plan_work(sweep: Sweep) -> Work:
    """See what is done, measure what the rest costs, and store it as packs; a dry run stores nothing.

    Raises:
        BadInput: where the model cannot be measured, or a folder cannot be written.
    """
    options, inputs, plan, dry_run = sweep.options, sweep.inputs, sweep.plan, sweep.options.dry_run
    done = look(plan, sweep.wanted, dry_run)
    missing = [p for p in sweep.ours if p.cell.identity() not in plan.run_ids()]
    expected = _measure(sweep) if missing or done.todo(sweep.wanted) else None
    workers, threads = _workers(options, inputs.setting, len(sweep.cells), expected)
    setting = dataclasses.replace(inputs.setting, threads=threads)
    early = options.where.choose() is None
    drafts = plan.draft(missing, expected.pack_size, workers, early) if expected and dry_run else []
    if not dry_run:
        if missing and expected:
            keep_method_files(sweep.folder, [p.cell.method for p in missing])
            keep_calibration(sweep.folder, inputs.setting, sweep.cells[-1].cell, expected)
            plan.add(missing, setting, expected.pack_size, workers, early)
            done = PlanProgress.look(plan)
        keep_start(sweep.folder, inputs)
        keep_own_pictures(sweep.folder, inputs)
    packs = done.todo(sweep.wanted)
    todo = [p for p in sweep.ours if not done.has(p.cell.identity())]
    left = [*sweep.packs_of(packs), *(as_pack(group, setting) for group in drafts)]
    if expected:
        paid = learn(expected.costs, done.files.endings.values())
        expected = dataclasses.replace(expected, workers=workers, paid=paid)
    where, need = options.where, expected.need if expected else lambda _: Need()
    sender = Sender(plan.sweep, where.executor, where.choose(), workers, need)
    return Work(todo, packs, left, setting, workers, expected, sender)


def _measure(sweep: Sweep) -> Estimate:
    """What packs of these cells cost, and how many runs one should hold."""
    options, setting, cluster = sweep.options, sweep.inputs.setting, sweep.options.where.choose()
    task_mib = (cluster.mem_gb * 1024 / MEMORY_MARGIN or math.inf) if cluster else None
    kinds = {Valued.of(p.cell) for p in sweep.ours}
    own_mib = max((state_mib(setting.model, kind) for kind in kinds), default=0.0)
    return calibrate(setting, sweep.cells[-1].cell, options.pack_size, sweep.folder, task_mib, own_mib)


def _workers(options: Options, setting: Setting, num_cells: int, measured: Estimate | None) -> tuple[int, int]:
    """Workers of this machine and threads of each; a cluster's tasks are one worker each."""
    if (cluster := options.where.choose()) is not None:
        return 1, 0 if setting.device == "cuda" else max(1, cluster.cpus_per_task)
    each_mib = measured.peak_mib(measured.pack_size) if measured and measured.costs else pool.WORKER_MIB
    workers, threads = pool.choose_workers(max(2, num_cells), setting.device, each_mib)
    if options.workers != "auto":
        cores = workers * threads
        workers = int(options.workers)
        threads = max(1, cores // workers) if setting.device == "cpu" else 0
    return workers, threads


def as_pack(members: Sequence[LabelledCell], setting: Setting) -> Pack:
    """A pack that is not stored."""
    return Pack.of(name_pack(members), [p.cell for p in members], dataclasses.asdict(setting))


def look(plan: Plan, wanted: Mapping[str, int], dry_run: bool = False) -> PlanProgress:
    """What is done. Failed runs are to be tried again; where all are done, their tables are checked: they are drawn next."""
    done = PlanProgress.look(plan)
    if not dry_run:
        done.reopen_failed(wanted)
        if not done.todo(wanted):
            check_ended(done, wanted)
    for line in done.lines:
        print(line, file=sys.stderr)
    return done
