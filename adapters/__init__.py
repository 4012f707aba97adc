"""The finetuning methods, one file each, and `METHODS`, the table in which each is registered.

Importing this package loads no torch, so that figures and command lines can read :data:`METHODS` quickly. Two more kinds
of methods are named the same way: ``peft:<type>``, any tuner of HF PEFT, and ``path/to/method.py``, a user's own.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from adapters.errors import BadInput, printable
from adapters.option_values import Options, OptionValue, describe_allowed, format_value, parse_number
from adapters.peft_types import PEFT, packs
from adapters.words import counted, plural

if TYPE_CHECKING:
    from adapters.base import Adapter

__all__ = [
    "ABLATION_STEPS",
    "DELORA_VARIANTS",
    "METHODS",
    "PEFT",
    "BadInput",
    "Marker",
    "Method",
    "MethodSpec",
    "counted",
    "get_class",
    "name_method",
    "parse_method",
    "plural",
    "printable",
]

Marker: TypeAlias = str | tuple[int, int, int]


@dataclass(frozen=True)
class Method:
    """How a method is found, named and drawn.

    Args:
        module: Module that holds the class, e.g. ``adapters.lora``.
        cls: Name of the :class:`adapters.base.Adapter` subclass in it.
        label: Name in tables and figures.
        color: Hex colour in figures (Okabe and Ito's palette, safe for colour-blind readers).
        line_style: Matplotlib line style.
        marker: Matplotlib marker; three numbers are a star: its points, 1, its angle in degrees.
        options: Allowed values of each option, the default first. A type among them (``float``, ``int``) allows
            every positive number of that type.
    """

    module: str
    cls: str
    label: str
    color: str
    line_style: str
    marker: Marker
    options: Options = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, OptionValue]:
        """The value of every option that nobody sets."""
        return {key: first for key, (first, *_) in self.options.items() if not isinstance(first, type)}


_LORA_OPTIONS: Options = {
    "alpha": ("2r", float),
    "init": ("kaiming", "gaussian"),
    "divisor": ("r", "sqrt_r"),
    "lr_ratio": (1, float),
}
_NORM_OPTIONS: Options = {"axis": ("rows", "columns"), "norm_grad": ("detached", "full")}
_DORA_OPTIONS: Options = {**_LORA_OPTIONS, **_NORM_OPTIONS}
_VERA_OPTIONS: Options = {"d_initial": (0.1, float)}
_BLOCK_OPTIONS: Options = {"blocks": (1, int), "layout": ("paper", "released")}

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "lora": Method("adapters.lora", "Lora", "LoRA", "#0072B2", "-", "o", _LORA_OPTIONS),
        "dora": Method("adapters.dora", "Dora", "DoRA", "#D55E00", "--", "s", _DORA_OPTIONS),
        "dora-fixed": Method(
            "adapters.dora", "FixedDora", "DoRA (fixed magnitude)", "#CC79A7", ":", "D", _DORA_OPTIONS
        ),
        "delora": Method(
            "adapters.delora",
            "Delora",
            "DeLoRA",
            "#009E73",
            "-.",
            "^",
            {"start": ("eq9", "live", "zero_b"), "norm": ("columns", "scalar")},
        ),
        "etherplus": Method(
            "adapters.ether",
            "EtherPlus",
            "ETHER+",
            "#E69F00",
            ":",
            "v",
            {"sides": ("two", "one"), **_BLOCK_OPTIONS},
        ),
        "ether": Method(
            "adapters.ether", "Ether", "ETHER", "#8C510A", "--", "p", {"sides": ("one", "two"), **_BLOCK_OPTIONS}
        ),
        "oft": Method(
            "adapters.oft", "Oft", "OFT", "#88CCEE", "-", "h", {"blocks": (4, int), "cayley": ("exact", "series")}
        ),
        "coft": Method(
            "adapters.oft",
            "Coft",
            "COFT",
            "#332288",
            "-.",
            "H",
            {"blocks": (4, int), "eps": (6e-5, float), "radius": ("released", "peft")},
        ),
        "naive": Method("adapters.oft", "Naive", "Naive", "#7F7F00", ":", "8", {"blocks": (4, int)}),
        "vera": Method("adapters.vera", "Vera", "VeRA", "#882255", "-", "<", _VERA_OPTIONS),
        "dvora": Method("adapters.vera", "Dvora", "DVoRA", "#AA4499", "--", ">", {**_VERA_OPTIONS, **_NORM_OPTIONS}),
        "hra": Method("adapters.hra", "Hra", "HRA", "#6A3D9A", ":", "."),
        "nblora": Method(
            "adapters.nb_lora",
            "NbLora",
            "NB-LoRA",
            "#56B4E9",
            "-",
            "P",
            {"strength": ("constant", "learned")},
        ),
        "singlora": Method(
            "adapters.singlora",
            "SingLora",
            "SingLoRA",
            "#CC3311",
            "--",
            "X",
            {"alpha": ("r", float), "init": ("paper", "released"), "ramp": ("1%", int)},
        ),
        "full": Method("adapters.full", "Full", "full finetuning", "#666666", "-.", "d"),
        "ablation-normalized": Method(
            "adapters.ablations",
            "Normalized",
            "LoRA + boundary",
            "#44AA99",
            "--",
            (4, 1, 0),
            {"start": ("eq9", "live", "zero_b")},
        ),
        "ablation-relaxed": Method(
            "adapters.ablations", "Relaxed", "ETHER+ with boundary, rank, relaxed", "#B8A200", "-.", (6, 1, 0)
        ),
        "ablation-highrank": Method(
            "adapters.ablations", "HighRank", "ETHER+ with boundary, rank", "#117733", "-", "*"
        ),
        "ablation-boundary": Method(
            "adapters.ablations",
            "Boundary",
            "ETHER+ with boundary",
            "#CC6677",
            ":",
            (8, 1, 0),
            {"scale": ("half", "whole")},
        ),
    }
)

# Table 1 of DeLoRA (arXiv 2503.18225): from LoRA to ETHER+, one step a row.
ABLATION_STEPS = (
    "lora", "ablation-normalized", "delora", "ablation-relaxed", "ablation-highrank", "ablation-boundary",
    "etherplus:sides=one",
)  # fmt: skip
# DeLoRA's three starts (Eq. 9, the authors' code, HF PEFT's) with either norm (the codes', the text's).
DELORA_VARIANTS = tuple(
    f"delora:start={start},norm={norm}" for norm in ("columns", "scalar") for start in ("eq9", "live", "zero_b")
)
_PEFT_METHOD = Method("adapters.peft_pack", "PeftMatrix", "PEFT", "", "", "")
_OWN: dict[str, Method] = {}
"""Methods of files that this process has read, by name: ``adapters/own_method.py`` adds them."""


@dataclass(frozen=True)
class MethodSpec:
    """A method with the value of every one of its options, and what was said of it besides (:mod:`adapters.method_words`)."""

    name: str
    options: Mapping[str, OptionValue]
    words: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def canonical(self) -> str:
        """``key=value,...`` of all options, sorted by key, defaults filled in: one text for one setting."""
        return ",".join(f"{key}={format_value(value)}" for key, value in sorted(self.options.items()))

    @property
    def label(self) -> str:
        """What the user calls it; else the method's label, followed by the options that differ from their defaults."""
        if "label" in self.words:
            return str(self.words["label"])
        defaults = _find_method(self.name).defaults
        return name_method(
            self.name, {key: format_value(value) for key, value in self.options.items() if value != defaults.get(key)}
        )


def name_method(name: str, changed: Mapping[str, str]) -> str:
    """What a method is called in tables and figures: ``DeLoRA (start=live)``, ``PEFT LOKR (unpacked)``.

    Args:
        name: A name of :data:`METHODS`, ``peft:<type>``, or that of a user's own method.
        changed: The options that are not the default.
    """
    label = METHODS[name].label if name in METHODS else name.partition("@")[0]
    notes = [f"{key}={value}" for key, value in sorted(changed.items())]
    if name.startswith(PEFT):
        label, notes = f"PEFT {name.removeprefix(PEFT).upper()}", notes if packs(name) else [*notes, "unpacked"]
    return f"{label} ({', '.join(notes)})" if notes else label


def parse_method(text: str) -> MethodSpec:
    """Read a method as the command line gives it: ``delora`` or ``delora:start=live,norm=scalar``.

    Args:
        text: ``name`` or ``name:key=value,...``, where the name may be ``peft:<type>``, whose keys are those of the
            type's configuration (this loads PEFT), or the path of a ``.py`` file that holds a method (this runs it).

    Returns:
        The method with every option, defaults filled in. Of PEFT's options only those are kept that are not the
        default. A method in a file is named by the file and a hash of its content, ``mymethod@1a2b3c4d5e``. Rates and a
        label (:data:`adapters.method_words.WORDS`) are kept apart.

    Raises:
        BadInput: The method, an option or a value is unknown, an option is given twice, or is not ``key=value``; PEFT
            is not installed; a file is missing, fails, or holds no or several methods.
    """
    own = re.fullmatch(r"(.+?\.py)\s*(?::(.*))?", text.strip(), re.DOTALL)
    head, _, rest = text.strip().removeprefix(PEFT).partition(":")
    name, peft = head.strip(), text.strip().startswith(PEFT)
    if own:
        name, rest = importlib.import_module("adapters.own_method").register(own[1], _OWN), own[2] or ""
    elif peft:
        name = PEFT + name.lower()
    parse_option = importlib.import_module("adapters.peft_tuner").parser(name) if peft else _option_parser(name)
    said, options = importlib.import_module("adapters.method_words"), dict[str, Any]()
    for item in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise BadInput(f"option {item!r} of method {name!r} is not of the form key=value")
        if key in options:
            raise BadInput(f"option {key!r} of method {name!r} is given twice")
        options[key] = said.parse_word(name, key, value) if key in said.WORDS else parse_option(key, value)
    words = {key: options.pop(key) for key in said.WORDS if key in options}
    if peft:
        return replace(importlib.import_module("adapters.peft_tuner").checked(name, options), words=words)
    return MethodSpec(name, MappingProxyType({**_find_method(name).defaults, **options}), words)


def _option_parser(name: str) -> Callable[[str, str], OptionValue]:
    method = _find_method(name)
    return lambda key, value: _parse_option(name, method, key, value)


def get_class(name: str) -> type[Adapter]:
    """Import the class of a method: a registered one, a ``peft:`` one, or a file's that was parsed (this loads torch).

    Raises:
        BadInput: No method has this name.
    """
    method = _find_method(name)
    return getattr(importlib.import_module(method.module), method.cls)


def _find_method(name: str) -> Method:
    if name in METHODS or name in _OWN:
        return METHODS.get(name) or _OWN[name]
    if name.startswith(PEFT):
        return _PEFT_METHOD
    near = difflib.get_close_matches(name, METHODS, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise BadInput(f"unknown method {name!r}{hint} (methods: {', '.join(METHODS)})")


def _parse_option(name: str, method: Method, key: str, text: str) -> OptionValue:
    if key not in method.options:
        known = ", ".join(method.options) or "none"
        raise BadInput(f"method {name!r} has no option {key!r} (options: {known})")
    allowed = method.options[key]
    for choice in allowed:
        value = parse_number(choice, text) if isinstance(choice, type) else choice
        if value is not None and (isinstance(choice, type) or format_value(value) == text):
            return value
    raise BadInput(f"option {key!r} of method {name!r} is {text!r}, not one of: {describe_allowed(allowed)}")
