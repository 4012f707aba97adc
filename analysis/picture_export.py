"""Pictures for a scorer of one's own: what runs and their base model drew, lossless, with what each was asked for.

    python -m analysis.picture_export runs/lr_robustness --out pictures --method lora delora --subjects 12

One Parquet file for each method and subject, one for the base model's pictures of each subject: `subject`, `method`,
`series`, `multiplier`, `lr`, `seed`, `step` (the last), `prompt`, `picture_seed`, and `png`, the file as it was written. The same
noise starts the pictures of a prompt in all of them. A file that is there stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro

from adapters.errors import BadInput
from adapters.words import counted
from analysis.load import load
from analysis.pictures import pictures
from analysis.results import BASE, Results
from training.command_line import run_program
from training.store import writing

KEY = ("subject", "method", "series", "multiplier", "lr", "seed", "step", "prompt", "picture_seed")


@dataclass(frozen=True)
class ExportOptions:
    """Flags of the export."""

    results: Annotated[Path, tyro.conf.Positional]
    """A runs folder, or one sweep of it."""
    out: Path
    """Folder for the Parquet files."""
    method: tuple[str, ...] = ()
    """Whose pictures are taken, besides the base model's; none: of all."""
    subjects: int | None = None
    """How many subjects, in alphabetical order; default: all."""
    prompts: int | None = None
    """How many prompts of each, the first ones, by default all; of each its first picture."""


def picture_table(
    results: Results, methods: Sequence[str], num_subjects: int | None, num_prompts: int | None
) -> pd.DataFrame:
    """The chosen pictures at the last step of every run of its series' first seed, of the subjects that have pictures.

    Returns:
        Rows of `KEY` and png (bytes of a PNG).

    Raises:
        BadInput: if a method or a subject is missing, or a picture is no PNG file.
    """
    if missing := [name for name in methods if name not in set(results.runs["method"])]:
        raise BadInput(f"--method has {missing[0]}, of which there are no runs")
    chosen = results.select(method=list(methods)) if methods else results
    if not results.kind.has_pictures:
        raise BadInput(f"the task {results.kind.name!r} draws no pictures")
    images = chosen.images().astype({"run_id": str})
    subjects = sorted(chosen.runs.loc[chosen.runs["run_id"].isin(set(images["run_id"])), "subject"].unique())
    if not subjects:
        raise BadInput("no pictures lie in these results: give the runs folder itself")
    if num_subjects is not None and not 1 <= num_subjects <= len(subjects):
        raise BadInput(f"--subjects is {num_subjects}; allowed: 1 to {len(subjects)}, of which there are pictures")
    if num_prompts is not None and num_prompts < 1:
        raise BadInput(f"--prompts is {num_prompts}; allowed: numbers from 1 on")
    subjects, runs = subjects[:num_subjects], chosen.runs
    is_first = runs["seed"] == runs.groupby("series")["seed"].transform("min")
    chosen = chosen.select(run_ids=runs.loc[is_first, "run_id"], subject=subjects)
    images = images[images["run_id"].isin(set(chosen.all_runs["run_id"]))]
    if num_prompts is None:
        drawn = images.groupby(["run_id", "step"], observed=True)["prompt"].nunique()
        num_prompts = int(drawn.min()) if len(drawn) else 1
    rows = pictures(chosen, prompt=range(num_prompts), step=-1).query("subject in @subjects")
    rates = chosen.all_runs.drop_duplicates("run_id").set_index("run_id")["lr"]
    rows = rows.join(rates, on="run_id").assign(
        picture_seed=rows["file"].map(dict(zip(images["file"], images["seed"])))
    )
    return rows.assign(png=[_read_png(file) for file in rows["file"]])[[*KEY, "png"]]


def _read_png(file: str | bytes) -> bytes:
    """The file of a picture, or what a compact copy holds of it."""
    if isinstance(file, bytes):
        return file
    try:
        found = Path(file).read_bytes()
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}") from None
    if not found.startswith(b"\x89PNG"):
        raise BadInput(f"{file} is no PNG file; allowed: pictures as runs leave them")
    return found


def write_shards(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write one file a method and subject, but for those that are there already; returns the new ones."""
    written = []
    for (method, subject), rows in table.groupby(["method", "subject"], sort=True):
        path = folder / f"{method}-{subject}.parquet"
        if not path.exists():
            with writing(path) as aside:
                rows.to_parquet(aside, index=False, compression="zstd")
            written.append(path)
    return written


def run(options: ExportOptions) -> int:
    """Export, and say how much."""
    results = load(options.results)
    table = picture_table(results, options.method, options.subjects, options.prompts)
    if options.subjects is None and (lacking := sorted(set(results.runs["subject"]) - set(table["subject"]))):
        print(f"without pictures here: {', '.join(lacking)}", file=sys.stderr)
    files = write_shards(table, options.out)
    size = sum(file.stat().st_size for file in files) / 2**20
    ours = counted(int((table["method"] != BASE).sum()), "picture")
    print(f"{ours} of runs and {int((table['method'] == BASE).sum())} of the base model")
    print(f"{counted(len(files), 'new file')}, {size:.1f} MiB: {options.out}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    return run_program(ExportOptions, run, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
