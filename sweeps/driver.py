"""What every driver does with its cells: plan, show, run, and hand the results to its figure."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from adapters import BadInput, counted
from analysis import Results, load
from slurm import inline
from slurm.arrays import MEMORY_MARGIN
from slurm.calibrate import Calibration, calibrate, keep_calibration, machine_load, measured_file
from slurm.ended import last_line
from slurm.expect import DRY_RUN_WORTH_S, WORTH_S, Expected, expect
from slurm.forecast import Need, Pack, state_mib
from slurm.job import Setting
from sweeps import jobs
from sweeps.done import Done, check_ended
from sweeps.earlier import Earlier
from sweeps.grid import Planned, Scene, base_cells
from sweeps.jobs import Sender, describe_states
from sweeps.options import Options, Stopped
from sweeps.plan import Plan, is_packable, keep_method_files, keep_own_pictures, keep_start, name_pack, open_sweep
from sweeps.plan_lines import describe_load, describe_memory, describe_rates
from sweeps.progress import ProgressDisplay, duration
from sweeps.remarks import describe_scene
from sweeps.smaller import LONG_S, offer_smaller
from training.cell import BASE
from training.states import RunStatus

RENAMED = ("multiplier", "scale", "label", "rate_source")  # what a run goes by in a call, whatever it was trained as


@dataclass(frozen=True)
class Outcome:
    """What a sweep leaves.

    Attributes:
        results: frames of the planned runs and of the untouched base.
        folder: `<runs>/<sweep>`, where tables and figures go.
        trained: how many cells were trained now.
    """

    results: Results
    folder: Path
    trained: int


@dataclass(frozen=True)
class Sweep:
    """A driver's question, resolved: what is asked, and what of it earlier results do not hold.

    Attributes:
        options, scene: the flags; model, scorers and subjects.
        folder: `<runs>/<sweep>`.
        asked: every cell under each name that it goes by, those of the untouched base first.
        cells: each cell once.
        ours: those of them that this sweep has to train.
        plan, earlier: the packs stored in the folder; the results that `--results` names.
    """

    options: Options
    scene: Scene
    folder: Path
    asked: Sequence[Planned]
    cells: Sequence[Planned]
    ours: Sequence[Planned]
    plan: Plan
    earlier: Earlier

    @property
    def wanted(self) -> set[str]:
        """Identities of the cells that this sweep has to train."""
        return {p.cell.identity() for p in self.ours}

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
        missing: the cells that no pack held before.
        setting: what the packs share.
        workers: how many work side by side.
        measured: what packs cost; None where nothing is left.
        expected: what these packs are expected to cost; None likewise.
        sender: sends them to where they run on their own.
    """

    todo: Sequence[Planned]
    packs: list[str]
    left: Sequence[Pack]
    missing: Sequence[Planned]
    setting: Setting
    workers: int
    measured: Calibration | None
    expected: Expected | None
    sender: Sender

    @property
    def estimate(self) -> float | None:
        """Seconds that all of it takes; None where nothing was measured."""
        return self.expected.seconds(self.left) if self.expected else 0.0


def run_sweep(
    options: Options,
    scene: Scene,
    planned: Sequence[Planned],
    name: str,
    smaller: Sequence[str] = ("subjects", "multipliers"),
) -> Outcome | None:
    """Train what is missing and load everything; None after `--dry-run`, and while jobs do the work.

    Args:
        options: the flags.
        scene: model, scorers and subjects.
        planned: the cells of the driver's question.
        name: the driver's name, which names the sweep's folder unless `--sweep` does.
        smaller: which flags may be given fewer values in the offer of a smaller run.

    Raises:
        BadInput: for a folder that cannot be used, or a worker that was killed.
        Stopped: after Ctrl-C.
    """
    sweep = resolve(options, scene, planned, name)
    work = plan_work(sweep)
    show_plan(sweep, work, describe_rates(planned), smaller)
    if options.dry_run:
        work.sender.show(work.left)
        return None
    return collect(sweep, len(work.todo)) if run_work(sweep, work) else None


