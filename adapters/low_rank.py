"""A frozen linear layer plus a low-rank change, for K replicas at once: the fast path of most methods.

With rows x, frozen weight W0 and a change of rank R held as factors b a (b: [out, R], a: [R, in]), it computes

    y = gain * (x W0^T + scale (x a^T) b^T) + bias

or the same with a gain for each input, on x.

The frozen product runs once over the rows of all replicas; its output is the operand that the replicas' small
products accumulate into, forward and backward, so that no pass over the activations is spent on adding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class LowRank(NamedTuple):
    """What a method asks of the fast path: the weight gain * (W0 + scale [b, b_start] [a; a_start]) * gain_in.

    The directions of the start are those in which nothing but a scalar trains (DeLoRA's frozen copy); keeping them
    apart spares their gradients.
    """

    a: Tensor
    b: Tensor
    scale: float = 1.0
    a_start: Tensor | None = None
    b_start: Tensor | None = None
    gain: Tensor | None = None
    gain_in: Tensor | None = None

    def unbind(self) -> list[LowRank]:
        """One change per matrix of a stack: parts ``[k, m, ...]`` become m times ``[k, ...]``."""
        num_matrices = self.a.shape[1]
        parts = [part.unbind(1) if isinstance(part, Tensor) else [part] * num_matrices for part in self]
        return [LowRank(*matrix) for matrix in zip(*parts, strict=True)]

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The rows through the changed layer: :func:`low_rank_linear`."""
        return low_rank_linear(x, weight, bias, self)


def low_rank_linear(
    x: Float[Tensor, "k n in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    change: LowRank,
) -> Float[Tensor, "k n out"]:
    """Apply the frozen layer and each replica's low-rank change to its rows; all tensors of one dtype.

    Args:
        x: Rows of every replica.
        weight: Frozen weight, shared by the replicas; it gets no gradient.
        bias: Frozen bias; None where the layer has none.
        change: Factors ``a`` [k, R, in], ``b`` [k, out, R], optional frozen ones, optional ``gain`` [k, out]
            and ``gain_in`` [k, in].
    """
    if change.gain_in is not None:
        x = x * change.gain_in[:, None]
    out: Tensor = _LowRankLinear.apply(
        x, weight, bias, change.a, change.b, change.a_start, change.b_start, change.gain, change.scale
    )
    return out


class _LowRankLinear(torch.autograd.Function):
    """Forward and backward by hand: the input's gradient accumulates in place of being summed from two branches."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        a_start: Tensor | None,
        b_start: Tensor | None,
        gain: Tensor | None,
        scale: float,
    ) -> Tensor:
        if a_start is not None and b_start is not None:
            a, b = torch.cat([a, a_start], -2), torch.cat([b, b_start], -1)
        out = F.linear(x, weight, bias if gain is None else None)
        hidden = _matmul(x, a.mT)
        if scale != 1.0:
            hidden.mul_(scale)
        _accumulate(out, hidden, b.mT)
        ctx.save_for_backward(x, weight, a, b, hidden, gain, out if ctx.needs_input_grad[7] else None)
        ctx.scale, ctx.num_start = scale, 0 if a_start is None else a_start.shape[-2]
        if gain is None:
            return out
        return out * gain[:, None] if bias is None else torch.addcmul(bias, out, gain[:, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, hidden, gain, ungained = ctx.saved_tensors
        needs_x, _, _, needs_a, needs_b, needs_start, _, needs_gain, _ = ctx.needs_input_grad
        trained = a.shape[-2] - ctx.num_start
        grad_gain = (grad * ungained).sum(-2) if needs_gain else None
        if gain is not None:
            grad = grad * gain[:, None]
        grad_hidden = _matmul(grad, b)
        if ctx.scale != 1.0:
            grad_hidden.mul_(ctx.scale)
        grad_x = _accumulate(torch.matmul(grad, weight), grad_hidden, a) if needs_x else None
        grad_b = _matmul(grad.mT, hidden[..., :trained]) if needs_b else None
        grad_a = _matmul(grad_hidden[..., :trained].mT, x) if needs_a else None
        grad_start = _matmul(grad_hidden[..., trained:].mT, x) if needs_start else None
        return grad_x, None, None, grad_a, grad_b, grad_start, None, grad_gain, None


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    """Product per replica; a single replica takes the plain, faster matrix product."""
    if left.shape[0] == 1:
        return torch.mm(left[0], right[0])[None]
    return torch.bmm(left, right)


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Add the product per replica to ``total`` in place."""
    if total.shape[0] == 1:
        total[0].addmm_(left[0], right[0])
        return total
    return total.baddbmm_(left, right)
