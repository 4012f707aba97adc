"""Which cells of a plan are done, known from the outcomes of packs, so that ended runs need not be opened.

The runs themselves are read of packs that were begun and have no ending; their tables, when figures are to be drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from slurm.store.layout import PackFiles
from slurm.store.outcome import reopen, reopen_failed, write_ended
from slurm.store.reader import SweepReader
from sweeps.plan import Plan
from training.cell import BASE
from training.states import ENDED, RunStatus
from training.store import OtherVersion, RunFolder, StoreError
from training.whole_files import Unreadable


@dataclass
class PlanProgress:
    """How far a plan is.

    Attributes:
        plan: the plan.
        files: the sweep's files as they were read.
        statuses: of every planned run, by run_id.
        lines: what had to be put right, for the user.
    """

    plan: Plan
    files: SweepReader
    statuses: dict[str, str]
    lines: list[str] = field(default_factory=list)

    @classmethod
    def look(cls, plan: Plan) -> PlanProgress:
        """Look up how far a plan is; damaged runs of unfinished packs are set aside.

        Raises:
            StoreError: for a run of another schema version.
        """
        files = SweepReader(plan.sweep)
        files.refresh()
        done = cls(plan, files, dict.fromkeys(plan.run_ids().values(), RunStatus.PLANNED))
        for pack, rows in plan.packs.items():
            if pack in files.endings:
                done.statuses |= files.endings[pack].get("runs", {})
            elif files.claims.get(pack) or plan.run(rows[0][1]).exists():
                done.statuses |= {run_id: done._status(plan.run(run_id)) for _, run_id in rows}
                done._write_ending_anew(pack)
        return done

    def has(self, identity: str) -> bool:
        """Whether a cell is planned and its run has ended."""
        run_id = self.plan.run_ids().get(identity)
        return run_id is not None and self.statuses[run_id] in ENDED

    def todo(self, wanted: Mapping[str, int]) -> list[str]:
        """Packs that hold a wanted cell which has not ended, those of the first subjects first.

        Args:
            wanted: identities of cells, each with the place of its subject. Of the same subjects the base model's packs are
                last: they are short.
        """
        places = {
            pack: max(left)
            for pack, rows in self.plan.packs.items()
            if (left := [wanted[i] for i, run_id in rows if i in wanted and self.statuses[run_id] not in ENDED])
        }
        return sorted(places, key=lambda pack: (places[pack], pack.startswith(f"{BASE}-")))

    def reopen_failed(self, wanted: Iterable[str]) -> None:
        """Reopen packs with failed runs of wanted cells: whoever asks for them again wants them tried again."""
        ids = self.plan.run_ids()
        for failed in reopen_failed(self.files, {ids[identity] for identity in wanted if identity in ids}).values():
            self.lines += [f"run {run_id} failed before: it is tried again" for run_id in failed]
            self.statuses |= dict.fromkeys(failed, RunStatus.PLANNED)

    def _write_ending_anew(self, pack: str) -> None:
        """Where the file that says how a pack ended is damaged, and all of its runs have ended."""
        files, runs = self.files.packs[pack], [self.plan.run(run_id) for _, run_id in self.plan.packs[pack]]
        if files.has_ended and all(self.statuses[run.run_id] in ENDED for run in runs):
            write_ended(files, runs, files.turn)
            self.lines.append(f"{files.ended} was written anew from the pack's runs")

    def _status(self, run: RunFolder) -> str:
        if line := run.mend():
            self.lines.append(line)
            return RunStatus.PLANNED
        return run.status()


def check_ended(done: PlanProgress, wanted: Iterable[str]) -> None:
    """Hold every file of ended runs to its checksum, before figures are drawn of them.

    A run that is damaged or gone is set aside and its pack reopened, to be trained again; `done` says so afterwards.

    Args:
        done: how far the plan is.
        wanted: identities of the cells.

    Raises:
        StoreError: for a table or run of another version, or one that this user cannot read, which stays where it is.
    """
    ids, again = done.plan.run_ids(), set()
    ended = [ids[identity] for identity in wanted if done.has(identity)]
    with ThreadPoolExecutor() as readers:  # files are read, and their checksums made, outside Python's lock
        lines = list(readers.map(lambda run_id: _damage(done.plan.run(run_id)), ended))
    for run_id, line in zip(ended, lines, strict=True):
        if line:
            done.lines.append(line)
            done.statuses[run_id] = RunStatus.PLANNED
            again.add(run_id)
    if again:
        _open_packs(done, again)


def _open_packs(done: PlanProgress, again: set[str]) -> None:
    """See to it that runs which are to be trained again are in a pack that will be run."""
    for pack, rows in list(done.plan.packs.items()):
        files, lost = PackFiles.of(done.plan.spec(pack)), {run_id for _, run_id in rows} & again
        if lost:
            reopen(files)
    done.plan.catch_up()


def _damage(run: RunFolder) -> str:
    """What is wrong with a run that is said to have ended, in one line; "" if nothing is."""
    if line := run.mend():
        return line
    try:
        if run.status() not in ENDED:
            return f"{run.path} has no ended run: run {run.run_id} is trained again"
        run.verify()
        return ""
    except StoreError as error:
        return set_aside(run, error)


def set_aside(run: RunFolder, error: StoreError) -> str:
    """Rename a damaged run's folder; returns the line that says so.

    Raises:
        StoreError: the same error, if the run is of another version, or if a file of it cannot be read by this user.
    """
    if isinstance(error, OtherVersion | Unreadable):
        raise error
    return f"{error}: run {run.run_id} is trained again; what is left of it is kept in {run.set_aside().name}"
