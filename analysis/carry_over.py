"""Does the order of methods on one task hold on another? Rank correlation of their areas and half-gain widths over two results.

    python -m analysis.carry_over docs/results/lr_robustness runs/lr_robustness-text --out carry_over

Prints what each method has on both, and the correlation over the methods, and writes both as tables.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import tyro
from scipy.stats import rankdata

from adapters.errors import BadInput
from adapters.words import counted
from analysis.comparisons import half_widths, of_subjects
from analysis.curves import in_order, subject_scores
from analysis.grid import Grid, subject_grid
from analysis.load import load
from analysis.plateau import mean_over_octaves
from analysis.results import Results
from analysis.statistics import Floats, Ints, count_draws, expanded_tail
from analysis.tables import to_markdown, write_tables
from training.command_line import run_program

MEASURES = {"area": "mean gain over the grid", "half_width": "half-gain width (octaves)"}
FEWEST = 3  # methods, for a rank correlation
LEAST_SHARE = 0.5  # of the draws that have a correlation, for an interval


class CarryOver(NamedTuple):
    """What was found.

    Attributes:
        points: rows series, measure, first, first_low, first_high, second, second_low, second_high: a method's value on both,
            with intervals over each one's subjects (expanded percentiles of a bootstrap; from 2 subjects).
        ranks: rows measure, rho (Spearman's, over the methods), low, high (the interval of a bootstrap that draws subjects of
            both and methods anew), num_series, num_first, num_second, verdict.
    """

    points: pd.DataFrame
    ranks: pd.DataFrame


def carry_over(first: Results, second: Results, num_draws: int = 4000, seed: int = 0) -> CarryOver:
    """Compare the order of the methods that two results share.

    Only multipliers that both have are read: a width ends where the shorter grid does.

    Args:
        first, second: results of two tasks, or of two models.
        num_draws: of the bootstrap.
        seed: of the draws.

    Raises:
        BadInput: if they share fewer than three methods, or fewer than two multipliers.
    """
    grids = [_grids(results) for results in (first, second)]
    series = [name for name in grids[0] if name in grids[1]]
    if len(series) < FEWEST:
        raise BadInput(
            f"the results share {counted(len(series), 'method')} ({', '.join(series) or 'none'}); "
            f"a correlation over methods needs {FEWEST}"
        )
    shared = _shared_points([own[name] for own in grids for name in series])
    draw = np.random.default_rng(seed)
    values, drawn, sizes = [], [], []
    for own in grids:
        of = _on_common_ground([_at(own[name], shared) for name in series])
        sizes.append(len(of[0].base))
        counts = count_draws(draw.integers(sizes[-1], size=(num_draws, sizes[-1])), sizes[-1])
        values.append(_measure(of, np.ones((1, sizes[-1]))))
        drawn.append(_measure(of, counts))
    methods = draw.integers(len(series), size=(num_draws, len(series)))
    rows = [
        _ranks(name, [own[name][0] for own in values], [own[name] for own in drawn], methods, sizes)
        for name in MEASURES
    ]
    points = [
        {"series": label, "measure": name, **_ends("first", values[0][name], drawn[0][name], k, sizes[0]),
         **_ends("second", values[1][name], drawn[1][name], k, sizes[1])}
        for name in MEASURES for k, label in enumerate(series)
    ]  # fmt: skip
    return CarryOver(in_order(pd.DataFrame(points), "series"), pd.DataFrame(rows))


def _grids(results: Results) -> dict[str, Grid]:
    """The grid of the headline of every series."""
    table = subject_scores(results).query("metric == @results.kind.headline.name and multiplier > 0")
    return {
        str(name): subject_grid(group, "multiplier")
        for name, group in table.groupby("series", sort=False, observed=True)
    }


def _shared_points(grids: list[Grid]) -> list[float]:
    shared = sorted(set.intersection(*(set(grid.points) for grid in grids)))
    if len(shared) < 2:
        raise BadInput(f"the results share {counted(len(shared), 'multiplier')}; their grids need 2 in common")
    return shared


def _at(grid: Grid, points: list[float]) -> Grid:
    keep = np.isin(grid.points, points)
    return grid._replace(scores=grid.scores.loc[:, keep], num_diverged=grid.num_diverged[keep])


def _on_common_ground(grids: list[Grid]) -> list[Grid]:
    """The same grids with the subjects that all of them have, in one order: a draw takes a subject with all that it has."""
    common = grids[0].scores.index
    for grid in grids[1:]:
        common = common.intersection(grid.scores.index)
    if common.empty:
        raise BadInput("no subject has all of the methods")
    return [of_subjects(grid, common) for grid in grids]


def _measure(grids: list[Grid], counts: Floats) -> dict[str, Floats]:
    """Each measure `[draw, series]` of the mean curves of draws, with how often each has every subject `[draw, subject]`."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    areas = [shares @ mean_over_octaves(np.log2(g.points), g.values - g.base[:, None]) for g in grids]
    return {
        "area": np.stack(areas, axis=1),
        "half_width": np.stack([half_widths(grid, counts) for grid in grids], axis=1),
    }


