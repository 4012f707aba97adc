"""The bounds of the bounded methods: the declared one is the right one, and values made for it attain it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adapters import METHODS, get_class, parse_method
from adapters.base import Adapter
from tests.make_adapters import PAIRED, RANK, VARIANTS, make_adapter, make_pack
from tests.reference import reference_scale
from tests.rounds import told


def make_layer() -> nn.Linear:
    """What every adversary works on."""
    return nn.Linear(12, 8, dtype=torch.float64)


def is_bounded(variant: str) -> bool:
    """OFT's series is a polynomial."""
    return get_class(variant.partition(":")[0]).bound_kind != "none" and "cayley=series" not in variant


every_bounded = pytest.mark.parametrize("variant", [variant for variant in VARIANTS if is_bounded(variant)])
every_bounded_pair = pytest.mark.parametrize("variant", [variant for variant in PAIRED if is_bounded(variant)])


def set_base(adapter: Adapter, weight: Tensor) -> None:
    """Another W0 under an adapter that has been made; it reads the very memory that this writes to."""
    adapter.base.weight.data.copy_(weight)
    adapter.hold(adapter.measure())
    if "magnitude" in adapter.frozen:
        adapter.get_buffer("magnitude")[0].copy_(adapter.get_buffer("base_norms"))


def test_bound_is_the_one_that_the_class_declares() -> None:
    for variant in VARIANTS:
        _, attached = make_pack(variant, moved=0.5)
        for path, adapter in attached.adapters.items():
            with told(variant, path):
                check_declared_bound(adapter, is_bounded(variant))


def check_declared_bound(adapter: Adapter, is_bounded: bool) -> None:
    """``bound_kind`` names the reading that is bounded, and the bound is the one of that reading."""
    bounded = {"none": None, "distance": "distance", "transform": "transform_distance"}[adapter.bound_kind]
    bound = adapter.bound()
    assert is_bounded == (bounded is not None)
    if bounded is None:
        assert bound is None
        assert adapter.bounds() == {}
    else:
        assert bound is not None
        assert torch.equal(bound, adapter.bounds()[bounded])
        assert torch.equal(bound, adapter.gauges()["bound"])


def lengthen_delora(adapter: Adapter) -> dict[str, float]:
    """All directions alike, along W0's longest column; the frozen start exactly opposite."""
    w = adapter.get_buffer("column_norms")
    longest = nn.functional.one_hot(w.argmax(), len(w)).double()
    adapter.get_parameter("A").copy_(longest.expand(1, RANK, -1))
    adapter.get_parameter("B").fill_(1.0)
    strength = float(adapter.get_parameter("lam").fill_(-2.0).abs())
    if adapter.frozen:
        adapter.get_buffer("A_start").copy_(adapter.get_parameter("A"))
        adapter.get_buffer("B_start").copy_(-adapter.get_parameter("B"))
        live = adapter.options["start"] == "live"
        # eq9 subtracts the start with its own, positive lambda: there the factors must point the same way
        adapter.get_buffer("B_start").mul_(1.0 if live else -1.0)
        strength += strength if live else float(adapter.get_buffer("lam_start"))
    return {"distance": strength * float(w.max())}


def turn_fixed_dora(adapter: Adapter) -> dict[str, float]:
    """Every row turned round: V = -W0."""
    w = adapter.base.weight
    u, s, vh = torch.linalg.svd(-w, full_matrices=False)
    adapter.get_parameter("A").copy_((s[:, None] * vh)[None])
    adapter.get_parameter("B").copy_(2 / reference_scale(adapter.rank, adapter.options) * u[None])
    return {"distance": 2 * float(w.norm())}


def stretch_etherplus(adapter: Adapter) -> dict[str, float]:
    """W0 = x y^T with y (and x) doubled by H, and u perpendicular to v in every block."""
    blocks, two = adapter.options["blocks"], adapter.options["sides"] == "two"
    for side in ("in", "out") if two else ("in",):
        u, v = adapter.get_parameter(f"u_{side}"), adapter.get_parameter(f"v_{side}")
        u.zero_()[..., 1] = 3.0
        v.zero_()[..., 0] = 5.0
    set_base_of_one_entry(adapter)
    return {"distance": (3 if two else 1) * 4.0, "transform_distance": (2 * blocks) ** 0.5}


def reflect_ether(adapter: Adapter) -> dict[str, float]:
    """W0 = x y^T with y turned round by H, and x left alone by the other H."""
    two = adapter.options["sides"] == "two"
    for side, place in (("in", 0), ("out", 1)) if two else (("in", 0),):
        adapter.get_parameter(f"u_{side}").zero_()[..., place] = 3.0
    set_base_of_one_entry(adapter)
    return {"distance": 2 * 4.0, "transform_distance": 2 * adapter.options["blocks"] ** 0.5}


def set_base_of_one_entry(adapter: Adapter) -> None:
    """W0 = 4 e_1 e_1^T."""
    set_base(adapter, torch.diag(torch.eye(12)[0])[:8] * 4.0)


def turn_plane(adapter: Adapter) -> dict[str, float]:
    """One plane of every block turned as far as may be, and all of W0 in the first of them."""
    set_base_of_one_entry(adapter)
    adapter.get_parameter("R").zero_()[..., 0] = 1e6
    return {"distance": 4.0 * sine_of_half(adapter, 1) * 2}


