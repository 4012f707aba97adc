"""Hand a sweep's packs to job arrays, to workers that outlive the command, or to files for sbatch, and report it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from adapters.errors import BadInput
from adapters.words import counted
from slurm.estimate.need import Pack, Predict
from slurm.status.monitor import Monitor
from slurm.status.screen import Screen
from slurm.store.layout import SweepFolder
from slurm.store.leases import user_name
from slurm.store.limits import Limits
from slurm.store.pack_states import survey
from slurm.store.queue import Scheduler
from slurm.store.states import ALIVE, PackStatus
from slurm.store.sweep_state import duration
from slurm.submit.arrays import plan_arrays
from slurm.submit.clusters import Cluster
from slurm.submit.export import export, export_text
from slurm.submit.local import start_local
from slurm.submit.resubmit import Resubmitter
from slurm.submit.sbatch import Request
from slurm.submit.send import Report, check_cluster, read_missing, submit_missing

EVERY_S = 5.0  # between two looks while waiting


@dataclass(frozen=True)
class Sender:
    """Sends packs of one sweep where the user wants them.

    Attributes:
        sweep: the sweep.
        executor: "local", "slurm" or "export".
        cluster: what jobs ask for; None for `local`.
        workers: processes for `local`.
        predict: what a process needs for a pack.
    """

    sweep: SweepFolder
    executor: str
    cluster: Cluster | None
    workers: int
    predict: Predict
    scheduler: Scheduler = field(default_factory=Scheduler)

    def send(self, packs: Sequence[str]) -> tuple[Report, list[str]]:
        """Send what of the packs nobody works on or means to.

        Returns:
            What was sent, and the lines that say so.

        Raises:
            BadInput: if nothing could be sent; see `submit_missing`.
        """
        if self.cluster is None:
            started = start_local(self.sweep, packs, self.workers)
            said = (
                f"started {counted(len(started), 'worker')}, which outlive this process"
                if started
                else "nothing to start"
            )
            return Report(), [said]
        if self.executor == "export":
            return Report(), self._export(packs)
        report = submit_missing(self.sweep, self.cluster, self.predict, packs, self.scheduler)
        return report, describe_report(report, self.cluster)

    def _export(self, packs: Sequence[str]) -> list[str]:
        assert self.cluster is not None
        missing = read_missing(self.sweep, survey(self.sweep, None), packs)
        requests = plan_arrays(missing, self.cluster, self.predict, Limits())
        if not requests:
            return ["nothing to export: every pack is done or held"]
        folder = export(self.sweep, requests)
        return [*map(describe_array, requests), describe_cost(requests), f"how to run them: {folder / 'README.md'}"]

    def show(self, packs: Sequence[Pack]) -> None:
        """Print the arrays of a dry run, and for each kind of array the exact text for sbatch."""
        if self.cluster is None:
            return
        limits = check_cluster(self.cluster, self.scheduler) if self.executor == "slurm" else Limits()
        requests = plan_arrays(packs, self.cluster, self.predict, limits)
        if not requests:
            return
        print("\n".join([*map(describe_array, requests), describe_cost(requests)]))
        private = self.sweep.submissions / f".private-{user_name()}"
        for request in {(r.cpus, r.time_min, r.mib): r for r in reversed(requests)}.values():
            is_export = self.executor == "export"
            name = self.sweep.path.name
            text = export_text(request, name, "array-001") if is_export else request.text("plateau-TOKEN", private)
            print(f"\nsbatch gets, for {describe_array(request)}:\n\n{text}")


def describe_array(request: Request) -> str:
    """`20 tasks of 45 min on 1 core with 1.5 GiB: 20 packs, 160 cells`."""
    memory = f" with {request.mib / 1024:.3g} GiB" if request.mib else ""
    gpus = f" and {request.cluster.gpus} GPU" if request.cluster.num_gpus else ""
    where = f" in {request.cluster.partition}" if request.cluster.partition else ""
    tasks, cores = counted(len(request.tasks), "task"), counted(request.cpus, "core")
    return (
        f"{tasks} of {request.time_min} min on {cores}{gpus}{memory}{where}: "
        f"{counted(len(request.packs), 'pack')}, {counted(request.num_cells, 'cell')}"
    )


def describe_cost(requests: Sequence[Request]) -> str:
    """What arrays are expected to cost, and when they could be done."""
    gpus = requests[0].cluster.num_gpus
    kind, each = ("GPU", lambda request: gpus) if gpus else ("core", lambda request: request.cpus)
    most = _hours(sum(len(r.tasks) * r.time_min * each(r) for r in requests) / 60, kind)
    if not all(request.expected_s for request in requests):
        return f"at most {most}; nothing was measured on such a device yet"
    cost = _hours(sum(sum(r.expected_s) * each(r) for r in requests) / 3600, kind)
    longest = max(max(request.expected_s) for request in requests)
    end = datetime.now() + timedelta(seconds=longest)
    return (
        f"about {cost}, at most {most}; if every task starts now, done in {duration(longest)}, at {end:%Y-%m-%d %H:%M}"
    )


def _hours(hours: float, kind: str) -> str:
    return f"{hours:.3g} {kind}-hours" if hours >= 0.1 else f"{counted(math.ceil(hours * 60), f'{kind}-minute')}"


def describe_report(report: Report, cluster: Cluster) -> list[str]:
    """What a submission did, line by line."""
    lines = list(report.repaired)
    lines += [f"submitted job {job} to {cluster.name}: {describe_array(request)}" for job, request in report.sent]
    if report.sent:
        lines.append(describe_cost([request for _, request in report.sent]))
    if report.later:
        why = f" ({report.refusal})" if report.refusal else ""
        lines.append(f"{counted(len(report.later), 'pack')} still planned, there is no room in the queue{why}: "
                     "the same command sends them later, with --wait by itself")  # fmt: skip
    return lines


def describe_states(sweep: SweepFolder, packs: Sequence[str]) -> list[str]:
    """How the packs stand now, and how to watch them."""
    states = [s for s in survey(sweep, Scheduler() if Scheduler.is_here() else None, settle=False) if s.name in packs]
    counts = {state: sum(s.state == state for s in states) for state in ALIVE}
    said = ", ".join(f"{number} {state}" for state, number in counts.items() if number) or "none in the queue"
    path = _from_here(sweep.path)
    return [f"packs: {said}", f"watch: python -m slurm.status {path}; the same command draws when all has ended"]


def _from_here(path: Path) -> Path:
    """The path as a user would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def wait(sender: Sender, list_open: Callable[[], list[str]]) -> None:
    """Wait until packs have ended; what the queue had no room for is sent when it has, and what died is sent again.

    Args:
        sender: sends.
        list_open: names the packs that have not ended yet.

    Raises:
        BadInput: if packs are left that nobody works on.
    """
    board = Monitor(sender.sweep.path, sender.scheduler if Scheduler.is_here() else None)
    resubmitter = Resubmitter(sender.scheduler, sender.cluster) if sender.executor == "slurm" else None
    with Screen() as screen:
        while wanted := list_open():
            (state,) = board.look()
            screen.show([state], board.note)
            open_packs = state.only(wanted)
            if resubmitter is not None and resubmitter.choose(open_packs):
                screen.say(resubmitter.send([open_packs]))
            elif not board.may_change([open_packs]) and (left := _left(sender, wanted)):
                raise BadInput(left)
            time.sleep(EVERY_S)


def _left(sender: Sender, wanted: Sequence[str]) -> str:
    """What is said if a second, thorough look finds packs that nobody works on."""
    states = survey(sender.sweep, sender.scheduler if Scheduler.is_here() else None)
    if any(pack.state in ALIVE and not pack.stuck for pack in states):
        return ""
    left = [pack for pack in states if pack.state != PackStatus.ENDED and pack.name in wanted]
    if not left:
        return ""
    first = next((pack for pack in left if pack.error), left[0])
    reason = f" (pack {first.name} {first.state}: {first.error})" if first.error else ""
    return f"{counted(len(left), 'pack')} left that nobody works on{reason}: the same command goes on with them"
