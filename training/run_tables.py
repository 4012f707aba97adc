"""The tables of one run: parts named by their last step, and scores. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from training.cell import BASE
from training.columns import COLUMNS, FORMS, TEXT_COLUMNS, schema, to_table
from training.states import ENDED, RunStatus
from training.whole_files import DamagedFile, list_files
from training.whole_tables import check_table, read_range, read_table, write_table


class Due(NamedTuple):
    """The steps that a table must have rows of.

    Attributes:
        first: the first of them.
        every: how many lie between two.
        last: the run's last step, which has rows whatever lies between; None where that is not known.
    """

    first: int
    every: int
    last: int | None


def due_rows(run: Mapping[str, Any]) -> dict[str, Due]:
    """What the tables of `KINDS` must hold, by the contents of run.json; nothing while a run goes on.

    A diverged run may have come to its end where it diverged, and a watched loop has no snapshots of norms.
    """
    cell, status = run.get("cell") or {}, run.get("status")
    if status not in ENDED or not run.get("matrices") or cell.get("method") == BASE:
        return {}
    every = {"dynamics": cell.get("gauge_every"), "steps": 1, "norms": cell.get("norms_every")}
    return {kind: Due(int(kind == "steps"), number, _last_due(run, number)) for kind, number in every.items() if number}


def _last_due(run: Mapping[str, Any], every: int) -> int | None:
    """The last step that an ended run surely has rows of; None where that is not known."""
    if run["status"] == RunStatus.FINISHED:
        return (run.get("cell") or {}).get("steps")
    diverged = run.get("diverged_step")
    return diverged // every * every if diverged else None


class RunTables:
    """The tables in one run's folder."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def append(self, kind: str, columns: Mapping[str, Any], last_step: int) -> None:
        """Write one part of a table of `KINDS`, holding the rows up to `last_step`; missing columns become null.

        Rows of the dynamics are stored matrix by matrix: neighbours are then alike.
        """
        table = to_table(kind, columns)
        if kind == "dynamics":
            codes = table["matrix"].combine_chunks().indices.to_numpy()
            table = table.take(np.argsort(codes, kind="stable"))  # rows of a matrix stay in the order of their steps
        self._write_table(self._part(kind, last_step), table)

    def _write_table(self, path: Path, table: pa.Table, also: Mapping[str, str] | None = None) -> None:
        place = f"{self.path.name}/{path.relative_to(self.path)}"
        write_table(path, table, place=place, text=TEXT_COLUMNS, also=also)

    def _part(self, kind: str, last_step: int) -> Path:
        return self.path / kind / f"part-{last_step:08d}.parquet"

    def parts(self, kind: str) -> list[Path]:
        """The parts of one table, oldest first.

        Raises:
            StoreError: if their folder cannot be read.
        """
        return list_files(self.path / kind, f"part-{8 * '[0-9]'}.parquet")

    def check_gaps(self, kind: str, due: Due | None) -> None:
        """See whether the parts of one table follow each other, by their footers alone.

        Args:
            kind: one of `KINDS`.
            due: the rows that must be there; None for a run of which nothing is known.

        Raises:
            DamagedFile: naming the table and the steps, where a part is gone.
        """
        if due is None:
            return
        there = due.first - due.every  # the last step that has rows
        for low, high in filter(None, map(read_range, self.parts(kind))):
            self._check_gap(kind, due, there, low - 1)
            there = max(there, high)
        if due.last is not None and there < due.last:
            self._check_gap(kind, due._replace(every=1), there, due.last)

    def _check_gap(self, kind: str, due: Due, there: int, until: int) -> None:
        missing = (there // due.every + 1) * due.every
        if missing <= until:
            raise DamagedFile(f"damaged table {self.path / kind}: rows of steps {missing} to {until} are missing")

    def read_table(self, kind: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """All rows of one table of `KINDS`, part after part."""
        known = schema(kind).empty_table()  # older parts may lack columns
        tables = [read_part(part, columns) for part in self.parts(kind)]
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
        table = to_table("scores", {c: rows[c].to_numpy() for c in COLUMNS["scores"]})
        self._write_table(self.path / "scores.parquet", table)

    def read_scores(self, must_exist: bool = False) -> pd.DataFrame:
        """The scores, empty if there are none yet; a run that must have some is damaged without."""
        path = self.path / "scores.parquet"
        return (read_part(path) if must_exist or path.exists() else schema("scores").empty_table()).to_pandas()

    def add_scores(self, rows: pd.DataFrame, step: int) -> None:
        """Add the scores of one evaluation in place of any earlier ones of that step or a later one."""
        kept = self.read_scores()
        kept = kept[kept["step"] < step]
        self.write_scores(pd.concat([kept, rows], ignore_index=True) if len(kept) else rows)

    # Controls of the scorers, of a base model's run

    @property
    def controls(self) -> Path:
        """The file of the controls; runs made before there were any have none."""
        return self.path / "controls.parquet"

    def write_controls(self, rows: pd.DataFrame, key: str) -> None:
        """Replace the controls; `rows` has the columns metric, kind, picture, against, value, `key` says what they hang on."""
        table = to_table("controls", {c: rows[c].to_numpy() for c in COLUMNS["controls"]})
        self._write_table(self.controls, table, {CONTROLS_KEY: key})

    def read_controls(self) -> pd.DataFrame:
        """The controls, empty if none were measured.

        Raises:
            DamagedFile: if the file is damaged.
        """
        found = read_part(self.controls) if self.controls.exists() else schema("controls").empty_table()
        return found.to_pandas()

    def controls_key(self) -> str:
        """What the controls were measured on; "" where there are none that can be read."""
        try:
            about = read_table(self.controls).schema.metadata or {} if self.controls.exists() else {}
        except DamagedFile:
            about = {}
        return about.get(CONTROLS_KEY.encode(), b"").decode()


CONTROLS_KEY = (
    "plateau_controls"  # in the footer of the controls: what they hang on, besides what the run's hash covers
)


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one file of a run's tables (`training.whole_tables.read_table`), with the types of this version's schema."""
    kind = _kind(path)
    table = read_table(path, columns, FORMS[kind])
    known = schema(kind)
    try:
        return table.cast(pa.schema([known.field(f.name) if f.name in known.names else f for f in table.schema]))
    except pa.ArrowException as error:
        raise DamagedFile(f"damaged file {path}: {(str(error).splitlines() or ['?'])[0]}") from None


def check_part(path: Path) -> None:
    """Hold one file of a run's tables to its checksum and its columns (`training.whole_tables.check_table`)."""
    check_table(path, FORMS[_kind(path)])


def _kind(path: Path) -> str:
    return path.parent.name if path.name.startswith("part-") else path.stem


def last_step_of(part: Path) -> int:
    """The step that a part's name bears."""
    return int(part.stem.removeprefix("part-"))
