"""The bounds against values that were not made for them: never exceeded at random, nearly reached along the gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters import MethodSpec, parse_method
from adapters.base import Adapter
from tests.make_adapters import VARIANTS, make_adapter, make_pack
from tests.reference import REFERENCES, Options, State, reference_gauges, reference_norm, reference_projected
from tests.rounds import told
from tests.test_bounds import every_bounded_pair, make_layer, set_base

pytestmark = pytest.mark.unchecked
LAMBDAS = ("lam", "lam_start")


@every_bounded_pair
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), exponent=st.floats(-8, 4), share=st.sampled_from([0.1, 0.3, 1.0]))
@torch.no_grad()
def test_bounds_are_never_exceeded(variant: str, seed: int, exponent: float, share: float) -> None:
    """Few values of one size, so that directions coincide, oppose each other or vanish, as random ones never do."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: torch.Size) -> Tensor:
        signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
        return 10.0**exponent * signs.double() * (torch.rand(shape, generator=generator) < share)

    adapter = make_adapter(parse_method(variant), make_layer())
    for name in {*adapter.ROLES, *adapter.frozen} - {"magnitude", "lam_start"}:
        getattr(adapter, name).copy_(draw(getattr(adapter, name).shape))
    set_base(adapter, draw(torch.Size((8, 12))))
    readings, bounds = adapter.readings(), adapter.bounds()
    for name, bound in bounds.items():
        assert (readings[name] <= bound * (1 + 1e-9)).all(), name


# Nearly reached.


@every_bounded_pair
def test_bounds_are_nearly_reached_along_the_gradient(variant: str) -> None:
    for reading in make_adapter(parse_method(variant), make_layer()).bounds():
        adapter = make_adapter(parse_method(variant), make_layer())
        found = ascend(adapter, reading, parse_method(variant))
        with torch.no_grad():
            set_base(adapter, found.pop("W0"))
            for name, value in found.items():
                getattr(adapter, name)[0].copy_(value)
        share = float(adapter.readings()[reading] / adapter.bounds()[reading])
        assert 0.99 <= share <= 1 + 1e-9, reading


def ascend(adapter: Adapter, reading: str, spec: MethodSpec, steps: int = 60) -> State:
    """Climb from the start, a little disturbed, to where the oracle's reading is largest, with ||W0|| = 1 and lambda held.

    W0 and DeLoRA's frozen start are the adversary's to choose as well. A step moves each tensor along its gradient by a
    share of its own length, which falls from one half to one hundredth.

    Returns:
        What was chosen, W0 among it.
    """
    own = {name: getattr(adapter, name)[0].detach().clone() for name in (*adapter.ROLES, *adapter.frozen)}
    held = {name: own.pop(name) for name in LAMBDAS if name in own}
    own.pop("magnitude", None)  # follows from W0
    generator = torch.Generator().manual_seed(0)
    own["W0"] = torch.zeros(8, 12, dtype=torch.float64)
    for value in own.values():
        value += 0.3 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        value.requires_grad_()
    options = {**spec.options, "norm_grad": "full"}  # the same weight; a detached norm's gradient leads elsewhere
    for step in range(steps):
        gradients = torch.autograd.grad(
            read_oracle(spec.name, reading, {**own, **held}, adapter.rank, options),
            list(own.values()),
            allow_unused=True,
        )
        with torch.no_grad():
            for value, gradient in zip(own.values(), gradients):
                if gradient is not None and gradient.any():
                    value += 0.5 * 0.02 ** (step / steps) * value.norm() / gradient.norm() * gradient
            if spec.name == "coft":
                own["R"].copy_(reference_projected(own["R"], options))
    return {name: value.detach() for name, value in own.items()} | {"W0": (own["W0"] / own["W0"].norm()).detach()}


def read_oracle(name: str, reading: str, state: State, rank: int, options: Options) -> Tensor:
    """``distance`` or ``transform_distance``, differentiable; DoRA's fixed magnitudes are those of W0."""
    w0 = state["W0"] / state["W0"].norm()
    state = {**state, "magnitude": w0.norm(dim=1 if options.get("axis") == "rows" else 0)}
    if reading == "distance":
        return reference_norm(REFERENCES[name](w0, state, rank, options) - w0)
    return reference_gauges(name, w0, state, rank, options)[reading]


# The papers' bounds, which are looser.


def paper_delora(adapter: Adapter) -> Tensor:
    """lambda ||W0||_F for each of the two terms."""
    lam = adapter.get_parameter("lam").detach().abs()
    started = {"eq9": getattr(adapter, "lam_start", lam), "live": lam, "zero_b": 0 * lam}[adapter.options["start"]]
    return (lam + started) * adapter.base.weight.norm()


def paper_ether(adapter: Adapter) -> Tensor:
    """2 for each block, so 2 sqrt(n)."""
    return torch.tensor(2 * adapter.options["blocks"] ** 0.5, dtype=torch.float64)


def paper_pairs(adapter: Adapter) -> Tensor:
    """Equation 13 counts 2 for each pair: lambda in Equations 10 and 14, twice that where the row of Table 1 is meant."""
    return adapter.get_parameter("lam").detach().abs() * (2 if adapter.options.get("scale") == "whole" else 1)


PAPERS: dict[str, tuple[Callable[[Adapter], Tensor], float]] = {
    "delora": (paper_delora, 0.9),
    "ether": (paper_ether, 1.0),
    "etherplus": (paper_ether, 0.5**0.5),
    "ablation-highrank": (paper_pairs, 0.5**0.5),
    "ablation-boundary": (paper_pairs, 0.5**0.5),
}
"""What a paper calls the bound, and the largest share of it that the logged one may be."""
SCALAR = "norm=scalar"
"""With it DeLoRA's lambda ||W0||_F is the bound itself."""


def test_logged_bound_is_tighter_than_the_papers() -> None:
    for variant in (v for v in VARIANTS if v.partition(":")[0] in PAPERS and SCALAR not in v):
        _, attached = make_pack(variant, moved=0.5)
        paper, share = PAPERS[attached.spec.name]
        for path, adapter in attached.adapters.items():
            with told(variant, path):
                assert (adapter.gauges()["bound"] <= share * paper(adapter) * (1 + 1e-12)).all()
