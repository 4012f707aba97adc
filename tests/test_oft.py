"""OFT and its relatives: against HF PEFT, COFT's ball in the training loop, and rotations at any learning rate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft.tuners.oft.layer import OFTRotationModule
from torch import nn

from adapters import BadInput, get_class, parse_method
from adapters.base import Adapter
from tests.make_adapters import make_adapter, make_model, make_pack, relative_error
from tests.rounds import told
from tests.test_loop import make_cell, parts, studio, train, weights  # noqa: F401

PEFT_CASES = {
    "oft": {"use_cayley_neumann": False},
    "oft:cayley=series": {"use_cayley_neumann": True},
    "coft:radius=peft,eps=0.25": {"use_cayley_neumann": False, "coft": True, "eps": 0.25},  # PEFT keeps eps in float32
}


every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=("float32", "float64"))


def make_turned(variant: str, size: float, *, width: int = 32, dtype: torch.dtype = torch.float32) -> Adapter:
    """One block around a square layer, with ||S||_2 of about the given size."""
    adapter = make_adapter(parse_method(variant), nn.Linear(width, width, dtype=dtype))
    entries = adapter.get_parameter("R")
    with torch.no_grad():
        entries.copy_(torch.randn(entries.shape, generator=torch.Generator().manual_seed(0)))
        norm = torch.linalg.matrix_norm(skew(entries[0, 0].double(), width), 2)
        entries.mul_(size / norm)
    return adapter


def skew(entries: torch.Tensor, width: int) -> torch.Tensor:
    """The skew-symmetric matrix with these entries above its diagonal."""
    s = entries.new_zeros(width, width)
    s[tuple(torch.triu_indices(width, width, 1))] = entries
    return s - s.T


# HF PEFT.


@pytest.mark.parametrize("variant", PEFT_CASES)
@pytest.mark.parametrize("moved", [0.01, 0.5])
def test_forward_and_gradient_equal_pefts(variant: str, moved: float) -> None:
    _, attached = make_pack(variant, [5], moved=moved)
    for path, adapter in attached.adapters.items():
        entries = adapter.get_parameter("R")
        num_in = adapter.base.in_features
        theirs = OFTRotationModule(4, entries.shape[-1], num_in // 4, num_in, **PEFT_CASES[variant]).double()
        theirs.weight.data.copy_(entries[0])
        x = torch.randn(3, 5, num_in, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        ours, expected = adapter(x), adapter.base(theirs(x))
        assert relative_error(ours, expected) < 1e-10, path
        (gradient,) = torch.autograd.grad(ours.square().sum(), [entries])
        (their_gradient,) = torch.autograd.grad(expected.square().sum(), [theirs.weight])
        assert relative_error(gradient[0], their_gradient) < 1e-10, path
        adapter.project()
        assert relative_error(entries[0], theirs.weight) < 1e-12, "PEFT has put its values back into the ball as well"


# Rotations.


@every_dtype
@pytest.mark.parametrize("width", [8, 32, 96])
def test_the_solve_stays_orthogonal_at_any_size(width: int, dtype: torch.dtype) -> None:
    for size in (1e-6, 0.3, 1.0, 2.8, 100.0, 1e4, 1e6, 1e12, 1e20):
        exact = make_turned("oft:blocks=1", size, width=width, dtype=dtype)
        readings, eps = exact.readings(), torch.finfo(dtype).eps
        with told(f"size={size}"):
            assert readings["orthogonality"].item() <= eps * width * (1 + min(size, eps ** (-2 / 3)))
            assert readings["distance"] <= exact.bounds()["distance"] * (1 + 1e-9)
            assert exact(torch.ones(1, width, dtype=dtype)).isfinite().all()


@pytest.mark.parametrize(("size", "expected"), [(0.3, 0.03), (1.0, 2.5), (2.8, 5e3)])
def test_pefts_series_does_not(size: float, expected: float) -> None:
    series = make_turned("oft:blocks=1,cayley=series", size).readings()
    assert expected / 3 < series["orthogonality"].item() < 3 * expected


def test_the_start_is_the_base_to_the_bit() -> None:
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
    for variant in ("oft", "oft:cayley=series", "coft", "naive"):
        _, attached = make_pack(variant, [5, 6], torch.float32)
        assert torch.equal(attached.adapters["attn1.to_q"](x), make_model(torch.float32).attn1.to_q(x))


@pytest.mark.parametrize("method", ["oft", "coft", "naive"])
def test_blocks_that_do_not_fit_name_the_matrix(method: str) -> None:
    with pytest.raises(BadInput, match=r"blocks=5 does not divide the input of matrix 'attn1\.to_q' of 8 x 12"):
        make_pack(f"{method}:blocks=5")
    if get_class(method).min_width > 1:  # type: ignore[attr-defined]
        with pytest.raises(BadInput, match=r"blocks=4 leaves less than 2 to a block of matrix 'layer' of 8 x 4"):
            make_adapter(parse_method(method), nn.Linear(4, 8))


# COFT's ball.


@pytest.mark.parametrize("variant", ["coft", "coft:blocks=2,eps=0.02,radius=released", "coft:radius=peft"])
@every_dtype
def test_values_are_put_back_once_and_for_all(variant: str, dtype: torch.dtype) -> None:
    _, attached = make_pack(variant, dtype=dtype, moved=0.5)
    attached.flat[1] *= 1e-7  # within every ball
    inside = attached.flat[1].clone()
    before = {path: adapter.weight() for path, adapter in attached.adapters.items()}
    attached.project()
    once = attached.flat.clone()
    assert torch.equal(once[1], inside)
    for path, adapter in attached.adapters.items():
        norms = adapter.get_parameter("R").norm(dim=-1)[[0, 2]] * 2**0.5
        torch.testing.assert_close(norms, torch.full_like(norms, adapter.radius), rtol=1e-6, atol=0)  # type: ignore[call-overload]
        assert relative_error(adapter.weight(), before[path]) < 1e-6
    attached.project()
    assert torch.equal(attached.flat, once)


def test_training_puts_values_back_after_every_step(studio: Path, parts: tuple, tmp_path: Path) -> None:  # noqa: F811
    (folder,) = train(studio, parts, tmp_path, [make_cell("coft", lr=0.3)])
    dynamics = folder.read_dynamics()
    assert dynamics["saturation"].max() <= 1 + 1e-5
    assert dynamics.loc[dynamics["step"] > 0, "saturation"].mean() > 0.5
    assert (dynamics["orthogonality"] < 1e-5).all()
    for name, tensor in weights(folder).items():
        if name.endswith(".R"):
            width = round((1 + (1 + 8 * tensor.shape[-1]) ** 0.5) / 2)
            assert (2**0.5 * tensor.norm(dim=-1) <= 6e-5 * width**2 / 2 * (1 + 1e-6)).all(), name
