"""Weight norms of an untrained U-Net, read directly from its safetensors: seconds on any diffusers folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from adapters.method_words import BASE_MODEL
from adapters.tensor_file import open_safetensors
from training.tasks.pipeline import attention_shapes


def base_norms(folder: Path, axis: str = "columns") -> pd.DataFrame:
    """The norms of every attention projection of a diffusers pipeline's folder: `norms_by_block` of them."""
    return norms_by_block(read_weights(folder, attention_shapes(folder)), axis)


def read_weights(folder: Path, paths: Collection[str]) -> Iterator[tuple[str, Float[Tensor, "out in"]]]:
    """Some matrices of the U-Net in a pipeline's folder, with their paths, one after the other."""
    for path in sorted((folder / "unet").glob("*.safetensors")):
        with open_safetensors(path) as file:
            for stem in sorted(set(paths) & {name.removesuffix(".weight") for name in file.keys()}):  # noqa: SIM118
                yield stem, file.get_tensor(f"{stem}.weight")


def norms_by_block(
    weights: Iterable[tuple[str, Float[Tensor, "out in"]]],
    axis: str = "columns",
    place: Callable[[str], Mapping[str, str]] | None = None,
) -> pd.DataFrame:
    """The norms of matrices by block, attention and kind, in `analysis.weight_norms`' columns.

    Args:
        weights: the matrices with their paths.
        axis: "columns" (one norm for each input) or "rows" (one for each output).
        place: where a matrix lies; None: in a U-Net.
    """
    dim, rows = 0 if axis == "columns" else 1, []
    for path, weight in weights:
        norms = weight.double().norm(dim=dim)
        rows.append({**(place or where)(path), "norm": norms.mean().item(), "within": norms.std(correction=0).item()})
    grouped = pd.DataFrame(rows).groupby(["block", "attention", "kind"], sort=False)
    norm = grouped["norm"]
    frame = pd.DataFrame(
        {"mean": norm.mean(), "sd": grouped["within"].mean(), "cv": norm.std() / norm.mean(), "base": norm.mean(),
         "change": 0.0, "num_matrices": norm.size(), "num_runs": 1}
    ).reset_index()  # fmt: skip
    return frame.assign(series=BASE_MODEL, method="base", multiplier=float("nan"))


def describe_matrix(
    path: str, weight: Float[Tensor, "out in"], place: Callable[[str], Mapping[str, str]] | None = None
) -> dict[str, Any]:
    """What run.json says of an adapted matrix: where it lies (None: in a U-Net), its shape and its pretrained norm."""
    num_out, num_in = weight.shape
    norm = float(weight.double().norm())
    return {"matrix": path, **(place or where)(path), "num_out": num_out, "num_in": num_in, "base_norm": norm}


def where(path: str) -> dict[str, str]:
    """Block, attention and kind of an adapted matrix, from its path in the U-Net."""
    parts = path.split(".")
    return {
        "block": parts[0] if parts[0] == "mid_block" else ".".join(parts[:2]),
        "kind": next((p for p in reversed(parts) if p.startswith("to_")), parts[-1]),
        "attention": next((p for p in parts if p.startswith("attn")), ""),
    }
