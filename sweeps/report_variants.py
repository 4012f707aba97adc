"""What a comparison of variants ends with: the curves of Fig. 2, and how the variants differ, paired by subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

import figures
from adapters import MethodSpec
from analysis import (
    Results,
    Robustness,
    compare,
    gauge_curve,
    plateau_by_setting,
    power_sentence,
    robustness,
    subject_scores,
    summary,
)
from sweeps.driver import Outcome
from sweeps.report import keep_tables, publish, save, say_plateaus, show

Pairs = list[tuple[str, str]]


def report_variants(
    outcome: Outcome, name: str, docs: Path | None, *, order: Sequence[str] = (), pairs: Pairs | None = None
) -> Robustness:
    """A comparison of variants over learning rates: the table, each plateau, the curves, the differences.

    Args:
        outcome: the runs.
        name: of the figure.
        docs: where figure and tables go besides.
        order: series in the order in which they are shown; the others follow.
        pairs: which are compared, as (a, b); None leaves comparisons out.

    Returns:
        The curves.
    """
    results = outcome.results
    curves = Robustness(*(arrange(frame, order) for frame in robustness(results)))
    show(summary(curves))
    say_plateaus(curves.plateaus)
    save(figures.fig2_lr_robustness.draw(curves), outcome.folder / name, docs)
    tables = {"summary": summary(curves), "plateau": curves.plateaus, "scores": curves.scores}
    tables["distances"] = curves.distances
    if pairs:
        tables["differences"] = say_differences(results, pairs)
    publish(outcome, docs, tables)
    return curves


def arrange(frame: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """The rows of the named series first, in that order."""
    if "series" not in frame:
        return frame
    places = {name: number for number, name in enumerate(order)}
    return frame.sort_values(
        "series",
        key=lambda names: names.map(lambda name: places.get(name, len(places))),
        kind="stable",
        ignore_index=True,
    )


def say_differences(results: Results, pairs: Pairs) -> pd.DataFrame:
    """Print and return how the second of each pair differs from the first: at its best rate, and over the whole grid."""
    differences = compare(subject_scores(results), ("at_best", "area"), pairs=[(b, a) for a, b in pairs])
    shown = differences[["a", "b", "measure", "mean", "low", "high", "p", "p_holm", "num_subjects"]]
    print("DINO of a minus that of b, paired by subject:")
    show(shown)
    print(power_sentence(differences))
    return differences


def report_settings(outcome: Outcome, name: str, defaults: Mapping[str, Sequence[Any]], docs: Path | None) -> None:
    """The plateau against every setting: table and figure of that name.

    Args:
        outcome: the runs.
        name: of table and figure.
        defaults: as for `analysis.plateau_by_setting`.
        docs: where they go besides.
    """
    frame = plateau_by_setting(outcome.results, defaults)
    dino = frame[frame["metric"] == "dino"]
    ends = [f"{stem}_{end}" for stem in ("peak", "width", "area") for end in ("low", "high")]
    show(dino[["series", "setting", "value", "peak", "width_octaves", "area", *ends, "num_diverged", "num_subjects"]])
    save(figures.plateau_vs_setting.draw(frame), outcome.folder / name, docs)
    publish(outcome, docs, {name: frame})


def report_boundary(outcome: Outcome, docs: Path | None) -> None:
    """Fig. 6: scores and distances by which rate is scaled; where lambda, saturation and distance go, by lambda's start."""
    report_variants(outcome, "fig6_boundary_and_angle", docs)
    starts = outcome.results.runs["boundary"].unique()
    for start in starts:
        results = outcome.results.select(boundary=start)
        paths = {
            name: gauge_curve(results, name, by_multiplier=True) for name in ("lambda", "saturation", "distance_rel")
        }
        stem = "fig6_boundary_paths" + (f"_{start:g}" if len(starts) > 1 else "")
        save(figures.fig6_boundary_paths.draw(paths), outcome.folder / stem, docs)
        curves = [curve.assign(gauge=name) for name, curve in paths.items() if len(curve)]
        keep_tables(outcome.folder, docs, {stem: pd.concat(curves, ignore_index=True)})


def series_of(results: Results, specs: Sequence[MethodSpec]) -> list[str]:
    """What the runs of each method are called, in the order of the methods."""
    runs = results.runs.drop_duplicates(["method", "options"]).set_index(["method", "options"])["series"]
    return [str(runs[spec.name, spec.canonical]) for spec in specs]


def steps_between(series: Sequence[str]) -> Pairs:
    """Each series and the next."""
    return list(pairwise(series))


def against_first(series: Sequence[str]) -> Pairs:
    """The first series and each of the others."""
    return [(series[0], name) for name in series[1:]]
