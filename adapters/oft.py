"""OFT and COFT: orthogonal finetuning (Qiu et al. 2023, arXiv 2306.07280, Sections 3.2 to 3.4), and Naive: blocks without
the constraint (ETHER paper, arXiv 2405.20271, Section 4.2).

All three multiply the input side by n square blocks: W = W0 diag(Q_1, ..., Q_n)^T, so the fast path turns the input and
leaves the frozen product as it is. OFT's Q is Cayley's (I - S)(I + S)^-1 of a skew-symmetric S, of which the entries above
the diagonal train: half as many values as the authors' code stores, for the same Q and the same steps of Adam.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from adapters.base import Adapter, Role
from adapters.blockwise import Blockwise
from adapters.cayley import CayleyChange, holding, series_change, skew, skew_norm, solve
from adapters.device import is_free_to_ask


class Naive(Adapter):
    """W = W0 diag(I + N_1, ..., I + N_n)^T with N trained freely, from zero on, so that weight decay pulls to W0.

    Options:
        blocks: number n of blocks; it must divide the width of the input. 4 is the papers' choice.
    """

    ROLES: ClassVar[Mapping[str, Role]] = {"N": "factors"}
    constants: ClassVar[tuple[str, ...]] = ("base_factor",)
    draws_start: ClassVar[bool] = False
    uses_rank: ClassVar[bool] = False
    min_width: ClassVar[int] = 1
    base_factor: Tensor
    N: Tensor

    def configure(self) -> None:
        self.blocks = int(self.options["blocks"])

    @classmethod
    def misfit(cls, shape: tuple[int, int], options: Mapping[str, Any]) -> str | None:
        blocks, num_in = options["blocks"], shape[1]
        if num_in % blocks:
            return f"blocks={blocks} does not divide the input of"
        return (
            f"blocks={blocks} leaves less than {cls.min_width} to a block of"
            if num_in // blocks < cls.min_width
            else None
        )

    def measure(self) -> dict[str, Tensor]:
        """The triangular factor of each block of columns of W0: ||W0_k D^T|| = ||F_k D^T||, exact for small D too."""
        columns = self.weight0.double().unflatten(-1, (self.blocks, -1)).transpose(-2, -3)
        return {"base_factor": torch.linalg.qr(columns, mode="r").R}

    @property
    def width(self) -> int:
        """Side of a block."""
        return self.shape[1] // self.blocks

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"N": torch.zeros(self.blocks, self.width, self.width)}

    def weight(self) -> Float[Tensor, "*batch out in"]:
        """W0 Q^T, block by block of the columns."""
        columns = self.base_weight().unflatten(-1, (self.blocks, -1)).transpose(-2, -3)
        return (columns @ self.matrices().mT).transpose(-2, -3).flatten(-2)

    def matrices(self) -> Float[Tensor, "*batch n width width"]:
        """Q_1, ..., Q_n from their definition."""
        return torch.eye(self.width, dtype=self.dtype, device=self.weight0.device) + self.N

    def change(self) -> Blockwise:
        return Blockwise(self.N)

    def exact_changes(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Q - I of one replica after the other, ``[*m, n, width, width]``: exact near the start too; and as the forward
        applies it. Both in double precision.
        """
        yield from ((change, change) for change in map(Tensor.double, self.N))

    @torch.no_grad()
    def readings(self) -> dict[str, Float[Tensor, "*batch"]]:
        """``distance``; ``transform_distance``, ||Q - I||_F; ``orthogonality``, the error ||Q^T Q - I||_F.

        One replica at a time, so that its blocks stay in the cache.
        """
        rows = [self._read(*changes) for changes in self.exact_changes()]
        readings = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        if self.bound_kind != "none":
            reading = "distance" if self.bound_kind == "distance" else "transform_distance"
            bound = self.bounds()[reading]
            tiny = torch.finfo(torch.float64).tiny
            readings |= {"bound": bound, "saturation": readings[reading] / bound.clamp_min(tiny)}
        return readings

    def _read(self, change: Tensor, applied: Tensor) -> dict[str, Float[Tensor, "*m"]]:
        """Of one replica: ||W0 D^T||_F, ||D||_F, and ||D + D^T + D^T D||_F of the D that the forward applies."""
        blocks = applied.flatten(0, -3)
        error = torch.baddbmm(blocks + blocks.mT, blocks.mT, blocks).view_as(change)
        moved = self.base_factor @ change.mT
        return {"distance": _norm(moved), "transform_distance": _norm(change), "orthogonality": _norm(error)}

    def directions(self) -> dict[str, Float[Tensor, "*batch n dim"]]:
        """The blocks as rows; there is nothing on the output side."""
        return {"a": self.N.flatten(-2)}


