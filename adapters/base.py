"""The contract of an adapter: one class for each method, three views of the same mathematics, K replicas in each.

An :class:`Adapter` takes the place of one frozen ``nn.Linear`` and holds K replicas of a method's parameters. The same
code serves one matrix (leading dimensions ``[k]``) and a stack of m equally shaped ones (``[k, m]``), so that whatever
is read off the weights at every step costs a few operations per stack.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from adapters.blockwise import Blockwise
from adapters.errors import BadInput
from adapters.exact import exactly
from adapters.low_rank import LowRank

Role = Literal["factors", "factors_b", "magnitude", "lambda"]
"""A learning-rate group; ``factors_b`` are factors with a rate of their own, ``lr_ratio`` times that of ``factors``."""
ROLE_ORDER: tuple[Role, ...] = ("factors", "factors_b", "magnitude", "lambda")
Change = LowRank | Blockwise
"""What the fast path computes."""
READS = ("measure", "readings", "distance", "bounds")
"""What is read off weights and parameters: computed without autocast and TF32, in every class, a user's own too."""


class Adapter(nn.Module):
    """K replicas of one method around one frozen linear layer.

    A method defines ``draw`` (its parameters at the start), ``weight`` (the definition, literal), ``low_rank`` or
    ``change`` (what the fast path computes), ``readings`` (distance and gauges) and ``directions``. The first two are
    enough: a method without a fast path multiplies by its weight, one without ``readings`` subtracts W0 from it, in
    double precision; correct, and slow (``derives`` says which).

    Args:
        base: The frozen layer; kept as it is, never written to.
        path: Its name in the model; it goes into the random start and into errors.
        seeds: One per replica. A replica's start depends on its seed and the path only, never on K or its position.
        rank: Number of directions; methods without a rank ignore it.
        boundary: DeLoRA's lambda at the start, one per replica; None for methods without one.
        largest: ``(out, in)`` that holds every matrix adapted together; what they share is cut from that size. None
            means this matrix's own.
        options: The method's options, as :class:`adapters.MethodSpec` holds them.

    Raises:
        BadInput: The rank does not fit the matrix, or an option or boundary does not suit the method.
    """

    ROLES: ClassVar[Mapping[str, Role]] = {}
    """Trainable tensors by name, each with the learning-rate group it belongs to."""
    frozen: ClassVar[tuple[str, ...]] = ()
    """Tensors that belong to a replica, are saved with it, but do not train (the start of DeLoRA)."""
    advancing: ClassVar[tuple[str, ...]] = ()
    """Those of them that ``advance`` changes as training goes on; checkpoints hold them too."""
    constants: ClassVar[tuple[str, ...]] = ()
    """Tensors read off the frozen weight, shared by the replicas."""
    shared: ClassVar[tuple[str, ...]] = ()
    """Constants without a share of their own for each matrix: equally shaped matrices hold the very same tensor."""
    starts_at_base: ClassVar[bool] = True
    draws_start: ClassVar[bool] = True
    """Whether the trainable tensors' start depends on the seed and the path."""
    bound_kind: ClassVar[Literal["none", "distance", "transform"]] = "none"
    packable: ClassVar[bool] = True
    uses_rank: ClassVar[bool] = True
    rank_multiple: ClassVar[int] = 1
    """The rank must be a multiple of this."""
    has_small_work: ClassVar[bool] = True
    """Whether ``change`` computes anything, so that doing it once for a whole stack pays."""
    has_fast_path: ClassVar[bool] = False
    """Whether the method defines more than ``weight``; set for every class by itself."""
    uses_boundary: ClassVar[bool] = False
    lr_ratio: float = 1.0
    """Rate of the role ``factors_b`` over that of ``factors``."""
    OPTIONS: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Options of a method in a file of its own, as :class:`adapters.Method` holds those of a registered one."""
    weight0: Tensor
    bias0: Tensor | None

    def __init__(
        self,
        base: nn.Linear,
        *,
        path: str,
        seeds: Sequence[int],
        rank: int,
        boundary: Sequence[float] | None = None,
        largest: tuple[int, int] | None = None,
        options: Mapping[str, Any],
    ) -> None:
        self.begin(path, rank, options, len(seeds))
        self._check(base, boundary)
        self.configure()
        self.base = base
        self.weight0, self.bias0 = base.weight.detach(), None if base.bias is None else base.bias.detach()
        self.largest = self.shape if largest is None else largest
        self.hold(self.measure())
        starts = [self.draw(self._generator(seed)) for seed in seeds]
        if not self.ROLES:  # a method that names none trains all that it draws
            roles: dict[str, Role] = {name: "factors" for name in starts[0] if name not in self.frozen}
            self.ROLES = roles  # type: ignore[misc]
        self.hold({name: torch.stack([start[name] for start in starts]) for name in starts[0]})
        if boundary is not None and self.uses_boundary:
            self.set_boundary(torch.tensor(list(boundary), dtype=torch.float64))

    def begin(self, path: str, rank: int, options: Mapping[str, Any], num_replicas: int) -> None:
        """Set what every adapter has before it has a tensor; the one place where such attributes are born."""
        nn.Module.__init__(self)
        self.path, self.rank, self.options, self.num_replicas = path, rank, dict(options), num_replicas
        self.pack_storage: int | None = None
        self.prepared: Change | None = None

    def twin(self, weight0: Float[Tensor, "*m out in"], tensors: Mapping[str, Tensor]) -> Adapter:
        """The same adapter around other tensors, as buffers: stacked ones, or the same in double precision."""
        twin = copy.copy(self)
        nn.Module.__init__(twin)  # empty of parameters, buffers and the layer; every other attribute stays
        twin.weight0, twin.pack_storage, twin.prepared = weight0, None, None
        for name, tensor in tensors.items():
            twin.register_buffer(name, tensor)
        return twin

    # What a method defines.

    @classmethod
    def misfit(cls, shape: tuple[int, int], options: Mapping[str, Any]) -> str | None:
        """Why the method cannot adapt a matrix of shape ``(out, in)`` with these options, as in "x=5 does not divide"."""
        return None

    @classmethod
    def has_role(cls, role: str, options: Mapping[str, Any]) -> bool:
        """Whether some tensor trains at the rate of this group."""
        return role in cls.ROLES.values()

    def configure(self) -> None:
        """Turn options into attributes; called first, before any tensor exists."""

    def measure(self) -> dict[str, Tensor]:
        """Read the constants off the frozen weight."""
        return {}

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw one replica's tensors, trainable and frozen, on the CPU, so that they are the same on every device."""
        raise NotImplementedError

    def weight(self) -> Float[Tensor, "*batch out in"]:
        """The effective weight of every replica, materialised from the method's definition."""
        raise NotImplementedError

    def low_rank(self) -> LowRank:
        """The effective weight as the fast path takes it."""
        raise NotImplementedError

    def change(self) -> Change:
        """What the fast path computes: ``low_rank``, unless the method changes the weight in another way."""
        return self.low_rank()

    def project(self) -> None:
        """Put the parameters back, in place, into the set that the method allows; called after every step."""

    def advance(self, steps: int, live: Bool[Tensor, " k"]) -> None:
        """Count one optimiser step, in place, before its first forward; methods that follow a schedule of their own define it.

        Args:
            steps: how many the whole training takes.
            live: the replicas that still train; the others stay as they are.
        """

    @exactly
    @torch.no_grad()
    def readings(self) -> dict[str, Float[Tensor, "*batch"]]:
        """``distance`` and every gauge, computed together in double precision; here the distance, by its definition."""
        if type(self).distance is not Adapter.distance:
            return {"distance": self.distance()}
        twin = self.in_double()
        moved = torch.linalg.vector_norm(twin.weight() - twin.weight0, dim=(-2, -1))
        return {"distance": torch.nan_to_num(moved, nan=torch.inf, posinf=torch.inf)}

    def bounds(self) -> dict[str, Float[Tensor, "*batch"]]:
        """An upper bound for each reading that has one, keyed by the reading's name."""
        return {}

    def at_start(self) -> dict[str, float]:
        """Readings whose value at the start is known beforehand: no distance, where the class does not say otherwise."""
        return {"distance": 0.0}

    def directions(self) -> dict[str, Float[Tensor, "*batch n dim"]]:
        """The method's factors as rows: ``a`` on the input side, ``b`` on the output side; none by default."""
        return {}

    # What every method offers.

    def forward(self, x: Float[Tensor, "rows *tokens in"]) -> Float[Tensor, "rows *tokens out"]:
        """Apply each replica to its own rows; rows lie replica-major (``[k*b, ..., in]``).

        Raises:
            ValueError: The number of rows is not a multiple of the number of replicas.
        """
        if x.shape[0] % self.num_replicas:
            raise ValueError(f"{self.path}: {x.shape[0]} rows do not divide among {self.num_replicas} replicas")
        dtype = self._compute_dtype(x)
        rows = x.to(dtype).reshape(self.num_replicas, -1, x.shape[-1])
        bias = None if self.bias0 is None else self.bias0.to(dtype)
        return self.transform(rows, self.weight0.to(dtype), bias).view(*x.shape[:-1], -1)

    def transform(
        self, rows: Float[Tensor, "k n in"], weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "k n out"]:
        """Each replica's rows through its weight, in their dtype; methods with no such change override this."""
        if not self.has_fast_path:
            return self._times_weight(rows, bias)
        change = self.prepared or self._compute_change(rows)
        return _cast(change, rows.dtype).apply(rows, weight, bias)

    @classmethod
    def derives(cls) -> list[str]:
        """Which of ``forward`` and ``distance`` come from ``weight`` alone, because the method does not define them."""
        measured = cls.readings is not Adapter.readings or cls.distance is not Adapter.distance
        return [name for name, own in (("forward", cls.has_fast_path), ("distance", measured)) if not own]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = ("low_rank", "change", "transform", "forward")
        for name in READS:
            if name in vars(cls):
                setattr(cls, name, exactly(vars(cls)[name]))
        cls.has_fast_path = any(getattr(cls, name) is not getattr(Adapter, name) for name in names)
        if cls.low_rank is Adapter.low_rank and cls.change is Adapter.change:
            cls.has_small_work = False

    @torch.no_grad()
    def distance(self) -> Float[Tensor, "*batch"]:
        """Frobenius norm of W_t - W_0 in closed form, double precision; finite wherever the parameters are."""
        return self.readings()["distance"]

    @torch.no_grad()
    def gauges(self) -> dict[str, Float[Tensor, "*batch"]]:
        """The method's own dials (among ``lambda``, ``bound``, ``saturation``, ``transform_distance`` and others)."""
        return {name: value for name, value in self.readings().items() if name != "distance"}

    @torch.no_grad()
    def bound(self) -> Float[Tensor, "*batch"] | None:
        """The bound that ``bound_kind`` names, or None."""
        bounded = {"none": "", "distance": "distance", "transform": "transform_distance"}[self.bound_kind]
        return self.bounds().get(bounded)

    @torch.no_grad()
    def factors(self) -> dict[str, Float[Tensor, "*batch n dim"]]:
        """The factors as rows, without gradient: what mean norms and angular steps are computed from."""
        return {name: rows.detach() for name, rows in self.directions().items()}

    def in_double(self) -> Adapter:
        """The same adapter in double precision, on copies of its tensors, without gradients; for readings."""
        names = (*self.ROLES, *self.frozen, *self.constants, *self.shared)
        return self.twin(self.weight0.double(), {name: getattr(self, name).detach().double() for name in names})

    def count_parameters(self) -> int:
        """Number of trainable values of one replica."""
        return sum(getattr(self, name)[0].numel() for name in self.ROLES)

    # How tensors are held.

    def hold(self, tensors: Mapping[str, Tensor]) -> None:
        """Register tensors by name: trainable ones as parameters, the others as buffers, in the adapter's dtype."""
        for name, tensor in tensors.items():
            tensor = tensor.to(self.weight0.device, self.dtype if name in {*self.ROLES, *self.frozen} else None)
            if name in self.ROLES:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    @property
    def exact_gradient(self) -> bool:
        """Whether gradients are those of the forward; a detached norm or projection makes them others, on purpose."""
        return True

    def set_boundary(self, boundary: Float[Tensor, " k"]) -> None:
        """Start from the given boundary; only methods with one define it."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the adapter's tensors: the frozen weight's, but never below single precision."""
        return torch.float64 if self.weight0.dtype == torch.float64 else torch.float32

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)`` of the frozen weight."""
        return self.weight0.shape[-2], self.weight0.shape[-1]

    def base_weight(self) -> Float[Tensor, "*m out in"]:
        """The frozen weight in the adapter's dtype."""
        return self.weight0.to(self.dtype)

    def _check(self, base: nn.Linear, boundary: Sequence[float] | None) -> None:
        num_out, num_in = base.weight.shape
        if self.uses_rank and not 1 <= self.rank <= min(num_out, num_in):
            raise BadInput(
                f"rank {self.rank} does not fit matrix {self.path!r} of {num_out} x {num_in}: "
                f"allowed are 1 to {min(num_out, num_in)}"
            )
        if self.uses_rank and self.rank % self.rank_multiple:
            raise BadInput(f"rank {self.rank} is not allowed here: it must be a multiple of {self.rank_multiple}")
        if reason := self.misfit((num_out, num_in), self.options):
            raise BadInput(f"{reason} matrix {self.path!r} of {num_out} x {num_in}")
        if self.num_replicas < 1:
            raise BadInput(f"matrix {self.path!r} was given no seeds: one per replica is needed")
        if self.uses_boundary:
            _check_boundary(boundary, self.num_replicas)

    def _generator(self, seed: int) -> torch.Generator:
        digest = hashlib.sha256(f"{seed}/{self.path}".encode()).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def _compute_dtype(self, x: Tensor) -> torch.dtype:
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            return torch.get_autocast_dtype(x.device.type)
        return x.dtype

    def _times_weight(self, rows: Float[Tensor, "k n in"], bias: Tensor | None) -> Float[Tensor, "k n out"]:
        """The slow forward: every replica's rows times its whole weight."""
        with torch.autocast(rows.device.type, enabled=False):
            weight = self.weight().to(rows.dtype)
            out = rows @ weight.mT
            return out if bias is None else out + bias

    def _compute_change(self, x: Tensor) -> Change:
        if not torch.is_autocast_enabled(x.device.type):
            return self.change()
        with torch.autocast(x.device.type, enabled=False):
            return self.change()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapter:
        """Refuse what would tear the parameters out of their pack's buffer; elsewhere move and cast as usual."""
        own = next(iter(self.parameters(recurse=False)))
        packed = self.pack_storage is not None and own.untyped_storage().data_ptr() == self.pack_storage
        probe = fn(own.detach()[:0])
        if packed and (probe.dtype, probe.device) != (own.dtype, own.device):
            raise RuntimeError(f"{self.path}: move or cast the model before attach, not after")
        super()._apply(fn, recurse)
        self.weight0 = self.base.weight.detach()
        self.bias0 = None if self.base.bias is None else self.base.bias.detach()
        return self


