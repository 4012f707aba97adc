"""Packs that a cluster's limits kept in the plan, sent by whoever waits for the sweep."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from adapters import BadInput, counted
from slurm.estimate import predict_by
from slurm.scheduler import Scheduler
from slurm.states import PackStatus, Sent
from slurm.status_table import SweepState
from slurm.submissions import Submissions
from slurm.submit import last_cluster, submit_missing
from slurm.sweep_folder import SweepFolder

EVERY_S = 30.0


class SendLater:
    """Sends planned packs of sweeps that were sent to SLURM before, with the settings of that time, every half minute.

    A pack that was sent before (and cancelled, say) is left to the sweep's own command: that is for a person to wish.

    Attributes:
        waiting: sweeps with packs for which the queue had no room at the last attempt: it will have some, since it moves.
    """

    def __init__(self, scheduler: Scheduler | None, every_s: float = EVERY_S) -> None:
        self.scheduler, self.every_s = scheduler, every_s
        self._tried = dict[Path, float]()
        self.waiting = set[Path]()

    def send(self, sweeps: Iterable[SweepState], at_once: bool = False) -> list[str]:
        """Send what there is room for; a line for each sweep of which something was sent or refused.

        Args:
            sweeps: as they stand.
            at_once: however lately it was tried: nothing else is left to wait for.
        """
        lines = []
        for sweep in sweeps if self.scheduler else ():
            planned = [pack.name for pack in sweep.packs if pack.state == PackStatus.PLANNED]
            now = time.monotonic()
            early = now - self._tried.get(sweep.folder, -self.every_s) < self.every_s
            if planned and early and not at_once:
                continue
            self.waiting.discard(sweep.folder)
            if not planned:
                continue
            self._tried[sweep.folder] = now
            lines += self._send(SweepFolder(sweep.folder), planned)
        return lines

    def _send(self, sweep: SweepFolder, planned: list[str]) -> list[str]:
        try:
            cluster, fresh = last_cluster(sweep), sorted(set(planned) - _sent_before(sweep))
            if cluster is None or not fresh:
                return []
            report = submit_missing(sweep, cluster, predict_by(sweep.path), fresh, self.scheduler)
            if report.later:
                self.waiting.add(sweep.path)
        except BadInput as error:
            return [f"{sweep.path.name}: not sent yet: {error}"]
        return [
            f"{sweep.path.name}: sent {counted(len(request.packs), 'pack')} as job {job}"
            for job, request in report.sent
        ]


def _sent_before(sweep: SweepFolder) -> set[str]:
    submissions = Submissions(sweep)
    submissions.refresh()
    sent = [record for record in submissions.records if record.get("state") == Sent.SENT]
    return {pack for record in sent for task in record["tasks"] for pack in task}
