"""Train one pack of cells from its last checkpoint, and leave one run folder for each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from adapters import parse_method, peft_format
from adapters.attach_checkpoint import attach_checkpoint
from adapters.errors import BadInput
from adapters.inject import attach
from adapters.pack import Attached
from adapters.starting_point import from_file
from training.base_norms import describe_matrix
from training.cell import BASE, Cell
from training.checkpoints import resume, save_checkpoints
from training.dynamics import Dynamics
from training.optimizer import PackedAdamW, schedule_factor
from training.prodigy import PackedProdigy
from training.provenance import provenance
from training.run import Progress, Run
from training.sharpness import sharpness
from training.states import ENDED, RunStatus
from training.step import take_step
from training.step_log import StepLog
from training.stop import Interrupted, StopSignals
from training.store import RunFolder, method_file, start_file
from training.task_kinds import kind_of
from training.tasks.task import Trained, TrainingTask

REPORT_S = {"cpu": 0.2, "cuda": 1.0}  # seconds between two reports: each makes an accelerator finish what it was sent


def train_pack(
    runs: Sequence[Run],
    task: TrainingTask,
    *,
    pack: str = "pack",
    report: Callable[[Progress], None] = lambda progress: None,
    checkpoint_every_s: float = 30.0,
    keep_adapters: bool = True,
    spectra: bool = False,
    stop: Callable[[], bool] | None = None,
    before_write: Callable[[], None] = lambda: None,
) -> None:
    """Train, measure, evaluate and store a pack; go on where a killed process left it.

    Args:
        runs: the pack's cells with their folders; they share everything that `Cell.pack_key` holds.
        task: batches, losses and evaluation for these cells, in this order.
        pack: name of the pack, for provenance and progress.
        report: called with the progress, at most a few times a second.
        checkpoint_every_s: seconds between checkpoints.
        keep_adapters: whether to store the trained adapters.
        spectra: whether snapshots hold the updates' spectra, and the last one intruder dimensions.
        stop: asked often whether to stop; None: after a signal of `training.stop.SIGNALS`.
        before_write: called before anything is written; may raise, where the pack is no longer ours.

    Raises:
        Interrupted: when asked to stop, with a checkpoint written.
        StoreError: if a folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        asked = stop or stack.enter_context(StopSignals())

        def may_go_on() -> None:
            if asked():
                raise Interrupted(pack)

        # Build the pack.
        shared, device, maker = runs[0].cell, task.device, kind_of(runs[0].cell.task).open()
        task.begin()
        attached = _attach(runs, task) if shared.method != BASE else None
        if attached is not None:
            stack.callback(attached.detach)
        open_runs = [run.folder if run.folder.status() not in ENDED else None for run in runs]
        spent = Spent(runs)
        made = provenance(device) | {"pack": pack, "pack_size": len(runs)}
        before_write()
        for folder in filter(None, open_runs):
            folder.remove_asides()
        if attached is None:
            records = _start(runs, open_runs, [], made)
            try:
                with spent.on_pictures():
                    _evaluate(task, open_runs, 0, may_go_on, before_write)
                maker.leave_controls(task, open_runs, may_go_on, before_write)
            except Interrupted:
                _note_status(open_runs, records, RunStatus.PREEMPTED, spent)
                raise
            _finish(runs, open_runs, records, None, None, None, spent, keep_adapters)
            report(Progress(pack, "done", 0, 0, [], [], 0))
            return
        optimizer = _make_optimizer([run.cell for run in runs], attached, task)
        dynamics, log = Dynamics(attached, spectra=spectra), StepLog(len(runs))

        # Take up where it was left.
        resumed_at = resume(runs, optimizer)
        matrices = [describe_matrix(path, a.base_weight(), maker.where) for path, a in attached.adapters.items()]
        records = _start(runs, open_runs, matrices, made | {"resumed_at": resumed_at})
        dynamics.remember()
        step = resumed_at or 0
        if resumed_at is None:
            dynamics.record(0)
            dynamics.snapshot(0)

        def save() -> None:
            """Flush the rows, then write the checkpoint that stands behind them."""
            before_write()
            dynamics.flush(open_runs, step)
            log.flush(open_runs, step)
            save_checkpoints(runs, optimizer, step)

        def tell(phase: str) -> None:
            losses, distances = log.last_losses(), dynamics.last_distances()
            report(Progress(pack, phase, step, shared.steps, losses, distances, int(optimizer.frozen.sum())))

        evaluated, reported, saved = set(shared.evaluated_steps()), 0.0, time.monotonic()
        try:
            while True:
                # Score it.
                if step in evaluated:
                    save()
                    tell("scoring")
                    with spent.on_pictures():
                        _evaluate(task, open_runs, step, may_go_on, before_write)
                    saved = time.monotonic()
                if step == shared.steps:
                    break

                # One step of every replica.
                step += 1
                sharp = sharpness(attached, task.losses) if step in shared.sharpness_steps else None
                started = time.perf_counter()
                factor = schedule_factor(shared.lr_scheduler, step, shared.steps, shared.lr_warmup_steps)
                losses, norms = take_step(attached, task, optimizer, step, factor)

                # Read the weights.
                if step % shared.gauge_every == 0 or step == shared.steps:
                    dynamics.record(step)
                if step % shared.norms_every == 0 or step == shared.steps:
                    dynamics.snapshot(step, is_last=step == shared.steps)
                seconds = time.perf_counter() - started
                log.record(step, losses, norms, optimizer, factor, seconds, sharp, task.beside)

                # Report and save.
                now = time.monotonic()
                if now - reported > REPORT_S[device.type]:
                    reported = now
                    tell("training")
                if asked() or now - saved > checkpoint_every_s:
                    save()
                    saved = time.monotonic()
                if asked() and step < shared.steps:
                    raise Interrupted(pack)
        except Interrupted:
            before_write()
            _note_status(open_runs, records, RunStatus.PREEMPTED, spent)
            raise
        before_write()
        _finish(runs, open_runs, records, attached, optimizer, task.beside, spent, keep_adapters)
        tell("done")


