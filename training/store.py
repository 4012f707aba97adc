"""Run folders on disk: names, schemas, and writes that a reader never sees half done. Imports no torch.

A run leaves `run.json`, `scores.parquet`, `dynamics/`, `steps/`, `norms/` (Parquet parts named by their last step),
`images/`, `adapter/` and, while it is unfinished, `checkpoint/`. Everything is written aside, flushed, and renamed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from adapters import BadInput

SCHEMA = 1
STATUSES = ("planned", "running", "finished", "diverged", "preempted", "failed")
ENDED = ("finished", "diverged")
KINDS = ("dynamics", "steps", "norms")
GAUGES = (
    "lambda", "bound", "saturation", "transform_distance", "orthogonality", "norm_a", "norm_b", "angle_a", "angle_b",
)  # fmt: skip
COLUMNS = {
    "dynamics": ("step", "matrix", "distance", *GAUGES),
    "steps": ("step", "loss", "grad_norm", "lr", "lr_lambda", "seconds"),
    "norms": (
        "step", "matrix", "colnorm_mean", "colnorm_sd", "rownorm_mean", "rownorm_sd",
        "dm_rows", "dd_rows", "dm_cols", "dd_cols",
    ),
    "scores": ("step", "metric", "prompt", "value"),
}  # fmt: skip
TEXT_COLUMNS = ("matrix", "metric", "prompt")


class StoreError(BadInput):
    """A folder that cannot be written or read: full disk, no permission, damage. One line, nothing lost."""


def schema(kind: str) -> pa.Schema:
    """The Arrow schema of one kind of table: `step` int32, names dictionary-encoded, every measurement float32."""

    def dtype(name: str) -> pa.DataType:
        text = pa.dictionary(pa.int32(), pa.string())
        return pa.int32() if name == "step" else text if name in TEXT_COLUMNS else pa.float32()

    return pa.schema(
        [(name, dtype(name)) for name in COLUMNS[kind]], metadata={b"plateau_schema": str(SCHEMA).encode()}
    )


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving, flush it to disk and rename it into place.

    Raises:
        StoreError: if the disk is full or the folder cannot be written; the old file, if any, is untouched.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise store_error(error, path) from error
    finally:
        aside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def store_error(error: OSError, path: Path) -> StoreError:
    """One clear line for an operating-system error at `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"no space left to write {path}; nothing computed so far is lost: free space, run it again")
    reason = os.strerror(error.errno) if error.errno else str(error)
    return StoreError(f"cannot write {path}: {reason}; nothing computed so far is lost: mend it, run it again")


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a mixture."""
    with writing(path) as aside:
        aside.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        StoreError: if the file is damaged; the message names it.
    """
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"damaged file {path}: {error}") from None


def write_table(path: Path, table: pa.Table) -> None:
    """Write one zstd Parquet file atomically."""
    with writing(path) as aside:
        pq.write_table(table, aside, compression="zstd", use_dictionary=list(TEXT_COLUMNS))


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one Parquet file.

    Raises:
        StoreError: if the file is damaged or was written in another schema version; the message names it.
    """
    try:
        table = pq.ParquetFile(path).read(columns=list(columns) if columns else None)
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"damaged file {path}: {str(error).splitlines()[0]}") from None
    check_version(table.schema, path)
    return table


def check_version(found: pa.Schema, path: Path) -> None:
    """Refuse a table of another schema version.

    Raises:
        StoreError: naming the file, its version and the known one.
    """
    version = (found.metadata or {}).get(b"plateau_schema", b"missing").decode()
    if version != str(SCHEMA):
        raise StoreError(f"{path}: unknown column version {version}; this Plateau reads version {SCHEMA}")


class RunFolder:
    """One run on disk. The only class that knows the names of the files in it."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

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
            StoreError: if it is damaged or of another schema version.
        """
        run = read_json(self.path / "run.json")
        if not isinstance(run, dict) or run.get("schema") != SCHEMA:
            version = run.get("schema") if isinstance(run, dict) else None
            raise StoreError(f"{self.path / 'run.json'}: unknown schema {version!r}; this Plateau reads {SCHEMA}")
        return run

    def write(self, run: Mapping) -> None:
        """Replace run.json."""
        write_json(self.path / "run.json", {"schema": SCHEMA, "run_id": self.run_id, **run})

    def update(self, **changes: Any) -> None:
        """Change some fields of run.json."""
        self.write({**self.read(), **changes})

    def status(self) -> str:
        """One of `STATUSES`; a folder without run.json is "planned"."""
        return self.read()["status"] if self.exists() else "planned"

    # Tables

    def append(self, kind: str, columns: Mapping[str, Any], last_step: int) -> None:
        """Write one part of a table of `KINDS`, holding the rows up to `last_step`; missing columns become null."""
        write_table(self._part(kind, last_step), _table(kind, columns))

    def _part(self, kind: str, last_step: int) -> Path:
        return self.path / kind / f"part-{last_step:08d}.parquet"

    def parts(self, kind: str) -> list[Path]:
        """The parts of one table, oldest first."""
        return sorted((self.path / kind).glob("part-*.parquet"))

    def read_table(self, kind: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """All rows of one table of `KINDS`, in the order of writing."""
        tables = [read_table(part, columns) for part in self.parts(kind)]
        return (
            pa.concat_tables(tables, promote_options="permissive") if tables else schema(kind).empty_table()
        ).to_pandas()

    def read_dynamics(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Rows (step, matrix) with the distance and the gauges."""
        return self.read_table("dynamics", columns)

    def read_norms(self) -> pd.DataFrame:
        """Rows (step, matrix) with the weight norms at the snapshots."""
        return self.read_table("norms")

    def read_steps(self) -> pd.DataFrame:
        """Rows (step) with loss, gradient norm and rates."""
        return self.read_table("steps")

    def write_scores(self, rows: pd.DataFrame) -> None:
        """Replace the scores; `rows` has the columns step, metric, prompt, value."""
        write_table(self.path / "scores.parquet", _table("scores", {c: rows[c].to_numpy() for c in COLUMNS["scores"]}))

    def read_scores(self) -> pd.DataFrame:
        """The scores, empty if there are none yet."""
        path = self.path / "scores.parquet"
        return (read_table(path) if path.exists() else schema("scores").empty_table()).to_pandas()

    def add_scores(self, rows: pd.DataFrame, step: int) -> None:
        """Add the scores of one evaluation in place of any earlier ones of that step or a later one."""
        kept = self.read_scores()
        kept = kept[kept["step"] < step]
        self.write_scores(pd.concat([kept, rows], ignore_index=True) if len(kept) else rows)

    # Pictures

    def add_images(self, step: int, pictures: Iterable[tuple[str, int, Callable[[Path], None]]]) -> None:
        """Write the pictures of one evaluation: (prompt, seed, function that writes a PNG to a path)."""
        index = [row for row in self.images() if row["step"] != step]
        for number, (prompt, seed, save) in enumerate(pictures):
            file = f"images/step-{step:06d}/{number:03d}.png"
            with writing(self.path / file) as aside:
                save(aside)
            index.append({"file": file, "step": step, "prompt": prompt, "seed": seed})
        write_json(self.path / "images/index.json", index)

    def images(self) -> list[dict]:
        """Rows {file, step, prompt, seed} of every picture that was made."""
        path = self.path / "images/index.json"
        return read_json(path) if path.exists() else []

    # Checkpoints

    def checkpoint(self, step: int) -> Path:
        """The file of the checkpoint after `step`."""
        return self.path / "checkpoint" / f"step-{step:08d}.safetensors"

    def checkpoints(self) -> list[int]:
        """Steps of the checkpoints on disk, oldest first."""
        return sorted(
            int(file.stem.removeprefix("step-")) for file in (self.path / "checkpoint").glob("step-*.safetensors")
        )

    def keep_checkpoints(self, newest: int) -> None:
        """Remove all but the newest ones."""
        steps = self.checkpoints()
        for step in steps[: len(steps) - newest]:
            self.checkpoint(step).unlink(missing_ok=True)

    def drop_checkpoints(self) -> None:
        """Remove the folder of checkpoints: the run has ended."""
        shutil.rmtree(self.path / "checkpoint", ignore_errors=True)

    def rewind(self, step: int) -> None:
        """Drop every row and part after `step`, so that a resumed run writes them anew."""
        for kind in KINDS:
            for part in self.parts(kind):
                if int(part.stem.removeprefix("part-")) > step:
                    part.unlink()
        scores = self.read_scores()
        if len(scores) and scores["step"].max() > step:
            self.write_scores(scores[scores["step"] <= step])

    def verify(self) -> None:
        """Read the footers of every table of an ended run.

        Raises:
            StoreError: naming the first damaged file.
        """
        for path in [*(part for kind in KINDS for part in self.parts(kind)), self.path / "scores.parquet"]:
            try:
                check_version(pq.read_schema(path), path)
            except (pa.ArrowInvalid, OSError) as error:
                raise StoreError(f"damaged file {path}: {str(error).splitlines()[0]}") from None

    def set_aside(self) -> Path:
        """Rename the folder out of the way, keeping what is in it; returns the new path."""
        number = next(n for n in range(1, 1000) if not self.path.with_name(f".{self.run_id}.damaged-{n}").exists())
        return self.path.rename(self.path.with_name(f".{self.run_id}.damaged-{number}"))


def _table(kind: str, columns: Mapping[str, Any]) -> pa.Table:
    """Columns (numpy arrays or Arrow dictionaries) as a table of the kind's schema; NaN stays NaN, missing is null."""
    wanted = schema(kind)
    length = len(next(iter(columns.values())))
    arrays = []
    for field in wanted:
        values = columns.get(field.name)
        if values is None:
            arrays.append(pa.nulls(length, field.type))
        else:
            arrays.append(
                values if isinstance(values, pa.Array) else pa.array(values, type=field.type, from_pandas=False)
            )
    return pa.Table.from_arrays(arrays, schema=wanted)


def method_file(sweep: Path, method: str) -> Path:
    """Where a sweep's folder keeps its copy of the file of a user's own method."""
    return sweep / "methods" / f"{method}.py"


def find_runs(root: Path | str) -> list[RunFolder]:
    """Every run below a runs folder, or below one sweep of it, in the order of their paths."""
    return [RunFolder(path) for path in sorted(_find_runs(Path(root), depth=2))]


def _find_runs(folder: Path, depth: int) -> Iterator[Path]:
    """Folders with a run.json; below the second level they are looked for in numbered folders alone."""
    try:
        with os.scandir(folder) as entries:
            below = [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return
    for path in below:
        if (path / "run.json").exists():
            yield path
        elif depth > 1 or (depth and path.name.isdigit()):
            yield from _find_runs(path, depth - 1)
