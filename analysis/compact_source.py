"""Read a compact copy, or a part of one: what its tables hold, and whether they belong together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from adapters.errors import BadInput
from analysis.block_means import STORED, block_means
from analysis.folders import NUMBERS, RUN_COLUMNS, dynamics_columns
from training.cell import STEP_LISTS
from training.store import COLUMNS, read_table

TABLES = ("runs", "scores", "matrices", "dynamics_final", "trajectories", "norms")
PICTURES, CONTROLS, BLOCKS = "pictures", "controls", "blocks"  # tables that may be missing
SHARPNESS, LOSSES = "sharpness", "losses"  # and these
COPY = "plateau_copy"  # in every table's footer: which runs were copied
MADE = "plateau_made"  # and what of them; copies from before it was written have the fewest norms and no matrix
FEWEST_NORMS = 2
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


class CompactSource:
    """The frames of a compact copy."""

    def __init__(self, folder: Path) -> None:
        if missing := [name for name in TABLES if not (folder / f"{name}.parquet").is_file()]:
            raise BadInput(f"{folder} is no whole compact copy: {missing[0]}.parquet is missing; export it again")
        self.folder = folder
        self._copy, self.made = "", f"norms={FEWEST_NORMS}"
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
        about = table.schema.metadata or {}
        copy, self.made = about.get(COPY.encode(), b"").decode(), about.get(MADE.encode(), self.made.encode()).decode()
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
