"""Any tuner of HF PEFT inside a U-Net: a pack of one, and of several where its layers can be called for stacked tensors.

PEFT's layers hold one set of parameters. In a pack of several a layer is a function of its trained tensors, called for all
replicas at once (``torch.func.functional_call`` under ``vmap``); types that cannot be called so train one replica at a time
(`adapters.peft_types`). Plateau asks PEFT for two things: a forward, and ``merge``. The effective weight is what PEFT merges into
a **copy** of the frozen weight; the distance is the norm of the difference, since ``get_delta_weight`` is no difference for
rotations, reflections or DoRA.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from adapters import MethodSpec
from adapters.base import Adapter, Role
from adapters.errors import BadInput
from adapters.exact import exactly
from adapters.low_rank import LowRank
from adapters.pack import Attached, Stack, group_by_shape, set_module, use_up_layout_warning
from adapters.peft_merge import merge_to_copy, probe
from adapters.peft_tuner import load_peft, make_config, no_build_on_cpu, one_line
from adapters.peft_types import packs
from adapters.words import counted

PREFIX = "base_model.model."


Held = list[
    tuple[nn.Parameter, Tensor]
]  # PEFT's parameters, of a layer or of all, each with the values of all replicas


class PeftMatrix(Adapter):
    """One matrix, or a stack of equally shaped ones, that PEFT adapts: read-only, for distances and norms.

    Args:
        paths: Names of the matrices.
        layers: PEFT's layer around each.
        held: What each layer trains; a replica is read by pointing the layer's parameters at its values.
        originals: Their frozen weights.
        stacked: Whether to keep a leading dimension for the matrices.
        num_replicas: K.
    """

    ROLES: ClassVar[Mapping[str, Role]] = {}
    packable: ClassVar[bool] = False
    uses_rank: ClassVar[bool] = False
    has_small_work: ClassVar[bool] = False

    def __init__(
        self,
        paths: Sequence[str],
        layers: Sequence[nn.Module],
        held: Sequence[Held],
        originals: Sequence[Tensor],
        stacked: bool,
        num_replicas: int = 1,
    ) -> None:
        self.begin(paths[0], 0, {}, num_replicas)
        self.layers, self.held, self.stacked = list(layers), list(held), stacked
        self.base = layers[0].get_base_layer()  # type: ignore[operator]
        self.weight0 = torch.stack(list(originals)) if stacked else originals[0]
        self.bias0 = None

    @torch.no_grad()
    def merged(self, replica: int) -> list[Float[Tensor, "out in"]]:
        """What PEFT merges into a copy of each frozen weight, for one replica."""
        for held in self.held:
            point_at(held, replica)
        try:
            return [merge_to_copy(layer)[0] for layer in self.layers]
        finally:
            for held in self.held:
                point_at(held, 0)

    @torch.no_grad()
    def weight(self) -> Float[Tensor, "*batch out in"]:
        """What PEFT merges into copies of the frozen weights."""
        each = [[weight.to(self.dtype) for weight in self.merged(k)] for k in range(self.num_replicas)]
        return torch.stack([torch.stack(own) if self.stacked else own[0] for own in each])

    def low_rank(self) -> LowRank:
        raise NotImplementedError("PEFT's layers compute their own forward")

    @torch.no_grad()
    def readings(self) -> dict[str, Float[Tensor, "*batch"]]:
        """The distance by merge-to-copy: exact to the rounding of the merged weight, 1e-7 ||W0|| in float32."""
        originals = self.weight0 if self.stacked else self.weight0[None]
        moved = [
            torch.stack(
                [
                    torch.linalg.vector_norm(weight.double() - original.double())
                    for weight, original in zip(self.merged(k), originals, strict=True)
                ]
            )
            for k in range(self.num_replicas)
        ]
        distance = torch.nan_to_num(torch.stack(moved), nan=torch.inf, posinf=torch.inf)
        return {"distance": distance if self.stacked else distance[:, 0]}

    def directions(self) -> dict[str, Float[Tensor, "*batch n dim"]]:
        """None: what PEFT's tensors mean differs from type to type."""
        return {}

    def count_parameters(self) -> int:
        """Trainable values of this layer; those shared by all layers are counted by the pack alone."""
        return sum(p.numel() for layer in self.layers for p in layer.parameters() if p.requires_grad)


def point_at(held: Held, replica: int) -> None:
    """Let a layer's own parameters be one replica's values."""
    for parameter, values in held:
        parameter.data = values[replica]


