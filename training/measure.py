"""Measure how far a checkpoint moves each matrix, from its factors alone where they suffice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from adapters.attach_checkpoint import build_adapter
from adapters.checkpoint import Checkpoint, check_norms
from adapters.layer_names import TEXT_ENCODERS
from adapters.peft_folder import merge
from training.base_norms import where
from training.base_weights import BaseWeights


@torch.no_grad()
def measure(checkpoint: Checkpoint, base: BaseWeights | None) -> pd.DataFrame:
    """The distance of every matrix.

    Args:
        checkpoint: any adapter.
        base: the pretrained weights; None where they are not at hand.

    Returns:
        Rows matrix, component ("unet", "text_encoder" or "text_encoder_2"), block, attention, kind, rank, num_out, num_in,
        distance (||W_t - W_0||_F; nan where it depends on an absent W_0), base_norm and distance_rel (nan without a base).

    Raises:
        BadInput: the checkpoint is of another model; the first matrix that does not fit is named.
    """
    rows = []
    for path, distance, norm in _distances(checkpoint, base):
        component = path.partition(".")[0] if path.startswith(TEXT_ENCODERS) else "unet"
        place = where(path) if component == "unet" else _where_in_clip(path.removeprefix(f"{component}."))
        num_out, num_in = _sizes(checkpoint.shapes[path])
        rows.append(
            {"matrix": path, "component": component, **place, "rank": checkpoint.ranks.get(path, checkpoint.rank),
             "num_out": num_out, "num_in": num_in, "distance": distance, "base_norm": norm,
             "distance_rel": distance / norm if norm else np.nan}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _distances(checkpoint: Checkpoint, base: BaseWeights | None) -> Iterator[tuple[str, float, float]]:
    """(path, distance, norm of W0) of every matrix; nan for what an absent base leaves open."""
    if base is not None and checkpoint.config:
        for one in changes(checkpoint, base):
            yield one.path, float(one.delta.norm()), float(one.weight.double().norm())
        return
    for path in checkpoint.shapes:
        distance, norm = np.nan, np.nan
        if base is not None:
            weight = _fitting(checkpoint, path, base)
            norm = float(weight.double().norm())
            distance = float(build_adapter(checkpoint, path, weight).distance()[0])
        elif not checkpoint.needs_base:
            distance = float(build_adapter(checkpoint, path, _stand_in(checkpoint, path)).distance()[0])
        yield path, distance, norm


def _sizes(shape: tuple[int, ...]) -> tuple[int | float, int | float]:
    """Rows and columns, nan where they are not known."""
    num_out, num_in = (shape[0], int(np.prod(shape[1:]))) if shape else (0, 0)
    return num_out or np.nan, num_in or np.nan


class Change(NamedTuple):
    """What an adapter does to one matrix.

    Attributes:
        path: the matrix.
        delta: W_t - W_0, double precision.
        weight: W_0.
        bias: the layer's new bias, where the adapter changes that too, as (IA)^3 does; None for most.
    """

    path: str
    delta: Float[Tensor, "out in"]
    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"] | None


@torch.no_grad()
def changes(checkpoint: Checkpoint, base: BaseWeights) -> Iterator[Change]:
    """The change of every matrix.

    Raises:
        BadInput: the checkpoint is of another model; the first matrix that does not fit is named.
    """
    if checkpoint.config:
        yield from _merged_changes(checkpoint, base)
        return
    for path in checkpoint.shapes:
        weight = _fitting(checkpoint, path, base)
        double = weight.double()
        yield Change(path, build_adapter(checkpoint, path, double).weight()[0] - double, weight, None)


def _merged_changes(checkpoint: Checkpoint, base: BaseWeights) -> Iterator[Change]:
    weights = {path: _fitting(checkpoint, path, base) for path in checkpoint.shapes}
    biases = {path: bias for path in weights if (bias := base.read_bias(path)) is not None}
    for path, (merged, bias) in merge(checkpoint, weights, biases).items():
        kept = bias is None or torch.equal(bias, biases[path])
        yield Change(path, merged.double() - weights[path].double(), weights[path], None if kept else bias)


def by_block(rows: pd.DataFrame) -> pd.DataFrame:
    """The norm over all matrices of a block together: the root of the sum of squares, for distance and base."""
    squares = rows.assign(distance=rows["distance"] ** 2, base_norm=rows["base_norm"] ** 2)
    grouped = squares.groupby(["component", "block"], sort=False)
    sums = grouped[["distance", "base_norm"]].sum(min_count=1).pow(0.5)
    sums["distance_rel"] = sums["distance"] / sums["base_norm"]
    return sums.assign(num_matrices=grouped.size()).reset_index()


def write_table(rows: pd.DataFrame, file: Path) -> None:
    """One row a matrix, as CSV with eight digits."""
    rows.to_csv(file, index=False, float_format="%.8g")


def _fitting(checkpoint: Checkpoint, path: str, base: BaseWeights) -> Tensor:
    weight = base.read(path, checkpoint.source)
    if weight.ndim == 2:
        check_norms(checkpoint, path, weight)
    return weight


def _stand_in(checkpoint: Checkpoint, path: str) -> Tensor:
    """A weight of the right shape that has, where the checkpoint stores them, W0's column norms; else zeros."""
    weight = torch.zeros(checkpoint.shapes[path])
    if path in checkpoint.norms:
        norms = checkpoint.norms[path]
        scalar = checkpoint.spec.options["norm"] == "scalar"
        weight[0] = norms / len(norms) ** 0.5 if scalar else norms
    return weight


def _where_in_clip(path: str) -> dict[str, str]:
    parts = path.split(".")
    layer = f"layers.{parts[parts.index('layers') + 1]}" if "layers" in parts[:-1] else parts[0]
    return {"block": layer, "kind": parts[-1], "attention": parts[-2] if len(parts) > 1 else ""}
