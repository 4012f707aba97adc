"""What is read off the weights: distances, gauges, bounds and directions, of one matrix and of stacks of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adapters import get_class, parse_method
from adapters.check import STEPS
from adapters.pack import Attached
from tests.make_adapters import (
    PAIRED,
    RANK,
    SEEDS,
    VARIANTS,
    base_norms,
    is_low_rank,
    make_adapter,
    make_inputs,
    make_lone,
    make_model,
    make_pack,
    paired_of_each_method,
    reference_distances,
    reference_state,
)
from tests.reference import reference_gauges, reference_num_parameters
from tests.rounds import told
from training.dynamics import Dynamics
from training.store import RunFolder

every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_pair = pytest.mark.parametrize("variant", PAIRED)
every_low_rank = pytest.mark.parametrize("variant", [variant for variant in PAIRED if is_low_rank(variant)])


def check_distances(attached: Attached) -> None:
    """Closed forms against merge-and-subtract in float64: within 1e-6 of the value plus 1e-7 ||W0||."""
    norms = base_norms(attached)
    for replica in range(attached.num_replicas):
        expected = reference_distances(attached, replica)
        distances = torch.stack([adapter.distance()[replica] for adapter in attached.adapters.values()])
        assert distances.dtype == torch.float64
        assert ((distances - expected).abs() <= 1e-6 * expected + 1e-7 * norms).all()


@pytest.mark.unchecked
@every_variant
def test_distance_is_exact(variant: str) -> None:
    for dtype, moved in itertools.product((torch.float64, torch.float32), (0.0, 1e-8, 1e-5, 1e-3, 0.1, 10.0)):
        _, attached = make_pack(variant, [5, 6], dtype, moved=moved)
        with told(dtype, f"moved={moved}"):
            check_distances(attached)


@paired_of_each_method
def test_distance_resolves_the_smallest_moves(variant: str) -> None:
    """Nothing at the start, and 1e-9 away from it five digits: a difference of large numbers would give none."""
    _, attached = make_pack(variant, [5])
    start = torch.cat([adapter.distance() for adapter in attached.adapters.values()])
    assert ((start <= 1e-14 * base_norms(attached)) == get_class(attached.spec.name).starts_at_base).all()
    _, attached = make_pack(variant, [5], moved=1e-9)
    moved = torch.cat([adapter.distance() for adapter in attached.adapters.values()])
    torch.testing.assert_close(moved, reference_distances(attached, 0), rtol=1e-5, atol=0)


@paired_of_each_method
def test_distance_is_exact_at_the_first_steps_of_training(variant: str) -> None:
    model, attached = make_pack(variant, dtype=torch.float32)
    x, context = make_inputs(dtype=torch.float32)
    goal = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=6e-3)
    for _ in range(3):  # steps 0, 1, 2
        check_distances(attached)
        attached.zero_grad()
        attached.advance(STEPS)
        (model(x, context) - goal).square().sum().backward()
        optimizer.step()
    check_distances(attached)


@every_low_rank
def test_distance_is_exact_where_the_change_lies_along_the_rows(variant: str) -> None:
    """Rows that only grow are the worst case of DoRA's distance: it does not count growth, and must find the rest."""
    _, attached = make_pack(variant, [5, 6], torch.float32)
    for length in (1e-4, 1e-2, 0.3, 1.0, 10.0):
        for adapter in attached.adapters.values():
            with torch.no_grad():
                adapter.get_parameter("A").copy_(adapter.base.weight[:RANK].expand(2, -1, -1))
                adapter.get_parameter("B").copy_(length * torch.eye(adapter.base.out_features, RANK).expand(2, -1, -1))
        with told(f"length={length}"):
            check_distances(attached)


@every_low_rank
def test_distance_is_exact_where_the_factors_cancel(variant: str) -> None:
    """Directions that are nearly one, with signs that add up to nearly nothing: single precision is off by 1e-3 here."""
    _, attached = make_pack(variant, [5, 6], torch.float32, moved=1.0)
    signs = torch.tensor([1.0, -1.0, 1e-3])
    for adapter in attached.adapters.values():
        with torch.no_grad():
            a, b = adapter.get_parameter("A"), adapter.get_parameter("B")
            a.copy_(a[:, :1] + 1e-4 * a)
            b.copy_((b[..., :1] + 1e-4 * b) * signs)
    check_distances(attached)


