"""Report a comparison of variants: the curves of Fig. 2, and differences between variants, paired by subject."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from adapters import MethodSpec
from analysis import Results, power_sentence
from analysis.control_words import with_controls
from figures.figure_set import FigureSet
from figures.registry import (
    draw_boundary_and_angle,
    draw_rank_robustness,
    draw_setting_robustness,
)
from sweeps.driver import SweepOutcome
from sweeps.report import publish, say_plateaus, show


def report_variants(
    outcome: SweepOutcome, draw: Callable[..., FigureSet], specs: Sequence[MethodSpec], docs: Path | None
) -> None:
    """A comparison of variants over learning rates: the table, each plateau, the curves, the differences.

    Args:
        outcome: the runs.
        draw: of `figures.registry`, with an order.
        specs: the variants, in the order in which they are shown.
        docs: where figure and tables go besides.
    """
    ordered = partial(draw, order=series_of(outcome.results, specs))
    drawn = ordered(outcome.results)
    _say_curves(drawn, outcome.results)
    if "differences" in drawn.tables:
        differences = drawn.tables["differences"]
        kind = outcome.results.kind
        print(f"{kind.headline.title} of a minus that of b, paired by {kind.unit}:")
        show(differences[["a", "b", "measure", "mean", "low", "high", "p", "p_holm", "num_subjects"]])
        print(with_controls(power_sentence(differences, unit=outcome.results.kind.unit), outcome.results))
    publish(outcome, drawn, docs, ordered)


def _say_curves(drawn: FigureSet, results: Results) -> None:
    show(drawn.tables["summary"])
    say_plateaus(drawn.tables["plateau"], results)


def report_boundary(outcome: SweepOutcome, docs: Path | None) -> None:
    """Fig. 6: scores and distances by which rate is scaled; where lambda, saturation and distance go, by lambda's start."""
    drawn = draw_boundary_and_angle(outcome.results)
    _say_curves(drawn, outcome.results)
    publish(outcome, drawn, docs, draw_boundary_and_angle)


def report_ranks(outcome: SweepOutcome, docs: Path | None) -> None:
    """Curves at every rank, and the plateau against the rank."""
    drawn = draw_rank_robustness(outcome.results)
    _say_curves(drawn, outcome.results)
    _say_settings(drawn, "plateau_vs_rank", outcome.results)
    publish(outcome, drawn, docs, draw_rank_robustness)


def report_settings(outcome: SweepOutcome, docs: Path | None) -> None:
    """The plateau against every setting that was varied."""
    drawn = draw_setting_robustness(outcome.results)
    _say_settings(drawn, "plateau_vs_setting", outcome.results)
    publish(outcome, drawn, docs, draw_setting_robustness)


def _say_settings(drawn: FigureSet, name: str, results: Results) -> None:
    headline = drawn.tables[name][drawn.tables[name]["metric"] == results.kind.headline.name]
    ends = [f"{stem}_{end}" for stem in ("area", "half_width", "peak") for end in ("low", "high")]
    show(headline[["series", "setting", "value", "area", "half_width", "peak", *ends, "num_diverged", "num_subjects"]])


def series_of(results: Results, specs: Sequence[MethodSpec]) -> list[str]:
    """What the runs of each method are called, in the order of the methods."""
    runs = results.runs.drop_duplicates(["method", "options"]).set_index(["method", "options"])["series"]
    return [str(runs[spec.name, spec.canonical]) for spec in specs]
