"""A pack: K replicas of one method inside a U-Net; one tensor holds all their trainable values."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapters import MethodSpec
from adapters.base import ROLE_ORDER, Adapter, Change, Role
from adapters.errors import BadInput
from adapters.exact import exactly


@dataclass(frozen=True)
class Stack:
    """Equally shaped matrices seen as one adapter with leading dimensions ``[k, m]``; its tensors are views.

    Args:
        paths: The matrices, in order along dimension m.
        adapter: Reads the very memory that trains; for ``distance``, ``gauges`` and ``factors``, not for ``forward``.
    """

    paths: list[str]
    adapter: Adapter


class Attached:
    """A pack of K replicas of one method inside a U-Net.

    Attributes:
        adapters: The adapter of every target, by path.
        flat: All trainable values, ``[k, P]``; every parameter is a view of it.
        grad: Their gradients, ``[k, P]``; every ``parameter.grad`` is a view of it. Clear it with :meth:`zero_grad`,
            never by setting gradients to None.
        segments: Columns of ``flat`` of each learning-rate group.
        stacks: The adapters by shape, for cheap readings.
    """

    def __init__(self, unet: nn.Module, spec: MethodSpec, adapters: dict[str, Adapter]) -> None:
        self.spec, self.adapters = spec, adapters
        first = next(iter(adapters.values()))
        self.num_replicas = first.num_replicas
        self._unet = unet
        self._required_grad = {name: parameter.requires_grad for name, parameter in unet.named_parameters()}
        groups = group_by_shape(adapters)
        total = self.num_parameters()
        self.flat: Float[Tensor, "k P"] = torch.empty(
            self.num_replicas, total, dtype=first.dtype, device=first.weight0.device
        )
        self.grad: Float[Tensor, "k P"] = torch.zeros_like(self.flat)
        self.segments: dict[Role, slice] = {}
        self.stacks = [Stack(paths, _stack_frozen([adapters[path] for path in paths])) for paths in groups]
        self._lay_out()
        if self.num_replicas > 1:
            use_up_layout_warning()
        unet.requires_grad_(False)
        for path, adapter in adapters.items():
            set_module(unet, path, adapter)
        self._hooks = self._hook_into(unet)

    def zero_grad(self) -> None:
        """Set all gradients to zero, in place."""
        self.grad.zero_()

    def num_parameters(self) -> int:
        """Number of trainable values of one replica."""
        return sum(adapter.count_parameters() for adapter in self.adapters.values())

    def state(self, replica: int) -> dict[str, Tensor]:
        """Everything that makes one replica what it is, frozen starts included, as ``path.name`` tensors."""
        return {key: tensor[replica].detach().clone() for key, tensor in self._tensors()}

    def load_state(self, replica: int, state: Mapping[str, Tensor]) -> None:
        """Put a state from :meth:`state` into a replica.

        Raises:
            BadInput: A tensor is missing, unknown or of another shape.
        """
        own = dict(self._tensors())
        for key in own.keys() ^ state.keys():
            raise BadInput(f"adapter state {'lacks' if key in own else 'has an unknown'} tensor {key!r}")
        for key, tensor in own.items():
            if state[key].shape != tensor[replica].shape:
                raise BadInput(
                    f"tensor {key!r} has shape {tuple(state[key].shape)}, not {tuple(tensor[replica].shape)}"
                )
        with torch.no_grad():
            for key, tensor in own.items():
                tensor[replica].copy_(state[key])

    @exactly
    @torch.no_grad()
    def merged(self, replica: int) -> dict[str, Float[Tensor, "out in"]]:
        """The effective weights of one replica in single precision, by path."""
        return {path: adapter.weight()[replica].float() for path, adapter in self.adapters.items()}

    def detach(self) -> None:
        """Put the frozen layers back; the U-Net is as it was, to the bit."""
        for hook in self._hooks:
            hook.remove()
        for path, adapter in self.adapters.items():
            set_module(self._unet, path, adapter.base)
        for name, parameter in self._unet.named_parameters():
            parameter.requires_grad_(self._required_grad[name])

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for path, adapter in self.adapters.items():
            for name in (*adapter.ROLES, *adapter.frozen):
                yield f"{path}.{name}", getattr(adapter, name)

    def _lay_out(self) -> None:
        """Move every parameter into ``flat``: by role, then name, then shape, so that a stack is a strided view."""
        roles = self.stacks[0].adapter.ROLES
        start = 0
        for role in ROLE_ORDER:
            first = start
            for name in (name for name, its_role in roles.items() if its_role == role):
                for stack in self.stacks:
                    start = self._place(stack, name, start)
            if start > first:
                self.segments[role] = slice(first, start)

    @torch.no_grad()
    def _place(self, stack: Stack, name: str, start: int) -> int:
        members = [self.adapters[path] for path in stack.paths]
        shape = getattr(members[0], name).shape[1:]
        stop = start + len(members) * shape.numel()
        view = self.flat[:, start:stop].view(self.num_replicas, len(members), *shape)
        grad = self.grad[:, start:stop].view_as(view)
        stack.adapter.register_parameter(name, nn.Parameter(view))
        stack.adapter.get_parameter(name).grad = grad
        for index, adapter in enumerate(members):
            parameter = adapter.get_parameter(name)
            view[:, index] = parameter
            parameter.data, parameter.grad = view[:, index], grad[:, index]
            adapter.pack_storage = self.flat.untyped_storage().data_ptr()
        return stop

    def _hook_into(self, unet: nn.Module) -> list[RemovableHandle]:
        """Prepare the stacks' small factors when the U-Net is called, and drop them when it returns.

        The hooks know their module, so that a deep copy of the U-Net, whose parameters lie elsewhere, does without.
        """

        def prepare(module: nn.Module, _: Any) -> None:
            if module is unet and not recomputes(unet):
                self.prepare()

        def release(module: nn.Module, _: Any, __: Any) -> None:
            if module is unet:
                self.release()

        return [
            unet.register_forward_pre_hook(prepare),
            unet.register_forward_hook(release, always_call=True),
        ]

    def prepare(self) -> None:
        """Compute every adapter's small factors, a stack at a time instead of a matrix at a time.

        Until :meth:`release` the adapters use them; gradients reach the same memory. Calls of the U-Net do both by
        themselves, except under gradient checkpointing, which recomputes a block when its factors are gone.
        """
        self._keep_gradients()
        if not self.stacks[0].adapter.has_small_work:
            return
        with torch.autocast(self.flat.device.type, enabled=False):
            for stack in self.stacks:
                changes: Sequence[Change] = stack.adapter.change().unbind()
                for path, change in zip(stack.paths, changes, strict=True):
                    self.adapters[path].prepared = change

    @torch.no_grad()
    def advance(self, steps: int, live: Bool[Tensor, " k"] | None = None) -> None:
        """Count one optimiser step of every replica, before its first forward; nothing for most methods.

        Args:
            steps: how many the whole training takes.
            live: the replicas that still train; None means all.
        """
        if live is None:
            live = torch.ones(self.num_replicas, dtype=torch.bool, device=self.flat.device)
        for stack in self.stacks:
            stack.adapter.advance(steps, live)

    def advancing(self) -> dict[str, Tensor]:
        """What :meth:`advance` changes, by name: tensors ``[k, m]`` that a checkpoint must hold; nothing for most methods."""
        return {
            f"{name}.{number}": getattr(stack.adapter, name)
            for number, stack in enumerate(self.stacks)
            for name in stack.adapter.advancing
        }

    def project(self) -> None:
        """Put every replica back into the set that its method allows (COFT's ball); nothing for most methods."""
        for stack in self.stacks:
            stack.adapter.project()

    def release(self) -> None:
        """Let the adapters compute their own factors again."""
        for adapter in self.adapters.values():
            adapter.prepared = None

    def _keep_gradients(self) -> None:
        """Put the gradient views back, cleared, where a foreign ``zero_grad(set_to_none=True)`` took them away."""
        for stack in self.stacks:
            for name in stack.adapter.ROLES:
                grad = stack.adapter.get_parameter(name).grad
                for index, path in enumerate(stack.paths):
                    parameter = self.adapters[path].get_parameter(name)
                    if parameter.grad is None and grad is not None:
                        parameter.grad = grad[:, index].zero_()


def group_by_shape(adapters: Mapping[str, Adapter]) -> list[list[str]]:
    """Paths of equally shaped matrices, in the order of the first of each."""
    groups: dict[tuple[int, int], list[str]] = {}
    for path, adapter in adapters.items():
        groups.setdefault(adapter.shape, []).append(path)
    return list(groups.values())


@torch.no_grad()
def _stack_frozen(members: list[Adapter]) -> Adapter:
    """An adapter over m matrices with their frozen tensors stacked; the members' own become views of the stack's."""
    first = members[0]
    stack = first.twin(torch.stack([member.weight0 for member in members]), {})
    stack.path, stack.bias0 = "stack", None
    for name, dim in [*((name, 0) for name in first.constants), *((name, 1) for name in first.frozen)]:
        whole = torch.stack([getattr(member, name) for member in members], dim)
        stack.register_buffer(name, whole)
        for index, member in enumerate(members):
            member.register_buffer(name, whole.select(dim, index))
    for name in first.shared:
        for adapter in (stack, *members):
            adapter.register_buffer(name, getattr(first, name))
    return stack


def recomputes(model: nn.Module) -> bool:
    """Whether a model of diffusers or transformers computes activations again instead of keeping them."""
    names = ("is_activation_checkpointing", "is_gradient_checkpointing")  # newer transformers, else all the others
    name = next((name for name in names if hasattr(type(model), name)), None)
    return bool(getattr(model, name)) if name else False


def use_up_layout_warning() -> None:
    """Make torch give, once and unheard, its one warning that gradients of strided parameters may be slow.

    It is given once per process, in the middle of a backward pass. Here parameters and gradients are strided on
    purpose, alike, and added in place.
    """
    parameter = nn.Parameter(torch.zeros(2, 2)[:, :1])
    parameter.grad = torch.zeros(2, 2)[:, :1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parameter.sum().backward()


def set_module(unet: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place that a path names."""
    parent, _, name = path.rpartition(".")
    setattr(unet.get_submodule(parent), name, module)