def resolve(options: Options, scene: Scene, planned: Sequence[Planned], name: str) -> Sweep:
    """Open the sweep's folder, and look up which cells earlier results hold.

    Raises:
        BadInput: for a folder that cannot be used.
    """
    folder = open_sweep(options.runs, options.sweep or name, scene)
    asked = [*base_cells(planned), *planned]
    cells = list({p.cell.identity(): p for p in asked}.values())
    plan, earlier = Plan.read(folder), Earlier.read(options.results, scene)
    ours = [p for p in cells if earlier.find(p.cell) is None]
    return Sweep(options, scene, folder, asked, cells, ours, plan, earlier)


def plan_work(sweep: Sweep) -> Work:
    """See what is done, measure what the rest costs, and store it as packs; a dry run stores nothing.

    Raises:
        BadInput: where the model cannot be measured, or a folder cannot be written.
    """
    options, scene, plan, dry_run = sweep.options, sweep.scene, sweep.plan, sweep.options.dry_run
    done = _look(plan, sweep.wanted, dry_run)
    missing = [p for p in sweep.ours if p.cell.identity() not in plan.run_ids()]
    measured = _measure(sweep) if missing or done.todo(sweep.wanted) else None
    workers, threads = _workers(options, scene.setting, len(sweep.cells), measured)
    setting = dataclasses.replace(scene.setting, threads=threads)
    drafts = plan.draft(missing, measured.pack_size, workers) if measured and dry_run else []
    if not dry_run:
        if missing and measured:
            keep_method_files(sweep.folder, [p.cell.method for p in missing])
            keep_calibration(sweep.folder, scene.setting, sweep.cells[-1].cell, measured)
            plan.add(missing, setting, measured.pack_size, workers)
            done = Done.look(plan)
        keep_start(sweep.folder, scene)
        keep_own_pictures(sweep.folder, scene)
    packs = done.todo(sweep.wanted)
    todo = [p for p in sweep.ours if not done.has(p.cell.identity())]
    left = [*sweep.packs_of(packs), *(_as_pack(group, setting) for group in drafts)]
    worth_s = DRY_RUN_WORTH_S if dry_run else WORTH_S
    expected = expect(left, setting, measured, workers, worth_s) if measured else None
    where, need = options.where, expected.need if expected else lambda _: Need()
    sender = Sender(plan.sweep, where.executor, where.choose(), workers, need)
    return Work(todo, packs, left, missing, setting, workers, measured, expected, sender)


def _measure(sweep: Sweep) -> Calibration:
    """What packs of these cells cost, and how many runs one should hold."""
    options, setting, cluster = sweep.options, sweep.scene.setting, sweep.options.where.choose()
    task_mib = (cluster.mem_gb * 1024 / MEMORY_MARGIN or math.inf) if cluster else None
    kinds = {(p.cell.method, p.cell.options, p.cell.rank) for p in sweep.ours}
    own_mib = max((state_mib(setting.model, *kind) for kind in kinds), default=0.0)
    return calibrate(setting, sweep.cells[-1].cell, options.pack_size, sweep.folder, task_mib, own_mib)


def run_work(sweep: Sweep, work: Work) -> bool:
    """Run what is left until it has ended; False where it was sent away and goes on alone.

    Raises:
        BadInput: for a run that failed, or a worker that was killed.
        Stopped: after Ctrl-C.
    """
    plan, packs, where = sweep.plan, work.packs, sweep.options.where
    num_done = len(sweep.cells) - len(work.todo)
    estimate = work.estimate
    while packs:
        plan.refresh(work.setting, packs)
        if where.executor == "inline":
            _run(plan, packs, min(work.workers, len(packs)), num_done, estimate, work.setting.device)
        elif not _send(work.sender, plan, packs, sweep.wanted, where.wait):
            return False
        _report_failures(plan, packs)
        packs = _look(plan, sweep.wanted).todo(sweep.wanted)
    return True


