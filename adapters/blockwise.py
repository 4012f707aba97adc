"""A frozen linear layer whose input is changed block by block, for K replicas at once: the fast path of OFT.

With rows x, frozen weight W0 and one square change D per block of the input, it computes

    y = (x + x diag(D_1, ..., D_n)) W0^T + bias

so a weight W0 (I + D)^T is never formed, and the frozen product runs once over the rows of all replicas.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Blockwise(NamedTuple):
    """What a method asks of this fast path: the weight W0 (I + diag(D_1, ..., D_n))^T.

    Attributes:
        blocks: D, ``[k, n, width, width]``, or ``[k, m, n, width, width]`` for a stack.
    """

    blocks: Tensor

    def unbind(self) -> list[Blockwise]:
        """One change per matrix of a stack."""
        return [Blockwise(blocks) for blocks in self.blocks.unbind(1)]

    def apply(
        self, x: Float[Tensor, "k rows in"], weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "k rows out"]:
        """The rows through the changed layer; all tensors of one dtype."""
        turned: Tensor = _TurnedRows.apply(x, self.blocks)
        return F.linear(turned, weight, bias)


class _TurnedRows(torch.autograd.Function):
    """x + x D, block by block, accumulated into one copy of x; backward likewise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor) -> Tensor:
        ctx.save_for_backward(x, blocks)
        return _accumulate(x, blocks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, blocks = ctx.saved_tensors
        needs_x, needs_blocks = ctx.needs_input_grad
        grad_blocks = None
        if needs_blocks:
            pairs = zip(_split(x, blocks), _split(grad, blocks), strict=True)
            grad_blocks = torch.stack([torch.bmm(rows.mT, part) for rows, part in pairs], 1)
        return _accumulate(grad, blocks.mT) if needs_x else None, grad_blocks


def _accumulate(rows: Tensor, blocks: Tensor) -> Tensor:
    """rows + rows D in memory of its own."""
    total = rows.clone(memory_format=torch.contiguous_format)
    for out, part, block in zip(_split(total, blocks), _split(rows, blocks), blocks.unbind(1), strict=True):
        out.baddbmm_(part, block)
    return total


def _split(rows: Float[Tensor, "k rows in"], blocks: Tensor) -> tuple[Tensor, ...]:
    """Views of each block's share of the columns."""
    return rows.split(blocks.shape[-1], -1)