def _cast(change: Change, dtype: torch.dtype) -> Change:
    if change[0].dtype == dtype:
        return change
    return type(change)._make(part.to(dtype) if isinstance(part, Tensor) else part for part in change)


def _check_boundary(boundary: Sequence[float] | None, num_replicas: int) -> None:
    if boundary is None or len(boundary) != num_replicas:
        given = "none" if boundary is None else len(boundary)
        raise BadInput(
            f"a boundary (lambda at the start) is needed for each of {num_replicas} replicas, given: {given}"
        )
    for value in boundary:
        if not (math.isfinite(value) and value > 0):
            raise BadInput(f"boundary {value} is not allowed: it must be a positive number")


# Products that serve one matrix and a stack alike.


def times_base(
    rows: Float[Tensor, "*batch n in"], weight0: Float[Tensor, "*m out in"]
) -> Float[Tensor, "*batch n out"]:
    """``rows W0^T`` for ``[k, n, in]`` rows and one weight, or ``[k, m, n, in]`` rows and m stacked weights."""
    if weight0.ndim == 2:
        return nn.functional.linear(rows, weight0)
    return torch.einsum("kmni,moi->kmno", rows, weight0)


def row_norms(rows: Float[Tensor, "*batch n dim"], floor: float = 0.0) -> Float[Tensor, "*batch n"]:
    """Euclidean norms of rows, at least ``floor``."""
    return torch.linalg.vector_norm(rows, dim=-1).clamp_min(floor)


def norms_of_columns(columns: Float[Tensor, "*batch dim n"]) -> Float[Tensor, "*batch n"]:
    """Euclidean norms of columns; on a CPU six times faster than ``vector_norm``. No gradient at 0."""
    return columns.square().sum(dim=-2).sqrt()


def gram(rows: Float[Tensor, "*batch n dim"]) -> Float[Tensor, "*batch n n"]:
    """Inner products of rows with each other."""
    return rows @ rows.mT


def norm_of_product(
    left: Float[Tensor, "*batch n out"], right: Float[Tensor, "*batch n in"]
) -> Float[Tensor, "*batch"]:
    """Frobenius norm of ``left^T right`` from its factors' Grams, without forming it: sqrt(tr(L L^T R R^T))."""
    return (gram(left) * gram(right)).sum((-2, -1)).clamp_min(0).sqrt()