def test_distance_is_exact_where_reflections_undo_each_other() -> None:
    """A vector and its opposite reflect alike: five digits however near a pair, or a pair of pairs, is to undoing itself."""
    spec, base = parse_method("hra"), nn.Linear(40, 30, dtype=torch.float64)
    for sign, apart in itertools.product((1.0, -3.0), (0.0, 1e-12, 1e-8, 1e-4)):
        generator = torch.Generator().manual_seed(0)
        u, v, noise = torch.randn(3, 40, 3, generator=generator, dtype=torch.float64)
        pair, pairs = make_adapter(spec, base, rank=6), make_adapter(spec, base, rank=4)
        pair.get_parameter("U").data = torch.stack([u, sign * u + apart * v], 2).reshape(1, 40, 6)
        pairs.get_parameter("U").data = torch.stack([u, v, v + apart * noise, u], 2)[None, :, 0]
        with told(f"sign={sign}", f"apart={apart}"):
            expected, distance = reference_distances(make_lone(spec, pair), 0), pair.distance()
            torch.testing.assert_close(distance, expected, rtol=1e-5, atol=1e-14 * float(base.weight.norm()))
            check_distances(make_lone(spec, pairs))


@pytest.mark.unchecked
@every_pair
@settings(max_examples=6, deadline=None)
@given(
    exponents=st.lists(st.floats(-8, 4), min_size=6, max_size=6),
    base_exponent=st.floats(-4, 4),
    seed=st.integers(0, 1000),
    keep=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_distance_is_exact_and_bounded_at_any_scale(
    variant: str, exponents: list[float], base_exponent: float, seed: int, keep: bool, dtype: torch.dtype
) -> None:
    """Every tensor at a scale of its own, from its start on or without it."""
    spec, generator = parse_method(variant), torch.Generator().manual_seed(seed)
    base = nn.Linear(12, 8, dtype=dtype)
    with torch.no_grad():
        base.weight.copy_(10.0**base_exponent * torch.randn(8, 12, generator=generator))
    adapter = make_adapter(spec, base)
    for name, exponent in zip(adapter.ROLES, exponents):
        parameter = adapter.get_parameter(name)
        noise = 10.0**exponent * torch.randn(parameter.shape, generator=generator, dtype=dtype)
        parameter.data = keep * parameter.data + noise
    check_distances(make_lone(spec, adapter))
    readings = adapter.readings()
    for name, bound in adapter.bounds().items():
        assert (readings[name] <= bound * (1 + 1e-6)).all()


# Nothing is ever NaN.

STATES: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "minus ones": lambda t: -torch.ones_like(t),
    "tiny": lambda t: torch.full_like(t, 1e-30),
    "huge": lambda t: torch.full_like(t, 1e15) * torch.sign(t + 1e-3),
    "one direction zero": lambda t: t * torch.arange(t.shape[-1]).clamp_max(1),
}


def make_degenerate(kind: str) -> nn.Linear:
    """A layer that is random, zero, or zero in one row or column."""
    layer = nn.Linear(12, 8)
    with torch.no_grad():
        layer.weight *= 0.0 if kind == "zero" else 1.0
        layer.weight[:, : int(kind == "zero column")] = 0
        layer.weight[: int(kind == "zero row")] = 0
    return layer


@pytest.mark.unchecked
@every_pair
def test_readings_are_finite_wherever_the_parameters_are(variant: str) -> None:
    for kind, state in itertools.product(("random", "zero", "zero row", "zero column"), STATES):
        adapter = make_adapter(parse_method(variant), make_degenerate(kind))
        for parameter in adapter.parameters(recurse=False):
            parameter.data = STATES[state](parameter.data)
        with told(f"base {kind}", f"parameters {state}"):
            for name, values in {**adapter.readings(), **adapter.bounds()}.items():
                assert values.isfinite().all(), name
                assert name == "lambda" or (values >= 0).all(), name


@paired_of_each_method
def test_forward_and_gradient_are_finite_at_degenerate_values(variant: str) -> None:
    model, attached = make_pack(variant, dtype=torch.float32)
    start = attached.flat.clone()
    attached.advance(STEPS)
    for state in ("zeros", "ones", "tiny", "one direction zero"):
        attached.zero_grad()
        attached.flat.copy_(STATES[state](start))
        out = model(*make_inputs(dtype=torch.float32))
        out.square().sum().backward()
        with told(f"parameters {state}"):
            assert out.isfinite().all()
            assert attached.grad.isfinite().all()


@paired_of_each_method
def test_rows_and_columns_of_zeros_in_the_base_harm_nothing(variant: str) -> None:
    model = make_model(torch.float32)
    with torch.no_grad():
        model.attn1.to_q.weight[2] = 0
        model.attn1.to_q.weight[:, 3] = 0
        model.attn2.to_v.weight.zero_()
    x, context = make_inputs(dtype=torch.float32)
    before = model(x, context)
    _, attached = make_pack(variant, dtype=torch.float32, model=model)
    if next(iter(attached.adapters.values())).starts_at_base:
        torch.testing.assert_close(model(x, context), before, rtol=1e-4, atol=1e-5)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(5):
        attached.zero_grad()
        attached.advance(STEPS)
        model(x, context).square().sum().backward()
        assert attached.grad.norm().isfinite()
        optimizer.step()
    for path, adapter in attached.adapters.items():
        assert adapter.weight().isfinite().all(), path
        assert all(values.isfinite().all() for values in adapter.readings().values()), path


