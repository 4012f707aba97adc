"""The largest Hessian eigenvalue: against numpy's, against exact second derivatives, and without a trace in the training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from adapters import parse_method
from adapters.base import Adapter
from adapters.inject import attach
from tests.test_loop import make_cell, make_task, parts, studio, train, weights  # noqa: F401
from training.sharpness import BATCHES, largest_eigenvalue, sharpness
from training.store import RunFolder


def test_eigenvalue_is_the_largest_not_the_one_of_largest_size() -> None:
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(3, 60, 60, generator=generator, dtype=torch.float64))[0]
    values = torch.linspace(-9, 1, 60, dtype=torch.float64) * torch.tensor([[1.0], [10.0], [0.1]])
    values[:, -1] *= 3
    matrices = turn @ torch.diag_embed(values) @ turn.mT
    found = largest_eigenvalue(lambda v: (matrices @ v[..., None])[..., 0], torch.ones(3, 60, dtype=torch.float64), 40)
    torch.testing.assert_close(found, torch.linalg.eigvalsh(matrices)[:, -1], rtol=1e-3, atol=0)


def test_eigenvalue_of_a_matrix_smaller_than_the_iteration() -> None:
    matrix = torch.diag(torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64))
    found = largest_eigenvalue(lambda v: v @ matrix, torch.ones(1, 3, dtype=torch.float64), 3)
    assert found.item() == pytest.approx(2.0)
    zero = largest_eigenvalue(torch.zeros_like, torch.ones(2, 5, dtype=torch.float64), 5)
    assert zero.tolist() == [0.0, 0.0]


def plain_forward(self: Adapter, x: Tensor) -> Tensor:
    """The layer by its weights alone: the fast paths have no second derivative."""
    rows = torch.einsum("kb...i,koi->kb...o", x.unflatten(0, (self.num_replicas, -1)), self.weight())
    return rows.flatten(0, 1) if self.bias0 is None else rows.flatten(0, 1) + self.bias0


def test_differences_of_gradients_find_what_second_derivatives_find(
    studio: Path,  # noqa: F811
    parts: tuple,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells = [make_cell("lora", seed=seed) for seed in (0, 1)]
    task, pack = make_task(studio, parts, cells), attach(parts[0].unet, parse_method("lora"), seeds=[0, 1], rank=4)
    try:
        with torch.no_grad():  # away from the start, where B is zero
            pack.flat += 0.05 * torch.randn(pack.flat.shape, generator=torch.Generator().manual_seed(2))
        before = pack.flat.clone(), pack.grad.clone()
        found = sharpness(pack, task.losses)
        assert torch.equal(pack.flat, before[0])
        assert torch.equal(pack.grad, before[1])
        parameters = [p for p in parts[0].unet.parameters() if p.requires_grad]
        assert sum(p.numel() for p in parameters) == pack.flat.numel()
        monkeypatch.setattr(type(next(iter(pack.adapters.values()))), "forward", plain_forward)
        with sdpa_kernel(SDPBackend.MATH):
            loss = sum(task.losses(batch).sum() for batch in range(1, BATCHES + 1)) / BATCHES
            slopes = torch.autograd.grad(loss, parameters, create_graph=True)

        def times(v: Tensor) -> Tensor:
            pieces = [v.as_strided(p.shape, p.stride(), p.storage_offset()) for p in parameters]
            images = torch.autograd.grad(slopes, parameters, pieces, retain_graph=True)
            out = torch.zeros_like(pack.flat)
            for image, p in zip(images, parameters, strict=True):
                out.as_strided(p.shape, p.stride(), p.storage_offset()).copy_(image)
            return out

        exact = largest_eigenvalue(times, pack.flat.detach(), 25)
    finally:
        pack.detach()
    assert (exact > 0).all()
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0)


@pytest.mark.unchecked
@pytest.mark.parametrize("method", ["delora", "oft"])
def test_measuring_leaves_no_trace(method: str, studio: Path, parts: tuple, tmp_path: Path) -> None:  # noqa: F811
    plain = [make_cell(method, seed=seed) for seed in (0, 1)]
    measured = [dataclasses.replace(cell, sharpness_steps=(2,)) for cell in plain]
    assert "sharpness_steps" not in plain[0].to_dict()
    assert type(plain[0]).from_dict(measured[0].to_dict()) == measured[0]
    for one, other in zip(
        train(studio, parts, tmp_path / "a", plain), train(studio, parts, tmp_path / "b", measured), strict=True
    ):
        for name, tensor in weights(one).items():
            assert torch.equal(tensor, weights(other)[name])
        for kind in ("dynamics", "norms"):
            pd.testing.assert_frame_equal(RunFolder.read_table(one, kind), RunFolder.read_table(other, kind))
        left, right = one.read_steps(), other.read_steps()
        pd.testing.assert_series_equal(left["loss"], right["loss"])
        assert left["sharpness"].isna().all()
        assert list(right.loc[np.isfinite(right["sharpness"]), "step"]) == [2]


@pytest.mark.unchecked
def test_step_one_is_measured_before_anything_has_moved(studio: Path, parts: tuple, tmp_path: Path) -> None:  # noqa: F811
    first = make_cell("delora", sharpness_steps=(1, 3))
    slow, fast = (
        run.read_steps().set_index("step")["sharpness"]
        for run in train(studio, parts, tmp_path, [first, dataclasses.replace(first, lr=100 * first.lr)])
    )
    assert slow[1] == pytest.approx(fast[1], rel=1e-3)
    assert slow[3] != pytest.approx(fast[3], rel=1e-3)
