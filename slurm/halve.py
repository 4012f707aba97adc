"""A pack that cannot be finished as it is gives way to two of half the size, stored beside it.

A run keeps its folder and its checkpoints. The smaller packs' names follow from their members, so that halving the same
pack again, after a kill in between, gives the same two. Imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

from training.whole_files import write_json


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
    names = []
    for part in filter(None, (rows[:middle], rows[middle:])):
        names.append(f"{contents['pack'].rpartition('-')[0]}-{spec_id([row['run_id'] for row in part])}")
        more = {"pack": names[-1], "runs": part, "part_of": contents["pack"], "reason": reason}
        write_json(spec.with_name(f"{names[-1]}.json"), contents | more)
    return names
