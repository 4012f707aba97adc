"""Prodigy for a pack: every replica estimates its own learning rate d (Mishchenko & Defazio 2024, arXiv 2306.06101).

The arithmetic is that of the authors' package `prodigyopt` 1.1.2 at its defaults: d0 1e-6, beta3 = sqrt(beta2), decoupled
weight decay, no bias correction, no safeguard of the warm-up, growth without a limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from adapters.device import is_free_to_ask
from adapters.errors import BadInput
from training.optimizer import STATE, PackedAdamW

D0 = 1e-6  # the first estimate of every replica
ADAMW_ROLES = ("lambda",)  # a rate of their own, which one estimate for all weights cannot give


class PackedProdigy(PackedAdamW):
    """Prodigy over the rows of one buffer, one estimate d a row; lambda is AdamW's.

    Clipping, freezing and the state of a row are as in `PackedAdamW`. Sums run over one row at a time, so that a row's bits do
    not depend on the other rows.

    Args:
        flat, grad, segments: as for `PackedAdamW`.
        d_coef: factor on each replica's estimate.
        adamw: what else `PackedAdamW` takes; of its `rates` those of a replica, the same in every role, are what d is multiplied
            by, and lambda's is AdamW's own.

    Raises:
        BadInput: if two roles of a replica have different rates, or lambda is the only role.
    """

    kept: ClassVar[tuple[str, ...]] = (*STATE, "start", "s", "d", "numerator")

    def __init__(
        self,
        flat: Float[Tensor, "k p"],
        grad: Float[Tensor, "k p"],
        segments: Mapping[Any, slice],
        *,
        d_coef: Sequence[float],
        **adamw: Any,
    ) -> None:
        super().__init__(flat, grad, segments, **adamw)
        own = [role for role in self.segments if role not in ADAMW_ROLES]
        self.estimated = [self.segments[role] for role in own]
        self.multipliers, self.d_coef = one_rate(self.rates, own), list(d_coef)
        self.start, self.s = flat.detach().clone(), torch.zeros_like(flat)
        self.d = torch.full((flat.shape[0],), D0, dtype=torch.float64, device=flat.device)
        self.numerator = torch.zeros_like(self.d)
        self.d_taken = self.d.clone()
        self._multipliers = torch.tensor(self.multipliers, dtype=torch.float64).to(flat.device)

    @torch.no_grad()
    def step(self, losses: Float[Tensor, " k"], factor: float = 1.0) -> Float[Tensor, " k"]:
        """As `PackedAdamW.step`. The step is taken with the estimates from before it, `d_taken`."""
        self.d_taken.copy_(self.d)
        return super().step(losses, factor)

    def rates_of_step(self, factor: float) -> dict[str, Float[Tensor, " k"]]:
        """As `PackedAdamW.rates_of_step`: `lr` is d times its multiplier, `prodigy_d` is d alone."""
        rates = super().rates_of_step(factor)
        return rates | {"lr": self.d_taken * self._multipliers * factor, "prodigy_d": self.d_taken.clone()}

    def _update(self, row: int, factor: float, skip: Float[Tensor, ""]) -> None:
        for role in ADAMW_ROLES:
            if role in self.segments:
                self._update_role(role, row, factor, skip)
        multiplier = self.multipliers[row] * factor
        if multiplier > 0:  # at 0, as in the first step of a warm-up, the package learns nothing either
            self._move(row, multiplier, self._estimate(row, multiplier))

    def _estimate(self, row: int, multiplier: float) -> Bool[Tensor, ""]:
        """Advance the moments of d g, both sums and d; returns whether there has been a gradient, without which nothing moves.

        d is the largest of d_hat = d_coef sum <g, start - x> / ‖s‖_1 so far, s = sum g, each term weighted by d^2 / d0.
        """
        (beta1, beta2), d = self.betas, self.d_taken[row]
        beta3, weight = math.sqrt(beta2), d / D0 * d * multiplier
        inner, size = torch.zeros_like(d), torch.zeros_like(d)
        for part in self.estimated:
            grad, start, s = self.grad[row, part], self.start[row, part], self.s[row, part]
            inner += (grad * (start - self.flat[row, part])).sum()
            self.exp_avg[row, part].mul_(beta1).add_(grad * (d * (1 - beta1)))
            self.exp_avg_sq[row, part].mul_(beta2).addcmul_(grad * (d * d * (1 - beta2)), grad)
            size += s.mul_(beta3).add_(grad * weight).abs().sum()
        known, numerator = size > 0, beta3 * self.numerator[row] + weight * inner
        self.numerator[row] = torch.where(known, numerator, self.numerator[row])
        self.d[row] = torch.where(known, torch.fmax(d, self.d_coef[row] * numerator / size), d)
        return known

    def _move(self, row: int, multiplier: float, known: Bool[Tensor, ""]) -> None:
        """Decay the weights and take Adam's step, both at the rate from before the new estimate."""
        rate = self.d_taken[row] * multiplier * known
        for part in self.estimated:
            weights = self.flat[row, part]
            weights.sub_(weights * (self.weight_decay[row] * rate))
            spread = self.exp_avg_sq[row, part].sqrt().add_(self.d[row] * self.eps)
            weights.sub_(self.exp_avg[row, part] / spread * rate)

    def _take_back_overflow(self) -> None:
        """As in `PackedAdamW`; whatever a frozen replica's gradients did to its weights and its d is taken back too."""
        super()._take_back_overflow()
        held = self.frozen
        if not is_free_to_ask(self.flat) or bool(held.any()):
            self.flat.copy_(torch.where(held[:, None], self._before, self.flat))
            self.d.copy_(torch.where(held, self.d_taken, self.d))


def one_rate(rates: Mapping[str, Sequence[float]], roles: Sequence[str]) -> list[float]:
    """What each replica's d is multiplied by, the same in every role.

    Raises:
        BadInput: naming the two roles that differ; if there is none.
    """
    if not roles:
        raise BadInput(f"a method that trains {ADAMW_ROLES[0]} alone has nothing for Prodigy: give --optimizer adamw")
    first = list(rates[roles[0]])
    for role in roles[1:]:
        if list(rates[role]) != first:
            raise BadInput(
                f"the rates of {role} are {list(rates[role])}; allowed under Prodigy, whose d is one for all weights of a run: "
                f"those of {roles[0]}, {first}"
            )
    return first
