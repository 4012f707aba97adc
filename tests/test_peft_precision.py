"""HF PEFT's tuners under bf16 autocast, around a bf16 base and with gradient checkpointing: a few steps of the loop's kind."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters import parse_method
from adapters.check import make_inputs
from adapters.inject import attach
from adapters.toy import make_model
from tests.make_adapters import relative_error
from tests.test_loop import make_cell, parts, studio  # noqa: F401
from tests.test_loop import train as train_in_loop
from tests.test_peft_pack import every_tuner
from training.dynamics import Dynamics
from training.optimizer import PackedAdamW

STEPS = 3


def train(
    tuner: str, *, autocast: bool = False, checkpointing: bool = False, half: bool = False
) -> tuple[Tensor, Tensor]:
    """The trained values, and the distance of every matrix after each step, all finite."""
    dtype = torch.bfloat16 if half else torch.float32
    model = make_model(dtype)
    model.is_gradient_checkpointing = checkpointing
    pack = attach(model, parse_method(f"peft:{tuner}"), seeds=[5], rank=3)
    optimizer = PackedAdamW(
        pack.flat, pack.grad, pack.segments, rates={"factors": [1e-3]}, weight_decay=[0.01], clip=[1.0]
    )
    dynamics = Dynamics(pack)
    dynamics.remember()
    x, context = make_inputs([5], dtype)
    goal = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    for step in range(1, STEPS + 1):
        pack.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
            out = model(x, context)
        loss = (out.float() - goal).square().mean()[None]
        loss.sum().backward()
        assert optimizer.step(loss.detach()).isfinite().all()
        dynamics.record(step)
    dynamics.snapshot(STEPS)
    assert (optimizer.frozen_at == -1).all()
    distances = torch.stack([row["distance"] for _, row in dynamics._rows])
    assert distances.isfinite().all()
    return pack.flat.clone(), distances


@every_tuner
def test_gradient_checkpointing_changes_nothing_but_rounding(tuner: str) -> None:
    flat, distances = train(tuner)
    other, other_distances = train(tuner, checkpointing=True)
    assert relative_error(other, flat) < 1e-5
    assert relative_error(other_distances, distances) < 1e-3


@every_tuner
def test_bf16_autocast_trains_float32_values_as_the_plain_run_does(tuner: str) -> None:
    flat, distances = train(tuner)
    rounded, other_distances = train(tuner, autocast=True)
    assert rounded.dtype == torch.float32
    # Adam's first steps are signs of gradients: where those round differently, a value is off by the steps themselves.
    assert (rounded - flat).abs().max() <= 2 * STEPS * 1.1e-3
    assert relative_error(other_distances, distances) < 0.3
    both, _ = train(tuner, autocast=True, checkpointing=True)
    assert (both - rounded).abs().max() <= 2 * STEPS * 1.1e-3


@every_tuner
def test_values_around_a_bf16_base_are_float32(tuner: str) -> None:
    flat, _ = train(tuner, half=True)
    assert flat.dtype == torch.float32


@pytest.mark.parametrize("method", ["peft:lora", "peft:oft"])
def test_loop_trains_with_bf16_and_checkpointing(method: str, studio: Path, parts: tuple, tmp_path: Path) -> None:  # noqa: F811
    (plain,) = train_in_loop(studio, parts, tmp_path / "plain", [make_cell(method, steps=3)])
    parts[0].unet.enable_gradient_checkpointing()
    try:
        (rounded,) = train_in_loop(
            studio, parts, tmp_path / "bf16", [make_cell(method, steps=3, mixed_precision="bf16")]
        )
    finally:
        parts[0].unet.disable_gradient_checkpointing()
    assert [folder.status() for folder in (plain, rounded)] == ["finished", "finished"]
    ours, theirs = (folder.read_dynamics().groupby("step")["distance"].mean() for folder in (rounded, plain))
    assert (ours.iloc[1:] > 0).all()
    np.testing.assert_allclose(ours.iloc[1:], theirs.iloc[1:], rtol=0.1)
