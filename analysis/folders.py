"""Read frames from run folders through `training.store`."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adapters.errors import BadInput
from analysis.block_means import GAUGES, block_means, few_steps
from training import cell
from training.cell import FLAGS
from training.planned import PlannedRun, planned_runs
from training.states import ENDED, RunStatus
from training.store import COLUMNS, RunFolder, due_rows, find_runs, join_inside, list_files, read_part

OWN_PICTURES = "subjects"  # folder of a sweep with `<subject>.png`
GONE, NOT_RUN = "gone", "not run"  # status of planned runs without a folder: their pack says that they ended, or not
NUM_READERS = min(8, os.cpu_count() or 1)  # Parquet is decoded outside Python's lock
# Columns of the runs' frame that are there even where no run has them.
RUN_COLUMNS = (
    "run_id", "sweep", "path", *(name for name, flag in FLAGS.items() if not flag.added_later), "multiplier", "scale", "model",
    "status", "diverged_step", "num_parameters", "seconds", "commit",
)  # fmt: skip
NUMBERS = (*cell.NUMBERS, "multiplier", "diverged_step", "num_parameters", "seconds")
MATRIX_COLUMNS = ("run_id", "matrix", "block", "kind", "attention", "num_out", "num_in", "base_norm")


class FolderSource:
    """The frames of a runs folder."""

    def __init__(self, root: Path) -> None:
        folders = find_runs(root)
        if not folders:
            raise BadInput(f"no runs in {root}: train some with python sweeps/lr_robustness.py, or name another folder")
        read = furthest([(folder, folder.read()) for folder in folders])
        self.folders = {folder.run_id: folder for folder, _ in read}
        self._due = {folder.run_id: due_rows(run) for folder, run in read}
        absent = {run.run_id: run for run in planned_runs(root) if run.run_id not in self.folders}
        self.runs = runs_frame([*(run_row(*pair) for pair in read), *map(absent_row, absent.values())])
        rows = ({"run_id": folder.run_id, **matrix} for folder, run in read for matrix in run.get("matrices") or [])
        self.matrices = matrices_frame(list(rows))
        self._scores: pd.DataFrame | None = None

    def scores(self) -> pd.DataFrame:
        """Rows run_id, step, metric, prompt, value."""
        if self._scores is None:
            scored, names = self._must_have_scores(), COLUMNS["scores"]
            self._scores = self._read(self.folders, lambda run: run.read_scores(run.run_id in scored), names)
        return self._scores

    def _must_have_scores(self) -> set[str]:
        """The finished runs; a diverged one may have come to no picture, and a watched loop makes none."""
        finished = self.runs["status"] == RunStatus.FINISHED
        if "watched" in self.runs:
            finished &= self.runs["watched"].isna()
        return set(self.runs.loc[finished, "run_id"])

    def dynamics(self, run_ids: Collection[str], columns: Sequence[str] | None) -> pd.DataFrame:
        """Rows run_id, step, matrix and the wanted gauges, with `distance_rel` derived from the base's norm."""
        return self._dynamics(run_ids, columns, lambda frame: frame)

    def final_dynamics(self, run_ids: Collection[str]) -> pd.DataFrame:
        """The rows of the last step of every run."""
        return self._dynamics(run_ids, None, lambda frame: frame[frame["step"] == frame["step"].max()], last_part)

    def trajectories(self, run_ids: Collection[str], matrix: str, columns: Sequence[str] | None) -> pd.DataFrame:
        """Rows run_id, step and the gauges of one matrix, or their means over the matrices."""
        return self._dynamics(run_ids, columns, lambda frame: pick_matrix(frame, matrix))

    def norms(self, run_ids: Collection[str]) -> pd.DataFrame:
        """Rows run_id, step, matrix and the weight norms."""
        return self._read(run_ids, RunFolder.read_norms, COLUMNS["norms"], "norms")

    def blocks(self, run_ids: Collection[str]) -> pd.DataFrame:
        """Rows run_id, step, block and the means over its matrices, at few steps."""
        dynamics = self._dynamics(run_ids, GAUGES, few_steps)
        norms = self._read(run_ids, lambda folder: few_steps(folder.read_norms()), COLUMNS["norms"], "norms")
        return block_means(dynamics, norms, self.matrices)

    def steps(self, run_ids: Collection[str]) -> pd.DataFrame:
        """Rows run_id, step, loss, grad_norm and rates."""
        return self._read(run_ids, RunFolder.read_steps, COLUMNS["steps"], "steps")

    def losses(self, run_ids: Collection[str]) -> pd.DataFrame:
        """Rows run_id, loss: the mean of a run's last finite training losses, a fifth of all; none of a run without steps."""

        def read(folder: RunFolder) -> pd.DataFrame:
            losses = folder.read_steps()["loss"].to_numpy(dtype=float)
            last = losses[np.isfinite(losses)][-max(1, len(losses) // 5) :]
            return pd.DataFrame({"loss": [last.mean()] if len(last) else []})

        return self._read(run_ids, read, ("loss",), "steps")

    def sharpness(self, run_ids: Collection[str]) -> pd.DataFrame:
        """Rows run_id, step, sharpness of the steps at which it was measured; other runs' steps are not read."""
        asked = self.runs.get("sharpness_steps", pd.Series(None, self.runs.index, dtype=object)).map(bool)
        measured, names = set(run_ids) & set(self.runs.loc[asked, "run_id"]), ["step", "sharpness"]
        return self._read(measured, lambda folder: folder.read_steps()[names].dropna(), names, "steps")

    def images(self, run_ids: Collection[str]) -> pd.DataFrame:
        """Rows run_id, step, prompt, seed, file."""

        def read(folder: RunFolder) -> pd.DataFrame:
            rows = [{**row, "file": str(join_inside(folder.path, row["file"]))} for row in folder.images()]
            return pd.DataFrame(rows, columns=["step", "prompt", "seed", "file"])

        return self._read(run_ids, read, ("step", "prompt", "seed", "file"))

    def own_pictures(self) -> dict[str, Path]:
        """A photograph of each subject, which drivers put into their sweeps' folders."""
        sweeps = sorted({folder.path.parent for folder in self.folders.values()})
        files = [file for sweep in sweeps[::-1] for file in list_files(sweep / OWN_PICTURES, "*.png")]
        return {file.stem: file for file in files}

    def controls(self, run_ids: Collection[str]) -> pd.DataFrame:
        """Rows run_id, metric, kind, picture, against, value of the base model's runs whose controls were measured."""
        return self._read(run_ids, RunFolder.read_controls, COLUMNS["controls"])

    @cached_property
    def _base_norms(self) -> dict[str, pd.Series]:
        return {str(run): group.set_index("matrix")["base_norm"] for run, group in self.matrices.groupby("run_id")}

    def _dynamics(
        self,
        run_ids: Collection[str],
        columns: Sequence[str] | None,
        keep: Callable[[pd.DataFrame], pd.DataFrame],
        read_rows: Callable[[RunFolder, list[str]], pd.DataFrame] = RunFolder.read_dynamics,
    ) -> pd.DataFrame:
        stored = dynamics_columns(columns)

        def read(folder: RunFolder) -> pd.DataFrame:
            frame = read_rows(folder, stored)
            norms = self._base_norms.get(folder.run_id, pd.Series(dtype=float))
            if "distance" in frame:
                matrix = frame["matrix"].array
                base = norms.reindex(matrix.categories).to_numpy(dtype=float)[matrix.codes]
                frame["distance_rel"] = (frame["distance"] / base).astype("float32")
            return keep(frame[frame.columns if columns is None else ["step", "matrix", *columns]])

        return self._read(run_ids, read, ("step", "matrix", *(columns or [*stored[2:], "distance_rel"])), "dynamics")

    def check_gaps(self, run_id: str, kind: str) -> None:
        """See whether a part of an ended run's table is gone.

        Raises:
            DamagedFile: naming the table and the steps.
        """
        self.folders[run_id].check_gaps(kind, self._due[run_id].get(kind))

    def _read(
        self,
        run_ids: Collection[str],
        read: Callable[[RunFolder], pd.DataFrame],
        columns: Sequence[str],
        kind: str = "",
    ) -> pd.DataFrame:
        """Read one frame a run and put them below each other, with the column `run_id` in front.

        Args:
            run_ids: the runs, of which others' are left out.
            read: reads one.
            columns: what an empty frame has.
            kind: the table, of `KINDS`, of which no part may be gone; "" where it has no parts.
        """
        names = [name for name in self.folders if name in run_ids]

        def read_whole(name: str) -> pd.DataFrame:
            frame = read(self.folders[name])
            if kind:
                self.check_gaps(name, kind)
            return frame

        with ThreadPoolExecutor(NUM_READERS) as readers:
            frames = list(readers.map(read_whole, names))
        if not sum(len(frame) for frame in frames):
            return pd.DataFrame({"run_id": pd.Series(dtype=str), **{name: pd.Series(dtype=float) for name in columns}})
        return concat_runs(names, frames)


def furthest(read: Sequence[tuple[RunFolder, dict[str, Any]]]) -> list[tuple[RunFolder, dict[str, Any]]]:
    """One folder for each run: of a run that stands in several sweeps, the first that ended, or else the first."""
    kept: dict[str, tuple[RunFolder, dict[str, Any]]] = {}
    for folder, run in read:
        before = kept.get(folder.run_id)
        if before is None or (before[1].get("status") not in ENDED and run.get("status") in ENDED):
            kept[folder.run_id] = (folder, run)
    return list(kept.values())


def concat_runs(names: Sequence[str], frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Frames of several runs below each other, `run_id` and other text as categories."""
    filled = [(name, frame) for name, frame in zip(names, frames, strict=True) if len(frame)]
    run_id = pd.Categorical.from_codes(
        np.repeat(np.arange(len(filled)), [len(frame) for _, frame in filled]), [name for name, _ in filled]
    )
    columns = {}
    for column in filled[0][1].columns:
        parts = [frame[column] for _, frame in filled]
        if isinstance(parts[0].dtype, pd.CategoricalDtype):
            columns[column] = pd.Series(pd.api.types.union_categoricals(parts))
        else:
            columns[column] = pd.concat(parts, ignore_index=True)
    return pd.DataFrame({"run_id": run_id, **columns})


def last_part(folder: RunFolder, columns: list[str]) -> pd.DataFrame:
    """The last part of a run's dynamics, which holds its last step."""
    parts = folder.parts("dynamics")
    frame: pd.DataFrame = read_part(parts[-1], columns).to_pandas() if parts else folder.read_dynamics(columns)
    return frame


def pick_matrix(frame: pd.DataFrame, matrix: str) -> pd.DataFrame:
    """One matrix' rows of a run's dynamics, or, for "mean", the mean of every gauge over the matrices of a step.

    Raises:
        BadInput: if there is no such matrix; the message names some that there are.
    """
    if matrix == "mean" or frame.empty:
        return mean_of_steps(frame)
    rows = frame[frame["matrix"] == matrix]
    if rows.empty:
        known = [str(name) for name in frame["matrix"].unique()]
        raise BadInput(f"unknown matrix {matrix!r}; allowed: mean, {', '.join(known[:4])} ... ({len(known)} in all)")
    return rows.drop(columns="matrix").reset_index(drop=True)


def mean_of_steps(frame: pd.DataFrame) -> pd.DataFrame:
    """The mean of every gauge over the rows of each step, missing values left out: what `groupby` computes, faster."""
    step = frame["step"].to_numpy()
    first = int(step.min()) if len(step) else 0
    rows = step - first
    counts = np.bincount(rows)
    present, means = np.flatnonzero(counts), {}
    for name in frame.columns.drop(["step", "matrix"], errors="ignore"):
        values, num = frame[name].to_numpy(dtype=float, na_value=np.nan), counts
        if (missing := np.isnan(values)).any():
            values, num = np.where(missing, 0.0, values), np.bincount(rows, weights=~missing)
        with np.errstate(invalid="ignore"):
            means[name] = (np.bincount(rows, weights=values) / num)[present].astype("float32")
    return pd.DataFrame({"step": (present + first).astype(step.dtype), **means})


def dynamics_columns(columns: Sequence[str] | None) -> list[str]:
    """The stored columns that are needed for the wanted ones.

    Raises:
        BadInput: if a column is unknown; the message lists the known ones.
    """
    known = list(COLUMNS["dynamics"])
    if columns is None:
        return known
    if unknown := [name for name in columns if name not in [*known, "distance_rel"]]:
        raise BadInput(f"unknown column {unknown[0]!r} of the dynamics; known: {', '.join([*known, 'distance_rel'])}")
    wanted = ["distance" if name == "distance_rel" else name for name in columns]
    return list(dict.fromkeys(["step", "matrix", *wanted]))


def run_row(folder: RunFolder, run: dict[str, Any]) -> dict[str, Any]:
    """One run as a flat row: cell fields, labels, status; lists become tuples."""
    cell = {name: tuple(value) if isinstance(value, list) else value for name, value in (run.get("cell") or {}).items()}
    return {
        **(run.get("labels") or {}),
        **cell,
        "run_id": folder.run_id,
        "sweep": run.get("sweep") or folder.sweep.name,
        "path": str(folder.path),
        "status": run.get("status"),
        "diverged_step": run.get("diverged_step"),
        "num_parameters": run.get("num_parameters"),
        "seconds": run.get("seconds"),
        "commit": _commit(run.get("provenance") or {}),
    }


def absent_row(run: PlannedRun) -> dict[str, Any]:
    """A planned run that has no folder, as a row."""
    cell = {name: tuple(value) if isinstance(value, list) else value for name, value in run.cell.items()}
    known = {"run_id": run.run_id, "sweep": run.sweep.name, "path": "", "status": GONE if run.ended else NOT_RUN}
    return {**run.labels, **cell, **known}


def _commit(made: dict[str, Any]) -> str:
    """The code that a run was trained with, as twelve digits of its commit, with a word where files had changed since."""
    return made.get("commit", "")[:12] + (" with changes" if made.get("dirty") else "")


def runs_frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a frame that has every column of `RUN_COLUMNS`, numbers as float64 where they may be missing."""
    names = list(dict.fromkeys([*RUN_COLUMNS, *(name for row in rows for name in row)]))
    frame = pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names})
    for name in names:
        frame[name] = pd.to_numeric(frame[name]) if name in NUMBERS else frame[name].infer_objects()
    for name in ("rank", "seed", "steps"):
        if frame[name].notna().all():
            frame[name] = frame[name].astype(int)
    return frame


def matrices_frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The adapted matrices of every run, text as categories."""
    frame = pd.DataFrame(list(rows), columns=list(MATRIX_COLUMNS))
    return frame.astype(dict.fromkeys(("run_id", "matrix", "block", "kind", "attention"), "category"))
