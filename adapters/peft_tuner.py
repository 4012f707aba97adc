"""HF PEFT's tuners by name: the types, and their configurations read from text and checked.

``peft:boft:boft_block_size=8`` is PEFT's ``BOFTConfig(boft_block_size=8)`` on the attention projections. PEFT is an extra
of the installation (``pip install '.[peft]'``) and is loaded only when a method asks for it.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import importlib
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from adapters import PEFT, MethodSpec
from adapters.errors import BadInput

OURS = (
    "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "modules_to_save", "peft_type", "peft_version", "revision", "runtime_config", "target_modules",
    "target_parameters", "task_type", "trainable_token_indices", "layer_replication",
)  # fmt: skip
"""Keys that say what is adapted and for what: Plateau sets them, so that methods stay comparable."""
NO_LAYERS = {
    "xlora": "mixes LoRAs that were trained before",
    "adaption_prompt": "puts prompts into the attention of language models",
    "trainable_tokens": "trains tokens of an embedding",
    "shadow": "runs a second model beside the blocks of a language model",
}
"""Types that work inside a model and yet adapt no linear layer, and what they do."""
SIMPLE = (bool, int, float, str, type(None))


def load_peft() -> Any:
    """The package.

    Raises:
        BadInput: It is not installed.
    """
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise BadInput(
            f"methods peft:<type> need HF PEFT, which cannot be loaded ({error}): pip install peft"
        ) from None


def list_types() -> dict[str, type]:
    """The configuration class of every tuner that works inside a model, by lower-case type name; prompts are none."""
    peft = load_peft()
    mapping = importlib.import_module("peft.mapping")
    return {
        kind.value.lower(): config
        for kind, config in sorted(mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items(), key=lambda item: item[0].value)
        if kind.value.lower() not in NO_LAYERS
        and not issubclass(config, peft.PromptLearningConfig)
        and "target_modules" in fields_of(config)
    }


def why_not(kind: str) -> str:
    """Why PEFT's type is none of :func:`list_types`, with near ones and all that there are."""
    types_ = list_types()
    near = difflib.get_close_matches(kind, types_, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    exists = kind.upper() in importlib.import_module("peft").PeftType.__members__
    what = f"adapts no linear layers: it {NO_LAYERS.get(kind, 'learns prompts')}" if exists else "does not exist"
    return f"PEFT type {kind!r} {what}{hint} (types: {', '.join(types_)})"


def parser(name: str) -> Callable[[str, str], Any]:
    """What reads one ``key``, ``value`` of the method ``peft:<type>``; it raises BadInput for what the type has not.

    Raises:
        BadInput: There is no such type; near ones are named.
    """
    config = _config_class(name)

    def parse_option(key: str, text: str) -> Any:
        known = fields_of(config)
        if key in OURS or key not in known:
            near = difflib.get_close_matches(key, set(known) - set(OURS), n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            why = "sets no option" if key in OURS else "has no option"
            raise BadInput(
                f"method {name!r} {why} {key!r}{hint} (options: {', '.join(sorted(set(known) - set(OURS)))})"
            )
        value, allowed = _literal(text), _hints(config)[key]
        if not _fits(value, allowed):
            raise BadInput(f"option {key!r} of method {name!r} is {text!r}, not one of: {_describe(allowed)}")
        return value

    return parse_option


def checked(name: str, options: Mapping[str, Any]) -> MethodSpec:
    """The method without the options that only repeat a default.

    Raises:
        BadInput: PEFT refuses the options' combination.
    """
    defaults = {f.name: f.default for f in fields_of(_config_class(name)).values()}
    kept = {key: value for key, value in options.items() if defaults[key] != value or type(defaults[key]) is bool}
    kept = {key: value for key, value in kept.items() if value is not defaults[key]}
    spec = MethodSpec(name, MappingProxyType(dict(sorted(kept.items()))))
    make_config(spec, ["to_q"])
    return spec


def make_config(spec: MethodSpec, targets: Sequence[str]) -> Any:
    """PEFT's configuration of a method on some modules.

    Raises:
        BadInput: PEFT refuses it; its reason is kept.
    """
    config = _config_class(spec.name)
    values = {"target_modules": list(targets), **spec.options}
    if "feedforward_modules" in fields_of(config):  # (IA)^3 wants to be told that there are none
        values.setdefault("feedforward_modules", [])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return config(**values)
    except (ValueError, TypeError, ImportError) as error:
        raise BadInput(f"PEFT refuses method {spec.name!r}: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """An error's text on one line, with its kind where the text alone says little."""
    text = " ".join(str(error).split())
    return text if " " in text else f"{type(error).__name__} {text}".strip()


@contextlib.contextmanager
def no_build_on_cpu(targets: Mapping[str, Any]) -> Iterator[None]:
    """Keep PEFT's BOFT from compiling its CUDA kernel where there is no GPU.

    It tries in every process, in vain, and processes that try at once wait for each other's lock, for minutes or for ever.
    Without the kernel it computes the same with torch's own operations.
    """
    boft: Any = importlib.import_module("peft.tuners.boft.layer")
    build = boft.get_fbd_cuda
    if not any(base.weight.is_cuda for base in targets.values()):
        boft.get_fbd_cuda = lambda: None
    try:
        yield
    finally:
        boft.get_fbd_cuda = build


def _config_class(name: str) -> Any:
    types_ = list_types()
    kind = name.removeprefix(PEFT)
    if kind in types_:
        return types_[kind]
    raise BadInput(why_not(kind))


def fields_of(config: Any) -> dict[str, dataclasses.Field]:
    """The keys that a configuration class takes."""
    return {field.name: field for field in dataclasses.fields(config) if field.init}


def _hints(config: Any) -> dict[str, Any]:
    return typing.get_type_hints(config)


def _literal(text: str) -> Any:
    """A number, a truth value, none, or the text itself."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, (int, float)) else text


def _alternatives(hint: Any) -> list[Any]:
    """The members of a union or of a Literal, flattened."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(hint) for member in _alternatives(part)]
    return list(typing.get_args(hint)) if origin is typing.Literal else [hint]


def _fits(value: Any, hint: Any) -> bool:
    for allowed in _alternatives(hint):
        if isinstance(allowed, type) and allowed in SIMPLE:
            if type(value) is allowed or (allowed is float and type(value) is int):
                return True
        elif type(value) is type(allowed) and value == allowed:
            return True
    return False


def _describe(hint: Any) -> str:
    names = {bool: "true, false", int: "a whole number", float: "a number", str: "a word", type(None): "none"}
    simple = [a for a in _alternatives(hint) if not isinstance(a, type) or a in SIMPLE]
    simple = [a for a in simple if isinstance(a, (type, *SIMPLE))]
    return ", ".join(names[a] if isinstance(a, type) else str(a) for a in simple) or "nothing that fits one word"
