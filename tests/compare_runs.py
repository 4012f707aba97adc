"""Equality of runs after interruptions, in the design's sense: adapters and sorted rows are equal to the bit."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from training.cell import BASE
from training.states import ENDED
from training.store import KINDS, RunFolder, find_runs


def rows(folder: RunFolder) -> dict[str, pd.DataFrame]:
    """Every table of a run, sorted, without what a clock decides."""
    tables = {kind: folder.read_table(kind) for kind in KINDS} | {"scores": folder.read_scores()}
    for name, table in tables.items():
        keys = [key for key in ("step", "matrix", "metric", "prompt") if key in table]
        table = table.astype({key: str for key in keys if key != "step"})
        tables[name] = table.sort_values(keys, ignore_index=True).drop(columns="seconds", errors="ignore")
    return tables


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    """The stored adapter's tensors."""
    from safetensors.torch import load_file

    files = sorted(folder.adapter.glob("*.safetensors"))
    assert files, f"no adapter in {folder.adapter}"
    return {f"{file.name}/{name}": t for file in files for name, t in load_file(file).items()}


def assert_same(left: RunFolder, right: RunFolder) -> None:
    """Bit for bit the same adapters, rows and pictures of two ended runs."""
    assert left.status() in ENDED, f"{left.path}: {left.status()}"
    assert (left.status(), left.read()["diverged_step"]) == (right.status(), right.read()["diverged_step"])
    is_base = left.read()["cell"]["method"] == BASE
    one, two = ({}, {}) if is_base else (weights(left), weights(right))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
    for name, table in rows(left).items():
        pd.testing.assert_frame_equal(table, rows(right)[name], check_exact=True, obj=name)
    assert left.images() == right.images()
    for row in left.images():
        assert (left.path / row["file"]).read_bytes() == (right.path / row["file"]).read_bytes(), row["file"]


def assert_same_results(folder_a: Path, folder_b: Path) -> None:
    """Both runs folders, or sweeps, hold the same ended runs, bit for bit: everything but `seconds` and provenance."""
    one, two = ({run.run_id: run for run in find_runs(folder)} for folder in (folder_a, folder_b))
    assert one, f"no runs in {folder_a}"
    assert one.keys() == two.keys()
    for name, run in one.items():
        assert_same(run, two[name])
