"""Run folders on disk: names, schemas, and writes that no reader sees half done. Imports no torch.

A run leaves `run.json`, `scores.parquet`, `dynamics/`, `steps/`, `norms/` (Parquet parts named by their last step),
`images/`, `adapter/` and, while it is unfinished, `checkpoint/`; the base model's also `controls.parquet`. Everything is
written aside, flushed, and renamed.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adapters.documents import ANY
from training import forms
from training.columns import COLUMNS, CONTROL_KINDS, CONTROL_ORDER, GAUGES, KINDS, SCHEMA, SPECTRA, schema
from training.run_tables import RunTables, check_part, due_rows, last_step_of, read_part
from training.states import RunStatus
from training.whole_files import (
    DamagedFile,
    StoreError,
    check_stored,
    crc_of_file,
    join_inside,
    list_files,
    read_json,
    remove_asides,
    remove_quietly,
    store_error,
    unreadable,
    write_json,
    write_signed,
    writing,
)
from training.whole_tables import OtherVersion, is_moved, read_table, write_table

__all__ = [
    "COLUMNS", "CONTROL_KINDS", "CONTROL_ORDER", "GAUGES", "KINDS", "SCHEMA", "SPECTRA", "DamagedFile", "OtherVersion",
    "RunFolder", "StoreError", "check_part", "due_rows", "find_runs", "join_inside", "list_files", "method_file",
    "read_json", "read_part", "read_table", "schema", "start_file", "store_error", "write_json", "write_signed",
    "write_table", "writing",
]  # fmt: skip


class RunFolder(RunTables):
    """One run on disk. With its tables, the only class that knows the names of the files in it."""

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def sweep(self) -> Path:
        """The sweep's folder; runs of a large sweep stand in numbered folders of it."""
        above = self.path.parent
        return above.parent if above.name.isdigit() and (above.parent / "packs").is_dir() else above

    @property
    def identity(self) -> str:
        """The hash at the end of the name."""
        return self.run_id.rsplit("-", 1)[-1]

    @property
    def adapter(self) -> Path:
        """Folder of the trained adapter."""
        return self.path / "adapter"

    # run.json

    def exists(self) -> bool:
        """Whether the run was ever started."""
        return (self.path / "run.json").exists()

    def read(self) -> dict:
        """The contents of run.json.

        Raises:
            DamagedFile: if it is damaged.
            StoreError: if it is of another schema version.
        """
        path = self.path / "run.json"
        run: dict = read_json(path, {"schema!": ANY, "status!": ANY})
        if run["schema"] != SCHEMA:
            raise OtherVersion(f"{path}: unknown schema {run['schema']!r}; this Plateau reads {SCHEMA}")
        check_stored(run, forms.RUN, path)
        if is_moved(run.get("run_id") or self.run_id, self.run_id):
            raise DamagedFile(f"damaged file {path}: it describes the run {run['run_id']}")
        return run

    def write(self, run: Mapping) -> None:
        """Replace run.json."""
        write_signed(self.path / "run.json", {"schema": SCHEMA, "run_id": self.run_id, **run})

    def update(self, **changes: Any) -> None:
        """Change some fields of run.json."""
        self.write({**self.read(), **changes})

    def status(self) -> str:
        """How the run stands; a folder without run.json is planned."""
        return RunStatus(self.read()["status"]) if self.exists() else RunStatus.PLANNED

    def mend(self) -> str | None:
        """Set a damaged run.json aside, so that the run goes on from its last checkpoint; returns a line that says so.

        Raises:
            StoreError: if it is of another schema version, or cannot be renamed.
        """
        path = self.path / "run.json"
        try:
            self.status()
        except DamagedFile as error:
            try:
                path.replace(path.with_name("run.json.damaged"))
            except OSError as cause:
                raise store_error(cause, path) from None
            return f"{error}: run {self.run_id} goes on from its last checkpoint"
        return None

    # Pictures

    def add_images(self, step: int, pictures: Iterable[tuple[str, int, Callable[[Path], None]]]) -> None:
        """Write the pictures of one evaluation: (prompt, seed, function that writes a PNG to a path)."""
        index = [row for row in self.images() if row["step"] != step]
        for number, (prompt, seed, save) in enumerate(pictures):
            file = f"images/step-{step:06d}/{number:03d}.png"
            with writing(self.path / file) as aside:
                save(aside)
            index.append({"file": file, "step": step, "prompt": prompt, "seed": seed})
        write_signed(self.path / "images/index.json", {"run_id": self.run_id, "images": index})

    def images(self) -> list[dict]:
        """Rows {file, step, prompt, seed} of every picture that was made."""
        path = self.path / "images/index.json"
        try:
            found = read_json(path)
        except FileNotFoundError:
            return []
        if isinstance(found, list) and found:  # as it was before it had a checksum; nobody wrote an empty one
            found = {"images": found}
        check_stored(found, forms.IMAGES, path)
        if is_moved(found.get("run_id") or self.run_id, self.run_id):
            raise DamagedFile(f"damaged file {path}: it lists the pictures of {found['run_id']}")
        rows: list[dict] = found["images"]
        return rows

    # Checkpoints

    def checkpoint(self, step: int) -> Path:
        """The file of the checkpoint after `step`."""
        return self.path / "checkpoint" / f"step-{step:08d}.safetensors"

    def checkpoints(self) -> list[int]:
        """Steps of the checkpoints on disk, oldest first."""
        files = list_files(self.path / "checkpoint", "step-*.safetensors")
        return sorted(int(file.stem.removeprefix("step-")) for file in files)

    def keep_checkpoints(self, newest: int) -> None:
        """Remove all but the newest ones."""
        steps = self.checkpoints()
        for step in steps[: len(steps) - newest]:
            self.checkpoint(step).unlink(missing_ok=True)

    def drop_checkpoints(self) -> None:
        """Remove the folder of checkpoints: the run has ended."""
        shutil.rmtree(self.path / "checkpoint", ignore_errors=True)

    def drop_checkpoints_after(self, step: int) -> None:
        """Remove those after `step`, which the run is about to pass again."""
        for later in self.checkpoints():
            if later > step:
                self.checkpoint(later).unlink(missing_ok=True)

    def check_rows(self, expected: Mapping[str, set[int]], evaluated: set[int]) -> None:
        """Read what a resumed run keeps.

        Args:
            expected: steps that each table of `KINDS` has rows of, each as many as every other, up to a checkpoint.
            evaluated: steps whose pictures and scores are there.

        Raises:
            DamagedFile: naming the file that is damaged, or the table with rows missing or doubled.
        """
        last = max((step for steps in expected.values() for step in steps), default=-1)  # parts end at checkpoints
        for kind, steps in expected.items():
            parts = [part for part in self.parts(kind) if last_step_of(part) <= last]
            found = Counter(step for part in parts for step in read_part(part)["step"].to_pylist())
            if found.keys() != steps or len(set(found.values())) > 1:
                raise DamagedFile(f"damaged table {self.path / kind}: rows are missing or doubled")
        if evaluated and not evaluated <= {row["step"] for row in self.images()}:
            raise DamagedFile(f"damaged file {self.path / 'images/index.json'}: pictures are missing")
        scored = set(self.read_scores()["step"]) if evaluated else set()
        if evaluated and not ((self.path / "scores.parquet").exists() and (evaluated <= scored or not scored)):
            raise DamagedFile(f"damaged file {self.path / 'scores.parquet'}: scores are missing")

    def rewind(self, step: int) -> None:
        """Drop every row and part after `step`, so that a resumed run writes anew."""
        for kind in KINDS:
            for part in self.parts(kind):
                if last_step_of(part) > step:
                    part.unlink(missing_ok=True)
        try:
            scores = self.read_scores()
            if len(scores) and scores["step"].max() > step:
                self.write_scores(scores[scores["step"] <= step])
        except DamagedFile:
            remove_quietly(self.path / "scores.parquet")
        try:
            self.images()
        except DamagedFile:
            remove_quietly(self.path / "images/index.json")

    def remove_asides(self) -> None:
        """Remove what killed writers have left; only for whoever holds the run's pack: nobody else writes there."""
        for folder in [Path(at) for at, _, _ in os.walk(self.path)]:
            remove_asides(folder, all_writers=True)

    def verify(self) -> None:
        """Hold every file of an ended run to its checksum, the pictures and checkpoints left out.

        Raises:
            DamagedFile: naming the first that is damaged or missing.
            OtherVersion: naming one of another schema version.
        """
        for path in [*(part for kind in KINDS for part in self.parts(kind)), self.path / "scores.parquet"]:
            check_part(path)
        if self.controls.exists():
            check_part(self.controls)
        for kind, due in due_rows(self.read()).items():
            self.check_gaps(kind, due)
        self.images()
        self.check_adapter()

    def seal_adapter(self) -> dict[str, str]:
        """The checksums of the adapter's weights, for run.json."""
        return {path.name: crc_of_file(path) for path in list_files(self.adapter, "*.safetensors")}

    def check_adapter(self) -> None:
        """Hold the adapter's weights to the checksums in run.json; what is not there is not missed.

        Raises:
            DamagedFile: naming the file.
        """
        for name, crc in (self.read().get("adapter") or {}).items():
            path = self.adapter / Path(name).name
            if path.exists() and crc_of_file(path) != crc:
                raise DamagedFile(f"damaged file {path}: its checksum is another than when it was written")

    def set_aside(self) -> Path:
        """Rename the folder out of the way, keeping what is in it; returns the new path."""
        number = next(n for n in range(1, 1000) if not self.path.with_name(f".{self.run_id}.damaged-{n}").exists())
        return self.path.rename(self.path.with_name(f".{self.run_id}.damaged-{number}"))


def method_file(sweep: Path, method: str) -> Path:
    """Where a sweep's folder keeps its copy of the file of a user's own method."""
    return join_inside(sweep, f"methods/{method}.py")


def start_file(sweep: Path, content_hash: str) -> Path:
    """Where a sweep's folder keeps its copy of an adapter that runs start from."""
    return join_inside(sweep, f"starts/{content_hash}.safetensors")


def find_runs(root: Path | str) -> list[RunFolder]:
    """Every run below a runs folder, or below one sweep of it, in the order of their paths."""
    return [RunFolder(path) for path in sorted(_find_runs(Path(root), depth=2))]


def _find_runs(folder: Path, depth: int) -> Iterator[Path]:
    """Folders with a run.json; below the second level they are looked for in numbered folders alone."""
    try:
        with os.scandir(folder) as entries:
            below = [
                Path(entry.path) for entry in entries if os.path.isdir(entry.path) and not entry.name.startswith(".")
            ]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error.strerror}") from None
    for path in below:
        try:
            is_run = (path / "run.json").exists()
        except OSError as error:
            raise unreadable(error, path) from None
        if is_run:
            yield path
        elif depth > 1 or (depth and path.name.isdigit()):
            yield from _find_runs(path, depth - 1)
