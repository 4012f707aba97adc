"""The stored plan of a sweep: which cells train together. Every resume reuses it, so results stay the same to the bit.

One process at a time plans a sweep, and reads what others have planned before. A specification is written once, and read
once by each process. Packs and runs after the first thousand stand in numbered folders (`slurm.store.layout`).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from adapters.errors import BadInput
from adapters.peft_types import packs
from adapters.words import counted
from slurm.store.layout import PackFiles, SweepFolder, spec_id
from slurm.store.leases import exclusive
from slurm.worker.run import Setting
from sweeps.grid import LabelledCell, ResolvedInputs
from training import forms
from training.cell import BASE, Cell, by_pack_key
from training.many_files import write_texts
from training.planned import read_spec_file
from training.shared_file_system import SETTLE_S
from training.store import (
    RunFolder,
    find_runs,
    join_inside,
    read_json,
    store_error,
    write_signed,
)
from training.whole_files import create_json, sign

SCHEMA = 1
HASHES = ("model_hash", "scorer_hash")  # what all runs of a sweep share
BASE_PACK = 8  # subjects of the base model that are scored together


class Plan:
    """The packs of one sweep folder. Stored as one JSON file a pack; a stored pack never changes its members.

    Attributes:
        folder: `<runs>/<sweep>`.
        packs: pack name -> its runs, as (cell identity, run_id).
        work: relative cost of each pack: steps and pictures of all its cells.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.sweep = folder, SweepFolder(folder)
        self.packs: dict[str, list[tuple[str, str]]] = {}
        self.work: dict[str, float] = {}
        self._ids: dict[str, str] = {}
        self._specs: dict[str, Path] = {}
        self._runs: dict[str, str] = {}
        self._settings: dict[str, dict] = {}

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """The plan stored in a sweep's folder; empty if there is none."""
        plan = cls(folder)
        plan.catch_up()
        return plan

    def catch_up(self) -> None:
        """Read the packs that others have planned since.

        Raises:
            BadInput: if the file system does not show all of them.
        """
        self._read(self._list(self._tally()[0]))

    def _list(self, count: int) -> dict[str, PackFiles]:
        """The packs, `count` of them at the least: a folder may show files of another machine late."""
        began = time.monotonic()
        while len(listed := self.sweep.scan()) < count:
            if time.monotonic() - began > 3 * SETTLE_S:
                raise BadInput(
                    f"{self.sweep.packs} shows {len(listed)} of {counted(count, 'pack')}: wait for its file system and run "
                    f"the same command again; if they were removed on purpose, remove {self.folder / 'plan.json'} too"
                )
            time.sleep(0.2)
        return listed

    def _tally(self) -> tuple[int, int]:
        """Numbers of packs and runs that were planned so far."""
        path = self.folder / "plan.json"
        remedy = "it only counts the packs: remove it, and it is written anew"
        tally = read_json(path, forms.TALLY, remedy) if path.exists() else {}
        return tally.get("packs") or 0, tally.get("runs") or 0

    def _read(self, listed: dict[str, PackFiles]) -> None:
        for name, files in listed.items():
            if name not in self.packs:
                self._keep(name, files.spec, read_spec_file(files.spec))

    def _keep(self, name: str, path: Path, spec: dict) -> None:
        rows = spec["runs"]
        identities = [row.get("identity") or Cell.from_dict(row["cell"]).identity() for row in rows]
        self.packs[name] = [(identity, row["run_id"]) for identity, row in zip(identities, rows, strict=True)]
        self.work[name] = sum(_work(row["cell"]) for row in rows)
        self._ids |= self.packs[name]
        self._runs |= {row["run_id"]: row.get("folder") or row["run_id"] for row in rows}
        self._specs[name], self._settings[name] = path, spec["setting"]

    def run_ids(self) -> dict[str, str]:
        """Folder name of every planned cell, by identity."""
        return self._ids

    def run(self, run_id: str) -> RunFolder:
        """The folder of a run."""
        return RunFolder(join_inside(self.folder, self._runs.get(run_id, run_id)))

    def spec(self, pack: str) -> Path:
        """Where a pack's specification lies."""
        return self._specs[pack]

    def setting(self, pack: str) -> dict:
        """The fields of the setting that a pack was planned with."""
        return self._settings[pack]

    def add(
        self, planned: Sequence[LabelledCell], setting: Setting, pack_size: int, workers: int, early: bool = False
    ) -> None:
        """Put cells that no pack holds yet into new packs of one group each; arguments as for `draft`.

        Raises:
            BadInput: if another process is planning this sweep and does not come to an end.
        """
        if all(p.cell.identity() in self._ids for p in planned):
            return
        with exclusive(self.folder, "planner"):
            self.catch_up()
            self._store(self.draft(planned, pack_size, workers, early), setting)

    def draft(
        self, planned: Sequence[LabelledCell], pack_size: int, workers: int, early: bool = False
    ) -> list[list[LabelledCell]]:
        """The packs that cells which no pack holds yet would form, each of one group.

        Args:
            planned: the cells.
            pack_size: the most of a pack.
            workers: over which a group is spread.
            early: whether the first subject's cells stand in packs of their own, so that a whole answer is there early.
        """
        new = {p.cell.identity(): p for p in planned if p.cell.identity() not in self._ids}
        groups: list[list[LabelledCell]] = []
        for group in by_pack_key([p.cell for p in new.values()]).values():
            size = BASE_PACK if group[0].method == BASE else pack_size
            if not is_packable(group[0].method):
                size = 1
            first = [cell for cell in group if early and cell.subject == planned[0].cell.subject]
            rest = [cell for cell in group if not early or cell.subject != planned[0].cell.subject]
            parts = [part for cells in (first, rest) if cells for part in even_chunks(cells, size, workers)]
            groups += [[new[cell.identity()] for cell in part] for part in parts]
        return groups

    def _store(self, groups: Sequence[Sequence[LabelledCell]], setting: Setting) -> None:
        num_packs, num_runs = (max(pair) for pair in zip(self._tally(), (len(self.packs), len(self._runs))))
        shared, specs, stand = dataclasses.asdict(setting), {}, self._find_unplanned()
        for members in groups:
            runs = [self._row(p, number, stand) for number, p in enumerate(members, num_runs)]
            pack = name_pack(members)
            path = self.sweep.place_pack(num_packs) / f"{pack}.json"
            specs[path] = {"schema": SCHEMA, "pack": pack, "setting": shared, "runs": runs}
            num_packs, num_runs = num_packs + 1, num_runs + len(runs)
        write_texts({path: spec_text(spec) for path, spec in specs.items()})
        write_signed(self.folder / "plan.json", {"schema": SCHEMA, "packs": num_packs, "runs": num_runs})
        for path, spec in specs.items():
            self._keep(path.stem, path, spec)

    def _find_unplanned(self) -> dict[str, Path]:
        """Where runs stand whose specification was removed, with plan.json, since it was damaged: folders by run_id."""
        if (self.folder / "plan.json").exists():
            return {}
        return {run.run_id: run.path.parent for run in find_runs(self.folder)}

    def _row(self, planned: LabelledCell, number: int, stand: Mapping[str, Path]) -> dict[str, object]:
        """One run in a specification; `folder` says where it stands if that is not directly in the sweep's folder."""
        cell, run_id = planned.cell, planned.cell.run_id(planned.label)
        place = stand.get(run_id) or self.sweep.place_run(number)
        folder = {} if place == self.folder else {"folder": f"{place.name}/{run_id}"}
        return {
            "run_id": run_id,
            **folder,
            "identity": cell.identity(),
            "cell": cell.to_dict(),
            "labels": planned.labels,
        }

    def refresh(self, setting: Setting, packs: Iterable[str]) -> None:
        """Point stored packs at where model, scorers and subjects lie now; threads stay as planned."""
        changed = {}
        for pack in packs:
            stored, now = self._settings[pack], dataclasses.asdict(setting)
            now |= {"threads": stored["threads"], "device": stored["device"]}
            if stored != now:
                changed[self.spec(pack)] = spec_text(read_spec_file(self.spec(pack)) | {"setting": now})
                self._settings[pack] = now
        write_texts(changed)


