"""Every method, in every variant, against every promise of the contract (see CONTRIBUTING.md).

The oracles are in ``reference.py``; the model, 8 matrices of 3 shapes with 3 replicas, in ``make_adapters.py``.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters import METHODS, get_class, parse_method
from adapters.base import ROLE_ORDER
from adapters.check import check
from adapters.pack import Attached
from tests import reference
from tests.make_adapters import (
    PAIRED,
    SEEDS,
    SINGLE,
    VARIANTS,
    make_inputs,
    make_model,
    make_pack,
    paired_of_each_method,
    reference_state,
    reference_weights,
    relative_error,
    run_reference,
)
from tests.rounds import told

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}

every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_pair = pytest.mark.parametrize("variant", PAIRED)


def test_every_method_has_an_oracle() -> None:
    assert reference.REFERENCES.keys() == reference.GAUGES.keys() == METHODS.keys()
    assert {variant.partition(":")[0] for variant in VARIANTS} == set(METHODS)


@pytest.mark.unchecked
@pytest.mark.parametrize("variant", SINGLE)
def test_every_promise_of_the_check_holds(variant: str) -> None:
    """What `python -m adapters.check` runs on a user's method; the oracles' tests follow, and say more."""
    assert [finding for finding in check(parse_method(variant)) if not finding.holds] == []


# The same mathematics three times: weight, forward, and their gradients.


@every_variant
def test_weight_matches_reference(variant: str) -> None:
    for dtype, tolerance in TOLERANCES.items():
        _, attached = make_pack(variant, dtype=dtype, moved=0.5)
        for replica in range(len(SEEDS)):
            merged = attached.merged(replica)
            for path, expected in reference_weights(attached, replica).items():
                weight = attached.adapters[path].weight()[replica]
                with told(dtype, path):
                    assert weight.dtype == dtype
                    assert relative_error(weight, expected) < tolerance
                    assert merged[path].dtype == torch.float32
                    torch.testing.assert_close(merged[path], weight.float(), rtol=0, atol=0)


@every_variant
def test_forward_agrees_with_reference_weight(variant: str) -> None:
    for dtype, tolerance in TOLERANCES.items():
        _, attached = make_pack(variant, dtype=dtype, moved=0.5)
        weights = [reference_weights(attached, replica) for replica in range(len(SEEDS))]
        for path, adapter in attached.adapters.items():
            num_in = adapter.base.in_features
            x = torch.randn(len(SEEDS) * 2, 5, num_in, dtype=dtype, generator=torch.Generator().manual_seed(2))
            y = adapter(x)
            assert y.dtype == dtype
            for replica, (rows, out) in enumerate(zip(x.chunk(len(SEEDS)), y.chunk(len(SEEDS)))):
                expected = rows.double() @ weights[replica][path].T
                if adapter.base.bias is not None:
                    expected = expected + adapter.base.bias.double()
                with told(dtype, path):
                    assert relative_error(out, expected) < tolerance


@every_variant
def test_model_and_gradients_match_reference(variant: str) -> None:
    for dtype, tolerance in TOLERANCES.items():
        model, attached = make_pack(variant, dtype=dtype, moved=0.3)
        x, context = make_inputs(dtype=dtype)
        x.requires_grad_()
        out = model(x, context)
        (out**2).sum().backward()
        for replica, rows in enumerate(torch.arange(len(x)).chunk(len(SEEDS))):
            with told(dtype, f"replica {replica}"):
                check_gradients(attached, replica, (x, context, out), rows, tolerance)


def check_gradients(
    attached: Attached, replica: int, tensors: tuple[Tensor, Tensor, Tensor], rows: Tensor, tolerance: float
) -> None:
    """Outputs and gradients of a replica's rows are those of the oracle, tensor by tensor and as a whole."""
    x, context, out = tensors
    assert x.grad is not None
    states = {path: reference_state(attached, replica, path) for path in attached.adapters}
    trained = [states[path][name].requires_grad_() for path, a in attached.adapters.items() for name in a.ROLES]
    mine = [a.get_parameter(name).grad for a in attached.adapters.values() for name in a.ROLES]
    x_ref = x[rows].detach().double().requires_grad_()
    expected = run_reference(reference_weights(attached, replica, states), x_ref, context[rows])
    gradients = torch.autograd.grad((expected**2).sum(), [x_ref, *trained])
    assert relative_error(out[rows], expected) < tolerance
    assert relative_error(x.grad[rows], gradients[0]) < tolerance
    for gradient, expected_gradient in zip(mine, gradients[1:], strict=True):
        assert gradient is not None
        assert expected_gradient.norm() > 0, "at random values every trainable tensor gets a gradient"
        assert relative_error(gradient[replica], expected_gradient) < 1000 * tolerance
    whole = torch.cat([gradient.flatten() for gradient in gradients[1:]])
    packed = torch.cat([gradient[replica].flatten() for gradient in mine if gradient is not None])
    assert relative_error(packed, whole) < tolerance


