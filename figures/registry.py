"""Which figures and tables each driver's results are shown as, with their data.

Drivers end with it, and `python -m figures` draws it again, from run folders or from a compact copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pandas as pd

import figures
from adapters import ABLATION_STEPS, DELORA_VARIANTS, parse_method
from adapters.errors import BadInput
from adapters.method_words import BASE_MODEL
from analysis import (
    Results,
    base_line,
    best_table,
    compare,
    distance_curve,
    early_warning,
    gauge_curve,
    magnitude_direction,
    magnitude_direction_correlation,
    paired_curve,
    pictures,
    plateau_by_setting,
    robustness,
    score_curve,
    score_vs_distance,
    scores_by_setting,
    subject_scores,
    summary,
    variance_table,
    weight_norms,
)
from analysis.matched_prompt import try_matched_prompt
from analysis.results import BASE
from analysis.series import method_label, name_multipliers
from figures.figure_set import (
    FigureSet,
    add_around_the_best,
    add_blocks,
    add_controls,
    add_curves,
    add_rate_by_steps,
    add_sharpness,
    add_sheet_of_one,
    add_sheets,
    add_spectra,
    curve_data,
    of_first_seed,
)
from figures.matched_prompt import path_and_front
from figures.task_in_use import of_its_task

VARIED = ("rank", "boundary", "adam_weight_decay", "num_instance_images", "prior_loss_weight", "d_coef")
HEADLINE = ("area", "half_width", "at_best")  # what pairs are compared by, the first first
GAUGES = ("lambda", "saturation", "distance_rel")


@of_its_task
def draw_lr_robustness(
    results: Results, behind: Results | None = None, look: Callable[[FigureSet], None] = lambda drawn: None
) -> FigureSet:
    """Fig. 2, scores over the distance and at matched prompt, what separates the methods, and sheets of pictures.

    Args:
        results: runs over learning rates.
        behind: other methods' runs, drawn behind in grey.
        look: called with what there is once Fig. 2 and its tables are drawn.
    """
    drawn = FigureSet.of(results)
    curves = add_curves(drawn, results, "fig2_lr_robustness", behind)
    look(drawn)
    scores = subject_scores(results)
    drawn.add("scores_by_subject", figures.scores_by_subject.draw(scores), scores)
    several, subjects = results.runs["series"].nunique() > 1, results.runs["subject"].nunique()
    if several and subjects > 2:
        drawn.tables["comparisons"] = compare(scores, HEADLINE)
        drawn.tables["early_warning"] = early_warning(results)
        over = score_vs_distance(results)
        figure = figures.score_vs_distance.draw(over, name_multipliers(results.runs))
        drawn.add("score_vs_distance", figure, over.runs)
        drawn.tables["coincidence"] = over.coincidences
        matched, why_not = try_matched_prompt(scores)
        if matched is None:
            drawn.notes += [why_not] if why_not else []
        else:
            drawn.add("matched_prompt", figures.matched_prompt.draw(matched), path_and_front(matched))
            drawn.tables |= {"matched_prompt_gains": matched.gains, "matched_prompt_differences": matched.differences}
    transform = distance_curve(results, gauge="transform_distance")
    if len(transform):
        figure = figures.ether_fig4_distances.draw(transform, curves.distances, name_multipliers(results.runs))
        drawn.add("ether_fig4_distances", figure, transform)
    add_around_the_best(drawn, results, curves)
    add_rate_by_steps(drawn, results)
    add_spectra(drawn, results)
    add_sharpness(drawn, results)
    if results.runs.groupby("subject")["seed"].nunique().max() > 1:
        drawn.tables["variance"] = variance_table(_all_seeds(results))
    add_blocks(drawn, results)
    add_controls(drawn, results)
    add_sheets(drawn, results, curves)
    return drawn


def _all_seeds(results: Results) -> Results:
    """The runs of those subjects that have every seed: the others would only blur the split."""
    counts = results.runs.groupby("subject")["seed"].nunique()
    return results.select(subject=list(counts.index[counts == counts.max()]))


@of_its_task
def draw_prolonged_training(results: Results) -> FigureSet:
    """Fig. 3: scores, distance and lambda against the steps; Fig. 8: a subject's pictures along them."""
    drawn, scores = FigureSet.of(results), score_curve(results, x="step")
    gauges = {name: gauge_curve(results, name) for name in ("distance_rel", "lambda")}
    figure = figures.fig3_prolonged_training.draw(scores, gauges["distance_rel"], gauges["lambda"], base_line(results))
    panels = [
        scores.rename(columns={"metric": "panel"}),
        *(f.assign(panel=name) for name, f in gauges.items() if len(f)),
    ]
    drawn.add("fig3_prolonged_training", figure, pd.concat(panels, ignore_index=True))
    drawn.tables["scores"] = scores
    add_rate_by_steps(drawn, results)
    add_blocks(drawn, results)
    if len(results.images()):
        found = of_first_seed(pictures(results))
        base = found["series"] == BASE_MODEL
        found["step"] = found["step"].astype(float).mask(base)
        add_sheet_of_one(drawn, found[base | (found["step"] > 0)], results.own_pictures(), "step")
    return drawn


