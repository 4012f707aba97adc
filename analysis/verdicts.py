"""What became of the papers' claims: each has a measure and a range, and its 95 % interval lies inside, outside, or neither.

python -m analysis.verdicts --results runs --claims docs/claims.toml
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adapters import BadInput
from adapters.documents import NAME, REAL, TEXT, check_form, read_toml
from analysis.comparisons import compare
from analysis.curves import run_scores, subject_scores
from analysis.directions import magnitude_direction, magnitude_direction_correlation
from analysis.distances import subject_distances
from analysis.load import Results, load
from analysis.plateau import Grid, subject_grid
from analysis.statistics import Interval, rate_interval, t_interval
from analysis.tables import to_markdown, write_tables

FORM = {
    "id": NAME, "source": TEXT, "claim": TEXT, "sweep": NAME, "measure": NAME, "arguments": {}, "low": REAL, "high": REAL,
}  # fmt: skip
AGREES, CONTRADICTS, OPEN = "agrees", "contradicts", "cannot be told"


@dataclass(frozen=True)
class Claim:
    """One claim of a paper.

    Attributes:
        id: a short name.
        source: paper, figure or table, section.
        claim: what is claimed, in one sentence.
        sweep: the folder of results that it is put to.
        measure: a key of `MEASURES`.
        arguments: of that measure.
        low, high: the range of the measure in which the claim holds.
    """

    id: str
    source: str
    claim: str
    sweep: str
    measure: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    low: float = -np.inf
    high: float = np.inf


def read_claims(path: Path) -> list[Claim]:
    """The claims of a file, `[[claim]]` each.

    Raises:
        BadInput: if the file is no TOML, a key or measure is unknown or missing, or a range is empty or holds everything.
    """
    try:
        tables = read_toml(path)[0]
        check_form(tables, {"claim": [{}]}, str(path))
        rows = tables.get("claim", [])
        claims = [Claim(**row) for row in rows]
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    except TypeError as error:
        allowed = ", ".join(f.name for f in fields(Claim))
        raise BadInput(f"{path}: {str(error).removeprefix('Claim.__init__() ')}; keys are {allowed}") from None
    check_form(rows, [FORM], str(path))
    for claim in claims:
        if claim.measure not in MEASURES:
            raise BadInput(f"{path}: unknown measure {claim.measure!r} of {claim.id}; allowed: {', '.join(MEASURES)}")
        if not claim.low < claim.high or (claim.low, claim.high) == (-np.inf, np.inf):
            raise BadInput(f"{path}: {claim.id} needs a low below its high, or one of them")
    return claims


def judge_claims(folder: Path, claims: list[Claim]) -> pd.DataFrame:
    """The verdict on every claim.

    Args:
        folder: holds the sweeps that the claims name, as run folders or compact copies.
        claims: `read_claims(...)`.

    Returns:
        Rows id, source, claim, sweep, measure, mean, low, high, num_subjects, range_low, range_high, verdict, note: what is
        missing where nothing could be measured.
    """
    loaded: dict[str, Results | BadInput] = {}
    return pd.DataFrame([_judge_one(claim, _load(folder / claim.sweep, loaded)) for claim in claims])


def judge(found: Interval, low: float, high: float) -> str:
    """Whether an interval lies in a range ("agrees"), beside it ("contradicts"), or neither; without one nothing can be told."""
    if not (np.isfinite(found.low) and np.isfinite(found.high)):
        return OPEN
    if low <= found.low and found.high <= high:
        return AGREES
    return CONTRADICTS if found.high < low or found.low > high else OPEN


def _load(folder: Path, loaded: dict[str, Results | BadInput]) -> Results | BadInput:
    if folder.name not in loaded:
        try:
            loaded[folder.name] = load(folder)
        except BadInput:
            loaded[folder.name] = BadInput(f"no results in {folder}: run python sweeps/{folder.name}.py")
    return loaded[folder.name]


def _judge_one(claim: Claim, results: Results | BadInput) -> dict[str, Any]:
    note, found = "", Interval(np.nan, np.nan, np.nan, 0)
    try:
        if isinstance(results, BadInput):
            raise results
        found = MEASURES[claim.measure](results, **claim.arguments)
        note = "" if found.num_subjects > 1 else "one subject or none: no interval"
    except BadInput as error:
        note = str(error)
    return {
        **{name: getattr(claim, name) for name in ("id", "source", "claim", "sweep", "measure")},
        **found._asdict(), "range_low": claim.low, "range_high": claim.high,
        "verdict": judge(found, claim.low, claim.high), "note": note,
    }  # fmt: skip


# Measures: one number a subject, with its t interval.


def difference(results: Results, a: str, b: str, of: str, metric: str = "dino") -> Interval:
    """How much more series `a` has than `b` of a measure of `analysis.comparisons`, paired by subject."""
    row = compare(subject_scores(results), (of,), metric=metric, pairs=[(a, b)]).iloc[0]
    return Interval(row["mean"], row["low"], row["high"], int(row["num_subjects"]))


def loss_at(results: Results, series: str, multiplier: float, metric: str = "dino") -> Interval:
    """What is lost at a multiplier against the best other one, as a share of the mean gain over the base there."""
    return _loss(_grid(subject_scores(results), series, metric, "multiplier"), multiplier, series)


def loss_at_end(results: Results, series: str, metric: str = "dino") -> Interval:
    """What is lost at the last step against the best other one, as a share of the mean gain over the base there."""
    grid = _grid(subject_scores(results, "step"), series, metric, "step")
    return _loss(grid, float(grid.points[-1]), series)


def distance_octaves(results: Results, series: str, start: float, end: float) -> Interval:
    """By how many octaves the final distance grows from one multiplier to another."""
    rows = subject_distances(results)
    wide = rows[rows["series"] == series].pivot(index="subject", columns="multiplier", values="value")
    for multiplier in (start, end):
        if multiplier not in wide:
            raise BadInput(f"no distance of {series} at {multiplier:g}x; there are {', '.join(map(str, wide))}")
    return t_interval(np.log2(wide[end] / wide[start]).dropna())


def distance_reached(results: Results, series: str, share: float) -> Interval:
    """Which part of its final distance a run has after a share of its steps."""
    runs = results.runs.loc[results.runs["series"] == series, ["run_id", "subject"]].drop_duplicates()
    if runs.empty:
        raise BadInput(f"no series {series!r}; allowed: {', '.join(results.runs['series'].unique())}")
    paths = results.trajectories("mean", ["distance_rel"]).astype({"run_id": str}).merge(runs, on="run_id")
    ends = paths.groupby(["subject", "run_id"])[["step", "distance_rel"]].agg("last")
    early = paths[paths["step"] >= share * paths["run_id"].map(ends.reset_index("subject")["step"])]
    parts = early.groupby(["subject", "run_id"])["distance_rel"].first() / ends["distance_rel"]
    return t_interval(parts.groupby("subject").mean())


def diverged(results: Results) -> Interval:
    """The share of subjects of which some run diverged (Wilson)."""
    lost = run_scores(results).groupby("subject")["diverged"].any()
    return rate_interval(int(lost.sum()), len(lost))


def direction_correlation(results: Results, series: str) -> Interval:
    """The correlation of the changes of magnitude and direction at the base rate, over matrices and snapshots of a run."""
    table = magnitude_direction_correlation(magnitude_direction(results))
    row = table[(table["series"] == series) & (table["kind"] == "all")]
    if row.empty:
        raise BadInput(f"no series {series!r} at its base rate; allowed: {', '.join(table['series'].unique())}")
    found = row.iloc[0]
    return Interval(found["rho"], found["rho_low"], found["rho_high"], int(found["num_subjects"]))


MEASURES: Mapping[str, Callable[..., Interval]] = {
    "difference": difference,
    "loss_at": loss_at,
    "loss_at_end": loss_at_end,
    "distance_octaves": distance_octaves,
    "distance_reached": distance_reached,
    "diverged": diverged,
    "direction_correlation": direction_correlation,
}


def _grid(table: pd.DataFrame, series: str, metric: str, x: str) -> Grid:
    rows = table[(table["series"] == series) & (table["metric"] == metric) & (table[x] > 0)]
    if rows.empty:
        raise BadInput(f"no {metric} of {series!r}; there are {', '.join(map(str, table['series'].unique()))}")
    return subject_grid(rows, x)


def _loss(grid: Grid, point: float, series: str) -> Interval:
    if point not in grid.scores:
        raise BadInput(f"no score of {series} at {point:g}; there are {', '.join(map(str, grid.scores))}")
    means, out = grid.values.mean(axis=0), (grid.num_diverged > 0) | (grid.points == point)
    best = int(np.where(out, -np.inf, means).argmax())
    gain = means[best] - grid.base.mean()
    if out.all() or not gain > 0:
        raise BadInput(f"{series} exceeds the untouched base nowhere else, so there is no gain to lose")
    return t_interval((grid.values[:, best] - grid.scores[point].to_numpy(dtype=float)) / gain)


@dataclass(frozen=True)
class Options:
    """Which results are judged, by which claims."""

    results: Path
    """Folder of the sweeps."""
    claims: Path
    """The file of claims."""
    out: Path | None = None
    """Folder for the table."""


def main(options: Options) -> int:
    """Print the verdicts, and write them if a folder is given.

    Raises:
        BadInput: for a file of claims that cannot be used.
    """
    verdicts = judge_claims(options.results, read_claims(options.claims))
    shown = ["id", "claim", "mean", "low", "high", "range_low", "range_high", "num_subjects", "verdict", "note"]
    print(to_markdown(verdicts[shown]))
    if options.out is not None:
        write_tables(options.out, {"verdicts": verdicts})
    return 0


if __name__ == "__main__":
    import sys

    from training.command_line import run_program

    sys.exit(run_program(Options, main, __doc__ or ""))
