"""Write small copies of results folders: what figures and tables need, in a few Parquet files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from adapters.errors import BadInput
from analysis.compact_source import (
    BLOCKS,
    CONTROLS,
    COPY,
    FEWEST_NORMS,
    FORMS,
    LOSSES,
    MADE,
    OWN,
    PICTURES,
    SHARPNESS,
    CompactSource,
    is_compact,
)
from analysis.copy_parts import new_runs, next_part, parts, remove_parts, same_rows
from analysis.results import Results, stack
from training.store import SCHEMA, write_table

MAX_POINTS = 50  # steps of a run that a trajectory keeps
THUMBNAIL_PX = 128


def export_compact(
    results: Results,
    folder: Path | str,
    *,
    kept_matrices: Sequence[str] = (),
    num_norms: int = FEWEST_NORMS,
    shown: pd.DataFrame | None = None,
) -> list[Path]:
    """Write a compact copy that `load` reads like the run folders themselves.

    A copy of fewer of these runs, made in the same way, stays as it is, and the others come in a part of it
    (`analysis.copy_parts`); anything else in the folder is written anew.

    Args:
        results: what to copy.
        folder: where the Parquet files go.
        kept_matrices: matrices whose own trajectories are kept beside the means over all matrices.
        num_norms: how many snapshots of the weight norms are kept of a run, evenly spaced, the first and the last among them.
        shown: rows of `results.images()` that are copied as thumbnails, with every subject's own picture; None copies none.

    Returns:
        The files of the whole copy: runs, scores, matrices, the dynamics' last step of every matrix, trajectories (means over
        the matrices and `kept_matrices`, at most `MAX_POINTS` steps a run), norms, means over blocks, final losses, pictures
        where any are shown, and controls and sharpness where they were measured.

    Raises:
        StoreError: if the folder cannot be written.
    """
    folder, made = Path(folder), f"norms={num_norms} {' '.join(kept_matrices)}".rstrip()
    lacking = _lacking(results, folder, made, shown)
    if lacking is None:
        _write_part(results, folder, made, kept_matrices, num_norms, shown)
        remove_parts(folder)  # only now: results may be read from them
    elif lacking:
        rest = replace(results, all_runs=results.all_runs[results.all_runs["run_id"].isin(lacking)])
        rows = None if shown is None else shown[shown["run_id"].astype(str).isin(lacking)]
        _write_part(rest, next_part(folder), made, kept_matrices, num_norms, rows)
    return [file for part in parts(folder) for file in sorted(part.glob("*.parquet")) if file.stem in FORMS]


def _lacking(results: Results, folder: Path, made: str, shown: pd.DataFrame | None) -> set[str] | None:
    """The runs that a copy made in the same way lacks; None if there is none, or if anything of it has become another."""
    if not is_compact(folder):
        return None
    try:
        sources = [CompactSource(part) for part in parts(folder)]
        there = stack([source.runs for source in sources])
        lacking = new_runs(there, results.all_runs)
        if lacking is None or {source.made for source in sources} != {made}:
            return None
        known = set(there["run_id"].astype(str))
        same = (
            same_rows(stack([source.scores() for source in sources]), _scores(results), known),
            same_rows(stack([source.controls(known) for source in sources]), results.controls, known),
            same_rows(stack([source.sharpness(known) for source in sources]), results.sharpness(), known),
        )
        kept, keys = stack([source.images(known) for source in sources]), ["run_id", "step", "prompt", "seed"]
    except BadInput:
        return None
    wanted = pd.DataFrame(columns=keys) if shown is None else shown[shown["run_id"].astype(str).isin(known)]
    pictures = [set(frame[keys].astype(str).itertuples(index=False)) for frame in (kept, wanted)]
    return lacking if all(same) and pictures[0] == pictures[1] else None


def _write_part(
    results: Results,
    folder: Path,
    made: str,
    kept_matrices: Sequence[str],
    num_norms: int,
    shown: pd.DataFrame | None,
) -> None:
    """Write the tables of a copy, or of a part of it; the runs, by which it is known, last."""
    shapes = [results.trajectories(name).assign(matrix=name) for name in ("mean", *kept_matrices)]
    tables = {
        "scores": _scores(results),
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
    tables["runs"] = results.all_runs.drop(columns=["source", "series"]).assign(path="")
    for name in {PICTURES, CONTROLS, SHARPNESS} - tables.keys():
        (folder / f"{name}.parquet").unlink(missing_ok=True)
    copy = hashlib.sha256(" ".join(sorted(results.all_runs["run_id"])).encode()).hexdigest()[:16]
    for name, frame in tables.items():
        _write(folder / f"{name}.parquet", frame, {COPY: copy, MADE: made})


def _scores(results: Results) -> pd.DataFrame:
    """The scores of the runs, and of the base model at step 0."""
    base = results.base[["run_id", "metric", "prompt", "value"]].assign(step=0)
    return pd.concat([results.scores, base], ignore_index=True)


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


def thin(frame: pd.DataFrame, max_points: int = MAX_POINTS) -> pd.DataFrame:
    """Keep at most `max_points` steps of every run and matrix, evenly spaced, the first and the last among them."""
    rank = frame.groupby(["run_id", "matrix"], observed=True, sort=False).cumcount()
    count = frame.groupby(["run_id", "matrix"], observed=True, sort=False)["step"].transform("size")
    cell = np.floor(rank * (max_points - 1) / (count - 1).clip(lower=1))
    before = np.floor((rank - 1) * (max_points - 1) / (count - 1).clip(lower=1))
    return frame[(count <= max_points) | (cell != before)].reset_index(drop=True)


def _write(path: Path, frame: pd.DataFrame, about: Mapping[str, str]) -> None:
    text = [name for name in frame if isinstance(frame[name].dtype, pd.CategoricalDtype)]
    frame = frame.assign(**{name: frame[name].astype(object) for name in text})
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({b"plateau_schema": str(SCHEMA).encode()})
    repeated = [field.name for field in table.schema if field.type != pa.float32()]
    write_table(path, table, place=f"copy/{path.name}", text=repeated, level=12, also=about)
