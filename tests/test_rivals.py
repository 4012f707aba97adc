"""NB-LoRA and SingLoRA: what their papers promise, what was derived of them, and what public codes do otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adapters import BadInput, get_class, parse_method, peft_format
from adapters.attach_checkpoint import attach_checkpoint, build_adapter
from adapters.base import Adapter
from adapters.inject import attach
from adapters.pack import Attached
from adapters.read_checkpoint import read_checkpoint
from adapters.toy import make_model
from sweeps.options import Options
from sweeps.rates import choose_rates, scaled
from tests.make_adapters import SEEDS, make_inputs, make_pack
from tests.reference import reference_frame
from tests.rounds import told
from tests.test_loop import make_cell, parts, studio, weights  # noqa: F401
from tests.test_loop import train as train_on_pipeline
from training.optimizer import PackedAdamW
from training.stop import Interrupted

SHAPES = ((8, 12), (12, 8), (10, 10), (3, 9), (9, 3))
"""Wide, tall, square; and as thin as the rank, 3, on either side."""


def make_one(
    variant: str, shape: tuple[int, int], rank: int = 3, *, boundary: float = 0.7, dtype: torch.dtype = torch.float64
) -> Adapter:
    """One replica around a random matrix."""
    spec, base = parse_method(variant), nn.Linear(shape[1], shape[0], dtype=dtype)
    return get_class(spec.name)(base, path="x", seeds=[3], rank=rank, boundary=[boundary], options=spec.options)


def moved_weight(adapter: Adapter) -> Tensor:
    """W - W0 of the only replica, in double precision."""
    twin = adapter.in_double()
    return (twin.weight()[0] - twin.weight0).detach()


def scatter(adapter: Adapter, size_a: float, size_b: float, seed: int = 0) -> Adapter:
    """NB-LoRA's free factors at random, each at a size of its own."""
    generator = torch.Generator().manual_seed(seed)
    for name, size in (("A", size_a), ("B", size_b)):
        parameter = adapter.get_parameter(name)
        parameter.data = size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return adapter


# NB-LoRA.


@pytest.mark.parametrize("strength", ["constant", "learned"])
def test_no_singular_value_exceeds_its_strength(strength: str) -> None:
    for shape in SHAPES:
        for size_a in (0.01, 0.3, 1.0, 100.0):
            for size_b in (1e-9, 0.3, 1.0, 100.0):
                adapter = scatter(make_one(f"nblora:strength={strength}", shape), size_a, size_b)
                if strength == "learned":
                    adapter.get_parameter("lam").data = torch.tensor([[0.7, 0.1, 0.4]]).double()
                allowed = adapter.strengths()[0].sort(descending=True).values  # type: ignore[operator]
                with told(shape, size_a, size_b):
                    values = torch.linalg.svdvals(moved_weight(adapter))
                    assert (values[:3] <= allowed * (1 + 1e-12) + 1e-15).all()
                    assert (values[3:] < 1e-13).all(), "nor is its rank exceeded"


def test_frame_is_orthonormal_and_rises_from_an_orthonormal_a() -> None:
    for shape in SHAPES:
        adapter = make_one("nblora", shape)
        a, b = adapter.frame()  # type: ignore[operator]
        identity = torch.eye(3, dtype=torch.float64)
        with told(shape):
            assert not b.any()
            torch.testing.assert_close((a @ a.mT)[0], identity, rtol=0, atol=1e-14)
            assert adapter.readings()["distance"] == 0
            for size_a, size_b in ((0.3, 0.3), (1e-6, 3.0), (30.0, 0.1), (1e3, 1e3)):
                a, b = scatter(adapter, size_a, size_b).frame()  # type: ignore[operator]
                torch.testing.assert_close((a @ a.mT + b.mT @ b)[0], identity, rtol=0, atol=1e-9)


def test_frame_is_the_first_columns_of_the_cayley_transform_of_a_skew_matrix() -> None:
    for shape in SHAPES:
        adapter = scatter(make_one("nblora", shape), 0.4, 0.6)
        a, b = adapter.frame()  # type: ignore[operator]
        expected = reference_frame(adapter.get_parameter("A")[0], adapter.get_parameter("B")[0])
        torch.testing.assert_close(torch.cat([a[0].mT, b[0]]), expected, rtol=0, atol=1e-14)


