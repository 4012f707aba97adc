"""Answers in SQL about results folders: every frame of `analysis.load` is a table, read where it lies by DuckDB.

    python -m analysis.query "SELECT method, multiplier, avg(value) FROM scores JOIN runs USING (run_id)
                              WHERE metric = 'dino' GROUP BY ALL ORDER BY ALL" runs/lr_robustness
    python -m analysis.query "SHOW TABLES" runs/lr_robustness
    python -m analysis.query "..." docs/results/lr_robustness --format csv > answer.csv

Tables: runs, scores, base, controls, matrices, and of run folders dynamics, norms, steps, images; of a compact copy the last
step's dynamics (final_dynamics), the thinned trajectories and norms. `docs/api.md` lists their columns.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import duckdb
import pandas as pd
import tyro

from adapters.errors import BadInput, printable
from analysis.compact_source import CompactSource
from analysis.folders import NUM_READERS, FolderSource
from analysis.load import load
from analysis.results import Results
from training.command_line import run_program
from training.store import check_part


@dataclass(frozen=True)
class Options:
    """Flags of a question."""

    sql: Annotated[str, tyro.conf.Positional]
    """The question."""
    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Runs folders, sweeps of them, or compact copies."""
    format: Literal["table", "csv", "json"] = "table"
    """How the answer is printed."""


def query(sql: str, *roots: Path | str) -> pd.DataFrame:
    """The answer to one SQL statement over results folders.

    Args:
        sql: in DuckDB's dialect.
        *roots: as `load` takes them.

    Raises:
        BadInput: as `load` does; and for a statement that DuckDB refuses, in its words.
    """
    results = load(*roots)
    with duckdb.connect() as database:
        try:
            register(database, results, sql)
            return database.sql(sql).df()
        except duckdb.Error as error:
            raise BadInput(f"the query is refused: {' '.join(str(error).split())}") from None
        except AttributeError:  # a statement without an answer, such as CREATE or SET
            return pd.DataFrame()


def register(database: duckdb.DuckDBPyConnection, results: Results, sql: str) -> None:
    """Make every frame of results a table; run folders' Parquet files are read by DuckDB itself, when they are asked for.

    DuckDB does not look at checksums: files of the tables that the question names are held to theirs before.

    Raises:
        DamagedFile: naming the first file that is not as it was written, or the first table of which a part is gone.
    """
    names = ("runs", "scores", "base", "controls", "matrices")
    frames = {name: getattr(results, name) for name in names}
    sources = [source for source in results.sources if isinstance(source, FolderSource)]
    folders = [(source, folder) for source in sources for folder in source.folders.values()]
    if any(isinstance(source, CompactSource) for source in results.sources):
        frames |= {"final_dynamics": results.final_dynamics, "norms": results.norms()}
        frames["trajectories"] = results.trajectories("mean")
        folders = []
    else:
        frames["images"] = results.images()
    for name, frame in frames.items():
        text = {c: frame[c].astype(object) for c in frame if isinstance(frame[c].dtype, pd.CategoricalDtype)}
        database.register(name, frame.assign(**text))
    for kind in ("dynamics", "norms", "steps"):
        if files := [part for _, folder in folders for part in folder.parts(kind)]:
            if kind in sql.lower():
                with ThreadPoolExecutor(NUM_READERS) as readers:
                    list(readers.map(check_part, files))
                for source, folder in folders:
                    source.check_gaps(folder.run_id, kind)
            else:
                files = files[:1]  # enough to say what columns there are
                check_part(files[0])
            database.execute(f"CREATE VIEW {kind} AS {view_of(kind, files)}")


def view_of(kind: str, files: Sequence[Path]) -> str:
    """The SELECT that reads one kind of table of all runs, `run_id` in front, and the distance relative to W0 behind."""
    names = ", ".join("'" + str(file).replace("'", "''") + "'" for file in files)
    run_id, read = (
        "split_part(filename, '/', -3) AS run_id",
        f"read_parquet([{names}], filename = true, union_by_name = true)",
    )
    rows = f"SELECT {run_id}, * EXCLUDE (filename) FROM {read}"
    if kind != "dynamics":
        return rows
    norms = "SELECT run_id, matrix, base_norm FROM matrices"
    return (
        f"SELECT d.*, CAST(d.distance / m.base_norm AS FLOAT) AS distance_rel FROM ({rows}) d "
        f"LEFT JOIN ({norms}) m USING (run_id, matrix)"
    )


def run(options: Options) -> int:
    """Ask, and print the answer."""
    answer = query(options.sql, *options.results).map(
        lambda value: printable(value) if isinstance(value, str) else value
    )
    if options.format == "csv":
        print(answer.to_csv(index=False, lineterminator="\n"), end="")
    elif options.format == "json":
        print(answer.to_json(orient="records"))
    else:
        print(answer.to_string(index=False) if len(answer.columns) else "")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    return run_program(Options, run, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