def spec_text(spec: dict) -> str:
    """A specification as JSON, one line a run: the encoder that indents is many times slower."""
    spec = sign(spec)
    head = json.dumps({key: value for key, value in spec.items() if key != "runs"}, indent=1, allow_nan=False)
    rows = ",\n  ".join(json.dumps(row, allow_nan=False) for row in spec["runs"])
    return f'{head[:-2]},\n "runs": [\n  {rows}\n ]\n}}\n'


def name_pack(members: Sequence[LabelledCell]) -> str:
    """A pack's name, which depends on its members and their order."""
    return f"{members[0].cell.method_stem}-{spec_id([p.cell.run_id(p.label) for p in members])}"


def _work(cell: dict) -> float:
    return float(cell["steps"] + 3.0 * (cell["num_prompts"] * cell["num_images"] + cell.get("num_drift_prompts", 0)))


def is_packable(method: str) -> bool:
    """Whether runs of a method may share a pack; some of PEFT's layers can be called for one set of parameters only."""
    return packs(method)


def even_chunks(cells: Sequence[Cell], size: int, workers: int) -> list[Sequence[Cell]]:
    """Chunks of at most `size`, as equal as can be, and as many as there are workers where there are cells enough."""
    count = -(-len(cells) // size)
    if workers > 1 and count % workers and len(cells) >= 2 * workers:
        count += workers - count % workers
    count = min(count, len(cells))
    bounds = [round(i * len(cells) / count) for i in range(count + 1)]
    return [cells[a:b] for a, b in zip(bounds, bounds[1:])]


def is_empty(folder: Path) -> bool:
    """Whether a sweep's folder has neither packs nor runs."""
    return next((folder / "packs").iterdir(), None) is None and not find_runs(folder)


def open_sweep(runs: Path, sweep: str, inputs: ResolvedInputs) -> Path:
    """Make or check a sweep's folder; one in which nothing was planned, as a dry run leaves it, belongs to nobody.

    Raises:
        BadInput: if it cannot be written, is no folder, or belongs to another model or other scorers.
    """
    own = {"model": inputs.model_name, "model_hash": inputs.model_hash, **inputs.scorers}
    folder = runs.resolve() / sweep
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "packs").mkdir(exist_ok=True)
        path = folder / "sweep.json"
        if not path.exists():
            create_json(path, sign({"schema": SCHEMA} | own))
        remedy = f"remove it if the runs are of {inputs.model_name!r}, and it is written anew"
        stored = read_json(path, forms.SWEEP, f"it says which model the runs are of: {remedy}")
        if any(stored.get(name) != own[name] for name in HASHES) and is_empty(folder):
            path.unlink(missing_ok=True)
            create_json(path, sign({"schema": SCHEMA} | own))
            stored = read_json(path, forms.SWEEP, remedy)
    except OSError as error:
        raise store_error(error, folder) from None
    if stored.get("model_hash") != inputs.model_hash:
        raise BadInput(
            f"runs folder {folder} belongs to model {stored.get('model')!r} ({stored.get('model_hash')}), not to "
            f"{inputs.model_name!r} ({inputs.model_hash}): give another --runs or --sweep"
        )
    if stored.get("scorer_hash") != own["scorer_hash"]:
        raise BadInput(
            f"runs folder {folder} was scored by {stored.get('scorers')} ({stored.get('scorer_hash')}), not by "
            f"{own['scorers']} ({own['scorer_hash']}): give another --runs or --sweep"
        )
    return folder