def test_start_keeps_the_directions_that_were_drawn() -> None:
    """Columns of length 1 become nearly themselves; an A~ near 0 would become the first inputs."""
    adapter = make_one("nblora", (320, 320), 8)
    drawn, a = adapter.get_parameter("A")[0], adapter.frame()[0][0]  # type: ignore[operator]
    assert (nn.functional.cosine_similarity(drawn, -a) > 0.9).all()
    shorter = scatter(adapter, 1e-3, 0.0).frame()[0][0]  # type: ignore[operator]
    assert shorter[:, :8].diagonal().min() > 0.99


def test_bound_is_reached_in_the_middle_and_the_change_shrinks_beyond() -> None:
    """From directions of length 1, as at the start: the bound is reached where B~ has length sqrt(2), and never passed."""
    adapter = make_one("nblora", (8, 12))
    shares, inputs = [], []
    for length in (0.0, 0.1, 0.5, 2**0.5, 3.0, 10.0, 1000.0):
        with torch.no_grad():
            adapter.get_parameter("A").zero_()[0, :, 9:] = torch.eye(3)
            adapter.get_parameter("B").zero_()[0, :3] = length * torch.eye(3)
        readings = adapter.readings()
        shares.append(float(readings["saturation"]))
        inputs.append(float(readings["input_share"]))
    assert shares[3] == pytest.approx(1, abs=1e-12)
    assert inputs[3] == pytest.approx(0.5, abs=1e-12)
    assert shares[:4] == sorted(shares[:4])
    assert shares[3:] == sorted(shares[3:], reverse=True)
    assert shares[-1] < 0.01
    assert inputs == pytest.approx([(1 + (1 - share**2) ** 0.5) / 2 for share in shares], abs=1e-7)
    assert inputs[0] == pytest.approx(1, abs=1e-12)


