"""Take an ended pack's ending away, so that it is run again: an explicit wish, of a driver or of `slurm.status --retry`."""

from __future__ import annotations

from collections.abc import Collection

from slurm.sweep_folder import PackFiles
from slurm.sweep_reader import SweepReader
from training import forms
from training.states import RunStatus
from training.store import write_json
from training.whole_files import read_quietly


def reopen(pack: PackFiles) -> bool:
    """Remove the pack's `ended.json`, unless a later turn than the listed one has begun; says whether it was removed.

    The newest claim notes it: without the note, others would take the missing file for one that is not visible yet.

    Raises:
        StoreError: if the folder cannot be written.
    """
    if pack.newest_turn() != pack.turn:
        return False
    if claim := read_quietly(pack.claim(pack.turn), forms.CLAIM):
        write_json(pack.claim(pack.turn), claim | {"reopened": True})
    pack.ended.unlink(missing_ok=True)
    return True


def reopen_failed(reader: SweepReader, wanted: Collection[str] | None = None) -> dict[str, list[str]]:
    """Reopen the packs of a sweep that have failed runs, as last read; returns those runs by pack.

    Args:
        reader: the sweep's files.
        wanted: the runs that matter; None for all.

    Raises:
        StoreError: if the folder cannot be written.
    """
    found = {}
    for name, ending in list(reader.endings.items()):
        failed = [run_id for run_id, status in ending.get("runs", {}).items() if status == RunStatus.FAILED]
        if any(wanted is None or run_id in wanted for run_id in failed) and reopen(reader.packs[name]):
            del reader.endings[name]
            found[name] = failed
    return found
