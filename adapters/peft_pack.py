"""Any tuner of HF PEFT inside a U-Net, as a pack of one replica.

PEFT's layers hold one set of parameters, so such methods run one replica at a time. Plateau asks them for two things: a
forward, and ``merge``. The effective weight is what PEFT merges into a **copy** of the frozen weight; the distance is the
norm of the difference, since ``get_delta_weight`` is no difference for rotations, reflections or DoRA.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adapters import MethodSpec
from adapters.base import Adapter, Role
from adapters.errors import BadInput
from adapters.low_rank import LowRank
from adapters.pack import Attached, Stack, group_by_shape, set_module
from adapters.peft_merge import merge_to_copy, probe
from adapters.peft_tuner import load_peft, make_config, no_build_on_cpu, one_line
from adapters.words import counted

PREFIX = "base_model.model."


class PeftMatrix(Adapter):
    """One matrix, or a stack of equally shaped ones, that PEFT adapts: read-only, for distances and norms.

    Args:
        paths: Names of the matrices.
        layers: PEFT's layer around each.
        originals: Their frozen weights.
        stacked: Whether to keep a leading dimension for the matrices.
    """

    ROLES: ClassVar[Mapping[str, Role]] = {}
    packable: ClassVar[bool] = False
    uses_rank: ClassVar[bool] = False
    has_small_work: ClassVar[bool] = False

    def __init__(
        self, paths: Sequence[str], layers: Sequence[nn.Module], originals: Sequence[Tensor], stacked: bool
    ) -> None:
        self.begin(paths[0], 0, {}, 1)
        self.layers, self.stacked = list(layers), stacked
        self.base = layers[0].get_base_layer()  # type: ignore[operator]
        self.weight0 = torch.stack(list(originals)) if stacked else originals[0]
        self.bias0 = None

    @torch.no_grad()
    def weight(self) -> Float[Tensor, "*batch out in"]:
        """What PEFT merges into copies of the frozen weights."""
        merged = [merge_to_copy(layer)[0].to(self.dtype) for layer in self.layers]
        return torch.stack(merged)[None] if self.stacked else merged[0][None]

    def low_rank(self) -> LowRank:
        raise NotImplementedError("PEFT's layers compute their own forward")

    @torch.no_grad()
    def readings(self) -> dict[str, Float[Tensor, "*batch"]]:
        """The distance by merge-to-copy: exact to the rounding of the merged weight, 1e-7 ||W0|| in float32."""
        originals = self.weight0 if self.stacked else self.weight0[None]
        moved = [
            torch.linalg.vector_norm(merge_to_copy(layer)[0].double() - original.double())
            for layer, original in zip(self.layers, originals, strict=True)
        ]
        distance = torch.nan_to_num(torch.stack(moved), nan=torch.inf, posinf=torch.inf)
        return {"distance": distance[None] if self.stacked else distance}

    def directions(self) -> dict[str, Float[Tensor, "*batch n dim"]]:
        """None: what PEFT's tensors mean differs from type to type."""
        return {}

    def count_parameters(self) -> int:
        """Trainable values of this layer; those shared by all layers are counted by the pack alone."""
        return sum(p.numel() for layer in self.layers for p in layer.parameters() if p.requires_grad)


class PeftPack(Attached):
    """One replica of a PEFT tuner inside a U-Net, with the interface of every pack.

    Args:
        unet: The U-Net with PEFT's layers in it.
        spec: Method and options.
        model: PEFT's wrapper around it.
        kept: What the U-Net was before.
    """

    def __init__(self, unet: nn.Module, spec: MethodSpec, model: Any, kept: Untouched) -> None:
        self.spec, self.num_replicas, self._unet, self.model, self._kept = spec, 1, unet, model, kept
        layers = {path: unet.get_submodule(path) for path in kept.targets}
        for path, layer in layers.items():
            if layer is kept.targets[path] or not hasattr(layer, "merge"):
                raise BadInput(f"PEFT's {spec.name} does not adapt matrix {path!r}")
        weights = kept.weights()
        self.adapters = {path: PeftMatrix([path], [layers[path]], [weights[path]], False) for path in layers}
        self.stacks = [
            Stack(paths, PeftMatrix(paths, [layers[p] for p in paths], [weights[p] for p in paths], True))
            for paths in group_by_shape(self.adapters)
        ]
        trained = {_short(name): p for name, p in model.named_parameters() if p.requires_grad}
        if not trained or kept.holds_any(trained.values()):
            raise BadInput(f"PEFT's {spec.name} trains {'the frozen weights' if trained else 'nothing'}")
        self._lay_out_flat(trained)

    def _lay_out_flat(self, trained: Mapping[str, nn.Parameter]) -> None:
        first = next(iter(trained.values()))
        total = sum(p.numel() for p in trained.values())
        self.flat = torch.empty(1, total, dtype=first.dtype, device=first.device)
        self.grad = torch.zeros_like(self.flat)
        self.segments: dict[Role, slice] = {"factors": slice(0, total)}
        self._places: dict[str, tuple[slice, torch.Size]] = {}
        start = 0
        for name, parameter in trained.items():
            part = slice(start, start + parameter.numel())
            self.flat[0, part] = parameter.detach().flatten()
            parameter.data = self.flat[0, part].view(parameter.shape)
            parameter.grad = self.grad[0, part].view(parameter.shape)
            self._places[name], start = (part, parameter.shape), part.stop

    def num_parameters(self) -> int:
        """Number of trainable values."""
        return self.flat.shape[1]

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, (part, shape) in self._places.items():
            yield name, self.flat[:, part].view(1, *shape)

    def detach(self) -> None:
        """Put the frozen layers back; the U-Net is as it was, to the bit."""
        self._kept.restore()

    def prepare(self) -> None:
        """Nothing: PEFT's layers compute their own factors."""

    def release(self) -> None:
        """Nothing."""

    def write(self, folder: Path, base_model: str) -> None:
        """PEFT's own folder: ``adapter_config.json`` and ``adapter_model.safetensors``; never a pickle."""
        self.model.peft_config["default"].base_model_name_or_path = base_model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # an empty model card


