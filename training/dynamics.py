"""Read the weights while they train: distances, gauges, angular steps, and snapshots of the norms.

Every quantity is computed for all same-shaped matrices of a pack at once and kept on the device until it is flushed,
so that recording never waits for an accelerator.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from adapters.base import Adapter
from adapters.device import is_free_to_ask
from adapters.exact import exactly
from adapters.pack import Attached
from training.spectra import count_intruders, update_spectra
from training.store import COLUMNS, RunFolder


class Dynamics:
    """Rows (step, matrix) of one pack, buffered between flushes.

    Args:
        attached: the pack's adapters.
        spectra: whether snapshots hold the updates' spectra, and the last one intruder dimensions.
    """

    columns = tuple(name for name in COLUMNS["dynamics"] if name not in ("step", "matrix"))

    def __init__(self, attached: Attached, *, spectra: bool = False) -> None:
        self.attached, self.spectra = attached, spectra
        self.paths = [path for stack in attached.stacks for path in stack.paths]
        self._rows: list[tuple[int, dict[str, Tensor]]] = []
        self._snapshots: list[tuple[int, dict[str, Tensor]]] = []
        self._before: list[dict[str, Directions]] = [{} for _ in attached.stacks]
        self._last = [0.0] * attached.num_replicas

    @torch.no_grad()
    def remember(self) -> None:
        """Take the present directions as those that the next angular step starts from."""
        for number, stack in enumerate(self.attached.stacks):
            self._before[number] = {name: Directions.of(rows.clone()) for name, rows in stack.adapter.factors().items()}

    @exactly
    @torch.no_grad()
    def record(self, step: int) -> None:
        """Read every gauge of every matrix after `step`."""
        adapters = [stack.adapter for stack in self.attached.stacks]
        now = [{name: Directions.of(rows) for name, rows in adapter.factors().items()} for adapter in adapters]
        row = side_by_side([adapter.readings() for adapter in adapters]) | self._turns(now)
        for before, after in zip(self._before, now):
            for name, kept in before.items():
                before[name] = Directions(kept.rows.copy_(after[name].rows), after[name].squares)
        largest = torch.finfo(torch.float32).max
        held = {name: value.clamp(max=largest).float() for name, value in row.items() if name in self.columns}
        self._rows.append((step, held))

    def _turns(self, now: list[dict[str, Directions]]) -> dict[str, Float[Tensor, "k matrices"]]:
        """Norms and angular steps; in double precision for replicas whose squares leave the range of float32."""
        values = side_by_side([norms_and_angles(*pair) for pair in zip(now, self._before)])
        if not values:
            return {}  # a method without directions: a user's own, or PEFT's
        wild = ~torch.stack([torch.isfinite(value).all(dim=1) for value in values.values()]).all(dim=0)
        if not is_free_to_ask(wild) or bool(wild.any()):
            pairs = [
                [{name: d.double() for name, d in side.items()} for side in pair] for pair in zip(now, self._before)
            ]
            exact = side_by_side([norms_and_angles(*pair) for pair in pairs])
            values = {name: torch.where(wild[:, None], exact[name], value) for name, value in values.items()}
        return values

    @torch.no_grad()
    def snapshot(self, step: int, *, is_last: bool = False) -> None:
        """Read the weight norms of every matrix, and how far magnitudes and directions have moved (DoRA's analysis)."""
        blocks = []
        for adapter in (stack.adapter for stack in self.attached.stacks):
            block = norm_statistics(adapter)
            if self.spectra:
                block |= update_spectra(adapter)
                unknown = torch.full_like(block["effective_rank"], torch.nan)
                block["intruders"] = count_intruders(adapter).to(unknown) if is_last else unknown
            blocks.append(block)
        self._snapshots.append((step, {name: torch.cat([b[name] for b in blocks], dim=1) for name in blocks[0]}))

    def last_distances(self) -> list[float]:
        """The mean distance over the matrices at the last record, for a progress display."""
        if self._rows:
            self._last = self._rows[-1][1]["distance"].mean(dim=1).tolist()
        return self._last

    def flush(self, folders: Sequence[RunFolder | None], last_step: int) -> None:
        """Write what is buffered as one part of each run, and forget it. A run given as None is not written."""
        parts = []
        for kind, rows in (("dynamics", self._rows), ("norms", self._snapshots)):
            if not rows:
                continue
            steps = np.repeat(np.array([step for step, _ in rows], dtype=np.int32), len(self.paths))
            names = pa.array(np.tile(np.arange(len(self.paths), dtype=np.int32), len(rows)))
            matrix = pa.DictionaryArray.from_arrays(names, pa.array(self.paths))
            stacked = {name: torch.stack([row[name] for _, row in rows]).cpu().numpy() for name in rows[0][1]}
            for replica, folder in enumerate(folders):
                if folder is not None:
                    values = {name: array[:, replica].reshape(-1) for name, array in stacked.items()}
                    parts.append((folder, kind, {"step": steps, "matrix": matrix, **values}))
        with ThreadPoolExecutor(max_workers=8) as pool:  # so that their waits for the disk overlap
            list(pool.map(lambda part: part[0].append(*part[1:], last_step), parts))
        self.last_distances()
        self._rows.clear()
        self._snapshots.clear()


class Directions(NamedTuple):
    """Factors as rows, with the squares of their norms.

    Attributes:
        rows: the factors.
        squares: squared norm of each.
    """

    rows: Float[Tensor, "k m n dim"]
    squares: Float[Tensor, "k m n"]

    @classmethod
    def of(cls, rows: Float[Tensor, "k m n dim"]) -> Directions:
        """The rows with their squared norms."""
        return cls(rows, rows.square().sum(dim=-1))

    def double(self) -> Directions:
        """The same in double precision."""
        return Directions.of(self.rows.double())


def norms_and_angles(now: dict[str, Directions], before: dict[str, Directions]) -> dict[str, Float[Tensor, "k m"]]:
    """Mean norm of the directions, and the mean angle in radians that they turned since `before`, for each factor.

    The angle comes from the change itself, not from a cosine, so that a turn of 1e-6 is still seen in float32:
    tan(angle) = ‖rejection of the new direction from the old‖ / projection.
    """
    values = {}
    for name, (rows, squares) in now.items():
        values[f"norm_{name}"] = squares.sqrt().mean(dim=-1)
        if name in before:
            change = rows - before[name].rows
            along = (change * before[name].rows).sum(dim=-1)
            old = before[name].squares.clamp(min=torch.finfo(squares.dtype).tiny)
            rejected = change.addcmul_((along / old)[..., None], before[name].rows, value=-1).square_().sum(dim=-1)
            values[f"angle_{name}"] = torch.atan2(rejected.sqrt(), (old + along) / old.sqrt()).mean(dim=-1)
    return values


def side_by_side(stacks: list[dict[str, Float[Tensor, "k _"]]]) -> dict[str, Float[Tensor, "k matrices"]]:
    """Values of all stacks, matrix after matrix; nan where a stack has no such value."""
    if not all(stacks):
        return {}
    blank = [torch.full_like(next(iter(values.values())), torch.nan) for values in stacks]
    names = dict.fromkeys(name for values in stacks for name in values)
    return {name: torch.cat([v.get(name, b) for v, b in zip(stacks, blank)], dim=1) for name in names}


@exactly
def norm_statistics(adapter: Adapter) -> dict[str, Float[Tensor, "k m"]]:
    """Mean and spread of column and row norms, and DoRA's ΔM and ΔD along both axes (arXiv 2402.09353, Eq. 3 and 4).

    Rows are the output axis, columns the input axis, of torch's `[out, in]`. ΔM is the mean absolute change of the
    norms, ΔD the mean of 1 - cos between present and pretrained vectors. In double precision, and a matrix at a time, so that it
    stays in the cache; entries beyond float32 count as its largest number.
    """
    weight = torch.nan_to_num(adapter.weight())
    base = adapter.base_weight().expand(weight.shape[1:])
    each = [[_norm_statistics(*pair) for pair in zip(_matrices(one), _matrices(base), strict=True)] for one in weight]
    largest, leading = torch.finfo(torch.float32).max, weight.shape[:-2]
    values = {name: torch.stack([m[name] for row in each for m in row]).view(leading) for name in each[0][0]}
    return {name: value.clamp(max=largest).float() for name, value in values.items()}


def _matrices(weight: Float[Tensor, "*m out in"]) -> Sequence[Float[Tensor, "out in"]]:
    return weight.flatten(0, -3).unbind() if weight.ndim > 2 else [weight]


FAR = 1e3
"""Ratio of norms from which the cosine itself is exact, and the law of cosines subtracts numbers that are nearly equal."""


def _norm_statistics(weight: Float[Tensor, "out in"], base: Float[Tensor, "out in"]) -> dict[str, Float[Tensor, ""]]:
    values: dict[str, Tensor] = {}
    weight, base = weight.double(), base.double()
    tiny = torch.finfo(weight.dtype).tiny
    parts = [weight.square(), base.square(), (weight - base).square(), weight * base]
    for axis, name, dim in (("cols", "colnorm", -2), ("rows", "rownorm", -1)):
        now, start, moved, product = (part.sum(dim=dim) for part in parts)  # norm(dim=-2) is six times slower on a CPU
        now, start = now.sqrt(), start.sqrt()
        values[f"{name}_mean"], values[f"{name}_sd"] = now.mean(), now.std(correction=0)
        grown = now - start
        values[f"dm_{axis}"] = grown.abs().mean()
        sizes = (now * start).clamp(min=tiny)
        near = (moved - grown.square()).clamp(min=0) / (2 * sizes)  # law of cosines: 2 |w| |w0| (1 - cos)
        far = (now > FAR * start) & (start > 0)
        values[f"dd_{axis}"] = torch.where(far, 1 - product / sizes, near).mean()
    return values
