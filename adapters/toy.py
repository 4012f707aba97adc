"""A tiny attention model with Stable Diffusion's layer names, on which the contract's promises are tested."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
    """One head with Stable Diffusion's names; ``to_out.0`` has a bias, the others have none."""

    def __init__(self, dim: int, context: int, inner: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(size, inner, bias=False) for size in (dim, context, context))
        self.to_out = nn.ModuleList([nn.Linear(inner, dim)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        weights = torch.softmax(0.3 * self.to_q(x) @ self.to_k(context).mT, dim=-1)
        return x + self.to_out[0](weights @ self.to_v(context))


class Model(nn.Module):
    """Self- and cross-attention: 8 matrices of 3 shapes (8x12 four times, 12x8 twice, 8x20 twice)."""

    is_gradient_checkpointing = False

    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2 = Attention(12, 12, 8), Attention(12, 20, 8)
        self.norm = nn.LayerNorm(12)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        if self.is_gradient_checkpointing:
            x = checkpoint(self.attn1, x, x, use_reentrant=False)
            return checkpoint(self.attn2, self.norm(x), context, use_reentrant=False)
        return self.attn2(self.norm(self.attn1(x, x)), context)


def make_model(dtype: torch.dtype = torch.float64) -> Model:
    """The same weights at every call, in every precision."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model().to(dtype)