@of_its_task
def draw_weight_norms(results: Results, axis: str = "columns") -> FigureSet:
    """Fig. 4: norms by block, kind and attention, before and after training; what happened in each block meanwhile."""
    drawn = draw_norms(weight_norms(results, axis), axis)
    add_blocks(drawn, results)
    return drawn


def draw_norms(norms: pd.DataFrame, axis: str = "columns") -> FigureSet:
    """Fig. 4 of a frame in `analysis.weight_norms`' columns."""
    drawn = FigureSet(tables={"weight_norms": norms})
    drawn.add("fig4_weight_norms", figures.fig4_weight_norms.draw(norms, axis=axis), norms)
    drawn.add("norms_by_block", figures.norms_by_block.draw(norms), norms)
    return drawn


@of_its_task
def draw_dora_magnitude(results: Results) -> FigureSet:
    """Fig. 5 and App. C: DoRA minus fixed-magnitude DoRA, paired by subject; the DoRA paper's magnitudes and directions."""
    drawn, names = FigureSet.of(results), results.runs.drop_duplicates("method").set_index("method")["series"]
    if missing := [name for name in ("dora", "dora-fixed") if name not in names]:
        raise BadInput(f"no run of {missing[0]}: run python sweeps/dora_magnitude.py")
    pair = results.select(method=["dora", "dora-fixed"])
    difference = paired_curve(subject_scores(pair), names["dora"], names["dora-fixed"])
    curves = robustness(pair)
    data = pd.concat([curve_data(curves), difference.rename(columns={"metric": "panel"}).assign(series="difference")])
    figure = figures.fig5_dora_magnitude.draw(curves, difference, xlabel=name_multipliers(pair.runs))
    drawn.add("fig5_dora_magnitude", figure, data)
    drawn.tables |= {"summary": summary(curves), "difference": difference, "plateau": curves.plateaus}
    if 1.0 in set(results.runs["multiplier"]):
        points = magnitude_direction(results)
        drawn.tables["magnitude_direction"] = magnitude_direction_correlation(points)
        figure = figures.magnitude_direction.draw(points, drawn.tables["magnitude_direction"])
        drawn.add("magnitude_direction", figure, points.drop(columns="run_id"))
    return drawn


@of_its_task
def draw_boundary_and_angle(results: Results) -> FigureSet:
    """Fig. 6: scores and distances by which rate is scaled; where lambda, saturation and distance go, by lambda's start."""
    drawn, results = FigureSet.of(results), at_every_scale(results)
    add_curves(drawn, results, "fig6_boundary_and_angle")
    starts = results.runs["boundary"].unique()
    if len(starts) > 1:
        rates = scores_by_setting(results, {"boundary": sorted(starts)})
        figure = figures.rate_by_setting.draw(rates, xlabel=name_multipliers(results.runs))
        drawn.add("rate_by_boundary", figure, rates)
    for start in starts:
        kept = results.select(boundary=start)
        paths = {name: gauge_curve(kept, name, by_multiplier=True) for name in GAUGES}
        name = "fig6_boundary_paths" + (f"_{start:g}" if len(starts) > 1 else "")
        data = [curve.assign(panel=gauge) for gauge, curve in paths.items() if len(curve)]
        drawn.add(name, figures.fig6_boundary_paths.draw(paths), pd.concat(data, ignore_index=True))
    return drawn


def at_every_scale(results: Results) -> Results:
    """Let multiplier 1, which is one run whichever rate is scaled, stand in every scale's curve."""
    runs = results.all_runs
    scales = runs.loc[runs["method"] != BASE, "scale"].dropna().unique()
    at_one = runs[(runs["multiplier"] == 1) & (runs["method"] != BASE)]
    every = pd.concat([runs, *(at_one.assign(scale=scale) for scale in scales)], ignore_index=True)
    return replace(results, all_runs=every.drop_duplicates(["run_id", "multiplier", "scale"], ignore_index=True))


def draw_design_ablation(results: Results, order: Sequence[str] = ()) -> FigureSet:
    """Table 1: the steps from LoRA to ETHER+ over learning rates, each compared with the one before it."""
    return _variants(results, "table1_design_ablation", order or _labels(ABLATION_STEPS), pairwise)


