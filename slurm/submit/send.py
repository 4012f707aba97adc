"""Submit what is missing of a sweep; nothing is submitted twice or lost, whenever this process dies.

Before sbatch is called, an intent is written down: `<sweep>/submissions/<token>.json`. The job is called `plateau-<token>`,
so that an intent whose submitter died is found again in the queue, and one that is not there counts as never sent. Its
tasks read there what they are to run: those of a job that comes after it was given up do nothing. What the cluster's limits
do not let in stays planned, and the same command sends it later (with --wait, by itself).
"""

from __future__ import annotations

import dataclasses
import re
import secrets
import socket
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from adapters.errors import BadInput
from slurm.estimate.need import Pack, Predict
from slurm.store import leases
from slurm.store.code_version import code_version
from slurm.store.layout import SweepFolder
from slurm.store.leases import exclusive, user_name
from slurm.store.limits import Limits
from slurm.store.pack_states import PackState, survey
from slurm.store.queue import Scheduler, SchedulerError, no_slurm
from slurm.store.states import ALIVE, Sent
from slurm.store.submissions import Submissions
from slurm.submit.arrays import choose_partition, choose_time, fit, plan_arrays, split
from slurm.submit.clusters import PRIVATE, Cluster, choose_cluster
from slurm.submit.processes import list_processes
from slurm.submit.sbatch import SBATCH_S, Request, UnknownJob, open_private, text_path
from training.store import write_json

_LIMIT = re.compile(r"submit limit|MaxSubmit|MaxJobs|QOSGrpSubmit|AssocGrpSubmit|job count", re.IGNORECASE)


@dataclass
class Report:
    """What a submission did.

    Attributes:
        sent: job id (for `local`, the record's token) and array of each that was sent.
        later: packs that the limits keep in the plan.
        repaired: a line for each intent of a submitter that died.
        refusal: why the rest was not taken, in SLURM's words; "" if nothing was refused.
    """

    sent: list[tuple[str, Request]] = field(default_factory=list)
    later: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    refusal: str = ""

    def later_is_queue(self) -> bool:
        """Whether what was not taken only waits for room, so that nothing is wrong."""
        return bool(_LIMIT.search(self.refusal))

    @property
    def num_tasks(self) -> int:
        """Tasks that were sent."""
        return sum(len(request.tasks) for _, request in self.sent)


def submit_missing(
    sweep: SweepFolder,
    cluster: Cluster,
    predict: Predict,
    packs: Collection[str] | None = None,
    scheduler: Scheduler | None = None,
) -> Report:
    """Send every pack that is neither ended nor running nor queued, as far as the cluster's limits allow.

    Args:
        sweep: the sweep.
        cluster: what tasks ask for.
        predict: what a process needs for a pack.
        packs: only these; None for all of the sweep.
        scheduler: the SLURM to be asked; None for this machine's.

    Raises:
        BadInput: where there is no SLURM, for an unknown partition or a time above its limit, if another process is
            submitting this sweep, or if SLURM takes nothing.
        SchedulerError: if SLURM does not answer.
    """
    scheduler = scheduler or Scheduler()
    limits = check_cluster(cluster, scheduler)
    with exclusive(sweep.path, "submitter", wait_s=60.0 + leases.STALE_S):
        report = Report(repaired=repair(sweep, scheduler))
        states = survey(sweep, scheduler)
        requests = plan_arrays(read_missing(sweep, states, packs), cluster, predict, limits)
        now = _fit(requests, cluster, limits, scheduler)
        private, first = (open_private(sweep.submissions), next_number(sweep)) if now else (Path(), 0)
        for number, request in enumerate(now, first):
            job, taken, report.refusal = _send(sweep, private, request, scheduler, number)
            report.sent += [(job, taken)] if job else []
            if report.refusal:
                break
    sent = {pack for _, request in report.sent for pack in request.packs}
    report.later = [pack for request in requests for pack in request.packs if pack not in sent]
    is_full = report.later_is_queue() and any(state.state in ALIVE for state in states)
    if report.refusal and not report.sent and not is_full:
        raise BadInput(report.refusal)
    return report


def check_cluster(cluster: Cluster, scheduler: Scheduler) -> Limits:
    """What SLURM allows there, before any work.

    Raises:
        BadInput: where there is no SLURM, for an unknown partition or a time above its limit.
        SchedulerError: if SLURM does not answer.
    """
    if not Scheduler.is_here():
        raise BadInput(no_slurm())
    limits = scheduler.limits(cluster.account or None, cluster.qos or None)
    choose_time(None, cluster, choose_partition(cluster, limits))
    return limits


def read_missing(sweep: SweepFolder, states: Iterable[PackState], packs: Collection[str] | None) -> list[Pack]:
    """The packs, of those wanted, that nobody works on or means to, from their specifications."""
    missing = [state.name for state in states if state.is_missing and (packs is None or state.name in packs)]
    files = sweep.scan() if missing else {}
    return [Pack.read(files[name].spec) for name in missing]


def _fit(requests: list[Request], cluster: Cluster, limits: Limits, scheduler: Scheduler) -> list[Request]:
    """What the known limits let into the queue."""
    most = min((number for number in (cluster.max_submit, limits.max_submit) if number), default=None)
    if most is None or not requests:
        return requests
    queued = sum(not job.over for job in scheduler.jobs().values())
    return fit(requests, most - queued)