class Untouched:
    """What a U-Net was before PEFT came in: its layers, their weights where PEFT changes them, its flags."""

    def __init__(self, unet: nn.Module, targets: Mapping[str, nn.Linear]) -> None:
        self.unet, self.targets = unet, dict(targets)
        self._required_grad = {name: parameter.requires_grad for name, parameter in unet.named_parameters()}
        self._parameters = {path: dict(base.named_parameters()) for path, base in targets.items()}
        self._copies = {
            path: {name: parameter.detach().clone() for name, parameter in own.items()}
            for path, own in self._parameters.items()
        }
        self._attributes = set(vars(unet))

    def weights(self) -> dict[str, Tensor]:
        """The frozen weights; a copy is kept only where PEFT has changed them (PiSSA and the like)."""
        for path, own in self._parameters.items():
            for name, parameter in own.items():
                copied = self._copies[path].get(name)
                if copied is not None and torch.equal(copied, parameter):
                    del self._copies[path][name]
        return {
            path: self._copies[path].get("weight", own["weight"].detach()) for path, own in self._parameters.items()
        }

    def holds_any(self, parameters: Any) -> bool:
        """Whether one of these is a frozen parameter."""
        own = {id(parameter) for parameters in self._parameters.values() for parameter in parameters.values()}
        return any(id(parameter) in own for parameter in parameters)

    @torch.no_grad()
    def restore(self) -> None:
        """Undo everything."""
        for path, base in self.targets.items():
            set_module(self.unet, path, base)
            for name, parameter in self._parameters[path].items():
                setattr(base, name, parameter)
                if name in self._copies[path]:
                    parameter.data = self._copies[path][name]
        for name in set(vars(self.unet)) - self._attributes:
            delattr(self.unet, name)
        for name, parameter in self.unet.named_parameters():
            parameter.requires_grad_(self._required_grad[name])


def attach_peft(
    unet: nn.Module,
    spec: MethodSpec,
    seeds: Sequence[int],
    targets: Mapping[str, nn.Linear],
    *,
    config: Any = None,
) -> PeftPack:
    """Let PEFT adapt the targets, start from the seed, and check that forward and merge agree.

    Args:
        unet: The model; changed in place.
        spec: Method and options.
        seeds: One.
        targets: Layers by path.
        config: PEFT's configuration; None makes it from the options.

    Raises:
        BadInput: More than one seed; or PEFT's type does not fit a target, trains nothing, draws random numbers at
            every call, or cannot be merged. The U-Net is then as it was.
    """
    if len(seeds) != 1:
        raise BadInput(
            f"method {spec.name!r} runs one replica at a time (unpacked), given: {counted(len(seeds), 'seed')}"
        )
    config, kept = config or make_config(spec, list(targets)), Untouched(unet, targets)
    try:
        with torch.random.fork_rng(), warnings.catch_warnings(), no_build_on_cpu(targets):
            warnings.simplefilter("ignore")
            digest = hashlib.sha256(f"{seeds[0]}/{spec.name}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            pack = PeftPack(unet, spec, load_peft().PeftModel(unet, config), kept)
            probe(pack.stacks, pack.flat, spec.name)
    except Exception as error:  # whatever a type does not like about a module, in its own words
        kept.restore()
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"PEFT's {spec.name.removeprefix('peft:')} does not fit this model: {one_line(error)}") from None
    return pack


def _short(name: str) -> str:
    """PEFT's name of a parameter without what every name shares."""
    return name.removeprefix(PREFIX).replace(".default", "")