def _attach(runs: Sequence[Run], task: TrainingTask) -> Attached:
    """The pack in the task's model, at the method's start or at the adapter that its cells start from."""
    cells, sweep = [run.cell for run in runs], runs[0].folder.sweep
    name, seeds = cells[0].method, [cell.seed for cell in cells]
    if "@" in name:  # a user's own method, of which the sweep keeps a copy
        name = str(method_file(sweep, name))
    spec = parse_method(f"{name}:{cells[0].options}" if cells[0].options else name)
    if cells[0].init_adapter:
        return attach_checkpoint(task.model, from_file(start_file(sweep, cells[0].init_adapter), spec), seeds)
    boundary = [cell.boundary for cell in cells if cell.boundary is not None] or None
    return attach(task.model, spec, seeds=seeds, rank=cells[0].rank, boundary=boundary, targets=task.targets)


def _make_optimizer(cells: Sequence[Cell], attached: Attached, task: TrainingTask) -> PackedAdamW:
    """The optimiser that the cells of a pack agree in, at its start."""
    rates = _rates(cells, attached)
    flat, grad, segments = attached.flat, attached.grad, attached.segments
    given: dict[str, Any] = {
        "rates": rates,
        "weight_decay": [cell.adam_weight_decay for cell in cells],
        "clip": [cell.max_grad_norm for cell in cells],
        "advancing": attached.advancing() | dict(task.beside.state() if task.beside is not None else {}),
    }
    if cells[0].optimizer == "prodigy":
        if "lambda" in rates and any(cell.lr_lambda is None for cell in cells):
            raise BadInput("lr_lambda is None; allowed under Prodigy, which leaves lambda to AdamW: a positive number")
        return PackedProdigy(flat, grad, segments, **given, d_coef=[cell.d_coef for cell in cells])
    return PackedAdamW(flat, grad, segments, **given)


