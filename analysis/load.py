"""Run folders, or a compact copy of them, as tidy frames. The unit of every frame is a row; nothing is averaged here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from adapters import BadInput, counted
from analysis.compact import CompactSource, is_compact
from analysis.folders import ENDED, GONE, NOT_RUN, FolderSource
from analysis.series import name_series

BASE = "base"
METRICS = ("dino", "clip_i", "clip_t")
DRIFT = "drift"  # how far pictures of unrelated prompts have moved; the lower the better
COSINE = (-1.0, 1.0)
# The values that a score, or a gauge of the dynamics, can have: no interval goes beyond them.
RANGES = dict.fromkeys(METRICS, COSINE) | {
    DRIFT: (0.0, 1.0), "saturation": (0.0, 1.0), "distance_rel": (0.0, inf), "transform_distance": (0.0, inf),
}  # fmt: skip
ANY = (-inf, inf)
# The fields in which an untouched base's run must agree with a run that is compared with it (`Cell.base`).
BASE_KEY = (
    "subject", "resolution", "num_prompts", "num_images", "num_inference_steps", "guidance_scale", "mixed_precision",
    "model_hash", "subject_hash", "scorer_hash",
)  # fmt: skip


class Source(Protocol):
    """Where frames come from. Every frame has the column `run_id`."""

    runs: pd.DataFrame
    matrices: pd.DataFrame

    def scores(self) -> pd.DataFrame: ...
    def dynamics(self, run_ids: Collection[str], columns: Sequence[str] | None) -> pd.DataFrame: ...
    def final_dynamics(self, run_ids: Collection[str]) -> pd.DataFrame: ...
    def trajectories(self, run_ids: Collection[str], matrix: str, columns: Sequence[str] | None) -> pd.DataFrame: ...
    def norms(self, run_ids: Collection[str]) -> pd.DataFrame: ...
    def steps(self, run_ids: Collection[str]) -> pd.DataFrame: ...
    def images(self, run_ids: Collection[str]) -> pd.DataFrame: ...
    def own_pictures(self) -> Mapping[str, Path | bytes]: ...


@dataclass(frozen=True, eq=False)
class Results:
    """The runs of one model, and what they left behind.

    Attributes:
        all_runs: one row a run (the untouched base's included; a run that goes by several names has a row for each):
            run_id, sweep, path, every field of the cell, every label (multiplier, scale, model, ...), status, diverged_step,
            num_parameters, seconds, commit; a planned run without a folder has the status "gone" or "not run". The column
            `series`, the name under which the run is drawn, is worked out here from the others.
        sources: where the other frames are read from, each at its first use.
    """

    all_runs: pd.DataFrame
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "all_runs", _named(self.all_runs))

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row a run, the untouched base's own left out."""
        return self.all_runs[(self.all_runs["method"] != BASE) & ~is_absent(self.all_runs)].reset_index(drop=True)

    @cached_property
    def base_runs(self) -> pd.DataFrame:
        """One row a run of the untouched base."""
        return self.all_runs[(self.all_runs["method"] == BASE) & ~is_absent(self.all_runs)].reset_index(drop=True)

    @property
    def missing(self) -> pd.DataFrame:
        """Planned runs that have not ended, or are not there any more: series, multiplier, subject, seed, status."""
        lost = self.all_runs[~self.all_runs["status"].isin(ENDED)].drop_duplicates("run_id")
        series = lost["series"].mask(lost["method"] == BASE, "untouched base")
        return lost.assign(series=series)[["series", "multiplier", "subject", "seed", "status"]].reset_index(drop=True)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Rows run_id, step, metric, prompt, value of the runs."""
        return self._gather(lambda source, _: source.scores(), self.runs)

    @cached_property
    def base(self) -> pd.DataFrame:
        """Rows run_id, metric, prompt, value of the untouched base, with the fields that say what it belongs to."""
        scores = self._gather(lambda source, _: source.scores(), self.base_runs).drop(columns="step")
        return scores.merge(self.base_runs[["run_id", *BASE_KEY]], on="run_id")

    def table(self) -> pd.DataFrame:
        """Every score with the run that it belongs to: what seaborn takes as `data`.

        Returns:
            One row a run, step and metric: series ("untouched base" for the base, whose method is "base", and whose multiplier
            and seed are missing), method, multiplier, subject, seed, step, metric, value (the mean over its pictures), run_id.
            A run that goes by several names or multipliers has rows for each.
        """
        scores = self._gather(lambda source, _: source.scores(), self.all_runs)
        keys = ["run_id", "step", "metric"]
        values = scores.groupby(keys, sort=False, observed=True)["value"].mean().reset_index()
        runs = self.all_runs[~is_absent(self.all_runs)]
        is_base = runs["method"] == BASE
        runs = runs.assign(series=runs["series"].mask(is_base, "untouched base"), seed=runs["seed"].mask(is_base))
        named = runs[["series", "method", "multiplier", "subject", "seed", "run_id"]].drop_duplicates()
        joined = named.merge(values, on="run_id")
        front = ["series", "method", "multiplier", "subject", "seed", "step", "metric", "value"]
        return joined[[*front, "run_id"]]

    @cached_property
    def matrices(self) -> pd.DataFrame:
        """Rows run_id, matrix, block, kind, attention, num_out, num_in, base_norm of every run."""
        return self._gather(lambda source, _: source.matrices, self.all_runs)

    def dynamics(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Rows run_id, step, matrix and the gauges (`columns`, None for all); `distance_rel` is derived here.

        Raises:
            BadInput: if a column is unknown, or if this is a compact copy, which holds no full dynamics.
        """
        return self._gather(lambda source, ids: source.dynamics(ids, columns), self.runs)

    @cached_property
    def final_dynamics(self) -> pd.DataFrame:
        """The dynamics' rows of the last step of every run."""
        return self._gather(lambda source, ids: source.final_dynamics(ids), self.runs)

    def trajectories(self, matrix: str = "mean", columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Rows run_id, step and the gauges (`columns`, None for all) of one matrix, or their means over all matrices ("mean").

        Raises:
            BadInput: if a column or the matrix is unknown; the message lists the known ones.
        """
        return self._gather(lambda source, ids: source.trajectories(ids, matrix, columns), self.runs)

    def norms(self) -> pd.DataFrame:
        """Rows run_id, step, matrix and the weight norms at the snapshots; step 0 is the base."""
        return self._gather(lambda source, ids: source.norms(ids), self.all_runs)

    def steps(self) -> pd.DataFrame:
        """Rows run_id, step, loss, grad_norm, lr, lr_lambda, seconds."""
        return self._gather(lambda source, ids: source.steps(ids), self.runs)

    def images(self) -> pd.DataFrame:
        """Rows run_id, step, prompt, seed, file of every picture, the untouched base's included; a copy holds a few of them.

        `file` is a full path, or, in a compact copy, the PNG itself as bytes.
        """
        return self._gather(lambda source, ids: source.images(ids), self.all_runs)

    def own_pictures(self) -> dict[str, Path | bytes]:
        """A photograph of each subject (a path, or a PNG's bytes), of the subjects whose sweeps keep one."""
        found: dict[str, Path | bytes] = {}
        for source in self.sources[::-1]:
            found |= source.own_pictures()
        return {str(name): found[name] for name in self.runs["subject"].unique() if name in found}

    def select(self, run_ids: Collection[str] | None = None, **fields: Any) -> Results:
        """Keep some runs; the untouched base's stay.

        Args:
            run_ids: the runs to keep; None keeps all.
            **fields: columns of `runs`, each with the value, or a list of the values, to keep.

        Raises:
            BadInput: if a field is unknown, or if no run is left; the message lists what there is.
        """
        kept = self.all_runs["method"] == BASE
        wanted = ~kept if run_ids is None else self.all_runs["run_id"].isin(set(run_ids)) & ~kept
        for name, value in fields.items():
            wanted &= self._matches(name, value)
        if not (wanted & ~is_absent(self.all_runs)).any():
            asked = ", ".join(f"{name}={value}" for name, value in fields.items()) or "the given run ids"
            raise BadInput(
                f"no run matches {asked}; there are {counted(len(self.runs), 'run')} of {_list(self.runs['series'])}"
            )
        return Results(self.all_runs[kept | wanted], self.sources)

    def _matches(self, name: str, value: Any) -> pd.Series:
        if name not in self.all_runs:
            raise BadInput(f"unknown field {name!r} of a run; known: {', '.join(self.all_runs.columns)}")
        allowed = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
        return self.all_runs[name].isin(allowed)

    def _gather(self, read: Callable[[Source, set[str]], pd.DataFrame], runs: pd.DataFrame) -> pd.DataFrame:
        """Read from every source the rows of those runs that it owns."""
        frames = []
        for number, source in enumerate(self.sources):
            ids = set(runs.loc[runs["source"] == number, "run_id"])
            frame = read(source, ids)
            frames.append(frame[frame["run_id"].isin(ids)])
        return _stack(frames)


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
    sources = tuple(_source(Path(root)) for root in roots)
    if not sources:
        raise BadInput("no results folder given; allowed: one or more runs folders")
    runs = _with_defaults(_stack([source.runs.assign(source=number) for number, source in enumerate(sources)]))
    there = runs.assign(absent=is_absent(runs)).sort_values(["absent", "source"], kind="stable")
    first = there.groupby("run_id", sort=False)["source"].transform("first").reindex(runs.index)
    return Results(_scored_alike(_one_model(runs[runs["source"] == first].reset_index(drop=True), model)), sources)


def is_absent(runs: pd.DataFrame) -> pd.Series:
    """Which of the runs were planned and have no folder."""
    return runs["status"].isin((GONE, NOT_RUN))


def _with_defaults(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs from before a field existed, and those that leave it alone, have its default."""
    count = runs["num_instance_images"] if "num_instance_images" in runs else pd.Series(0, runs.index)
    return runs.assign(num_instance_images=pd.to_numeric(count).fillna(0).astype(int))


def _source(root: Path) -> Source:
    if not root.is_dir():
        raise BadInput(f"no results folder {root}: give a folder that a sweep has written, such as runs/")
    return CompactSource(root) if is_compact(root) else FolderSource(root)


def _one_model(runs: pd.DataFrame, model: str | None) -> pd.DataFrame:
    """Keep one model's runs, and the untouched base's runs of it."""
    known = (
        runs["model_hash"].astype(object).where(runs["model_hash"].notna(), "unknown")
    )  # of a watched loop it is not
    names = runs["model"].astype(object).where(runs["model"].notna(), known)
    if model is not None:
        kept = runs[(names == model) | (known == model)]
        if kept.empty:
            raise BadInput(f"no runs of model {model!r}; there are runs of {_list(names)}")
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


def _named(runs: pd.DataFrame) -> pd.DataFrame:
    runs = runs.reset_index(drop=True)
    return runs.assign(series=name_series(runs))


def _stack(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put frames below each other; empty ones give only their columns."""
    filled = [frame for frame in frames if len(frame)] or list(frames[:1])
    if len(filled) == 1:
        return filled[0].reset_index(drop=True)
    columns = list(dict.fromkeys(column for frame in filled for column in frame.columns))
    return pd.DataFrame({name: _column(filled, name) for name in columns})


def _column(frames: Sequence[pd.DataFrame], name: str) -> pd.Series:
    parts = [frame[name] if name in frame else pd.Series([None] * len(frame), dtype=object) for frame in frames]
    if len({str(part.dtype) for part in parts}) > 1:
        parts = [part.astype(object) for part in parts]
    return pd.concat(parts, ignore_index=True).infer_objects()


def _list(values: pd.Series) -> str:
    return ", ".join(str(value) for value in values.dropna().unique()) or "nothing"
