"""Count how many values a method trains on given matrices, without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import nn

from adapters import MethodSpec, get_class

COPIES_IN_TRAINING = 6
"""Values that training keeps for each one trained: itself, its gradient, Adam's two moments, the state before the step
(to take back an overflow), and what the next angular step starts from."""
COPIES_OF_PRODIGY = 2
"""What Prodigy keeps besides: where the run started, and the sum of its gradients."""


def count_parameters(spec: MethodSpec, shapes: Sequence[tuple[int, int]], rank: int) -> int:
    """Trainable values of one replica on matrices of the given ``(out, in)``.

    Raises:
        BadInput: Rank or options do not fit one of them.
    """
    method, total = get_class(spec.name), 0
    for (num_out, num_in), number in Counter(shapes).items():
        base = nn.Linear(num_in, num_out, bias=False)
        adapter = method(base, path=f"{num_out} x {num_in}", seeds=[0], rank=rank, boundary=[1.0], options=spec.options)
        total += number * adapter.count_parameters()
    return total
