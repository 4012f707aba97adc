"""Report the comparison at the best settings: what was chosen, and how it compares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from adapters.words import plural
from analysis import best_settings, power_sentence, tried_settings
from analysis.best_settings import describe_rule
from analysis.control_words import with_controls
from figures.registry import draw_best_of_grid
from sweeps.driver import SweepOutcome
from sweeps.grid import LabelledCell, ResolvedInputs, plan_cell
from sweeps.options import Options
from sweeps.report import keep_tables, publish, show
from sweeps.report_tuning import edge


def report_choice(outcome: SweepOutcome, inputs: ResolvedInputs, docs: Path | None) -> pd.DataFrame:
    """Print and write what was tried and which setting of each method is taken; returns those."""
    tried = tried_settings(outcome.results)
    best = best_settings(tried)
    names = ", ".join(subject.name for subject in inputs.subjects)
    print(f"chosen on {names}: {describe_rule('sum', f'these {plural(inputs.kind.unit)}', inputs.kind)}")
    show(best.rename(columns={"method": "series"}).drop(columns="options"))
    for _, row in best.iterrows():
        if word := edge(row, tried[(tried["method"] == row["method"]) & (tried["options"] == row["options"])]):
            print(f"{row['method']}:{word}")
    choice = best.assign(chosen_on=names, rule=describe_rule("sum", kind=inputs.kind))
    keep_tables(outcome.folder, docs, {"grid": tried, "choice": choice})
    return best


def plan_best(
    best: pd.DataFrame, grid: Sequence[LabelledCell], inputs: ResolvedInputs, options: Options
) -> list[LabelledCell]:
    """The cells of the best settings on the subjects, with the rates that the grid had there."""
    by_setting = {_setting(p.cell.method, p.cell.options, p.cell.lr, p.cell.boundary): p for p in grid}
    specs = {(spec.name, spec.canonical): spec for spec in options.specs()}
    planned = []
    for row in best.itertuples():
        found = by_setting[_setting(row.method, row.options, row.lr, row.boundary)]
        spec = specs[row.method, row.options]
        own = {name: getattr(found.cell, name) for name in ("lr", "lr_lambda", "lr_magnitude", "boundary")}
        labels = {name: found.labels[name] for name in ("multiplier", "scale", "base_lr", "rate_source")}
        planned += [plan_cell(inputs, spec, s, seed, labels, **own) for s in inputs.subjects for seed in options.seeds]
    return planned


def _setting(method: str, options: str, lr: float, boundary: float | None) -> tuple[str, str, float, float | None]:
    """A key in which a missing boundary is None, also where a frame has NaN for it."""
    return method, options, lr, None if boundary is None or pd.isna(boundary) else boundary


def report_best(outcome: SweepOutcome, docs: Path | None) -> None:
    """Tables 3 and 6: scores at the best settings with parameters and spread of the seeds, and every pair of methods."""
    drawn = draw_best_of_grid(outcome.results)
    show(drawn.tables["best"])
    if "comparisons" in drawn.tables:
        print(
            with_controls(power_sentence(drawn.tables["comparisons"], unit=outcome.results.kind.unit), outcome.results)
        )
    publish(outcome, drawn, docs, draw_best_of_grid)
