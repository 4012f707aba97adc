"""Run the sweep of a driver: resolve, plan, run, collect."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from adapters.errors import BadInput
from analysis import Results, load
from slurm.status.monitor import Monitor
from slurm.status.screen import Screen
from slurm.store.outcome import last_line
from slurm.store.states import Outcome, PackStatus
from slurm.worker import pool
from sweeps import jobs
from sweeps.early import EarlyAnswers
from sweeps.grid import LabelledCell, ResolvedInputs
from sweeps.jobs import Sender, describe_states
from sweeps.options import Options, Stopped
from sweeps.plan import Plan
from sweeps.plan_lines import describe_rates, show_plan
from sweeps.progress import PlanProgress
from sweeps.work import Sweep, Work, look, plan_work, resolve
from training.states import RunStatus

PAGE = "report.html"
LOAD_S = 20.0  # after which the figures' libraries are loaded: workers have started by then
DrawEarly = Callable[["SweepOutcome", str], Path]
RENAMED = ("multiplier", "scale", "label", "rate_source")  # what a run goes by in a call, whatever it was trained as


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep leaves.

    Attributes:
        results: frames of the planned runs and of the base model.
        folder: `<runs>/<sweep>`, where tables and figures go.
        trained: how many cells were trained now.
    """

    results: Results
    folder: Path
    trained: int


def run_sweep(
    options: Options,
    inputs: ResolvedInputs,
    planned: Sequence[LabelledCell],
    name: str,
    smaller: Sequence[str] = ("subjects", "multipliers"),
    draw_early: DrawEarly | None = None,
    early: bool = True,
) -> SweepOutcome | None:
    """Train what is missing and load everything; None after `--dry-run`, and while jobs do the work.

    Args:
        options: the flags.
        inputs: model, scorers and subjects.
        planned: the cells of the driver's question.
        name: the driver's name, which names the sweep's folder unless `--sweep` does.
        smaller: which flags may be given fewer values in the offer of a smaller run.
        draw_early: draws whole subjects while the rest goes on here, with a sentence that says so, into the sweep's folder;
            returns what a user opens. Default: the page.
        early: whether anything is drawn before the end.

    Raises:
        BadInput: for a folder that cannot be used, or a worker that was killed.
        Stopped: after Ctrl-C.
    """
    sweep = resolve(options, inputs, planned, name)
    work = plan_work(sweep)
    show_plan(sweep, work, describe_rates(planned), smaller)
    if options.dry_run:
        work.sender.show(work.left)
        return None

    def draw(subjects: Sequence[str], said: str) -> Path:
        return (draw_early or page_early)(collect(sweep, 0, subjects), said)

    answers = EarlyAnswers(sweep, draw) if early else None
    return collect(sweep, len(work.todo)) if run_work(sweep, work, answers) else None


def page_early(outcome: SweepOutcome, said: str) -> Path:
    """The page of what there is so far, with a sentence that says so."""
    from figures.page import write_page

    return write_page(outcome.folder / PAGE, outcome.results, title=outcome.folder.name, running=said)


def run_work(sweep: Sweep, work: Work, early: EarlyAnswers | None = None) -> bool:
    """Run what is left until it has ended; False where it was sent away and goes on alone.

    Raises:
        BadInput: for a run that failed, or a worker that was killed.
        Stopped: after Ctrl-C.
    """
    plan, packs, where = sweep.plan, work.packs, sweep.options.where
    while packs:
        plan.refresh(work.setting, packs)
        if where.executor == "inline":
            _run(plan, packs, work, early)
        elif not _send(work.sender, plan, packs, sweep.wanted, where.wait):
            return False
        _report_failures(plan, packs)
        packs = look(plan, sweep.wanted).todo(sweep.wanted)
    return True


def collect(sweep: Sweep, trained: int, subjects: Sequence[str] | None = None) -> SweepOutcome:
    """Load what was asked for, each run under every name that it goes by; of some subjects, or of all."""
    ids = sweep.plan.run_ids()
    labels: dict[str, list[dict]] = {}
    asked = [p for p in sweep.asked if subjects is None or p.cell.subject in subjects]
    for p in asked:
        labels.setdefault(sweep.earlier.find(p.cell) or ids[p.cell.identity()], []).append(p.labels)
    results = load(*([sweep.folder] if sweep.plan.packs else []), *sweep.earlier.folders)
    results = results.select(list(labels))
    of = {p.cell.subject for p in asked}  # the base model's runs of others would count as missing
    results = dataclasses.replace(results, all_runs=results.all_runs[results.all_runs["subject"].isin(of)])
    return SweepOutcome(relabel(results, labels), sweep.folder, trained)


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
        for own in labels.get(run_id, ({},))  # the base model under other flags
    ]
    places, *columns = zip(*dict.fromkeys(names))
    given = {name: pd.array(values, dtype="object") for name, values in zip(renamed, columns, strict=True)}
    named = runs.iloc[list(places)].assign(**given)
    return dataclasses.replace(results, all_runs=named.astype({"multiplier": "float64"}))


def _send(sender: Sender, plan: Plan, packs: list[str], wanted: Mapping[str, int], wait: bool) -> bool:
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
        done = PlanProgress.look(plan)
        return [pack for pack in done.todo(wanted) if pack not in done.files.endings]

    try:
        jobs.wait(sender, list_open)
    except KeyboardInterrupt:
        raise Stopped(f"no longer waiting; what was sent goes on: {lines[-1]}") from None
    return True


def _run(plan: Plan, packs: Sequence[str], work: Work, early: EarlyAnswers | None) -> None:
    """Run packs here, show how they stand, and draw what there is.

    Raises:
        StoreError: as the worker that met it says.
        Stopped: after a signal.
    """
    board, expected_s, specs = Monitor(plan.folder, None), work.each_s(), [plan.spec(pack) for pack in packs]
    with Screen() as screen:

        def look() -> None:
            states = [state.only(packs, expected_s) for state in board.look()]
            screen.show(states)
            if early is not None:
                screen.say(early.look(sum(p.state == PackStatus.ENDED for state in states for p in state.packs)))

        workers = min(work.workers, len(packs))
        with _figures_loading():
            outcome = pool.run_inline(specs, workers=workers, device=work.setting.device, look=look)
        if early is not None:
            early.close()
    if outcome == Outcome.STOPPED:
        drawn = early.stop() if early is not None else ""
        raise Stopped(
            "stopped; everything computed is checkpointed: the same command goes on from here"
            + (drawn and f"; {drawn}")
        )


@contextlib.contextmanager
def _figures_loading() -> Iterator[None]:
    """Load what the report needs while workers train, once they have started: seconds less to wait for at the end."""
    loading = threading.Timer(LOAD_S, _load_figures)
    loading.daemon = True
    loading.start()
    try:
        yield
    finally:
        loading.cancel()


def _load_figures() -> None:
    with contextlib.suppress(ImportError):  # the report will say so
        importlib.import_module("figures.registry")


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
