"""AdamW for a pack: every replica has its own rates, clipping and moments, and may end by itself.

All parameters of a pack lie in one `[k, P]` buffer (`adapters.pack.Attached.flat`), so one pass over each row is one
optimiser step of one run. Arithmetic is that of `torch.optim.AdamW` (Loshchilov & Hutter 2019, arXiv 1711.05101).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim.adamw import adamw

from adapters.device import is_free_to_ask

STATE = ("flat", "exp_avg", "exp_avg_sq", "counts", "frozen_at")  # what the next step depends on, by replica


def schedule_factor(schedule: str, step: int, steps: int, warmup_steps: int) -> float:
    """The share of the full rate at `step` (1-based).

    Linear warm-up over `warmup_steps`, then "constant", or a "cosine" or "linear" that reaches zero after the last step, as
    in diffusers' `get_scheduler`.
    """
    done = step - 1
    if done < warmup_steps:
        return done / warmup_steps
    share = (done - warmup_steps) / max(1, steps - warmup_steps)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    return 1.0 - share if schedule == "linear" else 1.0


class PackedAdamW:
    """AdamW over the rows of one buffer, one row a replica.

    `kept` names what the next step depends on, by replica.

    Args:
        flat: parameters of the pack, changed in place.
        grad: their gradients; clipping changes them in place.
        segments: role -> columns of `flat` that belong to it ("factors", "factors_b", "lambda", "magnitude").
        rates: role -> learning rate of each replica.
        weight_decay: decoupled weight decay of each replica.
        clip: largest gradient norm of each replica over all its parameters; 0 switches clipping off.
        advancing: by name, what else of a replica changes as it trains (a ramp's counter): kept in its state.
    """

    kept: ClassVar[tuple[str, ...]] = STATE

    def __init__(
        self,
        flat: Float[Tensor, "k p"],
        grad: Float[Tensor, "k p"],
        segments: Mapping[Any, slice],
        *,
        rates: Mapping[str, Sequence[float]],
        weight_decay: Sequence[float],
        clip: Sequence[float],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        advancing: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        self.flat, self.grad, self.segments = flat, grad, dict(segments)
        self.rates, self.weight_decay, self.betas, self.eps = dict(rates), list(weight_decay), betas, eps
        limits = torch.tensor([c if c > 0 else math.inf for c in clip], dtype=flat.dtype)
        self.clip = limits.to(flat.device)
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(flat), torch.zeros_like(flat)
        self._before = torch.empty_like(flat)
        # One counter for each replica and role: fused AdamW advances the counter that it is given.
        self.counts = torch.zeros(flat.shape[0], len(self.segments), dtype=torch.float32, device=flat.device)
        self.frozen_at = torch.full((flat.shape[0],), -1, dtype=torch.int64, device=flat.device)
        self.steps_done, self.advancing = 0, dict(advancing)

    @torch.no_grad()
    def step(self, losses: Float[Tensor, " k"], factor: float = 1.0) -> Float[Tensor, " k"]:
        """One step of every live replica; one whose loss, gradient or next weights are not finite is frozen where it is.

        Args:
            losses: the replicas' losses of this step.
            factor: the schedule's share of the full rates.

        Returns:
            The gradient norm of each replica before clipping.
        """
        norms = torch.linalg.vector_norm(self.grad, dim=1)
        self.steps_done += 1
        fallen = ~(torch.isfinite(norms) & torch.isfinite(losses)) & (self.frozen_at < 0)
        self.frozen_at.masked_fill_(fallen, self.steps_done)
        self.grad.mul_((self.clip / (norms + 1e-6)).clamp(max=1.0)[:, None])
        skip = self.frozen.to(torch.float32)
        self._before.copy_(self.flat)
        for row in range(self.flat.shape[0]):
            self._update(row, factor, skip[row])
        self._take_back_overflow()
        return norms

    def _update(self, row: int, factor: float, skip: Float[Tensor, ""]) -> None:
        """One step of one replica, all of whose gradients are clipped; none where `skip` is 1."""
        for role in self.segments:
            self._update_role(role, row, factor, skip)

    def _update_role(self, role: str, row: int, factor: float, skip: Float[Tensor, ""]) -> None:
        """AdamW's step of one replica's parameters of one role."""
        part, column = self.segments[role], list(self.segments).index(role)
        adamw(
            [self.flat[row, part]], [self.grad[row, part]],
            [self.exp_avg[row, part]], [self.exp_avg_sq[row, part]], [], [self.counts[row, column]],
            fused=True, found_inf=skip, amsgrad=False, maximize=False,
            beta1=self.betas[0], beta2=self.betas[1], eps=self.eps,
            lr=self.rates[role][row] * factor, weight_decay=self.weight_decay[row],
        )  # fmt: skip

    def _take_back_overflow(self) -> None:
        """Freeze a replica whose weights left the range of floats at the state before this step."""
        over = ~torch.isfinite(self.flat.sum(dim=1)) & (self.frozen_at < 0)
        if not is_free_to_ask(self.flat) or bool(over.any()):
            self.frozen_at.masked_fill_(over, self.steps_done)
            self.flat.copy_(torch.where(over[:, None], self._before, self.flat))

    def rates_of_step(self, factor: float) -> dict[str, Float[Tensor, " k"]]:
        """The rates at which the last step was taken, by their columns in the table of steps.

        Args:
            factor: the schedule's share of the full rates.
        """
        return {
            name: factor * torch.tensor(self.rates[role], dtype=torch.float64)
            for name, role in (("lr", "factors"), ("lr_lambda", "lambda"))
            if role in self.rates
        }

    @property
    def frozen(self) -> Bool[Tensor, " k"]:
        """Which replicas have diverged and stay where they are."""
        return self.frozen_at >= 0

    def state(self, row: int) -> dict[str, Tensor]:
        """Copies of everything that the next step of one replica depends on, its parameters included."""
        return {name: tensor[row].detach().cpu().clone() for name, tensor in self._tensors().items()}

    @torch.no_grad()
    def load_state(self, row: int, state: Mapping[str, Tensor], steps_done: int) -> None:
        """The inverse of `state`, after `steps_done` steps.

        Raises:
            RuntimeError: if a shape differs.
        """
        for name, tensor in self._tensors().items():
            tensor[row].copy_(state[name])
        self.steps_done = steps_done

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.kept} | self.advancing
