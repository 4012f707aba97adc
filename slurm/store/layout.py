"""The files of a sweep's folder that all executors share; the only place that knows their names.

    <runs>/<sweep>/packs/<pack>.json                 the pack's specification: what `slurm/worker/run.py` reads
    <runs>/<sweep>/packs/<pack>.claim-000001.json    one file for each turn of a process at the pack (`slurm/store/leases.py`)
    <runs>/<sweep>/packs/<pack>.beat.json            where the present holder is; rewritten every few seconds
    <runs>/<sweep>/packs/<pack>.ended.json           how each of its runs ended
    <runs>/<sweep>/submissions/                      one JSON file for each job array that was sent to a cluster

After the first thousand, packs go to numbered folders `packs/001/`, ..., so that no folder grows large. Imports no torch.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.planned import read_spec_file
from training.shared_file_system import wait_for_file
from training.whole_files import StoreError

SHARD = 1000  # packs, or runs, in one folder
_FILE = re.compile(r"(?P<pack>[^.].*?)\.(?:(?P<kind>beat|ended)\.|claim-(?P<turn>\d{6})\.)?json")


@dataclass
class PackFiles:
    """One pack as a listing of its folder shows it; no file is opened.

    Attributes:
        name: the pack's name.
        folder: where its files lie.
        turn: number of the newest claim; 0 if nobody ever held it.
        has_beat, has_ended: whether these files are there.
    """

    name: str
    folder: Path
    turn: int = 0
    has_beat: bool = False
    has_ended: bool = False
    has_spec: bool = field(default=False, repr=False)

    @property
    def spec(self) -> Path:
        """The specification."""
        return self.folder / f"{self.name}.json"

    @property
    def beat(self) -> Path:
        """Where the present holder is."""
        return self.folder / f"{self.name}.beat.json"

    @property
    def ended(self) -> Path:
        """How the pack ended."""
        return self.folder / f"{self.name}.ended.json"

    def claim(self, turn: int) -> Path:
        """The claim of one turn, from 1 on."""
        return self.folder / f"{self.name}.claim-{turn:06d}.json"

    @classmethod
    def of(cls, spec: Path) -> PackFiles:
        """A pack by its specification's path, looked up now."""
        found = list_packs(spec.parent).get(spec.stem)
        return found or cls(spec.stem, spec.parent)

    def newest_turn(self) -> int:
        """Number of the newest claim, looked up now by name (a listing may be older than a look-up)."""
        turn = max(self.turn, PackFiles.of(self.spec).turn)
        while self.claim(turn + 1).exists():
            turn += 1
        return turn


class SweepFolder:
    """`<runs>/<sweep>`."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def packs(self) -> Path:
        """Folder of the packs."""
        return self.path / "packs"

    @property
    def submissions(self) -> Path:
        """Folder of the records of what was sent to a cluster."""
        return self.path / "submissions"

    def scan(self) -> dict[str, PackFiles]:
        """Every pack, by name, from one listing of each folder."""
        found = list_packs(self.packs)
        for shard in sorted(entry.path for entry in _entries(self.packs) if entry.name.isdigit()):
            found |= list_packs(Path(shard))
        return {name: files for name, files in sorted(found.items()) if files.has_spec}

    def place_pack(self, number: int) -> Path:
        """The folder of the sweep's pack number `number` (from 0)."""
        return self.packs / f"{number // SHARD:03d}" if number >= SHARD else self.packs

    def place_run(self, number: int) -> Path:
        """The folder in which the folder of the sweep's run number `number` (from 0) stands."""
        return self.path / f"{number // SHARD:03d}" if number >= SHARD else self.path


def read_contents(path: Path) -> dict[str, Any]:
    """A pack's specification, which another machine may have written just now.

    Raises:
        StoreError: if it is damaged, or has not come after a while.
    """
    wait_for_file(path)
    return read_spec_file(path)


def list_packs(folder: Path) -> dict[str, PackFiles]:
    """The packs whose files lie directly in a folder."""
    found: dict[str, PackFiles] = {}
    for entry in _entries(folder):
        match = _FILE.fullmatch(entry.name)
        if match is None:
            continue
        if not entry.name.isprintable():
            raise StoreError(f"{folder} has a file with a name that cannot be printed: {entry.name!r}")
        files = found.setdefault(match["pack"], PackFiles(match["pack"], folder))
        files.turn = max(files.turn, int(match["turn"] or 0))
        files.has_beat |= match["kind"] == "beat"
        files.has_ended |= match["kind"] == "ended"
        files.has_spec |= not match["kind"] and not match["turn"]
    return found


def sweep_of(spec: Path) -> SweepFolder:
    """The sweep's folder that a pack's specification belongs to."""
    folder = spec.parent
    return SweepFolder(folder.parents[1] if folder.name.isdigit() else folder.parent)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error.strerror}") from None


def spec_id(run_ids: Sequence[str]) -> str:
    """A short name that depends on the membership and the order of a pack."""
    return hashlib.sha256("\n".join(run_ids).encode()).hexdigest()[:10]
