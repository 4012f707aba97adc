"""The stored plan of a sweep: which cells train together. Every resume reuses it, so that results stay the same to the bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from adapters import BadInput, get_class
from adapters.own_method import source
from slurm.job import Setting, spec_id
from slurm.sweep_folder import SweepFolder
from sweeps.grid import Planned, Scene
from training.cell import BASE, Cell, by_pack_key
from training.store import RunFolder, StoreError, method_file, read_json, store_error, write_json, writing

SCHEMA = 1
BASE_PACK = 8  # subjects of the untouched base that are scored together


@dataclass
class Plan:
    """The packs of one sweep folder. Stored as one JSON file a pack; a stored pack never changes its members.

    Attributes:
        folder: `<runs>/<sweep>`.
        packs: pack name -> its runs, as (cell identity, run_id).
    """

    folder: Path
    packs: dict[str, list[tuple[str, str]]]

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """The plan stored in a sweep's folder; empty if there is none."""
        packs = {}
        for name, files in SweepFolder(folder).scan().items():
            rows = read_json(files.spec)["runs"]
            packs[name] = [(Cell.from_dict(row["cell"]).identity(), row["run_id"]) for row in rows]
        return cls(folder, packs)

    def run_ids(self) -> dict[str, str]:
        """Folder name of every planned cell, by identity."""
        return {identity: run_id for rows in self.packs.values() for identity, run_id in rows}

    def spec(self, pack: str) -> Path:
        """Where a pack's specification lies."""
        return self.folder / "packs" / f"{pack}.json"

    def add(self, planned: Sequence[Planned], setting: Setting, pack_size: int, workers: int) -> None:
        """Put cells that no pack holds yet into new packs of one group each."""
        known = self.run_ids()
        new = {p.cell.identity(): p for p in planned if p.cell.identity() not in known}
        for group in by_pack_key([p.cell for p in new.values()]).values():
            size = BASE_PACK if group[0].method == BASE else pack_size
            if not is_packable(group[0].method):
                size = 1
            for cells in even_chunks(group, size, workers):
                self._store([new[cell.identity()] for cell in cells], setting)

    def _store(self, members: Sequence[Planned], setting: Setting) -> None:
        run_ids = [p.cell.run_id(p.label) for p in members]
        pack = f"{members[0].cell.method_stem}-{spec_id(run_ids)}"
        runs = [
            {"run_id": run_id, "cell": p.cell.to_dict(), "labels": p.labels}
            for run_id, p in zip(run_ids, members, strict=True)
        ]
        spec = {"schema": SCHEMA, "pack": pack, "setting": dataclasses.asdict(setting), "runs": runs}
        write_json(self.spec(pack), spec)
        self.packs[pack] = [(p.cell.identity(), run_id) for p, run_id in zip(members, run_ids, strict=True)]

    def refresh(self, setting: Setting, packs: Iterable[str]) -> None:
        """Point stored packs at where model, scorers and subjects lie now; threads stay as planned."""
        for pack in packs:
            spec = read_json(self.spec(pack))
            now = dataclasses.asdict(setting) | {
                "threads": spec["setting"]["threads"],
                "device": spec["setting"]["device"],
            }
            if spec["setting"] != now:
                write_json(self.spec(pack), spec | {"setting": now})


def is_packable(method: str) -> bool:
    """Whether runs of a method may share a pack; PEFT's own layers hold one set of parameters each."""
    return method == BASE or get_class(method).packable


def keep_method_files(folder: Path, methods: Iterable[str]) -> None:
    """Copy the files of users' own methods into a sweep's folder: workers and later readers use the copies."""
    for method in set(methods):
        if "@" in method and not (path := method_file(folder, method)).exists():
            with writing(path) as aside:
                aside.write_bytes(source(method).read_bytes())


def even_chunks(cells: Sequence[Cell], size: int, workers: int) -> list[Sequence[Cell]]:
    """Chunks of at most `size`, as equal as can be, and as many as there are workers where there are cells enough."""
    count = -(-len(cells) // size)
    if workers > 1 and count % workers and len(cells) >= 2 * workers:
        count += workers - count % workers
    count = min(count, len(cells))
    bounds = [round(i * len(cells) / count) for i in range(count + 1)]
    return [cells[a:b] for a, b in zip(bounds, bounds[1:])]


def open_sweep(runs: Path, sweep: str, scene: Scene) -> Path:
    """Make or check a sweep's folder.

    Raises:
        BadInput: if it cannot be written, is no folder, or belongs to another model.
    """
    folder = runs.resolve() / sweep
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "packs").mkdir(exist_ok=True)
        with FileLock(folder / ".plan.lock"):
            path = folder / "sweep.json"
            if not path.exists():
                write_json(path, {"schema": SCHEMA, "model": scene.model_name, "model_hash": scene.model_hash})
            stored = read_json(path)
    except OSError as error:
        raise store_error(error, folder) from None
    if stored.get("model_hash") != scene.model_hash:
        raise BadInput(
            f"runs folder {folder} belongs to model {stored.get('model')!r} ({stored.get('model_hash')}), not to "
            f"{scene.model_name!r} ({scene.model_hash}): give another --runs or --sweep"
        )
    return folder


def check_ended(folder: Path, run_ids: Iterable[str]) -> list[str]:
    """Set damaged runs aside so that they are trained again; returns one line for each."""
    lines = []
    for run_id in run_ids:
        run = RunFolder(folder / run_id)
        try:
            if line := run.mend():
                lines.append(line)
            elif run.exists() and run.status() in ("finished", "diverged"):
                run.verify()
        except StoreError as error:
            if "version" in str(error) or "schema" in str(error):
                raise
            kept = run.set_aside()
            lines.append(f"{error}: run {run_id} is trained again; what is left of it is kept in {kept.name}")
    return lines