class Replicated(nn.Module):
    """A layer of PEFT in the place of the frozen one, for K replicas: rows are replica-major.

    Args:
        layer: PEFT's; it stays out of the model's modules.
        values: What it trains, by its own names: tensors ``[k, ...]``.
    """

    def __init__(self, layer: nn.Module, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.__dict__["layer"], self.__dict__["values"] = layer, dict(values)
        self.num_replicas = next(iter(values.values())).shape[0]

    @property
    def weight(self) -> Tensor:
        """The frozen weight, whose type other modules ask for."""
        base: Tensor = self.__dict__["layer"].get_base_layer().weight
        return base

    def forward(self, x: Float[Tensor, "rows *n in"]) -> Float[Tensor, "rows *n out"]:
        """Each replica's rows through the layer with its own tensors."""
        layer, values = self.__dict__["layer"], self.__dict__["values"]

        def one(own: dict[str, Tensor], rows: Tensor) -> Tensor:
            result: Tensor = functional_call(layer, own, (rows,))
            return result

        result: Tensor = vmap(one)(values, x.unflatten(0, (self.num_replicas, -1))).flatten(0, 1)
        return result


class PeftPack(Attached):
    """K replicas of a PEFT tuner inside a U-Net, with the interface of every pack.

    Args:
        unet: The U-Net with PEFT's layers in it.
        spec: Method and options.
        model: PEFT's wrapper around it.
        kept: What the U-Net was before.
        starts: What each replica trains, at its start, by PEFT's names.
    """

    def __init__(
        self, unet: nn.Module, spec: MethodSpec, model: Any, kept: Untouched, starts: Sequence[Mapping[str, Tensor]]
    ) -> None:
        self.spec, self.num_replicas, self._unet, self.model, self._kept = spec, len(starts), unet, model, kept
        self._layers = {path: unet.get_submodule(path) for path in kept.targets}
        for path, layer in self._layers.items():
            if layer is kept.targets[path] or not hasattr(layer, "merge"):
                raise BadInput(f"PEFT's {spec.name} does not adapt matrix {path!r}")
        trained = {_short(name): p for name, p in model.named_parameters() if p.requires_grad}
        if not trained or kept.holds_any(trained.values()):
            raise BadInput(f"PEFT's {spec.name} trains {'the frozen weights' if trained else 'nothing'}")
        values = self._lay_out_flat(trained, starts)
        self._held: Held = [(p, values[id(p)].detach()) for p in trained.values()]
        held = {
            path: [(p, values[id(p)].detach()) for p in layer.parameters() if id(p) in values]
            for path, layer in self._layers.items()
        }
        weights = kept.weights()
        count = len(starts)
        self.adapters = {
            path: PeftMatrix([path], [layer], [held[path]], [weights[path]], False, count)
            for path, layer in self._layers.items()
        }
        self.stacks = [
            Stack(
                paths,
                PeftMatrix(
                    paths,
                    [self._layers[p] for p in paths],
                    [held[p] for p in paths],
                    [weights[p] for p in paths],
                    True,
                    count,
                ),
            )
            for paths in group_by_shape(self.adapters)
        ]
        self._replicated: dict[str, nn.Module] = {}
        if count > 1:
            use_up_layout_warning()
            for path, layer in self._layers.items():
                own = {n: values[id(p)] for n, p in layer.named_parameters(remove_duplicate=False) if id(p) in values}
                self._replicated[path] = Replicated(layer, own)
            self._put(self._replicated)

    def _put(self, modules: Mapping[str, nn.Module]) -> None:
        """Put modules into the U-Net, in the places of the adapted layers."""
        for path, module in modules.items():
            set_module(self._unet, path, module)

    def _lay_out_flat(
        self, trained: Mapping[str, nn.Parameter], starts: Sequence[Mapping[str, Tensor]]
    ) -> dict[int, nn.Parameter]:
        """Put all values into `flat`; returns those of all replicas, by the id of PEFT's parameter."""
        first = next(iter(trained.values()))
        total = sum(p.numel() for p in trained.values())
        self.flat = torch.empty(len(starts), total, dtype=first.dtype, device=first.device)
        self.grad = torch.zeros_like(self.flat)
        self.segments: dict[Role, slice] = {"factors": slice(0, total)}
        self._places: dict[str, tuple[slice, torch.Size]] = {}
        start, values = 0, dict[int, nn.Parameter]()
        for name, parameter in trained.items():
            part = slice(start, start + parameter.numel())
            for row, own in enumerate(starts):
                self.flat[row, part] = own[name].flatten()
            stacked = nn.Parameter(self.flat[:, part].view(len(starts), *parameter.shape))
            stacked.grad = self.grad[:, part].view(stacked.shape)
            parameter.data = self.flat[0, part].view(parameter.shape)
            if len(starts) == 1:
                parameter.grad = self.grad[0, part].view(parameter.shape)
            values[id(parameter)] = stacked
            self._places[name], start = (part, parameter.shape), part.stop
        return values

    def num_parameters(self) -> int:
        """Number of trainable values of one replica."""
        return self.flat.shape[1]

    @exactly
    @torch.no_grad()
    def merged(self, replica: int) -> dict[str, Float[Tensor, "out in"]]:
        """The effective weights of one replica in single precision, by path."""
        return {path: adapter.merged(replica)[0].float() for path, adapter in self.adapters.items()}  # type: ignore[operator]

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, (part, shape) in self._places.items():
            yield name, self.flat[:, part].view(self.num_replicas, *shape)

    def detach(self) -> None:
        """Put the frozen layers back; the U-Net is as it was, to the bit."""
        self._kept.restore()

    def prepare(self) -> None:
        """Nothing: PEFT's layers compute their own factors."""

    def release(self) -> None:
        """Nothing."""

    @torch.no_grad()
    def spread(self) -> None:
        """Give every replica the values of the first."""
        self.flat.copy_(self.flat[:1].clone().expand_as(self.flat))

    def write(self, folder: Path, replica: int, base_model: str) -> None:
        """PEFT's own folder: ``adapter_config.json`` and ``adapter_model.safetensors``; never a pickle."""
        self.model.peft_config["default"].base_model_name_or_path = base_model
        self._put(self._layers)
        point_at(self._held, replica)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        finally:
            point_at(self._held, 0)
            self._put(self._replicated)
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
        tensors = (*unet.named_parameters(), *unet.named_buffers())
        self._names = {name for name, _ in tensors if name.rpartition(".")[0] not in targets}

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

    def knows(self, name: str) -> bool:
        """Whether a tensor is one that PEFT leaves alone: of the U-Net, outside the layers that are adapted."""
        return name in self._names

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
        seeds: One per replica; several only of types that pack.
        targets: Layers by path.
        config: PEFT's configuration; None makes it from the options.

    Raises:
        BadInput: Several seeds of a type that does not pack; or PEFT's type does not fit a target, trains nothing, draws
            random numbers at every call, or cannot be merged. The U-Net is then as it was.
    """
    if len(seeds) != 1 and not packs(spec.name):
        raise BadInput(
            f"method {spec.name!r} runs one replica at a time (unpacked), given: {counted(len(seeds), 'seed')}"
        )
    kept, starts = Untouched(unet, targets), list[Start]()
    try:
        with torch.random.fork_rng(), warnings.catch_warnings(), no_build_on_cpu(targets):
            warnings.simplefilter("ignore")
            for seed in seeds:
                if starts:
                    kept.restore()
                digest = hashlib.sha256(f"{seed}/{spec.name}".encode()).digest()
                torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
                own = copy.deepcopy(config) if config is not None else make_config(spec, list(targets))
                model = load_peft().PeftModel(unet, own)
                starts.append(Start.of(model, kept))
            if any(start.frozen != starts[0].frozen for start in starts):
                raise BadInput(f"PEFT's {spec.name} draws frozen tensors for each seed: give --pack-size 1")
            pack = PeftPack(unet, spec, model, kept, [start.trained for start in starts])
            probe(pack.stacks, pack.flat, spec.name)
            if len(seeds) > 1:
                probe_replicas(pack)
    except Exception as error:  # whatever a type does not like about a module, in its own words
        kept.restore()
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"PEFT's {spec.name.removeprefix('peft:')} does not fit this model: {one_line(error)}") from None
    return pack


class Start(NamedTuple):
    """What PEFT has made of a model from one seed: tensors that train, by name, and hashes of those that it froze or changed."""

    trained: dict[str, Tensor]
    frozen: dict[str, str]

    @classmethod
    def of(cls, model: Any, kept: Untouched) -> Start:
        """Read off a model."""
        parameters = dict(model.named_parameters())
        trained = {_short(name): p.detach().clone() for name, p in parameters.items() if p.requires_grad}
        others = {name: p for name, p in parameters.items() if not p.requires_grad} | dict(model.named_buffers())
        return cls(trained, {name: _hash(tensor) for name, tensor in others.items() if not kept.knows(_short(name))})


def _hash(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(content.data).hexdigest()


@torch.no_grad()
def probe_replicas(pack: PeftPack) -> None:
    """Hold a layer of each shape, called for all replicas, to the same layer called for one after the other.

    Raises:
        BadInput: They differ.
    """
    kept, generator = pack.flat.clone(), torch.Generator().manual_seed(1)
    pack.flat += (0.02 * torch.randn(kept.shape, generator=generator, dtype=torch.float64)).to(kept)
    for stack in pack.stacks:
        adapter = stack.adapter
        assert isinstance(adapter, PeftMatrix)
        layer, held, base = adapter.layers[0], adapter.held[0], pack._kept.targets[stack.paths[0]].weight
        x = torch.randn(pack.num_replicas, 3, base.shape[1], generator=generator, dtype=torch.float64).to(base)
        together = pack._replicated[stack.paths[0]](x.flatten(0, 1)).unflatten(0, (pack.num_replicas, -1))
        for replica in range(pack.num_replicas):
            point_at(held, replica)
            if not torch.allclose(together[replica], layer(x[replica]), rtol=1e-4, atol=1e-4, equal_nan=True):
                raise BadInput(f"PEFT's {pack.spec.name} computes something else in a pack: give --pack-size 1")
        point_at(held, 0)
    pack.flat.copy_(kept)


def _short(name: str) -> str:
    """PEFT's name of a parameter without what every name shares."""
    return name.removeprefix(PREFIX).replace(".default", "")
