"""Reuse results from elsewhere, a compact copy or another runs folder: what they hold is not trained again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from adapters.errors import BadInput
from analysis import load
from sweeps.grid import ResolvedInputs
from training.cell import Cell, TrainingFlags
from training.states import ENDED


@dataclass(frozen=True)
class EarlierResults:
    """Ended runs that other folders hold.

    Attributes:
        folders: where they lie.
        by_end: their names, by the end of the name, which stands for everything that decides the result.
    """

    folders: tuple[Path, ...] = ()
    by_end: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folders: Sequence[Path], inputs: ResolvedInputs) -> EarlierResults:
        """Look through folders.

        Raises:
            BadInput: for a folder without results, or with those of another model or other scorers.
        """
        found: dict[str, str] = {}
        for folder in folders:
            runs = load(folder).all_runs
            if others := set(runs["model_hash"]) - {inputs.model_hash}:
                raise BadInput(
                    f"--results {folder} is of model {runs['model'].iloc[0]} ({others.pop()}), not of "
                    f"{inputs.model_name} ({inputs.model_hash})"
                )
            if others := set(runs["scorer_hash"].dropna()) - {inputs.shared["scorer_hash"], ""}:
                raise BadInput(
                    f"--results {folder} was scored by other scorers ({others.pop()}) than --dino {inputs.setting.dino}, "
                    f"--clip {inputs.setting.clip} ({inputs.shared['scorer_hash']})"
                )
            names = runs.loc[runs["status"].isin(ENDED), "run_id"]
            found |= {_end(name): name for name in names if _end(name) not in found}
        return cls(tuple(folders), found)

    def find(self, cell: Cell) -> str | None:
        """The name of a cell's run; None if none of the folders holds it."""
        return self.by_end.get(_end(cell.run_id("")))

    def describe_unlike(self, cell: Cell) -> str:
        """A line that says that none of the runs is one of those that are asked for, and by which settings they differ."""
        runs, unlike = [load(folder).runs for folder in self.folders], []
        for name in (each.name for each in fields(TrainingFlags)):
            known = {_hashable(value) for found in runs if name in found for value in found[name].dropna()}
            asked = _hashable(getattr(cell, name))
            if known and asked not in known:
                unlike.append(f"{name} is {_said(known)} there, {asked} here")
        why = "; ".join(unlike) or "other methods, rates or subjects"
        return f"--results {' '.join(map(str, self.folders))} holds none of these runs: {why}"


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple | np.ndarray) else value


def _said(values: Iterable[Any]) -> str:
    known = sorted(map(str, values))
    return known[0] if len(known) == 1 else f"one of {', '.join(known)}"


def _end(run_id: str) -> str:
    return run_id.rpartition("-")[2]
