"""What every driver does with its cells: plan, show, run, and hand the results to its figure."""

from __future__ import annotations

import dataclasses
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
from slurm.expect import DRY_RUN_WORTH_S, WORTH_S, expect
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
    folder = open_sweep(options.runs, options.sweep or name, scene)
    asked = [*base_cells(planned), *planned]
    cells = list({p.cell.identity(): p for p in asked}.values())
    plan, earlier = Plan.read(folder), Earlier.read(options.results, scene)
    ours = [p for p in cells if earlier.find(p.cell) is None]
    wanted = {p.cell.identity() for p in ours}
    done = _look(plan, wanted, options.dry_run)
    missing = [p for p in ours if p.cell.identity() not in plan.run_ids()]
    where, shape = options.where, cells[-1].cell
    is_open = bool(missing or done.todo(wanted))
    cluster = where.choose()
    task_mib = (cluster.mem_gb * 1024 / MEMORY_MARGIN or math.inf) if cluster else None
    kinds = {(p.cell.method, p.cell.options, p.cell.rank) for p in ours}
    own_mib = max((state_mib(scene.setting.model, *kind) for kind in kinds), default=0.0)
    measured = calibrate(scene.setting, shape, options.pack_size, folder, task_mib, own_mib) if is_open else None
    workers, threads = _workers(options, scene.setting, len(cells), measured)
    setting = dataclasses.replace(scene.setting, threads=threads)
    drafts = plan.draft(missing, measured.pack_size, workers) if measured and options.dry_run else []
    if missing and measured and not options.dry_run:
        keep_method_files(folder, [p.cell.method for p in missing])
        keep_calibration(folder, scene.setting, shape, measured)
        plan.add(missing, setting, measured.pack_size, workers)
        done = Done.look(plan)
    if not options.dry_run:
        keep_start(folder, scene)
        keep_own_pictures(folder, scene)
    packs = done.todo(wanted)
    todo = [p for p in ours if not done.has(p.cell.identity())]
    left = _as_packs(plan, packs, ours) + [_as_pack(group, setting) for group in drafts]
    worth_s = DRY_RUN_WORTH_S if options.dry_run else WORTH_S
    expected = expect(left, setting, measured, workers, worth_s) if measured else None
    estimate = expected.seconds(left) if expected else 0.0
    _show_plan(options, scene, cells, todo, len(left), workers, measured, estimate)
    lines = describe_rates(planned)
    if expected is not None and cluster is None:
        lines += describe_load(expected.coarse.costs, machine_load(), measured_file(scene.setting, shape))

        def take_s(kept: set[str]) -> float | None:
            """Seconds of some cells: of stored packs whole, as they are trained, of others as they would be packed."""
            stored = [pack for pack in _as_packs(plan, packs, ours) if any(c.identity() in kept for c in pack.cells)]
            fresh = [p for p in missing if options.dry_run and p.cell.identity() in kept]
            groups = plan.draft(fresh, expected.coarse.pack_size, workers)
            return expected.seconds([*stored, *(_as_pack(group, setting) for group in groups)])

        if (estimate or 0.0) > LONG_S:
            lines += offer_smaller(asked, sys.argv, options.subjects, take_s, smaller)
    for line in lines:
        print(line)
    sender = Sender(plan.sweep, where.executor, cluster, workers, expected.need if expected else lambda _: Need())
    if options.dry_run:
        sender.show(left)
        return None
    while packs:
        plan.refresh(setting, packs)
        if where.executor == "inline":
            _run(plan, packs, min(workers, len(packs)), len(cells) - len(todo), estimate, setting.device)
        elif not _send(sender, plan, packs, wanted, where.wait):
            return None
        _report_failures(plan, packs)
        packs = _look(plan, wanted).todo(wanted)
    ids = plan.run_ids()
    labels: dict[str, list[dict]] = {}
    for p in asked:
        labels.setdefault(earlier.find(p.cell) or ids[p.cell.identity()], []).append(p.labels)
    results = load(*([folder] if plan.packs else []), *earlier.folders)
    return Outcome(relabel(results.select(list(labels)), labels), folder, len(todo))


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


def _as_packs(plan: Plan, packs: Sequence[str], wanted: Sequence[Planned]) -> list[Pack]:
    """Planned packs, with those of their cells that are wanted."""
    cells = {p.cell.identity(): p.cell for p in wanted}
    return [Pack.of(name, [cells[i] for i, _ in plan.packs[name] if i in cells], plan.setting(name)) for name in packs]


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


def _show_plan(
    options: Options,
    scene: Scene,
    cells: Sequence[Planned],
    todo: Sequence[Planned],
    num_packs: int,
    workers: int,
    measured: Calibration | None,
    estimate: float | None,
) -> None:
    train = [p for p in cells if p.cell.method != BASE]
    left = sum(p.cell.method != BASE for p in todo)
    names = sorted({p.cell.method for p in train})
    subjects = sorted({p.cell.subject for p in train})
    print(f"{scene.model_name}: {', '.join(names)} on {counted(len(subjects), 'subject')} ({', '.join(subjects)})")
    steps = counted(max(p.cell.steps for p in train), "step")
    print(f"{counted(len(train), 'cell')}: {len(train) - left} done, {left} to train, {steps} each", end="")
    base = len(cells) - len(train)  # a cell too: it is scored
    print(f"; and {base} of the untouched base: {len(cells)} in all" if base else "")
    for line in describe_scene(scene):
        print(line)
    alone = [name for name in names if not is_packable(name)]
    if alone:
        print(f"unpacked, one run at a time: {', '.join(alone)} (HF PEFT's own layers)")
    if todo and measured is not None:
        where = f"{counted(num_packs, 'pack') if num_packs else 'packs'} of up to {measured.pack_size}"
        if options.where.choose() is None:
            print(f"{where}, {counted(workers, 'worker')} on {scene.setting.device}: about {duration(estimate)}")
        else:
            print(f"{where} on {scene.setting.device}")
        for line in describe_memory([p.cell for p in todo], Path(scene.setting.model), measured.pack_size):
            print(line)


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
