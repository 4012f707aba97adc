"""VeRA: vector-based random matrix adaptation (Kopiczko, Blankevoort, Asano 2023, arXiv 2310.11454), and DVoRA: DoRA
with VeRA's change as its direction (DoRA paper, arXiv 2402.09353, Section 5.2).

One random pair A, B is drawn for the whole model and cut to the size of each matrix; it never trains, and all replicas
and matrices of a pack share it. As in PEFT it comes from a fixed seed (``projection_prng_key``), not from the run's:
a run's seed then only decides what it sees. DVoRA has no public implementation (NVlabs withholds theirs); here it is
the DoRA paper's text, "the directional update by VeRA", with everything else as in :mod:`adapters.dora`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from adapters.base import Adapter, Role
from adapters.dora import Dora
from adapters.lora import Lora

PROJECTION_SEED = 0
"""PEFT's ``projection_prng_key``."""


@lru_cache(maxsize=2)
def draw_projections(rank: int, num_out: int, num_in: int) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
    """The random pair of a model whose largest adapted matrix is out x in: Kaiming-uniform, U(+-sqrt(6 / fan_in)).

    The same values as PEFT's, in the same order from the same generator.
    """
    generator = torch.Generator("cpu").manual_seed(PROJECTION_SEED)

    def uniform(*shape: int) -> Tensor:
        limit = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
        return torch.empty(shape).uniform_(-limit, limit, generator=generator)

    return uniform(rank, num_in), uniform(num_out, rank)


def whole_pair(adapters: Iterable[Adapter]) -> dict[str, Tensor]:
    """The random pair that these adapters were cut from, as far as any of them reaches: A ``[r, in]`` and B ``[out, r]``."""
    pairs = [(adapter.get_buffer("A"), adapter.get_buffer("B")) for adapter in adapters]
    return {
        "A": max((a for a, _ in pairs), key=lambda a: a.shape[1]).clone(),
        "B": max((b for _, b in pairs), key=len).clone(),
    }


def share_pair(adapters: Iterable[Adapter], pair: Mapping[str, Tensor]) -> None:
    """Put another random pair, large enough for each, into the adapters' buffers."""
    for adapter in adapters:
        num_out, num_in = adapter.shape
        like = adapter.get_buffer("A")
        adapter.register_buffer("A", pair["A"][:, :num_in].to(like))
        adapter.register_buffer("B", pair["B"][:num_out].to(like))


class RandomPair(Lora):
    """What VeRA and DVoRA share: the random pair, cut to the matrix, and the two vectors that train."""

    shared: ClassVar[tuple[str, ...]] = ("A", "B")
    draws_start: ClassVar[bool] = False
    has_small_work: ClassVar[bool] = True
    d: Tensor
    b: Tensor

    def configure(self) -> None:
        self.scale = 1.0

    def measure(self) -> dict[str, Tensor]:
        """The first columns of A and the first rows of B, as many as the matrix has: views where nothing must be copied."""
        num_out, num_in = self.shape
        a, b = draw_projections(self.rank, *self.largest)
        return {**super().measure(), "A": a[:, :num_in].to(self.dtype), "B": b[:num_out].to(self.dtype)}

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """d constant and b zero, as in the VeRA paper's Section 3.2."""
        d = torch.full((self.rank,), float(self.options["d_initial"]))
        return {"d": d, "b": torch.zeros(self.shape[0])}

    def factor_pair(self) -> tuple[Float[Tensor, "*batch r in"], Float[Tensor, "*batch out r"]]:
        """Equation 2 of the VeRA paper: diag(d) A and diag(b) B."""
        return self.d[..., None] * self.A, self.b[..., None] * self.B

    def directions(self) -> dict[str, Float[Tensor, "*batch n dim"]]:
        """The trained vectors, one row each."""
        return {"a": self.d[..., None, :], "b": self.b[..., None, :]}


class Vera(RandomPair):
    """W = W0 + diag(b) B diag(d) A with frozen random A and B; b = 0 at the start.

    Options:
        d_initial: d at the start; 0.1 is the paper's and PEFT's default.
    """

    ROLES: ClassVar[Mapping[str, Role]] = {"d": "factors", "b": "factors"}


class Dvora(RandomPair, Dora):
    """W = diag(m / ||V||) V with V = W0 + diag(b) B diag(d) A: DoRA's magnitudes, VeRA's direction.

    Options: ``d_initial`` as VeRA's; ``axis`` and ``norm_grad`` as DoRA's.
    """

    ROLES: ClassVar[Mapping[str, Role]] = {"d": "factors", "b": "factors", "magnitude": "magnitude"}

    def configure(self) -> None:
        super().configure()
        self.choose_axis()

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {**super().draw(generator), "magnitude": self.base_norms.cpu()}