def turn_all_planes(adapter: Adapter) -> dict[str, float]:
    """Every plane of every block turned as far as may be."""
    entries, width = adapter.get_parameter("R"), adapter.base.in_features // adapter.options["blocks"]
    place, planes = 0, width // 2
    entries.zero_()
    for row in range(0, 2 * planes, 2):
        entries[..., place] = 1e6
        place += 2 * (width - row) - 3  # entries of two rows above the diagonal
    return {"transform_distance": 2 * sine_of_half(adapter, planes) * (2 * planes * adapter.options["blocks"]) ** 0.5}


def sine_of_half(adapter: Adapter, planes: int) -> float:
    """Of the largest angle, if so many planes of a block share it: Cayley's 2 arctan(t), t free in OFT, in COFT's ball."""
    if "eps" not in adapter.options:
        return 1.0
    width, n = adapter.base.in_features // adapter.options["blocks"], adapter.options["blocks"]
    radius = adapter.options["eps"] * (width**2 if adapter.options["radius"] == "released" else 1) / n**0.5
    share = radius**2 / 2 / planes
    return (share / (1 + share)) ** 0.5


def reflect_hra(adapter: Adapter) -> dict[str, float]:
    """Reflections along different axes, and W0 along one of them."""
    u = adapter.get_parameter("U")
    u.copy_(3.0 * torch.eye(*u.shape[1:])[None])
    set_base_of_one_entry(adapter)
    return {"distance": 2 * 4.0, "transform_distance": 2 * adapter.rank**0.5}


def halve_frame(adapter: Adapter) -> dict[str, float]:
    """Y^T Y = I with equal shares, and no X: so A A^T = B^T B = I / 2, whatever S is."""
    a, b = adapter.get_parameter("A"), adapter.get_parameter("B")
    a.zero_()[0, :, -RANK:] = torch.eye(RANK) / 2**0.5
    b.zero_()[0, :RANK] = torch.eye(RANK) / 2**0.5
    lam = adapter.get_buffer("lam_start").expand(RANK)
    if adapter.options["strength"] == "learned":
        lam = adapter.get_parameter("lam")[0].copy_(torch.tensor([0.1, 0.7, 9.0])).clamp_max(0.7)
    return {"distance": float(lam.norm() * adapter.base.weight.norm()) / (12 * RANK) ** 0.5}


def align_relaxed(adapter: Adapter) -> dict[str, float]:
    """All products one and the same, those of the second term with the other sign, and W0 along them."""
    set_base_of_one_entry(adapter)
    for name, value in (("a", 2.0), ("b", 3.0), ("c", 5.0), ("d", -7.0)):
        adapter.get_parameter(name).zero_()[..., 0] = value
    lam = float(adapter.get_parameter("lam").fill_(-1.5).abs())
    return {"distance": 4.0 * lam, "transform_distance": lam}


def align_pairs(adapter: Adapter) -> dict[str, float]:
    """All u alike, all v alike and perpendicular to them, and W0 along u."""
    set_base_of_one_entry(adapter)
    adapter.get_parameter("u").zero_()[..., 0] = 2.0
    adapter.get_parameter("v").zero_()[..., 1] = 3.0
    lam = float(adapter.get_parameter("lam").fill_(-1.5).abs())
    twice = 2 if adapter.options.get("scale") == "whole" else 1
    return {"distance": 4.0 * twice * lam / 2, "transform_distance": twice * lam / 2**0.5}


ADVERSARIES: dict[str, tuple[Callable[[Adapter], dict[str, float]], ...]] = {
    "delora": (lengthen_delora,),
    "dora-fixed": (turn_fixed_dora,),
    "etherplus": (stretch_etherplus,),
    "ether": (reflect_ether,),
    "oft": (turn_plane, turn_all_planes),
    "coft": (turn_plane, turn_all_planes),
    "hra": (reflect_hra,),
    "nblora": (halve_frame,),
    "ablation-normalized": (lengthen_delora,),
    "ablation-relaxed": (align_relaxed,),
    "ablation-highrank": (align_pairs,),
    "ablation-boundary": (align_pairs,),
}


def test_every_bounded_method_has_an_adversary() -> None:
    assert {name for name in METHODS if get_class(name).bound_kind != "none"} == ADVERSARIES.keys()


@every_bounded
@torch.no_grad()
def test_bounds_are_attained(variant: str) -> None:
    spec = parse_method(variant)
    adapter = make_adapter(spec, make_layer(), rank=8 if spec.name == "dora-fixed" else RANK)
    bounded = {"distance": "distance", "transform": "transform_distance"}[adapter.bound_kind]
    attained = set()
    for adversary in ADVERSARIES[spec.name]:
        expected = adversary(adapter)
        readings, bounds = adapter.readings(), adapter.bounds()
        for name, value in expected.items():
            assert bounds[name].item() == pytest.approx(value, rel=1e-9)
            assert readings[name].item() == pytest.approx(value, rel=1e-9)
        if bounded in expected:
            assert readings["saturation"].item() == pytest.approx(1, rel=1e-9)
        attained |= expected.keys()
    assert attained == bounds.keys()
