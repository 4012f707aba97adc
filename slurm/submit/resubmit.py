"""Submit packs that limits had held back, or whose jobs died, while a command waits for the sweep."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from adapters.errors import BadInput
from adapters.words import counted
from slurm.estimate.need import predict_by
from slurm.store.layout import SweepFolder
from slurm.store.pack_states import PackState
from slurm.store.queue import Scheduler
from slurm.store.states import PackStatus, Sent
from slurm.store.submissions import Submissions
from slurm.store.sweep_state import SweepState
from slurm.submit.clusters import Cluster
from slurm.submit.send import last_cluster, submit_missing

EVERY_S = 30.0
MOST_SENT = 3  # how often a pack is sent again, should its jobs die


class Resubmitter:
    """Sends packs of sweeps again and again, every half minute, as long as the queue has no room for them.

    The sweep's own command also sends what was sent before and died. Whoever else waits leaves that to it, cancelled packs among
    it: that is for a person to wish.

    Args:
        scheduler: SLURM's commands.
        cluster: what the sweep's own command asks for; None: what the sweep was last sent with.
        every_s: seconds between two attempts.

    Attributes:
        waiting: sweeps with packs for which the queue had no room at the last attempt: it will have some, since it moves.
    """

    def __init__(self, scheduler: Scheduler, cluster: Cluster | None = None, every_s: float = EVERY_S) -> None:
        self.scheduler, self.cluster, self.every_s = scheduler, cluster, every_s
        self.waiting = set[Path]()
        self._tried = dict[Path, float]()
        self._times_sent: Counter[tuple[Path, str]] = Counter()

    def choose(self, sweep: SweepState) -> list[str]:
        """The packs that are to be sent."""
        return [pack.name for pack in sweep.packs if self._may_go(sweep.folder, pack)]

    def send(self, sweeps: Iterable[SweepState], at_once: bool = False) -> list[str]:
        """Send what there is room for; a line for each sweep of which something was sent or refused.

        Args:
            sweeps: as they stand.
            at_once: however lately it was tried: nothing else is left to wait for.
        """
        lines = []
        for sweep in sweeps:
            chosen, now = self.choose(sweep), time.monotonic()
            early = now - self._tried.get(sweep.folder, -self.every_s) < self.every_s
            if chosen and early and not at_once:
                continue
            self.waiting.discard(sweep.folder)
            if chosen:
                self._tried[sweep.folder] = now
                lines += self._send(SweepFolder(sweep.folder), chosen)
        return lines

    def _may_go(self, folder: Path, pack: PackState) -> bool:
        """Whether a pack is planned, or its job died at work; not if somebody cancelled it then, or it refused."""
        died = self.cluster is not None and pack.state == PackStatus.PREEMPTED and "CANCELLED" not in pack.error
        return (pack.state == PackStatus.PLANNED or died) and self._times_sent[folder, pack.name] < MOST_SENT

    def _send(self, sweep: SweepFolder, packs: list[str]) -> list[str]:
        try:
            cluster, fresh = self.cluster, packs
            if cluster is None:
                cluster, fresh = last_cluster(sweep), sorted(set(packs) - _sent_before(sweep))
            if cluster is None or not fresh:
                return []
            report = submit_missing(sweep, cluster, predict_by(sweep.path), fresh, self.scheduler)
            if report.later:
                self.waiting.add(sweep.path)
        except BadInput as error:
            return [f"{sweep.path.name}: not sent yet: {error}"]
        self._times_sent.update((sweep.path, name) for _, request in report.sent for name in request.packs)
        return [
            f"{sweep.path.name}: sent {counted(len(request.packs), 'pack')} as job {job}"
            for job, request in report.sent
        ]


def _sent_before(sweep: SweepFolder) -> set[str]:
    submissions = Submissions(sweep)
    submissions.refresh()
    sent = [record for record in submissions.records if record.get("state") == Sent.SENT]
    return {pack for record in sent for task in record["tasks"] for pack in task}
