"""The runs of one model as tidy frames: one row for each observation, nothing averaged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from adapters.errors import BadInput
from adapters.method_words import BASE_MODEL
from adapters.words import counted
from analysis.folders import GONE, NOT_RUN
from analysis.series import name_series
from training.cell import BASE, FLAGS, NEWER
from training.states import ENDED
from training.store import COLUMNS
from training.task_kinds import PICTURES, TaskKind, kind_of

# The fields in which a base model's run must agree with a run that is compared with it (`Cell.base`).
OF_TASK = ("task", "task_options")
BASE_KEY = (*(name for name, flag in FLAGS.items() if flag.changes_base and not flag.added_later), *OF_TASK)


class Source(Protocol):
    """Where frames come from. Every frame has the column `run_id`."""

    runs: pd.DataFrame
    matrices: pd.DataFrame

    def scores(self) -> pd.DataFrame: ...
    def dynamics(self, run_ids: Collection[str], columns: Sequence[str] | None) -> pd.DataFrame: ...
    def final_dynamics(self, run_ids: Collection[str]) -> pd.DataFrame: ...
    def trajectories(self, run_ids: Collection[str], matrix: str, columns: Sequence[str] | None) -> pd.DataFrame: ...
    def norms(self, run_ids: Collection[str]) -> pd.DataFrame: ...
    def blocks(self, run_ids: Collection[str]) -> pd.DataFrame: ...
    def steps(self, run_ids: Collection[str]) -> pd.DataFrame: ...
    def losses(self, run_ids: Collection[str]) -> pd.DataFrame: ...
    def sharpness(self, run_ids: Collection[str]) -> pd.DataFrame: ...
    def images(self, run_ids: Collection[str]) -> pd.DataFrame: ...
    def own_pictures(self) -> Mapping[str, Path | bytes]: ...
    def controls(self, run_ids: Collection[str]) -> pd.DataFrame: ...


@dataclass(frozen=True, eq=False)
class Results:
    """The runs of one model, and what they left behind.

    Attributes:
        all_runs: one row a run (the base model's included; a run that goes by several names has a row for each):
            run_id, sweep, path, every field of the cell, every label (multiplier, scale, model, ...), status, diverged_step,
            num_parameters, seconds, commit; a planned run without a folder has the status "gone" or "not run". The column
            `series`, the name under which the run is drawn, is worked out here from the others.
        sources: where the other frames are read from, each at its first use.
        prompts: the only ones whose scores count; None for all.
    """

    all_runs: pd.DataFrame
    sources: tuple[Source, ...]
    prompts: frozenset[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "all_runs", _named(self.all_runs))

    @cached_property
    def kind(self) -> TaskKind:
        """The task of the runs; those that name none are DreamBooth's.

        Raises:
            BadInput: if the runs are of two tasks, or of one that is not installed.
        """
        names = _task_names(self.all_runs)
        if len(names) > 1:
            raise BadInput(f"runs of {' and '.join(names)} are of two tasks, and cannot be compared: give one of them")
        return kind_of(names[0] if names else PICTURES)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row a run, the base model's own left out."""
        return self.all_runs[(self.all_runs["method"] != BASE) & ~is_absent(self.all_runs)].reset_index(drop=True)

    @cached_property
    def base_runs(self) -> pd.DataFrame:
        """One row a run of the base model."""
        return self.all_runs[(self.all_runs["method"] == BASE) & ~is_absent(self.all_runs)].reset_index(drop=True)

    @property
    def missing(self) -> pd.DataFrame:
        """Planned runs that have not ended, or are not there any more: series, multiplier, subject, seed, status."""
        lost = self.all_runs[~self.all_runs["status"].isin(ENDED)].drop_duplicates("run_id")
        series = lost["series"].mask(lost["method"] == BASE, BASE_MODEL)
        return lost.assign(series=series)[["series", "multiplier", "subject", "seed", "status"]].reset_index(drop=True)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Rows run_id, step, metric, prompt, value of the runs."""
        return self._scores(self.runs)

    @cached_property
    def base(self) -> pd.DataFrame:
        """Rows run_id, metric, prompt, value of the base model, with the fields that say what it belongs to."""
        scores = self._scores(self.base_runs).drop(columns="step")
        return scores.merge(self.base_runs[["run_id", *BASE_KEY]], on="run_id")

    @cached_property
    def controls(self) -> pd.DataFrame:
        """Rows run_id, subject, metric, kind, picture, against, value: the scorers' controls of the runs' subjects.

        Each picture's score against each of the subject's photographs, where they were measured: of one base model's run a
        subject.
        """
        compared = self.base_runs.drop_duplicates("run_id").merge(self.runs[list(BASE_KEY)].drop_duplicates())
        rows = self._gather(lambda source, ids: source.controls(ids), compared)
        found = rows.astype({"run_id": str}).merge(compared[["run_id", "subject"]].astype(str), on="run_id")
        first = found.groupby("subject")["run_id"].transform("first")
        kept = found[found["run_id"] == first].reset_index(drop=True)
        return kept[["run_id", "subject", *COLUMNS["controls"]]]

    def table(self) -> pd.DataFrame:
        """Every score with the run that it belongs to: what seaborn takes as `data`.

        Returns:
            One row a run, step and metric: series ("base model" for the base, whose method is "base", and whose multiplier
            and seed are missing), method, multiplier, subject, seed, step, metric, value (the mean over its pictures), run_id.
            A run that goes by several names or multipliers has rows for each.
        """
        scores = self._scores(self.all_runs)
        keys = ["run_id", "step", "metric"]
        values = scores.groupby(keys, sort=False, observed=True)["value"].mean().reset_index()
        runs = self.all_runs[~is_absent(self.all_runs)]
        is_base = runs["method"] == BASE
        runs = runs.assign(series=runs["series"].mask(is_base, BASE_MODEL), seed=runs["seed"].mask(is_base))
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

    def blocks(self) -> pd.DataFrame:
        """Rows run_id, step, block and means over the block's matrices (`analysis.block_means.STORED`), at few steps."""
        return self._gather(lambda source, ids: source.blocks(ids), self.runs)

    def steps(self) -> pd.DataFrame:
        """Rows run_id, step, loss, grad_norm, lr, lr_lambda, seconds."""
        return self._gather(lambda source, ids: source.steps(ids), self.runs)

    def losses(self) -> pd.DataFrame:
        """Rows run_id, loss: the mean training loss over the last fifth of a run's steps, of a diverged one before it diverged.

        Runs of one subject and seed see the same noise at a step, so that their losses can be compared.
        """
        return self._gather(lambda source, ids: source.losses(ids), self.runs)

    def sharpness(self) -> pd.DataFrame:
        """Rows run_id, step, sharpness of the steps at which it was measured (`--sharpness-steps`)."""
        return self._gather(lambda source, ids: source.sharpness(ids), self.runs)

    def images(self) -> pd.DataFrame:
        """Rows run_id, step, prompt, seed, file of every picture, the base model's included; a copy holds a few of them.

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
        """Keep some runs; the base model's stay.

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
                f"no run matches {asked}; there are {counted(len(self.runs), 'run')} of {listed(self.runs['series'])}"
            )
        return replace(self, all_runs=self.all_runs[kept | wanted])

    def at_prompts(self, prompts: Collection[str]) -> Results:
        """The same runs, scored by these prompts alone.

        Raises:
            BadInput: if one of them was not asked of these runs.
        """
        if missing := sorted(set(prompts) - set(self.scores["prompt"])):
            raise BadInput(f"no picture of these runs was asked for {missing[0]!r}")
        return replace(self, prompts=frozenset(prompts))

    def _matches(self, name: str, value: Any) -> pd.Series:
        if name not in self.all_runs:
            raise BadInput(f"unknown field {name!r} of a run; known: {', '.join(self.all_runs.columns)}")
        allowed = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
        return self.all_runs[name].isin(allowed)

    def _scores(self, runs: pd.DataFrame) -> pd.DataFrame:
        found = self._gather(lambda source, _: source.scores(), runs)
        return found if self.prompts is None else found[found["prompt"].isin(self.prompts)].reset_index(drop=True)

    def _gather(self, read: Callable[[Source, set[str]], pd.DataFrame], runs: pd.DataFrame) -> pd.DataFrame:
        """Read from every source the rows of those runs that it owns."""
        frames = []
        for number, source in enumerate(self.sources):
            ids = set(runs.loc[runs["source"] == number, "run_id"])
            frame = read(source, ids)
            frames.append(frame[frame["run_id"].isin(ids)])
        return stack(frames)


def _task_names(runs: pd.DataFrame) -> list[str]:
    """The tasks of runs (of the base model's, where there are no others), in their order."""
    if "task" not in runs:
        return []
    trained = runs["method"] != BASE
    given = runs.loc[trained if trained.any() else runs.index, "task"].astype(object)
    named = given.where(given.notna() & (given != ""), PICTURES)
    return [str(name) for name in named.unique()]


def is_absent(runs: pd.DataFrame) -> pd.Series:
    """Which of the runs were planned and have no folder."""
    return runs["status"].isin((GONE, NOT_RUN))


def _named(runs: pd.DataFrame) -> pd.DataFrame:
    missing = {name: NEWER[name] for name in OF_TASK if name not in runs}
    runs = runs.assign(**missing).reset_index(drop=True)
    runs = runs.assign(**{name: runs[name].astype(object).fillna(NEWER[name]) for name in OF_TASK})
    return runs.assign(series=name_series(runs))


def stack(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
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


def listed(values: pd.Series) -> str:
    """The different values in a row of words; "nothing" where there are none."""
    return ", ".join(str(value) for value in values.dropna().unique()) or "nothing"
