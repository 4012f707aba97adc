"""K replicas in a pack are K runs alone, whatever happens to one of them and however the pack is run."""

from __future__ import annotations

import pytest
import torch

from tests.make_adapters import SEEDS, make_inputs, make_pack, paired_of_each_method, relative_error
from tests.rounds import told

pytestmark = pytest.mark.unchecked
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


@paired_of_each_method
def test_replicas_in_a_pack_equal_runs_alone(variant: str) -> None:
    for dtype, tolerance in TOLERANCES.items():
        model, attached = make_pack(variant, dtype=dtype, moved=0.3)
        out = model(*make_inputs(dtype=dtype))
        out.square().sum().backward()
        for replica, seed in enumerate(SEEDS):
            lone_model, lone = make_pack(variant, [seed], dtype, moved=0.3)
            lone_out = lone_model(*make_inputs([seed], dtype))
            lone_out.square().sum().backward()
            with told(dtype, f"replica {replica}"):
                assert torch.equal(lone.flat[0], attached.flat[replica]), "the start depends on seed and path only"
                assert lone.state(0).keys() == attached.state(replica).keys()
                assert all(torch.equal(tensor, attached.state(replica)[key]) for key, tensor in lone.state(0).items())
                assert relative_error(out.chunk(len(SEEDS))[replica], lone_out) < tolerance
                assert relative_error(attached.grad[replica], lone.grad[0]) < tolerance


@paired_of_each_method
def test_nan_in_one_replica_leaves_the_others_as_they_are(variant: str) -> None:
    model, attached = make_pack(variant, dtype=torch.float32, moved=0.3)
    x, context = make_inputs(dtype=torch.float32)
    out = model(x, context)
    out.square().sum().backward()
    gradient = attached.grad.clone()
    readings = [stack.adapter.readings() for stack in attached.stacks]
    attached.zero_grad()
    attached.flat[1] = torch.nan
    poisoned = model(x, context)
    poisoned.square().sum().backward()
    rows = len(x) // len(SEEDS)
    assert poisoned[rows : 2 * rows].isnan().all()
    assert attached.grad[1].isnan().any()
    assert torch.equal(poisoned[:rows], out[:rows])
    assert torch.equal(poisoned[2 * rows :], out[2 * rows :])
    assert torch.equal(attached.grad[[0, 2]], gradient[[0, 2]])
    for stack, before in zip(attached.stacks, readings):
        for name, values in stack.adapter.readings().items():
            assert torch.equal(values[[0, 2]], before[name][[0, 2]])


@paired_of_each_method
def test_state_moves_a_replica_into_another_pack(variant: str) -> None:
    model, attached = make_pack(variant, moved=0.3)
    other_model, other = make_pack(variant, [1, 2], moved=0.3)
    kept = other.flat[0].clone()
    other.load_state(1, attached.state(2))
    assert torch.equal(other.flat[1], attached.flat[2])
    assert torch.equal(other.flat[0], kept)
    for key, tensor in attached.state(2).items():
        assert torch.equal(other.state(1)[key], tensor)
    x, context = make_inputs()
    rows = len(x) // len(SEEDS)
    twice = [part[2 * rows :].repeat(2, 1, 1) for part in (x, context)]
    assert relative_error(other_model(*twice)[rows:], model(x, context)[2 * rows :]) < 1e-12
    assert relative_error(other.stacks[0].adapter.distance()[1], attached.stacks[0].adapter.distance()[2]) < 1e-12


@paired_of_each_method
def test_gradient_checkpointing_changes_nothing(variant: str) -> None:
    model, attached = make_pack(variant, moved=0.3)
    x, context = make_inputs()
    out = model(x, context)
    out.square().sum().backward()
    gradient = attached.grad.clone()
    attached.zero_grad()
    model.is_gradient_checkpointing = True
    again = model(x, context)
    again.square().sum().backward()
    assert relative_error(again, out) < 1e-12
    assert relative_error(attached.grad, gradient) < 1e-12


@paired_of_each_method
def test_prepared_factors_change_nothing_and_are_gone_after_the_call(variant: str) -> None:
    model, attached = make_pack(variant, moved=0.3)
    x, context = make_inputs()
    out = model(x, context)
    assert all(adapter.prepared is None for adapter in attached.adapters.values())
    direct = model.forward(x, context)  # the hooks that prepare do not run
    assert relative_error(direct, out) < 1e-12


def test_rows_that_do_not_divide_among_the_replicas_are_refused() -> None:
    _, attached = make_pack("lora")
    with pytest.raises(ValueError, match=r"attn1\.to_q: 4 rows do not divide among 3 replicas"):
        attached.adapters["attn1.to_q"](torch.zeros(4, 5, 12, dtype=torch.float64))
