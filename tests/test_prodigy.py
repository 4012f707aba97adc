"""One PackedProdigy against as many `prodigyopt.Prodigy`, the authors' package; divergence, resumption, refusals, labels."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from prodigyopt import Prodigy
from torch import Tensor

from adapters import BadInput, parse_method
from analysis.load import _with_defaults
from analysis.series import base_rates, name_multipliers, name_series
from benchmarks.waiting import count_waits
from sweeps import base_lr, lr_robustness
from sweeps.options import Options
from sweeps.rate_file import read_rates
from sweeps.rates import PRODIGY, check_base_lr, choose_rates, describe_borrowed, scaled
from tests.compare_runs import assert_same
from tests.make_driver import drive_studio
from tests.make_studio import Studio
from tests.rounds import told
from tests.test_checkpoints import cut
from tests.test_loop import make_cell, parts, studio, train
from training.cell import Cell
from training.demand import Valued, state_mib
from training.optimizer import schedule_factor
from training.prodigy import D0, PackedProdigy
from training.store import RunFolder

__all__ = ["parts", "studio"]  # fixtures

NUM, STEPS = 12, 100
SEGMENTS = {"factors": slice(0, 8), "magnitude": slice(8, 12)}
PARTS = (slice(0, 5), slice(5, 8), slice(8, 12))  # the tensors of the package: its d is one for all of them
MULTIPLIERS, DECAYS, COEFFICIENTS = (1.0, 0.25, 8.0), (0.0, 0.01, 0.1), (1.0, 2.0, 0.5)


def start(k: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Weights of k replicas; the second tensor is all zeros, as LoRA's B is."""
    flat = torch.randn(k, NUM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat[:, PARTS[1]] = 0
    return flat.to(dtype)


def gradients(flat: Tensor, step: int) -> Tensor:
    """Of a bowl around 3, with noise that is the same in every replica; some are large enough to be clipped."""
    noise = torch.randn(NUM, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return ((flat - 3) * torch.linspace(0.5, 2, NUM) + 0.1 * noise.to(flat.dtype)) * (0.03 if step % 3 else 1.0)


def make_packed(
    places: tuple[int, ...] = (0, 1, 2), clip: float = 1.0, dtype: torch.dtype = torch.float64
) -> PackedProdigy:
    """A pack of some of three replicas, each with a multiplier, a weight decay and a coefficient of its own."""
    flat = start(3, dtype)[list(places)]
    own = [MULTIPLIERS[i] for i in places]
    return PackedProdigy(
        flat, torch.zeros_like(flat), SEGMENTS, rates={"factors": own, "magnitude": own}, clip=[clip] * len(places),
        weight_decay=[DECAYS[i] for i in places], d_coef=[COEFFICIENTS[i] for i in places],
    )  # fmt: skip


def go(packed: PackedProdigy, first: int, last: int) -> None:
    """Steps of a pack down the bowl."""
    for step in range(first, last + 1):
        packed.grad.copy_(gradients(packed.flat, step))
        packed.step(torch.zeros(len(packed.flat)))


class Package:
    """One replica in the package's hands."""

    def __init__(self, place: int, clip: float, dtype: torch.dtype) -> None:
        self.tensors = [torch.nn.Parameter(start(3, dtype)[place, part].clone()) for part in PARTS]
        self.multiplier, self.clip = MULTIPLIERS[place], clip
        self.optimizer = Prodigy(
            self.tensors, lr=self.multiplier, weight_decay=DECAYS[place], d_coef=COEFFICIENTS[place]
        )

    @property
    def flat(self) -> Tensor:
        """All weights as one row."""
        return torch.cat([tensor.detach() for tensor in self.tensors])

    @property
    def d(self) -> float:
        """The estimate with which the next step will be taken."""
        return self.optimizer.param_groups[0]["d"]

    def step(self, grad: Tensor, factor: float = 1.0) -> None:
        """One step with a gradient, clipped as a whole, at a share of the rate."""
        for tensor, part in zip(self.tensors, PARTS, strict=True):
            tensor.grad = grad[part].clone()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.tensors, self.clip)
        self.optimizer.param_groups[0]["lr"] = self.multiplier * factor
        self.optimizer.step()


@pytest.mark.parametrize("places", [(0,), (1,), (0, 1, 2)], ids=str)
def test_a_pack_equals_the_package_replica_by_replica(places: tuple[int, ...]) -> None:
    """With and without clipping, at a constant rate and after a warm-up from 0, with decay and coefficients that differ."""
    for clip, schedule, warmup in ((1.0, "constant", 0), (0.0, "cosine", 5)):
        packed = make_packed(places, clip)
        package = [Package(place, clip, torch.float64) for place in places]
        for step in range(1, STEPS + 1):
            factor, taken = schedule_factor(schedule, step, STEPS, warmup), [one.d for one in package]
            packed.grad.copy_(gradients(packed.flat, step))
            packed.step(torch.zeros(len(places)), factor)
            for one in package:
                one.step(gradients(one.flat[None], step)[0], factor)
            with told(clip, schedule, step):
                rates = packed.rates_of_step(factor)
                torch.testing.assert_close(
                    rates["prodigy_d"], torch.tensor(taken, dtype=torch.float64), rtol=1e-9, atol=0
                )
                expected = torch.tensor([d * one.multiplier * factor for d, one in zip(taken, package, strict=True)])
                torch.testing.assert_close(rates["lr"].float(), expected, rtol=1e-6, atol=0)
        d, weights = torch.tensor([one.d for one in package]), torch.stack([one.flat for one in package])
        torch.testing.assert_close(packed.d, d.double(), rtol=1e-6, atol=0)
        torch.testing.assert_close(packed.flat, weights, rtol=1e-9, atol=0)
        assert (packed.d > 100 * D0).all(), "the estimates never rose: nothing was compared"
        assert ((weights - start(3)[list(places)]).norm(dim=1) > 0.1).all()


def test_single_precision_stays_with_the_package() -> None:
    """d starts at 1e-6 and enters squared: small gradients must not vanish on the way."""
    packed, package = make_packed((0,), dtype=torch.float32), Package(0, 1.0, torch.float32)
    for step in range(1, STEPS + 1):
        packed.grad.copy_(1e-4 * gradients(packed.flat, step))
        packed.step(torch.zeros(1))
        package.step(1e-4 * gradients(package.flat[None], step)[0])
    assert packed.d.item() == pytest.approx(package.d, rel=1e-3)
    torch.testing.assert_close(packed.flat[0], package.flat, rtol=1e-3, atol=1e-5)
    assert package.d > 100 * D0


def test_neighbours_change_no_bit_of_a_replica() -> None:
    together, alone, others = make_packed((0, 1, 2)), make_packed((1,)), make_packed((2, 1, 0))
    for packed in (together, alone, others):
        go(packed, 1, STEPS)
    for packed, row in ((alone, 0), (others, 1)):
        assert torch.equal(packed.flat[row], together.flat[1])
        assert torch.equal(packed.d[row], together.d[1])
    assert len(set(together.d.tolist())) == 3, "every replica has an estimate of its own"


def test_a_run_cut_in_the_middle_goes_on_bit_for_bit() -> None:
    whole, before, after = (make_packed() for _ in range(3))
    go(whole, 1, STEPS)
    go(before, 1, 50)
    after.flat.zero_()
    for row in range(3):
        after.load_state(row, before.state(row), 50)
    go(after, 51, STEPS)
    for name in PackedProdigy.kept:
        assert torch.equal(getattr(whole, name), getattr(after, name)), name
    assert after.steps_done == STEPS


def test_without_a_gradient_nothing_moves() -> None:
    """At the start, where the package waits, weight decay included; later a zero gradient is a step like any other."""
    packed, package = make_packed((2,)), Package(2, 1.0, torch.float64)
    for step in range(1, 41):
        silent = step <= 5 or 20 <= step <= 25
        packed.grad.copy_(gradients(packed.flat, step) * (not silent))
        packed.step(torch.zeros(1))
        package.step(gradients(package.flat[None], step)[0] * (not silent))
        if step == 5:
            assert torch.equal(packed.flat, start(3)[[2]])
            assert packed.d.item() == package.d == D0
        assert packed.d.item() == pytest.approx(package.d, rel=1e-9)
    torch.testing.assert_close(packed.flat[0], package.flat, rtol=1e-9, atol=0)


@pytest.mark.parametrize("poison", ["loss", "gradient", "infinite gradient"])
def test_replica_freezes_where_it_is_when_not_finite(poison: str) -> None:
    packed, twin = make_packed(), make_packed()
    for step in range(1, 41):
        packed.grad.copy_(gradients(packed.flat, step))
        losses = torch.zeros(3)
        if step >= 20:  # and from then on, as a replica with broken weights would
            kept = packed.flat[1].clone(), packed.d[1].clone()
            if poison == "loss":
                losses[1] = math.nan
            else:
                packed.grad[1, 3] = math.nan if poison == "gradient" else math.inf
        packed.step(losses)
        if step >= 20:
            assert torch.equal(packed.flat[1], kept[0])
            assert torch.equal(packed.d[1], kept[1])
    go(twin, 1, 40)
    assert packed.frozen_at.tolist() == [-1, 20, -1]
    assert torch.equal(packed.flat[[0, 2]], twin.flat[[0, 2]]), "a frozen replica changed its neighbours"
    assert torch.equal(packed.d[[0, 2]], twin.d[[0, 2]])


def test_a_step_that_leaves_the_range_of_floats_is_not_taken() -> None:
    flat, grad = torch.ones(2, 3), torch.full((2, 3), 0.5)
    optimizer = PackedProdigy(
        flat, grad, {"factors": slice(0, 3)}, rates={"factors": [1.0, 1e45]}, weight_decay=[0.0, 1.0], clip=[0.0, 0.0],
        d_coef=[1.0, 1.0],
    )  # fmt: skip
    for _ in range(3):
        optimizer.step(torch.zeros(2))
    assert optimizer.frozen_at.tolist() == [-1, 1]
    assert flat[1].tolist() == [1.0] * 3
    assert optimizer.d[1] == D0
    assert (flat[0] < 1).all()


def test_lambda_is_adamw_of_its_own() -> None:
    segments = {"factors": slice(0, 11), "lambda": slice(11, 12)}
    flat = start(2)
    rates = {"factors": [1.0, 4.0], "lambda": [0.1, 0.01]}
    packed = PackedProdigy(
        flat, torch.zeros_like(flat), segments, rates=rates, weight_decay=[0.01] * 2, clip=[0.0] * 2, d_coef=[1.0] * 2
    )
    alone = [torch.nn.Parameter(flat[row, 11:].clone()) for row in range(2)]
    adamw = [torch.optim.AdamW([p], lr=rate, weight_decay=0.01) for p, rate in zip(alone, rates["lambda"], strict=True)]
    without = PackedProdigy(
        start(2)[:, :11].clone(), torch.zeros(2, 11, dtype=torch.float64), {"factors": slice(0, 11)},
        rates={"factors": [1.0, 4.0]}, weight_decay=[0.01] * 2, clip=[0.0] * 2, d_coef=[1.0] * 2,
    )  # fmt: skip
    for step in range(1, 41):
        given = gradients(flat, step)
        packed.grad.copy_(given)
        without.grad.copy_(given[:, :11])
        packed.step(torch.zeros(2))
        without.step(torch.zeros(2))
        for row in range(2):
            alone[row].grad = given[row, 11:].clone()
            adamw[row].step()
    torch.testing.assert_close(flat[:, 11:], torch.stack([p.detach() for p in alone]), rtol=1e-10, atol=0)
    assert torch.equal(packed.d, without.d), "lambda has no part in the estimate"
    assert packed.rates_of_step(0.5)["lr_lambda"].tolist() == [0.05, 0.005]


def test_the_host_waits_for_nothing() -> None:
    packed = make_packed(dtype=torch.float32)
    losses = torch.zeros(3)
    assert count_waits(lambda: packed.step(losses), torch.device("cpu")) == 0
    assert count_waits(lambda: packed.rates_of_step(0.5), torch.device("cpu")) == 0


# Runs.


@pytest.mark.unchecked
def test_killed_pack_goes_on_bit_for_bit_and_its_table_has_the_rates(
    studio: Path, parts: tuple, tmp_path: Path
) -> None:
    cells = [
        make_cell("delora", steps=8, lr=lr, lr_lambda=1e-2, optimizer="prodigy", d_coef=coefficient)
        for lr, coefficient in ((1.0, 1.0), (16.0, 2.0))
    ]
    whole = train(studio, parts, tmp_path / "whole", cells, checkpoint_every_s=0.0)
    cut(studio, parts, tmp_path / "cut", cells)
    resumed = train(studio, parts, tmp_path / "cut", cells, checkpoint_every_s=0.0)
    for left, right, cell in zip(whole, resumed, cells, strict=True):
        assert right.read()["provenance"]["resumed_at"] == 6
        assert_same(left, right)
        steps = left.read_steps()
        assert steps["prodigy_d"].iloc[0] == np.float32(D0)
        assert steps["prodigy_d"].is_monotonic_increasing
        assert steps["prodigy_d"].iloc[-1] > D0
        np.testing.assert_allclose(steps["lr"], cell.lr * steps["prodigy_d"], rtol=1e-6)
        np.testing.assert_allclose(steps["lr_lambda"], 1e-2, rtol=1e-6)


@pytest.mark.unchecked
def test_divergence_is_a_result_and_leaves_neighbours_alone(studio: Path, parts: tuple, tmp_path: Path) -> None:
    def cells(middle: float) -> list[Cell]:
        return [make_cell("lora", steps=8, lr=lr, optimizer="prodigy") for lr in (1.0, middle, 4.0)]

    wild, tame = (
        train(studio, parts, tmp_path / "wild", cells(1e40)),
        train(studio, parts, tmp_path / "tame", cells(2.0)),
    )
    assert [folder.status() for folder in wild] == ["finished", "diverged", "finished"]
    assert 1 <= wild[1].read()["diverged_step"] <= 8
    for row in (0, 2):
        assert_same(wild[row], tame[row])


@pytest.mark.unchecked
def test_cells_with_a_second_rate_are_refused(studio: Path, parts: tuple, tmp_path: Path) -> None:
    for cell, said in (
        (make_cell("lora:lr_ratio=4", optimizer="prodigy"), "the rates of factors_b are"),
        (make_cell("dora", lr_magnitude=0.5, optimizer="prodigy"), "the rates of magnitude are"),
        (make_cell("delora", optimizer="prodigy"), "lr_lambda is None"),
    ):
        with told(cell.method), pytest.raises(BadInput, match=said):
            train(studio, parts, tmp_path, [cell])
    flat = torch.zeros(1, 2)
    with pytest.raises(BadInput, match="lambda alone has nothing for Prodigy"):
        PackedProdigy(
            flat,
            flat.clone(),
            {"lambda": slice(0, 2)},
            rates={"lambda": [1.0]},
            weight_decay=[0.0],
            clip=[0.0],
            d_coef=[1.0],
        )


def test_memory_counts_what_prodigy_keeps(tmp_path: Path) -> None:
    from tests.make_pipeline import make_pipeline

    make_pipeline(tmp_path)
    adamw, prodigy = (state_mib(str(tmp_path), Valued("full", "", 0, optimizer)) for optimizer in ("adamw", "prodigy"))
    assert adamw > 0
    assert prodigy == pytest.approx(adamw * 8 / 6)


# Rates and flags.


def choose(method: str, model: str = "pocket", **flags: Any) -> Any:
    """The rates of a method under Prodigy."""
    known = read_rates().get(model, {}).get("model_hash", "")
    return choose_rates(Options(optimizer="prodigy", **flags), parse_method(method), model, known)


def test_every_method_has_the_rate_1_and_lambda_keeps_its_own() -> None:
    for method in ("lora", "dora", "hra", "peft:boft", "full"):
        assert (choose(method).lr, choose(method).source, choose(method).borrowed) == (1.0, PRODIGY, None), method
    delora = choose("delora")
    own = read_rates()["pocket"]["methods"]["delora"]
    assert (delora.lr, delora.lr_lambda, delora.boundary) == (1.0, own["lr_lambda"], own["boundary"])
    assert delora.source == f"base_lr {PRODIGY}; lr_lambda and boundary tuned on the pocket"
    four_times = {"lr": 4.0, "lr_lambda": pytest.approx(4 * own["lr_lambda"], rel=1e-5), "lr_magnitude": None}
    assert scaled(delora, 4.0) == four_times | {"boundary": own["boundary"]}
    assert choose("delora:lr_lambda=0.5").lr_lambda == 0.5
    borrowed = choose("ablation-relaxed", "some/model")  # ETHER+'s, which has no lambda: that of its factors
    assert (borrowed.lr, borrowed.lr_lambda, borrowed.boundary) == (1.0, 0.006, 2.0)
    line = describe_borrowed(parse_method("ablation-relaxed"), borrowed, "some/model")
    assert "that of etherplus (lambda's lr 0.006, boundary 2)" in line
    assert choose("lora", base_lr=0.5, base_lr_for_all=True).lr == 0.5
    assert choose("lora:base_lr=0.5").lr == 0.5
    with pytest.raises(BadInput, match="--base-lr is 0.5, and every method has a rate of its own: hra 1"):
        check_base_lr(Options(optimizer="prodigy", base_lr=0.5), [parse_method("hra")], "pocket", "")


def test_what_one_estimate_cannot_give_is_refused_in_a_line() -> None:
    one = "Prodigy estimates one rate for all weights of a run: leave it out, or give --optimizer adamw"
    for method, flags, said in (
        ("lora:lr_ratio=16", {}, "lr_ratio of method 'lora' is 16"),
        ("dora:lr_magnitude=0.5", {}, "lr_magnitude of method 'dora' is 0.5"),
        ("dora", {"lr_magnitude": 0.5}, "lr_magnitude of method 'dora' is 0.5"),
    ):
        with told(method), pytest.raises(BadInput, match=f"{said}.*; {one}"):
            choose(method, **flags)
    with pytest.raises(BadInput, match="--d-coef is 2.0; allowed: 1 under AdamW"):
        Options(d_coef=2.0).check()
    Options(optimizer="prodigy", d_coef=2.0).check()
    with pytest.raises(BadInput, match="--optimizer is prodigy; base rates are AdamW's"):
        base_lr.drive(base_lr.TuningOptions(optimizer="prodigy"))


def test_the_default_is_in_no_hash_and_packs_hold_one_optimiser() -> None:
    plain = make_cell("lora")
    assert not {"optimizer", "d_coef"} & plain.to_dict().keys()
    prodigy, other = (dataclasses.replace(plain, optimizer="prodigy", d_coef=c) for c in (1.0, 2.0))
    assert Cell.from_dict(prodigy.to_dict()) == prodigy
    assert len({cell.identity() for cell in (plain, prodigy, other)}) == 3
    assert prodigy.pack_key() == other.pack_key() != plain.pack_key()
    assert prodigy.base() == plain.base()


# Figures.


def make_frame(*cells: Cell) -> pd.DataFrame:
    """The runs' frame of some cells."""
    rows = [{"multiplier": 1.0, "scale": "both", **cell.to_dict()} for cell in cells]
    return _with_defaults(pd.DataFrame(rows))


def test_curves_and_axes_tell_the_optimiser() -> None:
    plain, prodigy = make_cell("lora"), make_cell("lora", lr=1.0, optimizer="prodigy")
    assert name_multipliers(make_frame(plain)) == "multiple of the base learning rate"
    assert name_multipliers(make_frame(prodigy)) == "multiplier of Prodigy's rate"
    both = make_frame(plain, prodigy)
    assert name_multipliers(both) == "multiple of the base learning rate, multiplier of Prodigy's rate"
    assert list(name_series(both)) == ["LoRA, adamw", "LoRA, prodigy"], "their base rates are not compared"
    assert list(base_rates(both)["base_lr"]) == [1e-3, 1.0]
    coefficients = make_frame(prodigy, make_cell("lora", lr=1.0, optimizer="prodigy", d_coef=2.0))
    assert list(name_series(coefficients)) == ["LoRA, d_coef 1", "LoRA, d_coef 2"]


@pytest.mark.unchecked
def test_the_grid_over_prodigys_rate_from_plan_to_figure(studio: Path, tmp_path: Path) -> None:
    grid = ("--method", "lora", "--optimizer", "prodigy", "--multipliers", "1", "64")
    driven = drive_studio(Studio(studio), lr_robustness, tmp_path, *grid)
    assert driven.code == 0, driven.err
    assert f"base rate of LoRA: 1, {PRODIGY}" in driven.out
    figure = driven.drawn["fig2_lr_robustness"]
    labels = {ax.get_xlabel() for ax in figure.axes if ax.get_xlabel()}
    assert {label.replace("\n", " ") for label in labels} == {"multiplier of Prodigy's rate"}
    found = sorted((driven.folder).rglob("run.json"))
    rates = {
        run.read()["cell"]["lr"] for run in (RunFolder(path.parent) for path in found) if run.read()["cell"]["steps"]
    }
    assert rates == {1.0, 64.0}
