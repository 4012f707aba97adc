"""Run folders on disk: names, schemas, and writes that a reader never sees half done. Imports no torch.

A run leaves `run.json`, `scores.parquet`, `dynamics/`, `steps/`, `norms/` (Parquet parts named by their last step),
`images/`, `adapter/` and, while it is unfinished, `checkpoint/`. Everything is written aside, flushed, and renamed.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from adapters.documents import ANY
from training import forms
from training.whole_files import (
    DamagedFile,
    StoreError,
    check_stored,
    join_inside,
    read_json,
    remove_asides,
    remove_quietly,
    store_error,
    write_json,
    writing,
)

SCHEMA = 1
STATUSES = forms.STATUSES
ENDED = ("finished", "diverged")
KINDS = ("dynamics", "steps", "norms")
GAUGES = (
    "lambda", "bound", "saturation", "transform_distance", "orthogonality", "norm_a", "norm_b", "angle_a", "angle_b",
)  # fmt: skip
COLUMNS = {
    "dynamics": ("step", "matrix", "distance", *GAUGES),
    "steps": ("step", "loss", "grad_norm", "lr", "lr_lambda", "seconds", "sharpness"),
    "norms": (
        "step", "matrix", "colnorm_mean", "colnorm_sd", "rownorm_mean", "rownorm_sd",
        "dm_rows", "dd_rows", "dm_cols", "dd_cols",
    ),
    "scores": ("step", "metric", "prompt", "value"),
}  # fmt: skip
TEXT_COLUMNS = ("matrix", "metric", "prompt")
GAUGE_BITS = 8  # explicit bits kept of a gauge's mantissa: it is stored to within 0.2 % of itself, the distance exactly


def schema(kind: str) -> pa.Schema:
    """The Arrow schema of one kind of table: `step` int32, names dictionary-encoded, every measurement float32."""

    def dtype(name: str) -> pa.DataType:
        text = pa.dictionary(pa.int32(), pa.string())
        return pa.int32() if name == "step" else text if name in TEXT_COLUMNS else pa.float32()

    return pa.schema(
        [(name, dtype(name)) for name in COLUMNS[kind]], metadata={b"plateau_schema": str(SCHEMA).encode()}
    )


def write_table(path: Path, table: pa.Table) -> None:
    """Write one zstd Parquet file atomically, the bytes of numbers sorted by their weight, which halves its size."""
    dtypes = {field.name: field.type for field in table.schema}
    encoding = {name: "BYTE_STREAM_SPLIT" for name, dtype in dtypes.items() if dtype == pa.float32()}
    encoding |= {name: "DELTA_BINARY_PACKED" for name, dtype in dtypes.items() if dtype == pa.int32()}
    with writing(path) as aside:
        pq.write_table(
            table, aside, compression="zstd", use_dictionary=list(TEXT_COLUMNS), column_encoding=encoding,
            write_page_checksum=True,
        )  # fmt: skip


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one Parquet file.

    Raises:
        DamagedFile: if the file is damaged; the message names it.
        StoreError: if it was written in another schema version.
    """
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        table = file.read(columns=list(columns) if columns else None)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedFile(f"damaged file {path}: {(str(error).splitlines() or ['?'])[0]}") from None
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
            DamagedFile: if it is damaged.
            StoreError: if it is of another schema version.
        """
        path = self.path / "run.json"
        run: dict = read_json(path, {"schema!": ANY, "status!": ANY})
        if run["schema"] != SCHEMA:
            raise StoreError(f"{path}: unknown schema {run['schema']!r}; this Plateau reads {SCHEMA}")
        check_stored(run, forms.RUN, path)
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

    # Tables

    def append(self, kind: str, columns: Mapping[str, Any], last_step: int) -> None:
        """Write one part of a table of `KINDS`, holding the rows up to `last_step`; missing columns become null.

        Gauges are rounded to `GAUGE_BITS`. Rows of the dynamics are stored matrix by matrix: neighbours are then alike.
        """
        table = _table(kind, columns)
        if kind == "dynamics":
            codes = table["matrix"].combine_chunks().indices.to_numpy()
            table = table.take(np.argsort(codes, kind="stable"))  # rows of a matrix stay in the order of their steps
            for name in GAUGES:
                number = table.schema.get_field_index(name)
                table = table.set_column(number, table.field(number), round_gauge(table[name]))
        write_table(self._part(kind, last_step), table)

    def _part(self, kind: str, last_step: int) -> Path:
        return self.path / kind / f"part-{last_step:08d}.parquet"

    def parts(self, kind: str) -> list[Path]:
        """The parts of one table, oldest first."""
        return sorted((self.path / kind).glob("part-*.parquet"))

    def read_table(self, kind: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """All rows of one table of `KINDS`, part after part."""
        known = schema(kind).empty_table()  # older parts may lack columns
        tables = [read_table(part, columns) for part in self.parts(kind)]
        whole = [known.select(list(columns)) if columns else known, *tables]
        return pa.concat_tables(whole, promote_options="permissive").to_pandas()

    def read_dynamics(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Rows (step, matrix) with the distance and the gauges; within a part matrix by matrix."""
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
        rows: list[dict] = read_json(path, forms.IMAGES) if path.exists() else []
        return rows

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
            parts = [part for part in self.parts(kind) if _last_step(part) <= last]
            found = Counter(step for part in parts for step in read_table(part)["step"].to_pylist())
            if found.keys() != steps or len(set(found.values())) > 1:
                raise DamagedFile(f"damaged table {self.path / kind}: rows are missing or doubled")
        if evaluated and not evaluated <= {row["step"] for row in self.images()}:
            raise DamagedFile(f"damaged file {self.path / 'images/index.json'}: pictures are missing")
        scored = set(self.read_scores()["step"]) if evaluated else set()
        if evaluated and not ((self.path / "scores.parquet").exists() and (evaluated <= scored or not scored)):
            raise DamagedFile(f"damaged file {self.path / 'scores.parquet'}: scores are missing")

    def rewind(self, step: int) -> None:
        """Drop every row and part after `step`, and what killed writers have left, so that a resumed run writes anew."""
        for folder in (self.path, *(self.path / name for name in (*KINDS, "checkpoint", "images"))):
            remove_asides(folder, all_writers=True)
        for kind in KINDS:
            for part in self.parts(kind):
                if _last_step(part) > step:
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

    def verify(self) -> None:
        """Read the footers of every table of an ended run.

        Raises:
            DamagedFile: naming the first damaged file.
            StoreError: naming one of another schema version.
        """
        for path in [*(part for kind in KINDS for part in self.parts(kind)), self.path / "scores.parquet"]:
            try:
                check_version(pq.read_schema(path), path)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise DamagedFile(f"damaged file {path}: {(str(error).splitlines() or ['?'])[0]}") from None

    def set_aside(self) -> Path:
        """Rename the folder out of the way, keeping what is in it; returns the new path."""
        number = next(n for n in range(1, 1000) if not self.path.with_name(f".{self.run_id}.damaged-{n}").exists())
        return self.path.rename(self.path.with_name(f".{self.run_id}.damaged-{number}"))


def round_gauge(values: pa.ChunkedArray) -> pa.Array:
    """Float32 values rounded to the nearest with `GAUGE_BITS` explicit bits of mantissa; nulls and non-finite ones stay."""
    if values.null_count == len(values):
        return values.combine_chunks()
    exact = values.to_numpy().astype("float32")
    drop = 23 - GAUGE_BITS
    bits = (exact.view("uint32") + np.uint32(1 << (drop - 1))) & ~np.uint32((1 << drop) - 1)
    rounded = bits.view("float32")
    return pa.array(
        np.where(np.isfinite(exact) & np.isfinite(rounded), rounded, exact), mask=values.is_null().to_numpy()
    )


def _last_step(part: Path) -> int:
    return int(part.stem.removeprefix("part-"))


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
            below = [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return
    for path in below:
        if (path / "run.json").exists():
            yield path
        elif depth > 1 or (depth and path.name.isdigit()):
            yield from _find_runs(path, depth - 1)
