"""Every method at 1, 100 and 10,000 times its base rate, and far beyond: finite or marked diverged, the others undisturbed.

The step is that of the training loop: packed AdamW with clipping and weight decay, COFT's projection, and everything that
the dynamics read, on a small model; in the slow tier also the loop itself, pictures included, on a small pipeline.
"""

from __future__ import annotations

import contextlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters import METHODS, parse_method
from adapters.check import suitable_rank
from adapters.inject import attach
from adapters.pack import Attached
from adapters.toy import make_model
from sweeps.rates import base_rates
from tests.make_adapters import VARIANTS, make_inputs
from tests.test_loop import make_cell, parts, studio  # noqa: F401
from tests.test_loop import train as train_on_pipeline
from tests.test_readings import check_distances
from training.dynamics import Dynamics
from training.optimizer import PackedAdamW

pytestmark = pytest.mark.unchecked
CALM, WILD, BEYOND = (1.0, 1.0, 1.0), (1.0, 100.0, 1e4), (1.0, 1e20, 1e36)
"""Multiples of the base rate, one a replica; the last leave the range of float32."""
PRECISIONS = ("float32", "bf16 autocast", "bf16 base")
SEEDS = (5, 5, 5)
"""Runs of one sweep differ in their rate alone."""
FIRST = {name: next(variant for variant in VARIANTS if variant.startswith(f"{name}:")) for name in METHODS}
"""The variant of each method in which every option is the default."""
SAME_FORMULA = ("alpha=3", "init=", "divisor=", "lr_ratio=", "d_initial=")
"""Options that change a number and no formula."""
MATHEMATICS = [v for v in VARIANTS if v in FIRST.values() or not any(option in v for option in SAME_FORMULA)]
every_precision = pytest.mark.parametrize("precision", PRECISIONS)


class Trained(NamedTuple):
    """What a pack left behind: itself, its values, the steps at which replicas diverged (-1: never), and what was read."""

    attached: Attached
    flat: Tensor
    diverged_at: list[int]
    rows: list[dict[str, Tensor]]


@lru_cache(maxsize=4)
def train(variant: str, precision: str, multipliers: tuple[float, ...], steps: int) -> Trained:
    """Some steps of the training loop, each replica at its multiple of the published base rate."""
    spec = parse_method(variant)
    base = base_rates(spec, "sd15", "")
    dtype = torch.bfloat16 if precision == "bf16 base" else torch.float32
    model = make_model(dtype)
    boundary = [base.boundary] * len(SEEDS) if base.boundary else None
    attached = attach(model, spec, seeds=SEEDS, rank=suitable_rank(spec), boundary=boundary)
    own = {"factors": base.lr, "factors_b": 3 * base.lr, "magnitude": base.lr, "lambda": base.lr_lambda or base.lr}
    optimizer = PackedAdamW(
        attached.flat, attached.grad, attached.segments, clip=[1.0] * len(SEEDS), weight_decay=[0.01] * len(SEEDS),
        rates={role: [own[role] * multiplier for multiplier in multipliers] for role in attached.segments},
    )  # fmt: skip
    dynamics = Dynamics(attached)
    dynamics.remember()
    x, context = make_inputs(SEEDS, dtype)
    goal = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))[:2].repeat(len(SEEDS), 1, 1)
    for step in range(1, steps + 1):
        attached.zero_grad()
        attached.advance(steps, ~optimizer.frozen)
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16 autocast" else contextlib.nullcontext():
            out = model(x, context)
        losses = (out.float() - goal).square().mean((1, 2)).unflatten(0, (len(SEEDS), -1)).mean(1)
        losses.sum().backward()
        optimizer.step(losses.detach())
        attached.project()
        dynamics.record(step)
        if step % 10 == 0:
            dynamics.snapshot(step)
    rows = [row for _, row in (*dynamics._rows, *dynamics._snapshots)]
    return Trained(attached, attached.flat.clone(), optimizer.frozen_at.tolist(), rows)


def check(variant: str, precision: str, multipliers: tuple[float, ...], steps: int) -> None:
    """Finite or marked, never NaN; and the first replica is the one that it is beside two others at the base rate."""
    wild, calm = (train(variant, precision, chosen, steps) for chosen in (multipliers, CALM))
    assert wild.flat.isfinite().all()
    assert all(at == -1 or 1 <= at <= steps for at in wild.diverged_at)
    assert wild.diverged_at[0] == -1, "at the base rate nothing diverges"
    for row in wild.rows:
        for name, values in row.items():
            assert values.isfinite().all(), name
            assert name == "lambda" or (values >= 0).all(), name
    assert torch.equal(wild.flat[0], calm.flat[0])
    assert not torch.equal(wild.flat[2], calm.flat[2])
    for row, other in zip(wild.rows, calm.rows, strict=True):
        assert all(torch.equal(values[0], other[name][0]) for name, values in row.items())


@every_precision
@pytest.mark.parametrize("method", METHODS)
def test_finite_or_diverged_at_any_rate(method: str, precision: str) -> None:
    check(FIRST[method], precision, WILD, 20)
    check_distances(train(FIRST[method], precision, WILD, 20).attached)


@every_precision
def test_series_blows_up_at_rates_at_which_the_solve_stays_orthogonal(precision: str) -> None:
    exact, series = (train(f"oft:blocks=4,cayley={form}", precision, WILD, 20) for form in ("exact", "series"))
    errors = {
        form: torch.stack([row["orthogonality"] for row in pack.rows if "orthogonality" in row]).amax((0, 2))
        for form, pack in (("exact", exact), ("series", series))
    }
    assert (errors["exact"] < 1e-5).all()
    assert errors["series"][0] < 1e-6
    assert 0.01 < errors["series"][1] < 1
    assert errors["series"][2] > 1e6


@pytest.mark.slow
@every_precision
@pytest.mark.parametrize("multipliers", [WILD, BEYOND], ids=("wild", "beyond"))
@pytest.mark.parametrize("variant", MATHEMATICS)
def test_finite_or_diverged_at_any_rate_for_every_option(
    variant: str, multipliers: tuple[float, ...], precision: str
) -> None:
    check(variant, precision, multipliers, 40)


@pytest.mark.parametrize("method", METHODS)
def test_rates_beyond_all_floats_are_marked_where_nothing_holds_the_weight(method: str) -> None:
    check(FIRST[method], "float32", BEYOND, 10)
    if method in ("lora", "dora", "naive", "vera", "dvora", "singlora", "full"):
        assert all(1 <= at <= 3 for at in train(FIRST[method], "float32", BEYOND, 10).diverged_at[1:])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_the_loop_ends_every_run(method: str, precision: str, studio: Path, parts: tuple, tmp_path: Path) -> None:  # noqa: F811
    base = base_rates(parse_method(method), "sd15", "")
    cells = [
        make_cell(
            method, steps=30, mixed_precision=precision, boundary=base.boundary, lr=multiplier * base.lr,
            lr_lambda=None if base.lr_lambda is None else multiplier * base.lr_lambda,
        )
        for multiplier in WILD
    ]  # fmt: skip
    folders = train_on_pipeline(studio, parts, tmp_path, cells)
    assert folders[0].status() == "finished"
    for folder in folders:
        run = folder.read()
        assert run["status"] == ("finished" if run["diverged_step"] is None else "diverged")
        for table in (folder.read_dynamics(), folder.read_norms()):
            numbers = table.drop(columns=["step", "matrix"])
            read = numbers.loc[:, numbers.notna().any()]  # a gauge that a method lacks is a column of nothing
            assert np.isfinite(read).all().all()
