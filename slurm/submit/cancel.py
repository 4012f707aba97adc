"""Stop a sweep's jobs and workers. They checkpoint, and the same command continues from there."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

from adapters.words import counted
from slurm.store.leases import Owner, owner_of
from slurm.store.pack_states import PackState, Surveyor
from slurm.store.states import ALIVE, PackStatus
from slurm.store.submissions import workers_of


class Canceller(Protocol):
    """Takes jobs out of SLURM's queue, or ends them."""

    def cancel(self, ids: list[str]) -> None: ...


def cancel(surveyor: Surveyor, packs: Iterable[PackState], scheduler: Canceller | None) -> list[str]:
    """Cancel the SLURM jobs of a sweep, as last judged, and send SIGTERM to its workers of this machine.

    Returns:
        A line for each thing that was done or has to be done elsewhere.

    Raises:
        SchedulerError: in SLURM's words.
    """
    lines, live = [], [pack for pack in packs if pack.state in ALIVE]
    jobs = sorted({pack.job for pack in live if pack.job and not pack.job.startswith("_")})
    if jobs and scheduler is not None:
        scheduler.cancel(jobs)
        lines.append(f"cancelled {counted(len(jobs), 'job')}: {', '.join(jobs[:5])}{' ...' if len(jobs) > 5 else ''}")
    elif jobs:
        lines.append(f"no scancel on this machine: {counted(len(jobs), 'job')} not stopped: {', '.join(jobs[:5])}")
    claims = surveyor.files.claims
    holders = [
        owner_of(claims.get(pack.name, {})) for pack in live if pack.state == PackStatus.RUNNING and not pack.job
    ]
    records = [r for r in surveyor.files.submissions.records if r.get("executor") == "local"]
    workers = {worker for record in records for worker in workers_of(record)}
    return lines + _stop({holder for holder in holders if holder is not None}, workers)


def _stop(holders: set[Owner], workers: set[Owner]) -> list[str]:
    """Signal each process once."""
    me, lines = Owner.me(), []
    for process in sorted(holders | workers, key=lambda holder: holder.pid):
        dead = process.is_dead(me)
        if dead is None and process in holders:
            lines.append(f"process {process.pid} of {process.user} on {process.host} goes on: stop it there")
        elif dead is False:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
                lines.append(f"process {process.pid} was asked to stop")
    return lines