def collect(sweep: Sweep, trained: int) -> Outcome:
    """Load what was asked for, each run under every name that it goes by."""
    ids = sweep.plan.run_ids()
    labels: dict[str, list[dict]] = {}
    for p in sweep.asked:
        labels.setdefault(sweep.earlier.find(p.cell) or ids[p.cell.identity()], []).append(p.labels)
    results = load(*([sweep.folder] if sweep.plan.packs else []), *sweep.earlier.folders)
    return Outcome(relabel(results.select(list(labels)), labels), sweep.folder, trained)


def relabel(results: Results, labels: Mapping[str, Sequence[Mapping]]) -> Results:
    """Give runs the names that they go by in this call.

    A run may have been trained under another multiplier. One that answers several questions, as multiplier 1 does whichever
    rate is scaled, stands there once under each of its names.
    """
    runs = results.all_runs
    known = [*runs.columns, *(name for rows in labels.values() for own in rows for name in own)]
    renamed = [name for name in RENAMED if name in known]
    names = [
        (place, *(own.get(name) for name in renamed))
        for place, run_id in enumerate(runs["run_id"])
        for own in labels.get(run_id, ({},))  # the untouched base of subjects that this call leaves out
    ]
    places, *columns = zip(*dict.fromkeys(names))
    given = {name: pd.array(values, dtype="object") for name, values in zip(renamed, columns, strict=True)}
    named = runs.iloc[list(places)].assign(**given)
    return dataclasses.replace(results, all_runs=named.astype({"multiplier": "float64"}))