@every_pair
def test_gradient_matches_the_gradient_through_weight(variant: str) -> None:
    _, attached = make_pack(variant, moved=0.5)
    adapter = attached.adapters["attn1.to_out.0"]
    x = torch.randn(len(SEEDS), 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    parameters = [adapter.get_parameter(name) for name in adapter.ROLES]
    fast = torch.autograd.grad(adapter(x).square().sum(), parameters)
    literal = torch.autograd.grad((x @ adapter.weight().mT + adapter.base.bias).square().sum(), parameters)
    for one, other in zip(fast, literal, strict=True):
        assert relative_error(one, other) < 1e-10


@paired_of_each_method
def test_forward_and_gradients_agree_under_bf16_autocast(variant: str) -> None:
    model, attached = make_pack(variant, dtype=torch.float32, moved=0.2)
    x, context = make_inputs(dtype=torch.float32)
    exact = model(x, context)
    (exact**2).sum().backward()
    exact_gradient = attached.grad.clone()
    attached.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        assert attached.adapters["attn1.to_q"](x).dtype == torch.bfloat16
        rounded = model(x, context)
    (rounded.float() ** 2).sum().backward()
    assert relative_error(rounded, exact) < 0.05
    assert torch.nn.functional.cosine_similarity(attached.grad, exact_gradient, dim=1).min() > 0.99
    assert attached.grad.dtype == attached.flat.dtype == torch.float32


@paired_of_each_method
def test_dtype_follows_the_input_when_the_base_is_half(variant: str) -> None:
    model, attached = make_pack(variant, dtype=torch.float16, moved=0.1)
    x, context = make_inputs(dtype=torch.float16)
    assert attached.flat.dtype == torch.float32
    out = model(x, context)
    assert out.dtype == torch.float16
    rows = len(x) // len(SEEDS)
    weights = {path: weight.half().double() for path, weight in reference_weights(attached, 0).items()}
    single = make_model(torch.float16).double()
    expected = torch.func.functional_call(
        single, {f"{path}.weight": weight for path, weight in weights.items()}, (x[:rows].double(), context[:rows].double())
    )  # fmt: skip
    assert relative_error(out[:rows], expected) < 0.01


# The start, and what moves.


@every_pair
def test_start_is_the_base_and_is_drawn_from_the_seed(variant: str) -> None:
    model, attached = make_pack(variant)
    x, context = make_inputs()
    at_start = relative_error(model(x, context), make_model()(x, context)) < 1e-12
    assert at_start == get_class(attached.spec.name).starts_at_base
    _, again = make_pack(variant)
    assert torch.equal(attached.flat, again.flat)
    factors = attached.flat[:, attached.segments["factors"]]
    drawn = get_class(attached.spec.name).draws_start
    assert torch.equal(factors[0], factors[1]) != drawn, "another seed, another start"
    first, second = (attached.adapters[path].factors()["a"] for path in ("attn1.to_q", "attn1.to_k"))
    assert not drawn or not torch.equal(first, second), "another matrix, another start"
    _, single = make_pack(variant, dtype=torch.float32)
    torch.testing.assert_close(single.flat.double(), attached.flat, rtol=1e-7, atol=0)
    for stack in single.stacks:
        readings, norms = stack.adapter.readings(), torch.linalg.matrix_norm(stack.adapter.weight0)
        for name, value in stack.adapter.at_start().items():
            assert ((readings[name] - value).abs() <= 1e-7 * (norms if name == "distance" else value)).all(), name
        assert stack.adapter.starts_at_base == ("distance" in stack.adapter.at_start())


@paired_of_each_method
def test_only_adapters_move_when_training(variant: str) -> None:
    model, attached = make_pack(variant, moved=0.1)
    before, untouched = attached.flat.clone(), make_model().state_dict()
    roles = next(iter(attached.adapters.values())).ROLES
    frozen = {key: tensor for key, tensor in attached.state(0).items() if key.rpartition(".")[2] not in roles}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    x, context = make_inputs()
    model(x, context).square().sum().backward()
    optimizer.step()
    assert (attached.flat != before).float().mean() > 0.99
    assert all(torch.equal(attached.state(0)[key], tensor) for key, tensor in frozen.items())
    attached.detach()
    assert all(torch.equal(value, untouched[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_number_of_parameters_is_its_formula() -> None:
    for variant in VARIANTS:
        with told(variant):
            check_number_of_parameters(make_pack(variant)[1])


def check_number_of_parameters(attached: Attached) -> None:
    """That of the oracle's formula, all of them in the buffer, role by role, each once."""
    sizes = [(adapter.base.out_features, adapter.base.in_features) for adapter in attached.adapters.values()]
    name, options = attached.spec.name, attached.spec.options
    rank = next(iter(attached.adapters.values())).rank
    expected = sum(reference.reference_num_parameters(name, *size, rank, options) for size in sizes)
    assert attached.num_parameters() == expected == attached.flat.shape[1] == attached.grad.shape[1]
    roles = set(next(iter(attached.adapters.values())).ROLES.values())
    assert list(attached.segments) == [role for role in ROLE_ORDER if role in roles]
    columns = [column for part in attached.segments.values() for column in range(part.start, part.stop)]
    assert columns == list(range(expected))


@paired_of_each_method
def test_gradcheck(variant: str) -> None:
    """Numerically, wherever the forward is what is differentiated: DoRA's detached norm is a constant by definition."""
    _, attached = make_pack(variant, [5, 6], moved=0.3, rank=2)
    adapter = attached.adapters["attn1.to_out.0"]
    if adapter.exact_gradient:
        x = torch.randn(2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
        parameters = [adapter.get_parameter(name) for name in adapter.ROLES]
        assert torch.autograd.gradcheck(lambda x, *_: adapter(x), (x, *parameters), fast_mode=True)


@settings(max_examples=25, deadline=None)
@given(
    variant=st.sampled_from(VARIANTS),
    leading=st.lists(st.integers(1, 3), min_size=0, max_size=2),
    batch=st.integers(1, 3),
    exponent=st.integers(-6, 3),
)
def test_forward_takes_any_leading_shape_and_scale(variant: str, leading: list[int], batch: int, exponent: int) -> None:
    _, attached = make_pack(variant, moved=10.0**exponent)
    adapter = attached.adapters["attn2.to_k"]
    x = torch.randn(len(SEEDS) * batch, *leading, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y = adapter(x)
    assert y.shape == (*x.shape[:-1], 8)
    for replica, (rows, out) in enumerate(zip(x.chunk(len(SEEDS)), y.chunk(len(SEEDS)))):
        assert relative_error(out, rows @ reference_weights(attached, replica)["attn2.to_k"].T) < 1e-8
