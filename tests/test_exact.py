"""What is read off the weights is exact: under autocast, with TF32 allowed, near the start and very far from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from adapters import METHODS, parse_method
from adapters.base import Adapter, Role
from adapters.exact import SETTINGS, full_precision
from adapters.inject import attach
from adapters.toy import make_model
from tests.make_adapters import make_lone, make_pack
from tests.rounds import told
from training.accelerator import arithmetic
from training.dynamics import Directions, norm_statistics, norms_and_angles
from training.watch import watch

BF16 = {"device_type": "cpu", "dtype": torch.bfloat16}


def read_all(attached: Any) -> dict[str, Tensor]:
    """Every reading, norm and merged weight of a pack."""
    values = {}
    for number, stack in enumerate(attached.stacks):
        bounds = {f"bound of {name}": value for name, value in stack.adapter.bounds().items()}
        read = {**stack.adapter.readings(), **bounds, **norm_statistics(stack.adapter)}
        values |= {f"{number}.{name}": value.detach().clone() for name, value in read.items()}
        alone = attached.adapters[stack.paths[0]]
        values |= {f"{number}.{name} alone": value.detach() for name, value in alone.readings().items()}
    return values | attached.merged(0)


@pytest.mark.parametrize("method", [*METHODS, "peft:lora:r=2", "peft:oft:oft_block_size=2", "peft:hra:r=2"])
def test_autocast_changes_no_reading(method: str) -> None:
    seeds = (5,) if method.startswith("peft:") else (5, 6)
    _, attached = make_pack(method, seeds, torch.float32, moved=0.1)
    expected = read_all(attached)
    with torch.autocast(**BF16):
        found = read_all(attached)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_tf32_is_off_while_weights_are_read_and_on_again_after() -> None:
    seen = []

    class Mine(Adapter):
        ROLES: ClassVar[Mapping[str, Role]] = {"u": "factors"}

        def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
            return {"u": torch.zeros(())}

        def weight(self) -> Tensor:
            seen.append([getattr(backend, name) for backend, name, _ in SETTINGS])
            return self.base_weight() + self.u[..., None, None]

        def readings(self) -> dict[str, Tensor]:
            return {"distance": (self.weight() - self.base_weight()).norm(dim=(-2, -1))}

    layer = torch.nn.Linear(3, 4)
    mine = make_lone(parse_method("full"), Mine(layer, path="x", seeds=[0], rank=1, options={})).stacks[0].adapter
    exact = [value for *_, value in SETTINGS]
    with arithmetic(allow_tf32=True, deterministic=False):
        before = [getattr(backend, name) for backend, name, _ in SETTINGS]
        assert before != exact
        mine.distance(), mine.gauges(), norm_statistics(mine)
        assert [getattr(backend, name) for backend, name, _ in SETTINGS] == before
    assert seen
    assert all(state == exact for state in seen)


def test_a_watched_loop_under_autocast_is_read_exactly(tmp_path: Any) -> None:
    def distances(name: str) -> list[float]:
        model = make_model(torch.float32)
        attach(model, parse_method("etherplus"), seeds=[1], rank=3).flat.add_(
            0.1 * torch.randn(1, generator=torch.Generator().manual_seed(0))
        )
        with watch(model, tmp_path / name) as w:
            w.record()
        return w.folder.read_dynamics()["distance"].tolist()

    plain = distances("plain")
    with torch.autocast(**BF16):
        assert distances("cast") == plain


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e2, 1e4, 1e6, 1e9, 1e15])
def test_turns_of_rows_and_columns_are_exact_at_any_distance(size: float) -> None:
    _, attached = make_pack("full", (5, 6), torch.float32)
    generator = torch.Generator().manual_seed(3)
    attached.flat += size * torch.randn(attached.flat.shape, generator=generator)
    for stack in attached.stacks:
        found, weight = norm_statistics(stack.adapter), stack.adapter.weight().detach().double()
        base = stack.adapter.base_weight().double()
        for axis, dim in (("cols", -2), ("rows", -1)):
            units = weight / weight.norm(dim=dim, keepdim=True) - base / base.norm(dim=dim, keepdim=True)
            expected = (units.square().sum(dim) / 2).mean(-1)
            torch.testing.assert_close(found[f"dd_{axis}"].double(), expected, rtol=2e-6, atol=1e-15)
            grown = (weight.norm(dim=dim) - base.norm(dim=dim)).abs().mean(-1)
            torch.testing.assert_close(found[f"dm_{axis}"].double(), grown, rtol=1e-6, atol=0)


@pytest.mark.parametrize("turn", [1e-6, 1e-3, 1.0])
def test_angles_are_exact_while_a_direction_grows(turn: float) -> None:
    for along in (0.0, 1.0, 1e2, 1e5):
        with told(f"along={along}"):
            check_angles(along, turn)


def check_angles(along: float, turn: float) -> None:
    """Beside the angles of the components along and across, in double precision."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(2, 3, 4, 50, generator=generator)
    side = turn * torch.randn(before.shape, generator=generator)
    now = (1 + along) * before + (1 + along) * side
    found = norms_and_angles({"a": Directions.of(now)}, {"a": Directions.of(before)})["angle_a"].double()
    one, other = now.double(), before.double()
    unit = other / other.norm(dim=-1, keepdim=True)
    straight = (one * unit).sum(-1)
    expected = torch.atan2((one - straight[..., None] * unit).norm(dim=-1), straight).mean(-1)
    assert ((found - expected).abs() <= 1e-4 * expected + 2e-7).all()


def test_settings_of_a_user_are_put_back_whatever_they_were() -> None:
    before = [(backend, name, getattr(backend, name)) for backend, name, _ in SETTINGS]
    try:
        for backend, name, _ in SETTINGS:
            setattr(backend, name, "tf32" if name == "fp32_precision" else True)
        kept = [getattr(backend, name) for backend, name, _ in SETTINGS]
        with pytest.raises(KeyError), full_precision():
            raise KeyError
        assert [getattr(backend, name) for backend, name, _ in SETTINGS] == kept
    finally:
        for backend, name, value in before:
            setattr(backend, name, value)
