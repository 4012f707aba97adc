"""Spectra of the update W_t - W_0: effective rank, shares of energy, and intruder dimensions.

With singular values s_i of the update and energies p_i = s_i^2 / sum_j s_j^2:

- the effective rank is exp(-sum_i p_i ln p_i), the exponential of the spectrum's entropy (Roy and Vetterli 2007, "The effective
  rank: a measure of effective dimensionality", EUSIPCO, Definition 1), here of energies in place of singular values;
- the share of energy in the n leading directions is p_1 + ... + p_n;
- intruder dimensions (Shuttleworth et al. 2024, "LoRA vs full fine-tuning", arXiv 2410.21228) are those of the `NUM_LEADING`
  leading left singular vectors of W_t whose largest absolute cosine with any left singular vector of W_0 is below `THRESHOLD`.
  Ten leading ones are the default of the authors' code; the threshold is a choice made here.

All in double precision. Where the update has the factors L R, s_i are the singular values of the small triangular factors'
product; elsewhere their squares are the eigenvalues of the smaller Gram of the difference.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from adapters.base import Adapter
from adapters.exact import exactly

SHARES = (1, 2, 4)  # numbers of leading directions
NUM_LEADING = 10  # singular vectors of W_t that are looked at
THRESHOLD = 0.5  # cosine below which one of them is an intruder
UNMOVED = 1e-7  # ||W_t - W_0|| / ||W_0|| up to which there is only rounding: DoRA's float32 magnitudes are 3e-8 off at the start
ROUNDED = 1e-6  # the same in the single precision of PEFT's tuners
_kept: OrderedDict[str, Tensor] = OrderedDict()  # left singular vectors of W_0, by the content of W_0
MOST_KEPT = 1024  # matrices; a U-Net has 128


@exactly
@torch.no_grad()
def update_spectra(adapter: Adapter) -> dict[str, Float[Tensor, "k m"]]:
    """Effective rank and shares of energy of a stack's updates; nan where a weight has not moved or is not finite."""
    squares = _squares_from_factors(adapter)
    if squares is None:
        squares = torch.stack([_squares(_weight(adapter, k) - adapter.weight0.double()) for k in _replicas(adapter)])
    total = squares.sum(-1)
    base = torch.linalg.vector_norm(adapter.weight0.double(), dim=(-2, -1))
    known = torch.isfinite(total) & (total.sqrt() > (UNMOVED if adapter.packable else ROUNDED) * base)
    energies = torch.where(known[..., None], squares, 0) / torch.where(known, total, 1)[..., None]
    values = {"effective_rank": torch.special.entr(energies).sum(-1).exp()}
    values |= {f"energy_{number}": energies[..., :number].sum(-1).clamp(max=1) for number in SHARES}
    return {name: torch.where(known, value, torch.nan).float() for name, value in values.items()}


@exactly
@torch.no_grad()
def count_intruders(adapter: Adapter) -> Float[Tensor, "k m"]:
    """Number of intruder dimensions of a stack's weights, of `NUM_LEADING` or as many as a matrix has; nan if not finite."""
    bases = [left_vectors(weight) for weight in _matrices(adapter.weight0)]
    counts = [
        [_count(weight, base) for weight, base in zip(_matrices(_weight(adapter, k)), bases, strict=True)]
        for k in _replicas(adapter)
    ]
    return torch.tensor(counts, device=adapter.weight0.device).view(-1, *adapter.weight0.shape[:-2])


def left_vectors(weight: Float[Tensor, "out in"]) -> Float[Tensor, "out n"]:
    """The left singular vectors of a frozen weight, computed once in a process."""
    content = weight.detach().cpu().contiguous().view(torch.uint8).numpy()
    key = f"{hashlib.sha256(content.data).hexdigest()} {tuple(weight.shape)} {weight.device}"
    if key not in _kept:
        _kept[key] = torch.linalg.svd(weight.double(), full_matrices=False).U.float()
        if len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
    return _kept[key]


def _count(weight: Float[Tensor, "out in"], base: Float[Tensor, "out n"]) -> float:
    if not bool(torch.isfinite(weight).all()):
        return float("nan")
    leading = torch.linalg.svd(weight, full_matrices=False).U[:, :NUM_LEADING]
    return float(((leading.mT @ base.double()).abs().amax(-1) < THRESHOLD).sum())


def _replicas(adapter: Adapter) -> range:
    return range(adapter.num_replicas)


def _weight(adapter: Adapter, replica: int) -> Float[Tensor, "*m out in"]:
    """One replica's weights in double precision, so that no pack of copies is made."""
    if not adapter.packable:
        return adapter.weight()[replica].double()
    own = (*adapter.ROLES, *adapter.frozen)
    tensors = {name: getattr(adapter, name) for name in (*own, *adapter.constants, *adapter.shared)}
    one = adapter.twin(
        adapter.weight0, {name: tensor[[replica]] if name in own else tensor for name, tensor in tensors.items()}
    )
    one.num_replicas = 1
    return one.in_double().weight()[0]


def _squares_from_factors(adapter: Adapter) -> Float[Tensor, "k *m n"] | None:
    """Squared singular values, falling, from the factors; None for updates of another form, or with gains on W_0."""
    kind = type(adapter)
    if kind.low_rank is Adapter.low_rank or kind.change is not Adapter.change or not adapter.packable:
        return None
    change = adapter.in_double().low_rank()
    if change.gain is not None or change.gain_in is not None:
        return None
    left, right = change.b, change.a.mT
    if change.a_start is not None and change.b_start is not None:
        left, right = torch.cat([left, change.b_start], -1), torch.cat([right, change.a_start.mT], -1)
    triangles = [torch.linalg.qr(factor, mode="r").R for factor in (left, right)]
    small, whole = _whole(change.scale * triangles[0] @ triangles[1].mT)
    return torch.where(whole, torch.linalg.svdvals(small).square(), torch.nan)


def _squares(difference: Float[Tensor, "*m out in"]) -> Float[Tensor, "*m n"]:
    """Squared singular values, falling: of the smaller Gram, a matrix at a time."""
    found = []
    for matrix in _matrices(difference):
        wide, whole = _whole(matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT)
        found.append(torch.where(whole, torch.linalg.eigvalsh(wide @ wide.mT).flip(-1).clamp_min(0), torch.nan))
    return torch.stack(found).view(*difference.shape[:-2], -1)


def _whole(matrix: Float[Tensor, "*b p q"]) -> tuple[Float[Tensor, "*b p q"], Bool[Tensor, "*b 1"]]:
    """Matrices with zeros in place of those that are not finite, on which LAPACK would raise, and which are finite."""
    whole = torch.isfinite(matrix).all(-1).all(-1, keepdim=True)
    return torch.where(whole[..., None], matrix, 0), whole


def _matrices(weight: Float[Tensor, "*m out in"]) -> Sequence[Float[Tensor, "out in"]]:
    return weight.flatten(0, -3).unbind() if weight.ndim > 2 else [weight]
