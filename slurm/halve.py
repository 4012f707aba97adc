"""A pack that cannot be finished as it is gives way to two of half the size, stored beside it.

A run keeps its folder and its checkpoints. The smaller packs' names follow from their members, so that halving the same
pack again, after a kill in between, gives the same two. Imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

from slurm.sweep_folder import PackFiles, read_spec_file
from training import forms
from training.whole_files import read_json, write_signed


def spec_id(run_ids: Sequence[str]) -> str:
    """A short name that depends on the membership and the order of a pack."""
    return hashlib.sha256("\n".join(run_ids).encode()).hexdigest()[:10]


def halve(spec: Path, contents: dict, open_ids: Collection[str], reason: str) -> list[str]:
    """Store the packs that take a pack's place.

    Args:
        spec: where the pack's specification lies.
        contents: what stands in it.
        open_ids: its runs that have not ended; the others are done and left out.
        reason: why, for the reader.

    Returns:
        Names of the smaller packs: two, or one where a single run is left.

    Raises:
        StoreError: if one cannot be written.
    """
    rows = [row for row in contents["runs"] if row["run_id"] in open_ids]
    middle = (len(rows) + 1) // 2
    return [_store(spec, contents, part, reason) for part in (rows[:middle], rows[middle:]) if part]


def split_off(pack: PackFiles, lost: Collection[str]) -> str:
    """Store one more pack in a halved one's place: for runs that had ended before it was halved, and are lost since.

    Returns:
        The new pack's name.

    Raises:
        StoreError: if a file cannot be read or written.
    """
    contents, ending = read_spec_file(pack.spec), read_json(pack.ended, forms.ENDED)
    rows = [row for row in contents["runs"] if row["run_id"] in lost]
    name = _store(pack.spec, contents, rows, "trained again")
    runs = {run_id: status for run_id, status in ending["runs"].items() if run_id not in lost}
    replaced_by = list(dict.fromkeys((*ending["replaced_by"], name)))
    write_signed(pack.ended, ending | {"runs": runs, "replaced_by": replaced_by})
    return name


def _store(spec: Path, contents: dict, rows: list[dict], reason: str) -> str:
    """Store a part of a pack beside it; returns its name."""
    name = f"{contents['pack'].rpartition('-')[0]}-{spec_id([row['run_id'] for row in rows])}"
    more = {"pack": name, "runs": rows, "part_of": contents["pack"], "reason": reason}
    write_signed(spec.with_name(f"{name}.json"), contents | more)
    return name