def test_distance_has_five_digits_however_near_the_start() -> None:
    """1 - cos would give none: B^T B is used, and not I - A A^T."""
    adapter = make_one("nblora", (8, 12))
    direction = torch.randn(1, 8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    distances = []
    for size in (1e-3, 1e-9, 1e-30, 1e-100):
        adapter.get_parameter("B").data = size * direction
        distances.append(float(adapter.distance()) / size)
    assert distances[0] == pytest.approx(distances[1], rel=1e-4)
    assert distances[1:] == pytest.approx([distances[1]] * 3, rel=1e-12)


def test_ball_is_that_of_delora_at_the_same_boundary() -> None:
    """Of DeLoRA from B = 0, whose bound is one lambda's: exactly for directions that weigh all inputs alike."""
    ours, theirs = make_one("nblora", (320, 640), 8), make_one("delora:start=zero_b", (320, 640), 8)
    theirs.base.weight.data.copy_(ours.base.weight)
    theirs.hold(theirs.measure())
    assert float(ours.bounds()["distance"]) == pytest.approx(float(theirs.bounds()["distance"]), rel=0.01)
    theirs.get_parameter("A").data.fill_(2.0)
    assert float(ours.bounds()["distance"]) == pytest.approx(float(theirs.bounds()["distance"]), rel=1e-12)
    assert float(ours.readings()["lambda"]) == pytest.approx(0.7)


def test_learned_lambdas_are_put_back_and_pass_their_gradient() -> None:
    adapter = scatter(make_one("nblora:strength=learned", (8, 12)), 0.3, 0.3)
    lam = adapter.get_parameter("lam")
    assert lam.tolist() == [[0.7] * 3]
    lam.data = torch.tensor([[-5.0, 0.3, 5.0]], dtype=torch.float64)
    before = adapter.weight()
    adapter(torch.ones(1, 12, dtype=torch.float64)).square().sum().backward()
    assert lam.grad is not None
    assert (lam.grad != 0).all(), "one that went too far can come back"
    adapter.project()
    assert lam.tolist() == [[0.0, 0.3, 0.7]]
    assert torch.equal(adapter.weight(), before)


@pytest.mark.parametrize("size", [1e5, 1e8, 1e19, 1e38])
def test_extreme_values_leave_the_frame_orthonormal(size: float) -> None:
    """Held where rounding would drown the identity: columns that are all alike are the worst case."""
    for dtype in (torch.float32, torch.float64):
        adapter = make_one("nblora", (8, 12), dtype=dtype)
        for name in adapter.ROLES:
            adapter.get_parameter(name).data.fill_(size)
        a, b = adapter.frame()  # type: ignore[operator]
        torch.testing.assert_close((a @ a.mT + b.mT @ b)[0], torch.eye(3).double(), rtol=0, atol=1e-4)
        assert all(value.isfinite().all() for value in adapter.readings().values())
        assert float(adapter.readings()["saturation"]) <= 1


def test_smallest_matrices_and_ranks_that_do_not_fit() -> None:
    x = scatter(make_one("nblora", (1, 1), 1), 0.3, 1.0)
    y = x.get_parameter("B").item()
    expected = 2 * -2 * y / (1 + y * y) * float(x.strengths()) * (1 - y * y) / (1 + y * y)  # type: ignore[operator]
    assert float(moved_weight(x)) == pytest.approx(expected)
    one = make_one("singlora", (1, 1), 1)
    one.advance(100, torch.ones(1, dtype=torch.bool))
    assert float(moved_weight(one)) == pytest.approx(one.get_parameter("A").item() ** 2)
    for method in ("nblora", "singlora"):
        for shape, rank in (((3, 9), 4), ((9, 3), 4), ((1, 1), 2)):
            with pytest.raises(BadInput, match=rf"rank {rank} does not fit matrix 'x' of {shape[0]} x {shape[1]}"):
                make_one(method, shape, rank)


def test_a_constant_boundary_has_no_rate_of_its_own() -> None:
    rates = {
        variant: choose_rates(Options(lr_lambda=0.5), parse_method(variant), "pocket", "")
        for variant in ("nblora", "nblora:strength=learned", "delora", "ablation-relaxed")
    }
    assert [r.lr_lambda for r in rates.values()] == [None, 0.5, 0.5, 0.5]
    untuned = [choose_rates(Options(), parse_method(name), "other", "").boundary for name in ("nblora", "delora")]
    assert untuned[0] == untuned[1], "a model on which nobody searched for NB-LoRA's"
    assert scaled(rates["nblora"], 4.0)["lr_lambda"] is None
    assert scaled(rates["nblora"], 4.0)["boundary"] == rates["nblora"].boundary
    borrowed = choose_rates(Options(), parse_method("ablation-relaxed"), "other", "")
    assert borrowed.lr_lambda == borrowed.lr, "without a rate of its own, lambda's is the factors'"
    with pytest.raises(BadInput, match="'nblora' has no lr_lambda; its rates are: base_lr, boundary"):
        choose_rates(Options(), parse_method("nblora:lr_lambda=1"), "pocket", "")


# SingLoRA.


def advance(adapter: Adapter, times: int, steps: int = 1000) -> Adapter:
    """So many optimiser steps of a training of `steps`."""
    for _ in range(times):
        adapter.advance(steps, torch.ones(adapter.num_replicas, dtype=torch.bool))
    return adapter


def test_change_is_the_papers_in_both_orientations() -> None:
    for shape in SHAPES:
        adapter = advance(make_one("singlora:alpha=6", shape), 10)
        a = adapter.get_parameter("A")[0].detach()
        assert a.shape == (max(shape), 3)
        expected = 2 * a[: min(shape)] @ a.T
        with told(shape):
            torch.testing.assert_close(moved_weight(adapter), expected if shape[0] <= shape[1] else expected.T)


def test_square_change_has_no_negative_direction() -> None:
    values = torch.linalg.eigvalsh(moved_weight(advance(make_one("singlora", (10, 10)), 10)))
    assert (values > -1e-15).all()
    assert (values[-3:] > 1e-3).all()


@pytest.mark.parametrize(("ramp", "steps", "length"), [("1%", 1000, 10), ("1%", 401, 5), ("1%", 7, 1), ("4", 1000, 4)])
def test_ramp_rises_by_the_step_and_stays(ramp: str, steps: int, length: int) -> None:
    adapter, seen = make_one(f"singlora:ramp={ramp}", (8, 12)), []
    for _ in range(length + 2):
        seen.append(float(adapter.strength()))  # type: ignore[operator]
        advance(adapter, 1, steps)
    assert seen == pytest.approx([min(t / length, 1) for t in range(length + 2)], abs=1e-12)
    assert float(adapter.get_buffer("t")) == length + 2


def test_drift_is_that_of_the_start_at_the_same_step() -> None:
    """Of untrained factors the distance is the drift; of trained ones it is what rate 0 would have brought."""
    for shape in SHAPES:
        adapter = make_one("singlora:alpha=6", shape)
        assert adapter.readings()["drift"] == adapter.readings()["distance"] == 0
        advance(adapter, 3)
        drift = float(moved_weight(adapter).norm())
        readings = {name: float(value) for name, value in adapter.readings().items()}
        assert readings["drift"] == pytest.approx(drift, rel=1e-6)
        assert readings["distance"] == pytest.approx(drift, rel=1e-12)
        adapter.get_parameter("A").data.mul_(2)
        assert float(adapter.readings()["drift"]) == readings["drift"]
        assert float(adapter.distance()) == pytest.approx(4 * drift, rel=1e-12)


@pytest.mark.parametrize(("size", "rank"), [(320, 8), (768, 8), (384, 16)])
def test_starts_have_the_variance_of_their_fan_and_drift_as_far_as_it_says(size: int, rank: int) -> None:
    """1 / (3 n) and sqrt(r) / 3 in the paper's sense; 1 / (3 r) and n / (3 sqrt(r)), n / r times as far, as released."""
    for init, fan, drift in (("paper", size, rank**0.5 / 3), ("released", rank, size / (3 * rank**0.5))):
        adapter = advance(make_one(f"singlora:init={init}", (size, size), rank), 10)
        with told(init):
            a = adapter.get_parameter("A").detach()
            assert float(a.var()) == pytest.approx(1 / (3 * fan), rel=0.05)
            assert float(a.abs().max()) <= fan**-0.5
            assert float(adapter.readings()["drift"]) == pytest.approx(drift, rel=0.1)


def test_first_step_has_a_gradient_and_rate_zero_drifts() -> None:
    model, attached = make_pack("singlora")
    model(*make_inputs()).square().sum().backward()
    assert not attached.grad.any(), "at t = 0 there is none"
    attached.advance(100)
    model(*make_inputs()).square().sum().backward()
    assert (attached.grad.norm(dim=1) > 0).all()
    for adapter in attached.adapters.values():
        assert (adapter.distance() > 0).all()
        assert torch.allclose(adapter.distance(), adapter.gauges()["drift"], rtol=1e-6)


def test_a_replica_that_has_diverged_stays_where_it_is() -> None:
    _, attached = make_pack("singlora")
    attached.advance(1000)
    attached.advance(1000, torch.tensor([True, False, True]))
    for adapter in attached.adapters.values():
        assert adapter.get_buffer("t").tolist() == [2, 1, 2]
        assert adapter.get_buffer("ramp").tolist() == [10, 10, 10]


def train_toy(attached: Attached, model: nn.Module, optimizer: PackedAdamW, seeds: Sequence[int], count: int) -> None:
    """Some optimiser steps of a training of 400 (a ramp of 4 steps)."""
    x, context = make_inputs(seeds, torch.float32)
    for _ in range(count):
        attached.zero_grad()
        attached.advance(400, ~optimizer.frozen)
        losses = (model(x, context) - 1).square().mean((1, 2)).unflatten(0, (len(seeds), -1)).mean(1)
        losses.sum().backward()
        optimizer.step(losses.detach())
        attached.project()


def make_optimizer(attached: Attached) -> PackedAdamW:
    """Packed AdamW at one rate."""
    k = attached.num_replicas
    return PackedAdamW(
        attached.flat, attached.grad, attached.segments, rates=dict.fromkeys(attached.segments, [1e-2] * k),
        weight_decay=[0.01] * k, clip=[1.0] * k, advancing=attached.advancing(),
    )  # fmt: skip


@pytest.mark.parametrize("variant", ["singlora", "singlora:ramp=3", "nblora", "nblora:strength=learned"])
def test_a_resumed_pack_goes_on_to_the_same_bits(variant: str) -> None:
    """Stopped within the ramp: its counters stand in the optimiser's state, which is what a checkpoint holds."""
    model, whole = make_pack(variant, dtype=torch.float32)
    train_toy(whole, model, make_optimizer(whole), SEEDS, 5)
    model, first = make_pack(variant, dtype=torch.float32)
    optimizer = make_optimizer(first)
    train_toy(first, model, optimizer, SEEDS, 2)
    kept = [optimizer.state(row) for row in range(len(SEEDS))]
    model, second = make_pack(variant, dtype=torch.float32)
    optimizer = make_optimizer(second)
    for row, state in enumerate(kept):
        optimizer.load_state(row, state, 2)
    train_toy(second, model, optimizer, SEEDS, 3)
    assert torch.equal(second.flat, whole.flat)
    for row in range(len(SEEDS)):
        for name, tensor in whole.state(row).items():
            assert torch.equal(second.state(row)[name], tensor), name


@pytest.mark.parametrize("variant", ["singlora", "singlora:ramp=3", "nblora", "nblora:strength=learned"])
def test_packed_is_alone(variant: str) -> None:
    model, pack = make_pack(variant, dtype=torch.float32)
    train_toy(pack, model, make_optimizer(pack), SEEDS, 5)
    for row, seed in enumerate(SEEDS):
        model, alone = make_pack(variant, [seed], dtype=torch.float32)
        train_toy(alone, model, make_optimizer(alone), [seed], 5)
        assert (pack.flat[row] - alone.flat[0]).norm() <= 1e-4 * alone.flat[0].norm()
        for path, adapter in alone.adapters.items():
            for name in adapter.frozen:
                assert torch.equal(pack.adapters[path].get_buffer(name)[row], adapter.get_buffer(name)[0])


@pytest.mark.parametrize("variant", ["singlora:alpha=2", "nblora", "nblora:strength=learned"])
def test_a_saved_adapter_is_read_whole_with_its_ramp(variant: str, tmp_path: Path) -> None:
    """Half-way up the ramp: the folder opens, merges, and trains on from there in a longer training."""
    model, attached = make_pack(variant, dtype=torch.float32)
    train_toy(attached, model, make_optimizer(attached), SEEDS, 2)
    peft_format.save(tmp_path / "adapter", attached, 1, base_model="toy")
    assert not peft_format.has_peft_form(attached)
    checkpoint = read_checkpoint(tmp_path / "adapter")
    assert checkpoint.spec == parse_method(variant)
    other = make_model(torch.float32)
    again = attach_checkpoint(other, checkpoint, seeds=(1, 2))
    x, context = (part[2:4] for part in make_inputs(dtype=torch.float32))
    expected = model(*make_inputs(dtype=torch.float32))[2:4]
    torch.testing.assert_close(other(x.repeat(2, 1, 1), context.repeat(2, 1, 1))[2:], expected)
    for path, adapter in again.adapters.items():
        alone = build_adapter(checkpoint, path, adapter.base.weight)
        torch.testing.assert_close(alone.distance(), attached.adapters[path].distance()[1:2])
        if "t" in adapter.frozen:
            again.advance(100_000)
            assert float(adapter.get_buffer("ramp")[0]) == 4, "its own, not the longer training's"
            assert float(adapter.readings()["drift"][0]) > float(attached.adapters[path].readings()["drift"][1])
            break


@pytest.mark.parametrize("variant", ["nblora", "nblora:strength=learned", "singlora", "singlora:init=released"])
def test_a_bf16_base_is_adapted_in_single_precision(variant: str) -> None:
    model = make_model(torch.bfloat16)
    attached = attach(model, parse_method(variant), seeds=SEEDS, rank=3, boundary=[1.0] * len(SEEDS))
    attached.advance(100)
    out = model(*make_inputs(dtype=torch.bfloat16))
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert attached.grad.dtype == torch.float32
    assert attached.grad.isfinite().all()
    assert (attached.grad.norm(dim=1) > 0).all()


@pytest.mark.parametrize("method", ["nblora", "singlora"])
def test_accumulated_gradients_count_as_one_step(method: str, studio: Path, parts: tuple, tmp_path: Path) -> None:  # noqa: F811
    cells = [make_cell(method, gradient_accumulation_steps=2, boundary=1.0 if method == "nblora" else None)]
    folder = train_on_pipeline(studio, parts, tmp_path, cells)[0]
    dynamics = folder.read_dynamics()
    if method == "nblora":
        shares = dynamics.groupby("step")["input_share"].mean()
        assert shares[0] == pytest.approx(1)
        assert shares[cells[0].steps] < 1
    else:
        assert {float(tensor) for key, tensor in weights(folder).items() if key.endswith(".t")} == {cells[0].steps}
        drift = dynamics.groupby("step")["drift"].mean()
        assert drift[0] == 0
        assert drift[1] == pytest.approx(drift[cells[0].steps]), f"1 % of {math.ceil(cells[0].steps)} steps is one"


def test_a_stopped_run_goes_on_up_its_ramp(studio: Path, parts: tuple, tmp_path: Path) -> None:  # noqa: F811
    """Through the loop's own checkpoints, stopped in the middle of the ramp: the same counters and the same factors."""
    cells, progress = [make_cell("singlora:ramp=5")], [0]
    whole = train_on_pipeline(studio, parts, tmp_path / "whole", cells)[0]

    def stop() -> bool:
        progress[0] += 1
        return progress[0] > 4  # it is asked twice a step; the first time it saves

    with pytest.raises(Interrupted):
        train_on_pipeline(studio, parts, tmp_path / "stopped", cells, stop=stop)
    again = train_on_pipeline(studio, parts, tmp_path / "stopped", cells)[0]
    assert 0 < again.read()["provenance"]["resumed_at"] < 5
    assert weights(again).keys() == weights(whole).keys()
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(again)[name], tensor), name
