"""The finetuning methods: one file per method, and the one table in which they are registered.

Importing this package loads no torch, so that figures and command lines can read :data:`METHODS` quickly.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapters.base import Adapter

__all__ = ["METHODS", "BadInput", "Method", "MethodSpec", "get_class", "parse_method"]

OptionValue = str | int | float
Options = Mapping[str, tuple[OptionValue | type, ...]]


class BadInput(ValueError):
    """A value that the user gave and that cannot be used; its text is one line that says what is allowed."""


@dataclass(frozen=True)
class Method:
    """How a method is found, named and drawn.

    Args:
        module: Module that holds the class, e.g. ``adapters.lora``.
        cls: Name of the :class:`adapters.base.Adapter` subclass in it.
        label: Name in tables and figures.
        color: Hex colour in figures (Okabe and Ito's palette, safe for colour-blind readers).
        line_style: Matplotlib line style.
        marker: Matplotlib marker.
        options: Allowed values of each option, the default first. A type among them (``float``, ``int``) allows
            every positive number of that type.
    """

    module: str
    cls: str
    label: str
    color: str
    line_style: str
    marker: str
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
            {"sides": ("two", "one"), "blocks": (1, int)},
        ),
        "vera": Method("adapters.vera", "Vera", "VeRA", "#882255", "-", "<", _VERA_OPTIONS),
        "dvora": Method("adapters.vera", "Dvora", "DVoRA", "#AA4499", "--", ">", {**_VERA_OPTIONS, **_NORM_OPTIONS}),
        "hra": Method("adapters.hra", "Hra", "HRA", "#6A3D9A", ":", "."),
        "full": Method("adapters.full", "Full", "full finetuning", "#666666", "-.", "d"),
    }
)


@dataclass(frozen=True)
class MethodSpec:
    """A method with the value of every one of its options."""

    name: str
    options: Mapping[str, OptionValue]

    @property
    def canonical(self) -> str:
        """``key=value,...`` of all options, sorted by key, defaults filled in: one text for one setting."""
        return ",".join(f"{key}={_format(value)}" for key, value in sorted(self.options.items()))

    @property
    def label(self) -> str:
        """The method's label, followed by the options that differ from their defaults."""
        method = METHODS[self.name]
        changed = [
            f"{key}={_format(value)}" for key, value in sorted(self.options.items()) if value != method.defaults[key]
        ]
        return f"{method.label} ({', '.join(changed)})" if changed else method.label


def parse_method(text: str) -> MethodSpec:
    """Read a method as the command line gives it: ``delora`` or ``delora:start=live,norm=scalar``.

    Args:
        text: ``name`` or ``name:key=value,...``.

    Returns:
        The method with every option, defaults filled in.

    Raises:
        BadInput: The method, an option or a value is unknown, an option is given twice, or is not ``key=value``.
    """
    name, _, rest = text.strip().partition(":")
    method = _find_method(name.strip())
    options: dict[str, OptionValue] = {}
    for item in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise BadInput(f"option {item!r} of method {name!r} is not of the form key=value")
        if key in options:
            raise BadInput(f"option {key!r} of method {name!r} is given twice")
        options[key] = _parse_option(name, method, key, value)
    return MethodSpec(name.strip(), MappingProxyType({**method.defaults, **options}))


def get_class(name: str) -> type[Adapter]:
    """Import the class of a registered method (this loads torch).

    Raises:
        BadInput: No method has this name.
    """
    method = _find_method(name)
    return getattr(importlib.import_module(method.module), method.cls)


def _find_method(name: str) -> Method:
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise BadInput(f"unknown method {name!r}{hint} (methods: {', '.join(METHODS)})")


def _parse_option(name: str, method: Method, key: str, text: str) -> OptionValue:
    if key not in method.options:
        known = ", ".join(method.options) or "none"
        raise BadInput(f"method {name!r} has no option {key!r} (options: {known})")
    allowed = method.options[key]
    for choice in allowed:
        value = _parse_number(choice, text) if isinstance(choice, type) else choice
        if value is not None and (isinstance(choice, type) or _format(value) == text):
            return value
    raise BadInput(f"option {key!r} of method {name!r} is {text!r}, not one of: {_describe(allowed)}")


def _parse_number(kind: type, text: str) -> int | float | None:
    try:
        value = kind(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _describe(allowed: tuple[OptionValue | type, ...]) -> str:
    names = {float: "a positive number", int: "a positive whole number"}
    return ", ".join(names[choice] if isinstance(choice, type) else _format(choice) for choice in allowed)


def _format(value: OptionValue) -> str:
    """As short as may be, and exact: two settings never share a text."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return repr(value) if isinstance(value, float) and float(short) != value else short
