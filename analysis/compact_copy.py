"""Write and read small copies of results folders: what figures and tables need, in a few Parquet files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from adapters.errors import BadInput
from analysis.block_means import STORED, block_means
from analysis.folders import NUMBERS, RUN_COLUMNS, dynamics_columns
from analysis.results import Results
from training.cell import STEP_LISTS
from training.store import COLUMNS, SCHEMA, read_table, write_table

TABLES = ("runs", "scores", "matrices", "dynamics_final", "trajectories", "norms")
MAX_POINTS = 200  # steps of a run that a trajectory keeps
PICTURES, CONTROLS, BLOCKS = "pictures", "controls", "blocks"  # tables that may be missing
SHARPNESS, LOSSES = "sharpness", "losses"  # and these
THUMBNAIL_PX = 128
COPY = "plateau_copy"  # in every table's footer: which runs were copied
_KEYS = {"run_id!": "text", "step!": "whole", "matrix!": "text"}
_GAUGES = dict.fromkeys((*COLUMNS["dynamics"][2:], "distance_rel"), "number")
# What the tables' columns hold; a copy may be a stranger's.
FORMS = {
    "runs": {
        "run_id!": "text", "method!": "text", "subject!": "text", "model_hash": "text", "status!": "text",
        **{
            name: "number" if name in NUMBERS else "text"
            for name in RUN_COLUMNS
            if name not in ("run_id", "method", "subject", "model_hash", "status", *STEP_LISTS)
        },
    },
    "scores": {"run_id!": "text", "step!": "whole", "metric!": "text", "prompt!": "text", "value!": "number"},
    "matrices": {"run_id!": "text", "matrix!": "text", "block": "text", "kind": "text", "attention": "text",
                 "num_out": "number", "num_in": "number", "base_norm": "number"},
    "dynamics_final": _KEYS | _GAUGES,
    "trajectories": _KEYS | _GAUGES,
    "norms": _KEYS | dict.fromkeys(COLUMNS["norms"][2:], "number"),
    BLOCKS: {"run_id!": "text", "step!": "whole", "block!": "text", **dict.fromkeys(STORED, "number")},
    PICTURES: {"run_id!": "text", "step!": "whole", "prompt!": "text", "seed!": "whole", "subject!": "text", "png!": "bytes"},
    LOSSES: {"run_id!": "text", "loss!": "number"},
    SHARPNESS: {"run_id!": "text", "step!": "whole", "sharpness!": "number"},
    CONTROLS: {"run_id!": "text", **{f"{name}!": "text" for name in COLUMNS["controls"][:-1]}, "value!": "number"},
}  # fmt: skip
OWN = ""  # in place of a run's id: a subject's own photograph


def is_compact(folder: Path) -> bool:
    """Whether the folder holds a compact copy."""
    return (folder / "runs.parquet").is_file()


def export_compact(
    results: Results,
    folder: Path | str,
    *,
    kept_matrices: Sequence[str] = (),
    num_norms: int = 2,
    shown: pd.DataFrame | None = None,
) -> list[Path]:
    """Write a compact copy that `load` reads like the run folders themselves.

    Args:
        results: what to copy.
        folder: where the Parquet files go.
        kept_matrices: matrices whose own trajectories are kept beside the means over all matrices.
        num_norms: how many snapshots of the weight norms are kept of a run, evenly spaced, the first and the last among them.
        shown: rows of `results.images()` that are copied as thumbnails, with every subject's own picture; None copies none.

    Returns:
        The files: runs, scores, matrices, the dynamics' last step of every matrix, trajectories (means over the
        matrices and `kept_matrices`, at most `MAX_POINTS` steps a run), norms, means over blocks, final losses, pictures
        where any are shown, and controls and sharpness where they were measured.

    Raises:
        StoreError: if the folder cannot be written.
    """
    base = results.base[["run_id", "metric", "prompt", "value"]].assign(step=0)
    shapes = [results.trajectories(name).assign(matrix=name) for name in ("mean", *kept_matrices)]
    tables = {
        "runs": results.all_runs.drop(columns=["source", "series"]).assign(path=""),
        "scores": pd.concat([results.scores, base], ignore_index=True),
        "matrices": results.matrices,
        "dynamics_final": results.final_dynamics,
        "trajectories": thin(pd.concat(shapes, ignore_index=True)),
        "norms": thin(results.norms(), num_norms),
        BLOCKS: results.blocks(),
        LOSSES: results.losses(),
    }
    if shown is not None:
        tables[PICTURES] = _thumbnails(shown, results)
    if not results.controls.empty:
        tables[CONTROLS] = results.controls.drop(columns="subject")
    if not (measured := results.sharpness()).empty:
        tables[SHARPNESS] = measured
    for name in {PICTURES, CONTROLS, SHARPNESS} - tables.keys():
        (Path(folder) / f"{name}.parquet").unlink(missing_ok=True)
    copy = hashlib.sha256(" ".join(sorted(results.all_runs["run_id"])).encode()).hexdigest()[:16]
    return [_write(Path(folder) / f"{name}.parquet", frame, copy) for name, frame in tables.items()]


def _thumbnails(shown: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Pictures as PNG, at most `THUMBNAIL_PX` wide and high: rows run_id, step, prompt, seed, subject, png."""
    frame = shown[["run_id", "step", "prompt", "seed"]].astype({"run_id": str, "prompt": str})
    frame = frame.assign(subject="", png=[to_png(file) for file in shown["file"]])
    own = {name: file for name, file in results.own_pictures().items() if name in _subjects(shown, results)}
    photographs = {"run_id": OWN, "step": 0, "prompt": "", "seed": 0, "subject": list(own)}
    return pd.concat(
        [frame, pd.DataFrame({**photographs, "png": [to_png(file) for file in own.values()]})], ignore_index=True
    )


