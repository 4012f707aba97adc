"""One PackedAdamW against as many separate `torch.optim.AdamW`, and the rules of divergence."""

import math

import pytest
import torch

from training.optimizer import PackedAdamW, schedule_factor

SEGMENTS = {"factors": slice(0, 10), "lambda": slice(10, 12)}


def make_packed(k: int, clip: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, PackedAdamW]:
    """A pack of k replicas with 12 parameters each, in float64."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(k, 12, generator=generator, dtype=torch.float64)
    grad = torch.zeros_like(flat)
    rates = {"factors": [0.01 * (i + 1) for i in range(k)], "lambda": [0.1 / (i + 1) for i in range(k)]}
    decay = [0.01 * i for i in range(k)]
    return flat, grad, PackedAdamW(flat, grad, SEGMENTS, rates=rates, weight_decay=decay, clip=[clip] * k)


def gradients(step: int, k: int) -> torch.Tensor:
    """The same made-up gradients for both sides; some are large enough to be clipped."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(k, 12, generator=generator, dtype=torch.float64) * (0.05 if step % 3 else 5.0)


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_packed_adamw_equals_separate_adamw(clip: float) -> None:
    k = 3
    flat, grad, packed = make_packed(k, clip)
    alone = [[torch.nn.Parameter(flat[i, :10].clone()), torch.nn.Parameter(flat[i, 10:].clone())] for i in range(k)]
    optimizers = [
        torch.optim.AdamW(
            [{"params": [p[0]], "lr": 0.01 * (i + 1)}, {"params": [p[1]], "lr": 0.1 / (i + 1)}], weight_decay=0.01 * i
        )
        for i, p in enumerate(alone)
    ]
    for step in range(1, 101):
        given = gradients(step, k)
        grad.copy_(given)
        norms = packed.step(torch.zeros(k))
        torch.testing.assert_close(norms, given.norm(dim=1))
        for i, parameters in enumerate(alone):
            for parameter, part in zip(parameters, (slice(0, 10), slice(10, 12)), strict=True):
                parameter.grad = given[i, part].clone()
            if clip:
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            optimizers[i].step()
    expected = torch.stack([torch.cat([p.detach() for p in parameters]) for parameters in alone])
    assert ((flat - expected).norm() / expected.norm()).item() < 1e-10


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_replica_freezes_where_it_is_when_not_finite(poison: str) -> None:
    flat, grad, packed = make_packed(3)
    _, twin_grad, twin = make_packed(3)
    for step in range(1, 11):
        grad.copy_(gradients(step, 3))
        twin_grad.copy_(gradients(step, 3))
        losses = torch.zeros(3)
        if step == 4:
            kept = flat[1].clone()
            if poison == "loss":
                losses[1] = math.nan
            else:
                grad[1, 3] = math.inf
        packed.step(losses)
        twin.step(torch.zeros(3))
    assert packed.frozen_at.tolist() == [-1, 4, -1]
    assert torch.equal(flat[1], kept)
    assert torch.equal(flat[[0, 2]], twin.flat[[0, 2]]), "a frozen replica changed its neighbours"


def test_state_goes_on_as_if_never_left() -> None:
    flat, grad, packed = make_packed(2)
    other_flat, other_grad, other = make_packed(2)
    for step in range(1, 6):
        grad.copy_(gradients(step, 2))
        packed.step(torch.zeros(2))
    for row in range(2):
        other.load_state(row, packed.state(row), 5)
    for step in range(6, 11):
        grad.copy_(gradients(step, 2))
        other_grad.copy_(gradients(step, 2))
        packed.step(torch.zeros(2))
        other.step(torch.zeros(2))
    assert torch.equal(flat, other_flat)
    assert other.steps_done == 10


@pytest.mark.parametrize("name", ["constant_with_warmup", "cosine"])
def test_schedule_is_that_of_diffusers(name: str) -> None:
    from diffusers.optimization import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=5, num_training_steps=40)
    for step in range(1, 41):
        ours = schedule_factor(name if name in ("cosine", "linear") else "constant", step, 40, 5)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_a_step_that_leaves_the_range_of_floats_is_not_taken() -> None:
    flat, grad = torch.ones(2, 3), torch.full((2, 3), 0.5)
    optimizer = PackedAdamW(
        flat, grad, {"factors": slice(0, 3)}, rates={"factors": [1e-2, 3e38]}, weight_decay=[0.0, 1.0], clip=[0.0, 0.0]
    )
    optimizer.step(torch.zeros(2))
    assert optimizer.frozen.tolist() == [False, True]
    assert optimizer.frozen_at.tolist() == [-1, 1]
    assert flat[1].tolist() == [1.0] * 3
    assert (flat[0] < 1).all()
