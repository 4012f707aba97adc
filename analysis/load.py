"""Find run folders or a compact copy, and open them as one `Results`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from adapters.errors import BadInput
from adapters.words import counted
from analysis.compact_source import CompactSource, is_compact
from analysis.copy_parts import parts
from analysis.folders import FolderSource
from analysis.results import BASE, Results, Source, is_absent, listed, stack
from training.cell import NEWER, NUMBERS


def load(*roots: Path | str, model: str | None = None) -> Results:
    """Load every run below the folders.

    Args:
        *roots: runs folders, single sweeps of one, or compact copies (`export_compact`). A run that is found twice
            is taken from the first.
        model: keep the runs of this model only, by its label or hash; None wants all runs to be of one model.

    Raises:
        BadInput: if a folder is missing, holds no runs, or holds runs of more than one model or scored by different
            scorers (both are named), or if a file is damaged.
    """
    sources = tuple(source for root in roots for source in _sources(Path(root)))
    if not sources:
        raise BadInput("no results folder given; allowed: one or more runs folders")
    runs = _with_defaults(stack([source.runs.assign(source=number) for number, source in enumerate(sources)]))
    there = runs.assign(absent=is_absent(runs)).sort_values(["absent", "source"], kind="stable")
    first = there.groupby("run_id", sort=False)["source"].transform("first").reindex(runs.index)
    return Results(_scored_alike(_one_model(runs[runs["source"] == first].reset_index(drop=True), model)), sources)


def _with_defaults(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs from before a number or a choice of the cell existed, and those that leave it alone, have its default."""
    filled = {}
    for name, default in NEWER.items():
        if name in NUMBERS:
            values = runs[name] if name in runs else pd.Series(default, runs.index)
            filled[name] = pd.to_numeric(values).fillna(default).astype(type(default))
        elif isinstance(default, str) and default and name in runs:
            filled[name] = runs[name].astype(object).fillna(default)
    return runs.assign(**filled)


def _sources(root: Path) -> list[Source]:
    if not root.is_dir():
        raise BadInput(f"no results folder {root}: give a folder that a sweep has written, such as runs/")
    return [CompactSource(part) for part in parts(root)] if is_compact(root) else [FolderSource(root)]


def _one_model(runs: pd.DataFrame, model: str | None) -> pd.DataFrame:
    """Keep one model's runs, and the base model's runs of it."""
    known = (
        runs["model_hash"].astype(object).where(runs["model_hash"].notna(), "unknown")
    )  # of a watched loop it is not
    names = runs["model"].astype(object).where(runs["model"].notna(), known)
    if model is not None:
        kept = runs[(names == model) | (known == model)]
        if kept.empty:
            raise BadInput(f"no runs of model {model!r}; there are runs of {listed(names)}")
        return _one_model(kept, None)
    trained = runs["method"] != BASE
    hashes = known[trained if trained.any() else runs.index].unique()
    if len(hashes) > 1:
        found = [f"{names[known == value].iloc[0]} ({value[:10]})" for value in hashes]
        raise BadInput(f"runs of {len(hashes)} models in one folder: {', '.join(found)}; load them apart (model=...)")
    return runs[known.isin(hashes)]


def _scored_alike(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, if one pair of scorers has scored them all: numbers of two are no curve."""
    scored = runs[runs["scorer_hash"].notna() & (runs["scorer_hash"] != "")]
    sweeps = scored.groupby("scorer_hash", sort=False)["sweep"].first()
    if len(sweeps) > 1:
        found = [f"{str(scorers)[:10]} (in {sweep})" for scorers, sweep in sweeps.items()]
        raise BadInput(
            f"runs scored by {counted(len(found), 'pair')} of scorers in one folder: {', '.join(found)}; load them apart"
        )
    return runs