class Oft(Naive):
    """OFT: Q = (I - S)(I + S)^-1, orthogonal whatever the learning rate; S starts at zero.

    A norm of S beyond which rounding drowns the identity beside it (3e10) is held there. The solve that the readings need
    serves the forward of the next step as well.

    The option of :class:`Naive`, and these.

    Options:
        cayley: ``exact``, by a linear solve (the paper and its code); ``series``, the five terms
            I + 2 S + 2 S^2 + 2 S^3 + S^4 that are PEFT's default: a polynomial, so neither orthogonal nor bounded, and
            turning the other way round than PEFT's own exact form, of whose transpose it is the beginning.
    """

    ROLES: ClassVar[Mapping[str, Role]] = {"R": "factors"}
    bound_kind: ClassVar[Literal["none", "distance", "transform"]] = "distance"
    min_width: ClassVar[int] = 2
    R: Tensor

    def configure(self) -> None:
        super().configure()
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None
        self.is_series = self.options.get("cayley") == "series"
        if self.is_series:
            self.bound_kind = "none"  # type: ignore[misc]

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"R": torch.zeros(self.blocks, self.width * (self.width - 1) // 2)}

    def matrices(self) -> Float[Tensor, "*batch n width width"]:
        """Equation 5 of the OFT paper (Cayley's parametrisation), solved in double precision, or PEFT's series."""
        identity = torch.eye(self.width, dtype=torch.float64, device=self.weight0.device)
        if not self.is_series:
            s = skew(self.entries().double(), self.width)
            return torch.linalg.solve_ex(identity + s, identity - s, left=False)[0].to(self.dtype)
        s = skew(self.entries(), self.width)
        return identity.to(self.dtype) + 2 * s + 2 * s @ s + 2 * s @ s @ s + s @ s @ s @ s

    def entries(self) -> Float[Tensor, "*batch n entries"]:
        """What stands above the diagonal of S."""
        return self.R if self.is_series else self.R * holding(self.R)

    def change(self) -> Blockwise:
        entries = self.entries()
        if self.is_series:
            return Blockwise(series_change(entries, self.width))
        if not self._is_kept():
            for _ in self.exact_changes():
                pass
        assert self._kept is not None
        change: Tensor = CayleyChange.apply(entries, *self._kept[1:])
        return Blockwise(change)

    def _is_kept(self) -> bool:
        """Whether the solve that is kept is that of the present R; where comparing means waiting, it is done again."""
        if self._kept is None or self._kept[0].dtype != self.R.dtype or not is_free_to_ask(self.R):
            return False
        return torch.equal(self._kept[0], self.R)

    def exact_changes(self) -> Iterator[tuple[Tensor, Tensor]]:
        """In exact arithmetic Q is a rotation; what the forward applies is that to the last digit of its precision.

        It is kept, with the inverse that its gradient needs, so that the forward need not solve again until R is another.
        """
        with torch.no_grad():
            entries = self.entries()
            if self.is_series:
                yield from ((change, change) for change in (series_change(one.double(), self.width) for one in entries))
                return
            applied, inverses = (entries.new_empty(*entries.shape[:-1], self.width, self.width) for _ in range(2))
            for row, one in enumerate(entries):
                change, inverse = solve(one, self.width)
                applied[row], inverses[row] = change, inverse
                yield change, applied[row].double()
            self._kept = self.R.detach().clone(), applied, inverses

    def bounds(self) -> dict[str, Float[Tensor, "*batch"]]:
        """||W - W0||_F <= 2 ||W0||_F; ||Q - I||_F <= 2 sqrt(n 2 floor(width / 2)): every plane turned by pi."""
        if self.is_series:
            return {}
        return self._bounds(4.0, 4.0)

    def _bounds(self, largest: float, evenly: float) -> dict[str, Float[Tensor, "*batch"]]:
        """From the squared singular values of Q - I: the largest possible, and that of each if all are alike."""
        leading = self.R.shape[:-2]
        num_values = self.blocks * 2 * (self.width // 2)
        base_norm = _norm(self.base_factor)
        return {
            "distance": (largest**0.5 * base_norm).expand(leading),
            "transform_distance": base_norm.new_full(leading, (evenly * num_values) ** 0.5),
        }

    def directions(self) -> dict[str, Float[Tensor, "*batch n dim"]]:
        """The entries of S, a row for each block; there is nothing on the output side."""
        return {"a": self.R}


class Coft(Oft):
    """COFT: OFT with every block's S kept in a ball around zero, so that Q stays near the identity.

    As in both public codes it is the trained values themselves that are put back, after every step, and the gradient is
    that at the values put back. Between a step and that moment, everything here reads them as if it had been done.

    The option of :class:`Naive`, and these.

    Options:
        eps: the authors' scripts' 6e-5.
        radius: the ball ||S_k||_F <= ``released``: eps width^2 / sqrt(n), the authors' code, in which eps 6e-5 works
            at any width (the default for that reason); ``peft``: eps / sqrt(n), which at 6e-5 all but forbids to train.
    """

    bound_kind: ClassVar[Literal["none", "distance", "transform"]] = "transform"

    @property
    def exact_gradient(self) -> bool:
        return False

    def entries(self) -> Float[Tensor, "*batch n entries"]:
        put_back: Tensor = _PutBack.apply(self.R, self._shrinking())
        return put_back

    @torch.no_grad()
    def project(self) -> None:
        self.R.mul_(self._shrinking())

    @torch.no_grad()
    def _shrinking(self) -> Float[Tensor, "*batch n 1"]:
        """What each block is multiplied by, exactly 1 inside the ball and at its rim, so that once is as good as twice."""
        norms = skew_norm(self.R)
        inside = norms <= self.radius * (1 + 4 * torch.finfo(self.dtype).eps)
        return torch.where(inside, 1.0, self.radius / norms).to(self.dtype)

    @property
    def radius(self) -> float:
        """Largest ||S_k||_F."""
        scale = self.width**2 if self.options["radius"] == "released" else 1
        return float(self.options["eps"]) * scale / self.blocks**0.5

    def bounds(self) -> dict[str, Float[Tensor, "*batch"]]:
        """A plane of S with entry t turns by 2 arctan(t), and Q - I has twice the singular value 2 t / sqrt(1 + t^2).

        The ball allows sum t^2 <= radius^2 / 2: ||Q - I||_F is largest if all planes share it, the weight's distance if
        one has it all.
        """

        def squared(share: float) -> float:
            return 4 * share / (1 + share)

        room = self.radius**2 / 2
        return self._bounds(squared(room), squared(room / (self.width // 2)))


class _PutBack(torch.autograd.Function):
    """Values times a factor, with the gradient passed straight through, as if the values had been written over."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: Tensor) -> Tensor:
        return values * factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _norm(blocks: Float[Tensor, "*batch n rows columns"]) -> Float[Tensor, "*batch"]:
    """Frobenius norm over all blocks, in double precision."""
    return torch.linalg.vector_norm(blocks, dim=(-3, -2, -1), dtype=torch.float64)
