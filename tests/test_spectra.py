"""Spectra of the update against numpy's decomposition of the difference, for every method; stored beside the norms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adapters import METHODS
from tests.make_adapters import make_pack
from tests.make_runs import MATRICES, make_runs
from training.columns import SPECTRA
from training.dynamics import Dynamics
from training.spectra import NUM_LEADING, THRESHOLD, count_intruders, update_spectra
from training.store import RunFolder, find_runs


@pytest.mark.parametrize("method", METHODS)
def test_spectra_are_those_of_the_difference(method: str) -> None:
    _, attached = make_pack(method, moved=0.1)
    for adapter in (stack.adapter for stack in attached.stacks):
        weight, base = adapter.weight().detach().numpy(), adapter.weight0.numpy()
        energies = np.linalg.svd(weight - base, compute_uv=False) ** 2
        energies /= energies.sum(-1, keepdims=True)
        safe = np.where(energies > 0, energies, 1)
        wanted = {"effective_rank": np.exp(-(energies * np.log(safe)).sum(-1))}
        wanted |= {f"energy_{n}": energies[..., :n].sum(-1) for n in (1, 2, 4)}
        for name, value in update_spectra(adapter).items():
            np.testing.assert_allclose(value, wanted[name], rtol=1e-6, err_msg=name)
        leading, start = np.linalg.svd(weight)[0][..., :NUM_LEADING], np.linalg.svd(base, full_matrices=False)[0]
        leading = leading[..., : min(weight.shape[-2:])]
        cosines = np.abs(np.swapaxes(leading, -1, -2) @ start).max(-1)
        np.testing.assert_array_equal(count_intruders(adapter), (cosines < THRESHOLD).sum(-1))


@pytest.mark.parametrize("method", METHODS)
def test_spectra_in_a_pack_are_those_alone_and_none_at_the_start(method: str) -> None:
    _, start = make_pack(method)
    _, pack = make_pack(method, (5, 6), moved=0.1)
    _, alone = make_pack(method, (6,), moved=0.1)
    for one, many, first in zip(alone.stacks, pack.stacks, start.stacks, strict=True):
        for name, value in update_spectra(one.adapter).items():
            torch.testing.assert_close(value[0], update_spectra(many.adapter)[name][1], rtol=1e-6, atol=0)
            unmoved = torch.isnan(update_spectra(first.adapter)[name]).all()
            assert bool(unmoved) == first.adapter.starts_at_base, name


def test_snapshots_hold_them_and_the_last_one_intruders(tmp_path: Path) -> None:
    _, attached = make_pack("lora", (5,), moved=0.1)
    dynamics, folder = Dynamics(attached, spectra=True), RunFolder(tmp_path / "run")
    dynamics.snapshot(0)
    dynamics.snapshot(4, is_last=True)
    dynamics.flush([folder], 4)
    norms = folder.read_norms()
    assert norms[list(SPECTRA[:-1])].notna().all(axis=None)
    assert list(norms.loc[norms["intruders"].notna(), "step"].unique()) == [4]


def test_runs_from_before_are_read_with_nothing_in_their_place(tmp_path: Path) -> None:
    for run in find_runs(make_runs(tmp_path, multipliers=(1.0,), subjects=("cat",))):
        norms = run.read_norms()
        assert len(norms) >= len(MATRICES)
        assert norms[list(SPECTRA)].isna().all(axis=None)