def _workers(options: Options, setting: Setting, num_cells: int, measured: Calibration | None) -> tuple[int, int]:
    """Workers of this machine and threads of each; a cluster's tasks are one worker each."""
    if (cluster := options.where.choose()) is not None:
        return 1, 0 if setting.device == "cuda" else max(1, cluster.cpus_per_task)
    each_mib = measured.peak_mib(measured.pack_size) if measured and measured.costs else inline.WORKER_MIB
    workers, threads = inline.choose_workers(max(2, num_cells), setting.device, each_mib)
    if options.workers != "auto":
        cores = workers * threads
        workers = int(options.workers)
        threads = max(1, cores // workers) if setting.device == "cpu" else 0
    return workers, threads


def _as_pack(members: Sequence[Planned], setting: Setting) -> Pack:
    return Pack.of(name_pack(members), [p.cell for p in members], dataclasses.asdict(setting))


def _send(sender: Sender, plan: Plan, packs: list[str], wanted: set[str], wait: bool) -> bool:
    """Send packs to where they run on their own; says whether they have ended, which only --wait sees.

    Raises:
        Stopped: after Ctrl-C; what was sent goes on.
    """
    report, lines = sender.send(packs)
    print("\n".join(lines), flush=True)
    if sender.executor == "export":
        return False
    lines = describe_states(plan.sweep, packs)
    if not wait:
        print("\n".join(lines))
        if report.refusal and not report.later_is_queue():
            raise BadInput(report.refusal)
        return False

    def list_open() -> list[str]:
        plan.catch_up()
        done = Done.look(plan)
        return [pack for pack in done.todo(wanted) if pack not in done.files.endings]

    try:
        jobs.wait(sender, list_open)
    except KeyboardInterrupt:
        raise Stopped(f"no longer waiting; what was sent goes on: {lines[-1]}") from None
    return True


def _look(plan: Plan, wanted: set[str], dry_run: bool = False) -> Done:
    """What is done. Failed runs are to be tried again; where all are done, their tables are checked: they are drawn next."""
    done = Done.look(plan)
    if not dry_run:
        done.reopen_failed(wanted)
        if not done.todo(wanted):
            check_ended(done, wanted)
    for line in done.lines:
        print(line, file=sys.stderr)
    return done


def show_plan(sweep: Sweep, work: Work, rates: Sequence[str], smaller: Sequence[str]) -> None:
    """Print what is done, what is left and how long that takes; a long sweep is offered smaller."""
    scene, estimate = sweep.scene, work.estimate
    train = [p for p in sweep.cells if p.cell.method != BASE]
    left = sum(p.cell.method != BASE for p in work.todo)
    names = sorted({p.cell.method for p in train})
    subjects = sorted({p.cell.subject for p in train})
    print(f"{scene.model_name}: {', '.join(names)} on {counted(len(subjects), 'subject')} ({', '.join(subjects)})")
    steps = counted(max(p.cell.steps for p in train), "step")
    base = len(sweep.cells) - len(train)  # a cell too: it is scored
    also = f"; and {base} of the untouched base: {len(sweep.cells)} in all" if base else ""
    print(f"{counted(len(train), 'cell')}: {len(train) - left} done, {left} to train, {steps} each{also}")
    lines = describe_scene(scene)
    if alone := [name for name in names if not is_packable(name)]:
        lines.append(f"unpacked, one run at a time: {', '.join(alone)} (HF PEFT's own layers)")
    if work.todo and work.measured is not None:
        lines += _describe_packs(work, estimate, sweep.options.where.choose() is None)
    lines += rates
    if work.expected is not None and sweep.options.where.choose() is None:
        costs, shape = work.expected.coarse.costs, sweep.cells[-1].cell
        lines += describe_load(costs, machine_load(), measured_file(scene.setting, shape))
        if (estimate or 0.0) > LONG_S:
            take_s = functools.partial(_take_s, sweep, work)
            lines += offer_smaller(sweep.asked, sys.argv, sweep.options.subjects, take_s, smaller)
    print("\n".join(lines))


def _describe_packs(work: Work, estimate: float | None, here: bool) -> list[str]:
    assert work.measured is not None
    num_packs, size, setting = len(work.left), work.measured.pack_size, work.setting
    where = f"{counted(num_packs, 'pack') if num_packs else 'packs'} of up to {size}"
    if here:
        said = f"{where}, {counted(work.workers, 'worker')} on {setting.device}: about {duration(estimate)}"
    else:
        said = f"{where} on {setting.device}"
    return [said, *describe_memory([p.cell for p in work.todo], Path(setting.model), size)]


def _take_s(sweep: Sweep, work: Work, kept: set[str]) -> float | None:
    """Seconds of some cells: of stored packs whole, as they are trained, of others as they would be packed."""
    assert work.expected is not None
    stored = [pack for pack in sweep.packs_of(work.packs) if any(c.identity() in kept for c in pack.cells)]
    fresh = [p for p in work.missing if sweep.options.dry_run and p.cell.identity() in kept]
    groups = sweep.plan.draft(fresh, work.expected.coarse.pack_size, work.workers)
    return work.expected.seconds([*stored, *(_as_pack(group, work.setting) for group in groups)])


def _run(plan: Plan, packs: Sequence[str], workers: int, num_done: int, estimate: float | None, device: str) -> None:
    cells = {pack: len(plan.packs[pack]) for pack in packs}
    work = {pack: plan.work[pack] for pack in packs}
    with ProgressDisplay(num_done, cells, work, estimate) as display:
        specs = [plan.spec(pack) for pack in packs]
        outcome = inline.run_inline(specs, workers=workers, listen=display.listen, device=device)
    if outcome == "stopped":
        raise Stopped("stopped; everything computed is checkpointed: the same command goes on from here")


def _report_failures(plan: Plan, packs: Sequence[str]) -> None:
    """Stop with the last line of the first failure, if a run failed.

    Raises:
        BadInput: naming the run, the error and where its traceback lies.
    """
    for pack in packs:
        for _, run_id in plan.packs[pack]:
            run = plan.run(run_id)
            if run.status() == RunStatus.FAILED:
                last = last_line(run.read()["error"])
                raise BadInput(
                    f"run {run_id} failed: {last} (traceback in {run.path / 'run.json'}); the others are done"
                )
