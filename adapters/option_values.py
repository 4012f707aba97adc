"""Read values of a method's options from text, and write them as text."""

from __future__ import annotations

import math
from collections.abc import Mapping

OptionValue = str | int | float | None
Options = Mapping[str, tuple[OptionValue | type, ...]]


def parse_number(kind: type, text: str) -> int | float | None:
    """A positive number of that kind; None for anything else."""
    try:
        value = kind(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def describe_allowed(allowed: tuple[OptionValue | type, ...]) -> str:
    """What an option may be, in words."""
    names = {float: "a positive number", int: "a positive whole number"}
    return ", ".join(names[choice] if isinstance(choice, type) else format_value(choice) for choice in allowed)


def format_value(value: OptionValue) -> str:
    """As short as may be, and exact: two settings never share a text."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return repr(value) if isinstance(value, float) and float(short) != value else short
