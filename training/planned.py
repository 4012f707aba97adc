"""Which runs a sweep was planned to have, read from its packs' specifications, so that missing runs can be named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import forms
from training.states import ENDED
from training.store import DamagedFile, StoreError, read_json
from training.whole_files import list_files

_SPEC = re.compile(
    r"(?!.*\.(beat|ended|claim-\d{6})\.json$)[^.].*\.json"
)  # `slurm.store.layout` has all files of a pack


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep's plan.

    Attributes:
        sweep: the sweep's folder.
        run_id: the run's name.
        cell: the cell's fields.
        labels: what the run goes by.
        ended: whether its pack says that it ended.
    """

    sweep: Path
    run_id: str
    cell: dict[str, Any]
    labels: dict[str, Any]
    ended: bool


def read_spec_file(path: Path) -> dict[str, Any]:
    """A pack's specification as it stands in its file.

    Raises:
        StoreError: if it is damaged, or names what is not inside its sweep's folder; the message says how to go on.
    """
    packs = path.parents[1] if path.parent.name.isdigit() else path.parent
    remedy = (
        f"remove it and {packs.parent / 'plan.json'}, and give the sweep's command again: its runs are planned anew, and "
        "those that have ended stay"
    )
    spec: dict[str, Any] = read_json(path, forms.SPEC, remedy)
    if not spec["runs"]:
        raise DamagedFile(f"damaged file {path}: runs is empty; {remedy}")
    return spec


def planned_runs(root: Path) -> list[PlannedRun]:
    """Every run that the sweeps below a runs folder, or one sweep, were planned to have, each once for each sweep.

    Raises:
        StoreError: if a specification cannot be read.
    """
    found = {(run.sweep, run.run_id): run for sweep in list_sweeps(root) for run in _of_sweep(sweep)}
    return list(found.values())


def list_sweeps(root: Path) -> list[Path]:
    """The folders with packs: a runs folder's sweeps, or the one sweep that it is."""
    return [folder for folder in (root, *sorted(root.iterdir())) if (folder / "packs").is_dir()]


def list_specs(sweep: Path) -> list[Path]:
    """The files of a sweep's packs' specifications."""
    shards = [folder for folder in list_files(sweep / "packs", "*") if folder.name.isdigit() and folder.is_dir()]
    listed = [path for folder in (sweep / "packs", *shards) for path in list_files(folder, "*.json")]
    return [path for path in listed if _SPEC.fullmatch(path.name)]


def _of_sweep(sweep: Path) -> Iterator[PlannedRun]:
    for path in list_specs(sweep):
        ending = path.with_name(f"{path.stem}.ended.json")
        ended = read_json(ending, forms.ENDED)["runs"] if ending.exists() else {}
        try:
            for row in read_spec_file(path)["runs"]:
                has_ended = ended.get(row["run_id"]) in ENDED
                yield PlannedRun(sweep, row["run_id"], dict(row["cell"]), dict(row["labels"]), has_ended)
        except StoreError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path} is no specification of a pack: {error!r}") from None
