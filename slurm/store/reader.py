"""Read a sweep's folder repeatedly, and files that cannot change any more only once.

A specification never changes its members, an ended pack changes only by a new turn, and so does a claim with an outcome.
A refresh lists the folders of packs and reads claim and heartbeat of the packs that are held; no file of a single cell.
Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from slurm.store.layout import PackFiles, SweepFolder
from slurm.store.states import ENDS
from slurm.store.submissions import Submissions
from training import forms
from training.planned import read_spec_file
from training.store import RunFolder, join_inside
from training.whole_files import read_quietly


@dataclass(frozen=True)
class Spec:
    """What a survey needs of a pack's specification.

    Attributes:
        method: what its cells train.
        steps: of the longest cell.
        runs: folder of each cell's run, below the sweep's.
    """

    method: str
    steps: int
    runs: tuple[str, ...]


class SweepReader:
    """One sweep as its files show it.

    Attributes:
        packs: what the last listing showed, by name.
        endings: contents of `ended.json`, by name of the packs that have it.
        claims: the newest claim of every other pack; empty where there is none.
        submissions: the records of what was sent to a cluster.
    """

    def __init__(self, sweep: SweepFolder) -> None:
        self.sweep, self.submissions = sweep, Submissions(sweep)
        self.packs: dict[str, PackFiles] = {}
        self.endings: dict[str, dict] = {}
        self.claims: dict[str, dict] = {}
        self._specs: dict[str, Spec] = {}
        self._turns: dict[str, int] = {}  # at which an ending or a claim was read

    def refresh(self) -> None:
        """List the folders, read what is new."""
        self.packs = self.sweep.scan()
        self.submissions.refresh()
        before, claims = self.endings, self.claims
        self.endings, self.claims = {}, {}
        for name, pack in self.packs.items():
            known = self._turns.get(name) == pack.turn
            if pack.has_ended and (ending := (known and before.get(name)) or read_quietly(pack.ended, forms.ENDED)):
                self.endings[name] = ending
            if name not in self.endings:
                same = known and claims.get(name, {}).get("outcome") in ENDS
                self.claims[name] = claims[name] if same else self.read_claim(pack)
            self._turns[name] = pack.turn

    def has_moved_on(self, pack: PackFiles) -> bool:
        """Whether the pack's files say more now than when they were listed; an ending is taken over."""
        ending = read_quietly(
            pack.ended, forms.ENDED
        )  # by name, which is known sooner than from a listing, and costs less
        if ending:
            self.endings[pack.name], self._turns[pack.name] = ending, pack.turn
        later = pack.claim(pack.turn + 1).exists()
        return bool(ending) or later or self.read_claim(pack) != self.claims[pack.name]

    def read_claim(self, pack: PackFiles) -> dict:
        """The newest claim; empty if nobody ever held the pack."""
        return read_quietly(pack.claim(pack.turn), forms.CLAIM) if pack.turn else {}

    def spec(self, pack: PackFiles) -> Spec:
        """What the pack is to do.

        Raises:
            StoreError: if the specification is damaged; the message names it.
        """
        if pack.name not in self._specs:
            rows = read_spec_file(pack.spec)["runs"]
            steps = max(row["cell"]["steps"] for row in rows)
            folders = tuple(str(row.get("folder") or row["run_id"]) for row in rows)
            self._specs[pack.name] = Spec(rows[0]["cell"]["method"], steps, folders)
        return self._specs[pack.name]

    def run(self, pack: PackFiles, run_id: str) -> RunFolder:
        """The folder of one of the pack's runs."""
        found = (path for path in self.spec(pack).runs if path.rpartition("/")[2] == run_id)
        return RunFolder(join_inside(self.sweep.path, next(found, run_id)))
