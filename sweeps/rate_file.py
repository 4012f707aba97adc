"""Read and write `base_rates.toml`, the base rates of every model that was searched on, and those that are published."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from adapters.documents import read_toml
from training.store import writing

RATES = Path(__file__).with_name("base_rates.toml")
HEAD = (
    "# Base learning rates. `python sweeps/base_lr.py` writes those it has found; published and borrowed ones (`like`) are "
    "written by hand."
)


def read_rates(path: Path = RATES) -> dict:
    """The tables of the data file by name: `pocket`, `sd15`, `untuned`, ..."""
    return read_toml(path)[0] if path.exists() else {}


def write_rates(model: str, table: dict, path: Path = RATES) -> str:
    """Put the methods of a table into the data file's table of a model; the others there stay.

    A table of other weights, or of none, is never written over, unless it is of a model that Plateau knows by its name (the
    pocket, whose weights have changed then): a folder may be called as anything is.

    Args:
        model: its name, or where it lies.
        table: model_hash, and methods: a row for each.
        path: the data file.

    Returns:
        The name of the table.
    """
    tables = read_rates(path)
    name = _table_name(model, table["model_hash"], tables)
    old = tables.get(name, {})
    kept = old.get("methods", {}) if old.get("model_hash") == table["model_hash"] else {}
    tables[name] = {**table, "methods": kept | table["methods"]}
    lines = [HEAD, ""]
    for key, values in tables.items():
        lines.append(f"[{_toml_key(key)}]")
        lines += [f"{k} = {_toml(v)}" for k, v in values.items() if not isinstance(v, dict)]
        for method, row in values.get("methods", {}).items():
            place = f"{_toml_key(key)}.methods.{_toml_key(method)}"
            lines += ["", f"[{place}]", *(f"{k} = {_toml(v)}" for k, v in row.items())]
        lines.append("")
    with writing(path) as aside:
        aside.write_text("\n".join(lines), encoding="utf-8")
        read_toml(aside)
    return name


def _table_name(model: str, model_hash: str, tables: Mapping[str, dict]) -> str:
    """The table of these weights; else one called by the model, and by its weights too where that name is taken."""
    own = [name for name, table in tables.items() if table.get("model_hash") == model_hash]
    name = Path(model).name
    if own:
        return own[0]
    is_free = name not in tables or (model == name and "model_hash" in tables[name])
    return name if is_free else f"{name}-{model_hash[:8]}"


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _toml(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # whose escapes TOML knows too
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)
