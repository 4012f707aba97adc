"""One optimiser step of a pack: forward, backward, clipping, AdamW or Prodigy, projection."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from adapters.pack import Attached
from training.optimizer import PackedAdamW
from training.tasks.task import TrainingTask


def take_step(
    attached: Attached, task: TrainingTask, optimizer: PackedAdamW, step: int, factor: float = 1.0
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """One optimiser step of every replica: forward, backward, clipping, optimiser, projection. The host waits for nothing.

    Args:
        attached: the pack, in the model of the task.
        task: gives the losses of a micro-batch.
        optimizer: over the pack's parameters.
        step: from 1 on.
        factor: the schedule's share of the full rates.

    Returns:
        The losses, and the gradient norms before clipping, of the adapters alone.
    """
    accumulation = task.shared.gradient_accumulation_steps
    losses = torch.zeros(attached.num_replicas, device=task.device)
    attached.zero_grad()
    if task.beside is not None:
        task.beside.zero_grad()
    attached.advance(task.shared.steps, ~optimizer.frozen)
    for micro in range(accumulation):
        part = task.losses(step, micro) / accumulation
        part.sum().backward()
        losses += part.detach()
    norms = optimizer.step(losses, factor)
    if task.beside is not None:
        task.beside.step(optimizer.frozen, factor)
    attached.project()
    return losses, norms