def _ends(name: str, value: Floats, drawn: Floats, k: int, num: int) -> dict[str, float]:
    low, high = _interval(drawn[:, k], num)
    return {name: float(value[0, k]), f"{name}_low": low, f"{name}_high": high}


def _interval(drawn: Floats, num: int) -> tuple[float, float]:
    there = drawn[~np.isnan(drawn)]
    if num < 2 or len(there) < LEAST_SHARE * len(drawn):
        return np.nan, np.nan
    low, high = np.quantile(there, [expanded_tail(num), 1 - expanded_tail(num)])
    return float(low), float(high)


def _ranks(name: str, values: list[Floats], drawn: list[Floats], methods: Ints, sizes: list[int]) -> dict[str, object]:
    num = methods.shape[1]
    rho = float(spearman(values[0][None], values[1][None])[0])
    again = spearman(*(np.take_along_axis(one, methods, axis=1) for one in drawn))
    low, high = _interval(again, min(num, *sizes))
    verdict = "cannot be told"
    if low > 0 or high < 0:
        verdict = "carries over" if low > 0 else "turns round"
    return {
        "measure": name, "rho": rho, "low": low, "high": high, "num_series": num, "num_first": sizes[0],
        "num_second": sizes[1], "verdict": verdict,
    }  # fmt: skip


def spearman(a: Floats, b: Floats) -> Floats:
    """Spearman's correlation of every row of `[draw, method]`; NaN where one of the two is constant."""
    x, y = (rankdata(part, axis=1) - (part.shape[1] + 1) / 2 for part in (a, b))
    size = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return np.divide((x * y).sum(axis=1), size, out=np.full(len(a), np.nan), where=size > 1e-9)


def describe(found: CarryOver) -> list[str]:
    """A sentence for each measure."""
    lines = []
    for row in found.ranks.to_dict("records"):
        ends = f" [{row['low']:.2f}, {row['high']:.2f}]" if np.isfinite(row["low"]) else ", without an interval"
        lines.append(
            f"{MEASURES[row['measure']]}: rank correlation {row['rho']:.2f}{ends} over {counted(row['num_series'], 'method')}; "
            f"whether the order carries over: {row['verdict']}"
        )
    return lines


@dataclass(frozen=True)
class Options:
    """Flags of the comparison."""

    first: Annotated[Path, tyro.conf.Positional]
    """Runs folder, sweep, or compact copy of one task."""
    second: Annotated[Path, tyro.conf.Positional]
    """The same of another task or model."""
    out: Path | None = None
    """Folder for the tables, carry_over and carry_over_points, as Markdown, LaTeX and CSV."""


def run(options: Options) -> int:
    """Print tables and sentences, and write the tables."""
    found = carry_over(load(options.first), load(options.second))
    print(to_markdown(found.points), to_markdown(found.ranks), *describe(found), sep="\n")
    if options.out is not None:
        write_tables(options.out, {"carry_over": found.ranks, "carry_over_points": found.points})
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    return run_program(Options, run, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