def _rates(cells: Sequence[Cell], attached: Attached) -> dict[str, list[float]]:
    """Each role's rate of each replica; a role without a rate of its own takes that of the factors (LoRA+'s B: times
    the method's `lr_ratio`).
    """
    fields = {"factors": "lr", "factors_b": "lr", "lambda": "lr_lambda", "magnitude": "lr_magnitude"}
    ratios = {"factors_b": next(iter(attached.adapters.values())).lr_ratio}

    def rate(cell: Cell, role: str) -> float:
        own = getattr(cell, fields[role])
        return (cell.lr if own is None else own) * ratios.get(role, 1.0)

    return {role: [rate(cell, role) for cell in cells] for role in attached.segments}


class Spent:
    """Seconds that a pack has cost, earlier attempts among them, and how many of them went into pictures."""

    def __init__(self, runs: Sequence[Run]) -> None:
        known = [run.folder.read() for run in runs if run.folder.exists()]
        before, self.pictures = (
            max((record.get(name) or 0.0 for record in known), default=0.0)
            for name in ("pack_seconds", "picture_seconds")
        )
        self._began = time.monotonic() - before

    @contextlib.contextmanager
    def on_pictures(self) -> Iterator[None]:
        """Count what passes meanwhile."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.pictures += time.monotonic() - began

    def fields(self) -> dict[str, float]:
        """Both, by their names in a run.json."""
        return {"pack_seconds": time.monotonic() - self._began, "picture_seconds": self.pictures}


def _start(runs: Sequence[Run], open_runs: Sequence[RunFolder | None], matrices: list[dict], made: dict) -> list[dict]:
    """Write every open run's run.json; returns the contents, also of those that have ended."""
    records: list[dict] = []
    for run, folder in zip(runs, open_runs):
        records.append(
            {
                "sweep": run.folder.sweep.name, "cell": run.cell.to_dict(), "labels": run.labels,
                "status": RunStatus.RUNNING, "diverged_step": None, "num_parameters": None, "matrices": matrices,
                "provenance": made, "error": None,
            } | Spent([run]).fields()
        )  # fmt: skip
        if folder is not None:
            folder.write(records[-1])
    return records


def _note_status(
    open_runs: Sequence[RunFolder | None], records: Sequence[dict], status: RunStatus, spent: Spent
) -> None:
    for folder, record in zip(open_runs, records):
        if folder is not None:
            folder.write(record | {"status": status} | spent.fields())


def _evaluate(
    task: TrainingTask,
    open_runs: Sequence[RunFolder | None],
    step: int,
    may_go_on: Callable[[], None],
    before_write: Callable[[], None],
) -> None:
    evaluations = task.evaluate(step, may_go_on)
    before_write()
    for folder, evaluation in zip(open_runs, evaluations):
        if folder is not None:
            pictures = ((p, s, lambda path, i=i: i.save(path, format="PNG")) for p, s, i in evaluation.pictures)
            folder.add_images(step, pictures)
            folder.add_scores(evaluation.scores, step)


def _finish(
    runs: Sequence[Run],
    open_runs: Sequence[RunFolder | None],
    records: Sequence[dict],
    attached: Attached | None,
    optimizer: PackedAdamW | None,
    beside: Trained | None,
    spent: Spent,
    keep_adapters: bool,
) -> None:
    """Store the adapters, mark every run as ended, and only then remove the pack's checkpoints."""
    cost = spent.fields()
    for row, (run, folder, record) in enumerate(zip(runs, open_runs, records)):
        if folder is None:
            continue
        if attached is not None and keep_adapters:
            peft_format.save(folder.adapter, attached, row, base_model=str(run.labels.get("model", "")))
            if beside is not None:
                beside.save(folder.adapter, row)
        at = int(optimizer.frozen_at[row]) if optimizer is not None else -1
        folder.write(
            record
            | {
                "status": RunStatus.FINISHED if at < 0 else RunStatus.DIVERGED,
                "diverged_step": at if at >= 0 else None,
                "num_parameters": attached.num_parameters() if attached is not None else 0,
                "seconds": cost["pack_seconds"] / len(runs),
                "adapter": folder.seal_adapter(),
            }
            | cost
        )
    for run in runs:
        run.folder.drop_checkpoints()