def _subjects(shown: pd.DataFrame, results: Results) -> set[str]:
    runs = results.all_runs
    return set(runs.loc[runs["run_id"].isin(set(shown["run_id"].astype(str))), "subject"])


def to_png(file: Path | str | bytes) -> bytes:
    """A picture as a PNG of at most `THUMBNAIL_PX` in width and height.

    Raises:
        BadInput: as `read_picture`.
    """
    from training.read_picture import read_picture

    small = read_picture(file).image
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    written = io.BytesIO()
    small.save(written, format="PNG", optimize=True)
    return written.getvalue()


def check_names(frame: pd.DataFrame, path: Path) -> None:
    """Refuse names that a terminal, a table or a figure would not only print.

    Raises:
        BadInput: naming the file, the column and the name.
    """
    for column in frame.columns:
        if column == "png" or pd.api.types.is_numeric_dtype(frame[column]):
            continue
        values = frame[column].dropna()
        for value in values.unique() if values.dtype == "str" else {v for v in values if isinstance(v, str)}:
            if not value.replace("\n", " ").isprintable():
                raise BadInput(f"damaged file {path}: {column} is {value!r}, not a name that can be printed")


def thin(frame: pd.DataFrame, max_points: int = MAX_POINTS) -> pd.DataFrame:
    """Keep at most `max_points` steps of every run and matrix, evenly spaced, the first and the last among them."""
    rank = frame.groupby(["run_id", "matrix"], observed=True, sort=False).cumcount()
    count = frame.groupby(["run_id", "matrix"], observed=True, sort=False)["step"].transform("size")
    cell = np.floor(rank * (max_points - 1) / (count - 1).clip(lower=1))
    before = np.floor((rank - 1) * (max_points - 1) / (count - 1).clip(lower=1))
    return frame[(count <= max_points) | (cell != before)].reset_index(drop=True)


def _write(path: Path, frame: pd.DataFrame, copy: str) -> Path:
    text = [name for name in frame if isinstance(frame[name].dtype, pd.CategoricalDtype)]
    frame = frame.assign(**{name: frame[name].astype(object) for name in text})
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({b"plateau_schema": str(SCHEMA).encode()})
    repeated = [field.name for field in table.schema if field.type != pa.float32()]
    write_table(path, table, place=f"copy/{path.name}", text=repeated, level=12, also={COPY: copy})
    return path


