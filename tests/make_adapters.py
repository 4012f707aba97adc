"""A tiny attention model, every method in every variant around it, and its oracle: what the adapters' tests stand on."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from adapters import METHODS, Method, MethodSpec, get_class, parse_method
from adapters.base import Adapter
from adapters.check import STEPS, suitable_rank
from adapters.inject import attach
from adapters.pack import Attached
from adapters.toy import Model, make_model
from tests.reference import REFERENCES
from tests.rounds import each_once, pairwise, told

RANK = 3
SEEDS = (5, 6, 7)
SAMPLES: dict[type, float] = {float: 3.0, int: 2}
"""The value that stands for every other where an option takes any number."""
VARIED_ALONE = ("init", "divisor", "lr_ratio", "d_initial")
"""Options that no other one meets in the mathematics."""


def list_choices(method: Method) -> dict[str, list]:
    """The values of each option that are tried, the default first."""
    return {
        key: [SAMPLES[value] if isinstance(value, type) else value for value in allowed]
        for key, allowed in method.options.items()
    }


def list_variants(method: Method) -> list[dict]:
    """Every combination of a method's options, but for those that are varied alone."""
    choices = list_choices(method)
    alone = {key: choices.pop(key) for key in VARIED_ALONE if key in choices}
    rows = [dict(zip(choices, values)) for values in itertools.product(*choices.values())]
    return rows + [{key: value} for key, values in alone.items() for value in values[1:]]


def write_variant(name: str, options: dict) -> str:
    """As a user writes it."""
    return f"{name}:" + ",".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in options.items())


VARIANTS = [write_variant(name, row) for name, method in METHODS.items() for row in list_variants(method)]
"""For the mathematics."""
PAIRED = [write_variant(name, row) for name, method in METHODS.items() for row in pairwise(list_choices(method))]
"""For what no three options decide together: every value of an option with every value of every other."""
SINGLE = [write_variant(name, row) for name, method in METHODS.items() for row in each_once(list_choices(method))]
"""For what no two options decide together: every value of every option."""


def paired_of_each_method(test: Callable[[str], None]) -> Callable[[str], None]:
    """Make a test of a variant one case a method, with a round for each of its pairs."""

    @functools.wraps(test)
    def rounds(method: str) -> None:
        for variant in (variant for variant in PAIRED if variant.startswith(f"{method}:")):
            with told(variant):
                test(variant)

    del rounds.__wrapped__  # pytest would ask for the argument of what is wrapped
    return pytest.mark.parametrize("method", METHODS)(rounds)


def is_low_rank(variant: str) -> bool:
    """Whether it trains a row factor A and a column factor B."""
    return {"A", "B"} <= get_class(variant.partition(":")[0]).ROLES.keys()


def make_pack(
    variant: str,
    seeds: Sequence[int] = SEEDS,
    dtype: torch.dtype = torch.float64,
    *,
    rank: int = RANK,
    model: Model | None = None,
    moved: float = 0.0,
) -> tuple[Model, Attached]:
    """A model with a pack in it, at its start, or away from it.

    Args:
        rank: The next one that suits the method is taken.
        moved: How far: the standard deviation of what is added to every trainable value, of which a replica's share
            depends on its seed only. If it is not 0, a first step of training is counted too.
    """
    model = make_model(dtype) if model is None else model
    boundary = [0.5 + seed / 10 for seed in seeds]
    spec = parse_method(variant)
    attached = attach(model, spec, seeds=seeds, rank=suitable_rank(spec, rank), boundary=boundary)
    for replica, seed in enumerate(seeds):
        move(attached.flat[replica], seed, moved)
    if moved:
        attached.advance(STEPS)
    return model, attached


def make_adapter(spec: MethodSpec, base: nn.Linear, rank: int = RANK) -> Adapter:
    """One replica of a method around one layer, when its first step begins."""
    method, rank = get_class(spec.name), suitable_rank(spec, rank)
    adapter = method(base, path="layer", seeds=[3], rank=rank, boundary=[0.7], options=spec.options)
    adapter.advance(STEPS, torch.ones(1, dtype=torch.bool))
    return adapter


def make_lone(spec: MethodSpec, adapter: Adapter) -> Attached:
    """A pack that holds one adapter."""
    return Attached(nn.ModuleDict({"layer": adapter.base}), spec, {"layer": adapter})


def move(values: Tensor, seed: int, moved: float) -> None:
    """Add reproducible noise."""
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values += (moved * noise).to(values.dtype)


def make_inputs(
    seeds: Sequence[int] = SEEDS, dtype: torch.dtype = torch.float64, batch: int = 2
) -> tuple[Tensor, Tensor]:
    """Pictures [k*b, 4, 12] and context [k*b, 4, 20], replica-major; a replica's share depends on its seed only."""
    shares = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(100 + seed)
        shares.append([torch.randn(batch, 4, size, generator=generator, dtype=torch.float64) for size in (12, 20)])
    x, context = (torch.cat(parts).to(dtype) for parts in zip(*shares))
    return x, context


def reference_state(attached: Attached, replica: int, path: str) -> dict[str, Tensor]:
    """The state of one matrix in float64, and what it shares with the others."""
    own = {
        key.rpartition(".")[2]: tensor.double()
        for key, tensor in attached.state(replica).items()
        if key.rpartition(".")[0] == path
    }
    adapter = attached.adapters[path]
    return own | {name: adapter.get_buffer(name).double() for name in adapter.shared}


def reference_weights(
    attached: Attached, replica: int, states: dict[str, dict[str, Tensor]] | None = None
) -> dict[str, Tensor]:
    """The oracle's effective weight of every matrix, by path."""
    spec = attached.spec
    weights = {}
    for path, adapter in attached.adapters.items():
        state = reference_state(attached, replica, path) if states is None else states[path]
        weights[path] = REFERENCES[spec.name](adapter.base.weight.double(), state, adapter.rank, spec.options)
    return weights


def reference_distances(attached: Attached, replica: int) -> Tensor:
    """Merge and subtract in float64, matrix by matrix."""
    weights = reference_weights(attached, replica)
    return torch.stack([(weights[path] - a.base.weight.double()).norm() for path, a in attached.adapters.items()])


def base_norms(attached: Attached) -> Tensor:
    """||W0||_F of every matrix."""
    return torch.stack([adapter.base.weight.double().norm() for adapter in attached.adapters.values()])


def run_reference(weights: dict[str, Tensor], x: Tensor, context: Tensor) -> Tensor:
    """The base model, in float64, with other weights in place of the adapted ones."""
    named = {f"{path}.weight": weight for path, weight in weights.items()}
    return functional_call(make_model(), named, (x.double(), context.double()))


def relative_error(value: Tensor, expected: Tensor) -> float:
    """||value - expected|| / ||expected||."""
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).norm() / expected.norm())
