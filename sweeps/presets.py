"""Presets: the settings of the papers and of HF's script as defaults of the flags, each with its source."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from adapters.documents import read_toml
from adapters.errors import BadInput

PRESETS = Path(__file__).with_name("presets.toml")
NONE = "none"

Flags = TypeVar("Flags")


@dataclass(frozen=True)
class PresetEntry:
    """One setting of a preset.

    Attributes:
        value: what it is set to.
        source: where it comes from; where the source does not say, what is taken instead and why.
        flag: the field of the options that has it; "" for what is no flag.
        name: what it is called, "" for the flag's name.
        says: whether the source says so.
    """

    value: Any
    source: str
    flag: str = ""
    name: str = ""
    says: bool = True

    @property
    def title(self) -> str:
        """Its name in tables: `--flag`, or a few words."""
        return self.name or f"--{self.flag.replace('_', '-')}"


@dataclass(frozen=True)
class Preset:
    """A named list of settings, each flag once."""

    name: str
    title: str
    settings: tuple[PresetEntry, ...]


def read_presets(path: Path = PRESETS) -> dict[str, Preset]:
    """The presets by name; one that is `like` another has that one's settings where it has none of its own."""
    tables = read_toml(path)[0]
    return {name: Preset(name, table["title"], _settings(table, tables)) for name, table in tables.items()}


def _settings(table: Mapping[str, Any], tables: Mapping[str, Any]) -> tuple[PresetEntry, ...]:
    inherited = _settings(tables[table["like"]], tables) if "like" in table else ()
    settings = [*inherited, *(PresetEntry(**row) for row in table["setting"])]
    return tuple({setting.title: setting for setting in settings}.values())


def named(arguments: Sequence[str], flag: str) -> str:
    """The value of a flag on a command line, "" without one; the last one counts, as for every flag."""
    found = ""
    for word, following in pairwise([*arguments, ""]):
        if word == f"--{flag}":
            found = following
        elif word.startswith(f"--{flag}="):
            found = word.removeprefix(f"--{flag}=")
    return found


def start_from(options: type[Flags], name: str, common: type) -> Flags:
    """Options whose defaults are a preset's; a default that a driver has changed for its own question stays.

    Args:
        options: a driver's options, the drivers' common ones, or a class derived from them.
        name: of the preset, or "none".
        common: the drivers' common options.

    Raises:
        BadInput: for an unknown preset.
    """
    if name == NONE:
        return options()
    presets = read_presets()
    if name not in presets:
        raise BadInput(f"--preset is {name}; allowed: {NONE}, {', '.join(presets)}")
    shared, own = ({field.name: field.default for field in dataclasses.fields(kind)} for kind in (common, options))
    free = {flag for flag in own if flag in shared and own[flag] == shared[flag]}
    values = {setting.flag: setting.value for setting in presets[name].settings if setting.flag in free}
    return options(**{flag: tuple(value) if isinstance(value, list) else value for flag, value in values.items()})


def explain(name: str) -> None:
    """Print a preset's settings with their sources, those that no source gives marked.

    Raises:
        BadInput: without a preset.
    """
    from rich.console import Console
    from rich.table import Table

    if name == NONE:
        raise BadInput(f"--explain-preset needs --preset; allowed: {', '.join(read_presets())}")
    preset = read_presets()[name]
    table = Table(title=f"{name}: {preset.title}", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in ("setting", "value", "source"):
        table.add_column(column, overflow="fold")
    for setting in preset.settings:
        mark = "" if setting.says else "not said; "
        table.add_row(setting.title, _text(setting.value), mark + setting.source.removeprefix("not said; "))
    console = Console(file=sys.stdout)
    console.width = max(console.width, 110)
    console.print(table)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