# Gauges.


@every_pair
def test_gauges_are_read_back_to_the_bit(variant: str, tmp_path: Path) -> None:
    _, attached = make_pack(variant, dtype=torch.float32, moved=0.3)
    dynamics, logged = Dynamics(attached), []
    dynamics.remember()
    for step in range(3):
        dynamics.record(step)
        logged.append(dynamics._rows[-1][1])
        attached.flat.data.mul_(1 + 1e-4)  # a step so small that eight bits do not show it
    folders = [RunFolder(tmp_path / f"run{replica}") for replica in range(len(SEEDS))]
    dynamics.flush(folders, 2)
    for replica, folder in enumerate(folders):
        frame = folder.read_dynamics()
        assert set(logged[0]) == {name for name in dynamics.columns if frame[name].notna().any()}
        for name in logged[0]:
            table = frame.pivot(index="step", columns="matrix", values=name)[dynamics.paths]
            stored = torch.tensor(table.to_numpy(dtype="float32"))
            exact = torch.stack([row[name][replica] for row in logged])
            torch.testing.assert_close(stored, exact, rtol=0, atol=0, equal_nan=True)


@every_variant
def test_gauges_match_reference(variant: str) -> None:
    _, attached = make_pack(variant, moved=0.5)
    for replica in range(len(SEEDS)):
        for path, adapter in attached.adapters.items():
            state = reference_state(attached, replica, path)
            arguments = adapter.base.weight.double(), state, adapter.rank, attached.spec.options
            expected = reference_gauges(attached.spec.name, *arguments)
            gauges = adapter.gauges()
            assert gauges.keys() - {"saturation"} == expected.keys()
            assert ("saturation" in gauges) == ("bound" in expected)
            for name, value in expected.items():
                torch.testing.assert_close(gauges[name][replica], value.detach(), rtol=1e-9, atol=1e-12)
            if "bound" in expected:
                limited = adapter.readings()[{"transform": "transform_distance"}.get(adapter.bound_kind, "distance")]
                torch.testing.assert_close(gauges["saturation"], limited / gauges["bound"])


# Stacks and directions.


@paired_of_each_method
def test_stacks_read_the_memory_that_trains(variant: str) -> None:
    _, attached = make_pack(variant, moved=0.3)
    assert [len(stack.paths) for stack in attached.stacks] == [4, 2, 2]
    assert [path for stack in attached.stacks for path in stack.paths] != list(attached.adapters)
    for _ in range(2):
        for stack in attached.stacks:
            for name in stack.adapter.ROLES:
                assert stack.adapter.get_parameter(name).untyped_storage().data_ptr() == attached.flat.data_ptr()
            members = [attached.adapters[path] for path in stack.paths]
            for kind in ("readings", "bounds", "factors"):
                whole = getattr(stack.adapter, kind)()
                alone = [getattr(member, kind)() for member in members]
                assert all(part.keys() == whole.keys() for part in alone)
                for name, values in whole.items():
                    torch.testing.assert_close(
                        values, torch.stack([part[name] for part in alone], 1), rtol=1e-10, atol=1e-14
                    )
            torch.testing.assert_close(
                stack.adapter.weight(), torch.stack([member.weight() for member in members], 1), rtol=1e-10, atol=1e-12
            )
        attached.flat.mul_(1.5)


@paired_of_each_method
def test_directions_are_the_factors_by_rows(variant: str) -> None:
    _, attached = make_pack(variant, moved=0.3)
    for path, adapter in attached.adapters.items():
        before = {name: rows.clone() for name, rows in adapter.factors().items()}
        assert {"a"} <= before.keys() <= {"a", "b"}
        for name, rows in before.items():
            assert rows.ndim == 3, name
            assert rows.shape[0] == len(SEEDS)
            assert not adapter.factors()[name].requires_grad
        num_values = sum(rows[0].numel() for rows in before.values())
        one_sided = {**attached.spec.options, "sides": "one"}
        other = [name for name, role in adapter.ROLES.items() if role in ("magnitude", "lambda")]
        scalars = sum(adapter.get_parameter(name)[0].numel() for name in other)
        num_out, num_in = adapter.base.weight.shape
        expected = reference_num_parameters(attached.spec.name, num_out, num_in, adapter.rank, one_sided)
        assert num_values == expected - scalars
        attached.flat.mul_(2)
        for name, rows in adapter.factors().items():
            torch.testing.assert_close(rows, 2 * before[name], msg=f"{path} {name}")