def _labels(methods: Sequence[str]) -> list[str]:
    return [method_label(spec.name, spec.canonical) for spec in map(parse_method, methods)]


def draw_start_robustness(results: Results, order: Sequence[str] = ()) -> FigureSet:
    """DeLoRA's starts and norms over learning rates, each compared with the first."""
    return _variants(
        results,
        "start_robustness",
        order or _labels(DELORA_VARIANTS),
        lambda names: [(names[0], name) for name in names[1:]],
    )


@of_its_task
def _variants(results: Results, name: str, order: Sequence[str], pair: Callable[[list[str]], Any]) -> FigureSet:
    """The curves of variants and how those that are paired differ: at the best rate, and over the whole grid."""
    drawn = FigureSet.of(results)
    curves = add_curves(drawn, results, name, order=order)
    names = list(dict.fromkeys(curves.scores["series"]))
    pairs = [(b, a) for a, b in pair(names)]
    if pairs:
        drawn.tables["differences"] = compare(subject_scores(results), HEADLINE, pairs=pairs)
    return drawn


@of_its_task
def draw_rank_robustness(results: Results) -> FigureSet:
    """Curves at every rank, the plateau against the rank, and the updates' spectra where runs have some."""
    drawn = FigureSet.of(results)
    add_curves(drawn, results, "rank_robustness")
    settings = {"rank": sorted(results.runs["rank"].unique())}
    ranks, rates = plateau_by_setting(results, settings), scores_by_setting(results, settings)
    drawn.add("plateau_vs_rank", figures.plateau_vs_setting.draw(ranks), ranks)
    drawn.add("rate_by_rank", figures.rate_by_setting.draw(rates, xlabel=name_multipliers(results.runs)), rates)
    drawn.tables["plateau_vs_rank"] = ranks
    add_spectra(drawn, results)
    add_blocks(drawn, results)
    return drawn


@of_its_task
def draw_setting_robustness(results: Results) -> FigureSet:
    """The plateau against every setting that was varied, and the updates' spectra where runs have some."""
    drawn, defaults = FigureSet.of(results), find_defaults(results)
    frame, rates = plateau_by_setting(results, defaults), scores_by_setting(results, defaults)
    drawn.add("plateau_vs_setting", figures.plateau_vs_setting.draw(frame), frame)
    drawn.add("rate_by_setting", figures.rate_by_setting.draw(rates, xlabel=name_multipliers(results.runs)), rates)
    drawn.tables["plateau_vs_setting"] = frame
    add_spectra(drawn, results)
    add_blocks(drawn, results)
    return drawn


def find_defaults(results: Results) -> dict[str, list[Any]]:
    """The settings that were varied one at a time, each with the value (one a method) at which the others were varied.

    Where one setting is varied, every other one is at its default: of several settings the default is what most runs have.
    """
    runs = results.runs[["method", "options", *(name for name in VARIED if name in results.runs)]]
    defaults: dict[str, list[Any]] = {}
    for name in runs.columns[2:]:
        groups = runs.groupby(["method", "options"], sort=False)[name]
        if groups.nunique().max() > 1:
            defaults[name] = list(dict.fromkeys(groups.agg(lambda values: values.mode(dropna=False).iloc[0])))
    return {name: [None if pd.isna(value) else value for value in values] for name, values in defaults.items()}


@of_its_task
def draw_best_of_grid(results: Results) -> FigureSet:
    """Tables 3 and 6: scores at the best settings with parameters and spread of the seeds, and every pair of methods."""
    drawn, scores = FigureSet.of(results), subject_scores(results)
    drawn.tables["best"] = best_table(results)
    if scores["series"].nunique() > 1:
        drawn.tables["comparisons"] = compare(scores, ("at_best",))
    return drawn


# What each driver's results are shown as, in the order of the papers.
GALLERY: Mapping[str, Callable[..., FigureSet]] = {
    "lr_robustness": draw_lr_robustness,
    "prolonged_training": draw_prolonged_training,
    "weight_norms": draw_weight_norms,
    "dora_magnitude": draw_dora_magnitude,
    "boundary_and_angle": draw_boundary_and_angle,
    "design_ablation": draw_design_ablation,
    "start_robustness": draw_start_robustness,
    "rank_robustness": draw_rank_robustness,
    "setting_robustness": draw_setting_robustness,
    "best_of_grid": draw_best_of_grid,
}


def driver_of(name: str) -> str | None:
    """The driver whose results a folder of this name holds: its own name, or that with more behind a dash; None if none."""
    driver = name.partition("-")[0]
    return driver if driver in GALLERY else None
