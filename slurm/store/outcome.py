"""Write how a pack ended, with its runs' statuses and errors, and reset it for a retry. Imports no torch.

`<pack>.ended.json` holds {"pack", "runs": {run_id: status}, "turns", "seconds", "reason": why fewer runs than all were trained
together, or null, "errors": {run_id: last line}, "cost": what it asked for and took, for `slurm/estimate`}; without "cost" where
that is not known.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

from slurm.store.layout import PackFiles
from slurm.store.reader import SweepReader
from training import forms
from training.cell import Cell
from training.demand import Demand
from training.states import RunStatus
from training.store import RunFolder, write_json
from training.whole_files import DamagedFile, read_quietly, write_signed
from training.whole_files import read_json as read_file


def read_ended(pack: PackFiles) -> dict | None:
    """How a pack ended; None if it has not, or if the file is damaged, which is said on stderr."""
    try:
        found: dict = read_file(pack.ended, forms.ENDED)
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        print(f"{error}: the pack's runs are looked at instead", file=sys.stderr)
        return None
    return found


def write_ended(
    pack: PackFiles,
    runs: Sequence[RunFolder],
    turns: int,
    *,
    reason: str | None = None,
) -> None:
    """Write down how a pack ended, from its runs as they stand.

    Raises:
        StoreError: if it cannot be written.
    """
    records = {run.run_id: run.read() if run.exists() else {"status": RunStatus.PLANNED} for run in runs}
    errors = {run_id: last_line(r["error"]) for run_id, r in records.items() if r.get("error")}
    seconds = sum(float(record.get("seconds") or 0.0) for record in records.values())
    cost = {} if reason else _cost(records.values(), seconds)
    write_signed(
        pack.ended,
        {
            "pack": pack.name,
            "runs": {run_id: record["status"] for run_id, record in records.items()},
            "turns": turns,
            "seconds": seconds,
            "reason": reason,
            "errors": errors,
        }
        | cost,
    )


def _cost(records: Collection[dict], seconds: float) -> dict:
    """What a pack asked for and took."""
    pictures_s = max((float(record.get("picture_seconds") or 0.0) for record in records), default=0.0)
    if not pictures_s or not all(
        record.get("status") in (RunStatus.FINISHED, RunStatus.DIVERGED) for record in records
    ):
        return {}
    demand = Demand.of([Cell.from_dict(record["cell"]) for record in records])
    asked = {"kind": demand.kind, "size": demand.size, "rows": demand.rows, "passes": demand.passes}
    return {"cost": asked | {"training_s": seconds - pictures_s, "pictures_s": pictures_s}}


def last_line(text: str) -> str:
    """What a traceback ends with."""
    return (text.strip().splitlines() or [""])[-1]


def has_failed(ended: dict) -> bool:
    """Whether a run of an ended pack has failed."""
    return RunStatus.FAILED in ended["runs"].values()


def reopen(pack: PackFiles) -> bool:
    """Remove the pack's `ended.json`, unless a later turn than the listed one has begun; says whether it was removed.

    By an explicit wish alone, of a driver or of `slurm.status --retry`.
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