def _send(
    sweep: SweepFolder, private: Path, request: Request, scheduler: Scheduler, number: int
) -> tuple[str, Request, str]:
    """Send one array, or as much of it as a limit that could not be asked for lets in.

    Returns:
        The job's id, "" if it was refused; what was taken; SLURM's words if that is not everything.
    """
    record = make_record(number, request.cluster, "slurm", private) | {"time_min": request.time_min}
    refusal = ""
    while True:
        record = record | {"tasks": [list(task) for task in request.tasks]}
        store(sweep, record)
        try:
            job = request.send(f"plateau-{record['token']}", private, partial(_look_up, record, scheduler))
        except UnknownJob as error:  # the intent stays, and is settled by the next submitter
            return "", request, str(error)
        except SchedulerError as error:
            refusal = str(error)
            if _LIMIT.search(refusal) and len(request.tasks) > 1:
                request = split(request, len(request.tasks) // 2)
                continue
            if _LIMIT.search(refusal):  # it waits for room: nothing to remember
                (sweep.submissions / f"{record['token']}.json").unlink()
            else:
                store(sweep, record | {"state": Sent.REFUSED, "error": refusal})
            return "", request, refusal
        store(sweep, record | {"job": job, "state": Sent.SENT})
        return job, request, refusal


def next_number(sweep: SweepFolder) -> int:
    """The number of the next record that is made; only while nobody else can be submitting this sweep."""
    submissions = Submissions(sweep)
    submissions.refresh()
    return 1 + max((record.get("number") or 0 for record in submissions.records), default=0)


def make_record(number: int, cluster: Cluster, executor: str, folder: Path) -> dict[str, Any]:
    """An intent: what is about to be sent. `PRIVATE` settings are left out: they are read again from the user's file."""
    left_out = ("name", *PRIVATE)
    settings = {name: value for name, value in dataclasses.asdict(cluster).items() if name not in left_out}
    return {
        "token": secrets.token_hex(5), "number": number, "user": user_name(), "host": socket.gethostname(),
        "made": datetime.now().astimezone().isoformat(timespec="milliseconds"),
        "cluster": cluster.name, "settings": settings, "executor": executor, "code": code_version(),
        "folder": str(folder.absolute()), "job": None, "tasks": [], "state": Sent.INTENT, "error": None,
    }  # fmt: skip


def store(sweep: SweepFolder, record: dict[str, Any]) -> Path:
    """Write a record; returns its path."""
    path = sweep.submissions / f"{record['token']}.json"
    write_json(path, record)
    return path


def repair(sweep: SweepFolder, scheduler: Scheduler) -> list[str]:
    """Settle the intents of submitters that died: an array that SLURM knows is adopted, the others were never sent.

    Only while nobody else can be submitting this sweep. A submitter's sbatch may outlive it and is waited for; an array may
    show up late, so the queue is asked twice.

    Returns:
        A line for each.
    """
    submissions = Submissions(sweep)
    submissions.refresh()
    intents = [r for r in submissions.records if r.get("state") == "intent" and r.get("executor") == "slurm"]
    _wait_for_sbatch(intents)
    found, lines = _find_twice(intents, scheduler), []
    for record in intents:
        job = found.get(f"plateau-{record['token']}")
        if job is None:
            store(sweep, record | {"state": Sent.REFUSED, "error": "the submitter died before sbatch had taken it"})
            lines.append(f"submission {record['token']} was never sent: its submitter died")
            continue
        store(sweep, record | {"job": job, "state": Sent.SENT})
        lines.append(f"submission {record['token']} is job {job}: its submitter died, the job is kept")
    return lines


def _wait_for_sbatch(intents: Sequence[dict]) -> None:
    """Wait until no sbatch of these intents runs on this machine: a busy controller lets it wait for minutes."""
    texts = {text_path(Path(), f"plateau-{record['token']}").name for record in intents}
    end = time.monotonic() + SBATCH_S
    while any(Path(command[-1]).name in texts for _, command in list_processes()) and time.monotonic() < end:
        time.sleep(0.1)


def _look_up(record: dict[str, Any], scheduler: Scheduler) -> str:
    """The job of a record that was just sent, by its name; "" if the queue does not show it, or does not answer."""
    try:
        return next(iter(_find_twice([record], scheduler).values()), "")
    except SchedulerError:
        return ""


def _find_twice(intents: Sequence[dict], scheduler: Scheduler) -> dict[str, str]:
    """What `_find` finds; a second time, if the queue may not show everything yet."""
    found = _find(intents, scheduler)
    if len(found) < len(intents):
        time.sleep(leases.SETTLE_S)
        found = _find(intents, scheduler)
    return found


def _find(intents: Sequence[dict], scheduler: Scheduler) -> dict[str, str]:
    """Ids of the arrays of some intents, by the job's name."""
    jobs = scheduler.jobs([f"plateau-{record['token']}" for record in intents])
    return {state.name: job.partition("_")[0] for job, state in jobs.items()}


def last_cluster(sweep: SweepFolder) -> Cluster | None:
    """The cluster that a sweep was last sent to, with the settings of that time; None if it never was.

    Raises:
        BadInput: if its section is gone, or a setting is not allowed any more.
    """
    submissions = Submissions(sweep)
    submissions.refresh()
    for record in reversed(submissions.records):
        if record.get("executor") == "slurm":
            return choose_cluster(record["cluster"], record.get("settings"))
    return None