class CompactSource:
    """The frames of a compact copy."""

    def __init__(self, folder: Path) -> None:
        if missing := [name for name in TABLES if not (folder / f"{name}.parquet").is_file()]:
            raise BadInput(f"{folder} is no whole compact copy: {missing[0]}.parquet is missing; export it again")
        self.folder = folder
        self._copy = ""
        self._tables: dict[str, pd.DataFrame] = {}
        runs = self._table("runs")
        self.runs = runs.assign(**{name: None for name in RUN_COLUMNS if name not in runs})
        self.matrices = self._table("matrices")

    def _table(self, name: str) -> pd.DataFrame:
        """A table, read once: a selection of the runs asks for it again."""
        if name not in self._tables:
            self._tables[name] = self._read(name)
        return self._tables[name].copy(deep=False)

    def _table_or_none(self, name: str, columns: Sequence[str]) -> pd.DataFrame:
        """A table that may be missing; then only its columns."""
        there = (self.folder / f"{name}.parquet").is_file()
        return self._table(name) if there else pd.DataFrame(columns=list(columns))

    def _read(self, name: str) -> pd.DataFrame:
        path = self.folder / f"{name}.parquet"
        table = read_table(path, form=FORMS[name])
        copy = (table.schema.metadata or {}).get(COPY.encode(), b"").decode()
        if (self._copy or copy) != copy:
            raise BadInput(f"damaged file {path}: it is of another copy than runs.parquet; export it again")
        self._copy = copy
        frame: pd.DataFrame = table.to_pandas()
        check_names(frame, path)
        return frame

    def scores(self) -> pd.DataFrame:
        """Rows run_id, step, metric, prompt, value."""
        return self._table("scores")

    def dynamics(self, run_ids: Collection[str], columns: Sequence[str] | None) -> pd.DataFrame:
        """Refuse: a compact copy holds the last step and the trajectories only.

        Raises:
            BadInput: always.
        """
        dynamics_columns(columns)
        raise BadInput(f"{self.folder} is a compact copy without the full dynamics: load the runs folder itself")

    def final_dynamics(self, run_ids: Collection[str]) -> pd.DataFrame:
        """The dynamics' rows of the last step of every run."""
        return self._table("dynamics_final")

    def trajectories(self, run_ids: Collection[str], matrix: str, columns: Sequence[str] | None) -> pd.DataFrame:
        """Rows run_id, step and the gauges of one of the kept matrices, or of their mean.

        Raises:
            BadInput: if that matrix was not kept; the message lists those that were.
        """
        dynamics_columns(columns)
        frame = self._table("trajectories")
        kept = frame[frame["matrix"] == matrix]
        if kept.empty and len(frame):
            raise BadInput(f"matrix {matrix!r} is not in {self.folder}; allowed: {', '.join(frame['matrix'].unique())}")
        return kept[["run_id", "step", *(columns or kept.columns.drop(["run_id", "step", "matrix"]))]].reset_index(
            drop=True
        )

    def norms(self, run_ids: Collection[str]) -> pd.DataFrame:
        """The first and the last norms of every run."""
        return self._table("norms")

    def blocks(self, run_ids: Collection[str]) -> pd.DataFrame:
        """The means over each block's matrices; of a copy made without them those of the last step and the copied norms."""
        if (self.folder / f"{BLOCKS}.parquet").is_file():
            return self._table(BLOCKS)
        norms = self.norms(run_ids)
        trained = norms[norms["run_id"].isin(set(run_ids))]
        return block_means(self.final_dynamics(run_ids), trained, self.matrices)

    def losses(self, run_ids: Collection[str]) -> pd.DataFrame:
        """The final losses, none in a copy that came without."""
        return self._table_or_none(LOSSES, ["run_id", "loss"])

    def steps(self, run_ids: Collection[str]) -> pd.DataFrame:
        """Refuse: a step's own loss is not copied.

        Raises:
            BadInput: always.
        """
        raise BadInput(f"{self.folder} is a compact copy without each step's loss: load the runs folder itself")

    def sharpness(self, run_ids: Collection[str]) -> pd.DataFrame:
        """The sharpness that was measured, none in a copy that came without."""
        return self._table_or_none(SHARPNESS, ["run_id", "step", "sharpness"])

    def images(self, run_ids: Collection[str]) -> pd.DataFrame:
        """The pictures that were copied, `file` being their PNG's bytes."""
        frame = self._pictures()
        return frame[frame["run_id"] != OWN].rename(columns={"png": "file"}).drop(columns="subject")

    def own_pictures(self) -> dict[str, bytes]:
        """The photographs that were copied, by subject."""
        frame = self._pictures()
        own = frame[frame["run_id"] == OWN]
        return dict(zip(own["subject"], own["png"], strict=True))

    def controls(self, run_ids: Collection[str]) -> pd.DataFrame:
        """The scorers' controls, none in a copy that came without."""
        return self._table_or_none(CONTROLS, ["run_id", *COLUMNS["controls"]])

    def _pictures(self) -> pd.DataFrame:
        return self._table_or_none(PICTURES, ["run_id", "step", "prompt", "seed", "subject", "png"])
