"""Base learning rates: of the pocket, as `sweeps/base_lr.py` found them, and of Stable Diffusion 1.5, as published."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from adapters import BadInput, MethodSpec
from adapters.documents import read_toml
from training.store import writing

RATES = Path(__file__).with_name("base_rates.toml")


@dataclass(frozen=True)
class Rates:
    """The base setting of one method on one model.

    Attributes:
        lr: rate of the factors or vectors.
        lr_lambda: rate of DeLoRA's lambda, None elsewhere.
        lr_magnitude: rate of DoRA's m, None elsewhere.
        boundary: DeLoRA's lambda at the start, None elsewhere.
        borrowed: where the setting comes from if nobody tuned the method on the model; None if somebody did.
    """

    lr: float
    lr_lambda: float | None = None
    lr_magnitude: float | None = None
    boundary: float | None = None
    borrowed: str | None = None


def read_rates(path: Path = RATES) -> dict:
    """The tables of the data file by name: `pocket`, `sd15`, `sd15-table`, `untuned`."""
    return read_toml(path)[0] if path.exists() else {}


def base_rates(spec: MethodSpec, model: str, model_hash: str, path: Path = RATES, table: str | None = None) -> Rates:
    """The base setting of a method: that of the model's own table, else of Stable Diffusion 1.5 as published.

    A method that nobody tuned on the model borrows: from the relative that the table `untuned` names, if that was tuned
    there, else from what is published for Stable Diffusion 1.5.

    Args:
        spec: the method.
        model: its name.
        model_hash: of its weights.
        path: the data file.
        table: the table to read, in place of the model's own.

    Raises:
        BadInput: if there is no such table, or none has the method; give --base-lr then.
    """
    tables = read_rates(path)
    named = [name for name in tables if name != "untuned"]
    if table is not None and table not in named:
        raise BadInput(f"--rate-table is {table}; allowed: {', '.join(named)}")
    own = [name for name in named if tables[name].get("model_hash") == model_hash]
    name = table or (own[0] if own else "pocket" if model == "pocket" else "sd15")
    methods = tables.get(name, {}).get("methods", {})
    row = methods.get(spec.name) or methods.get({"dora-fixed": "dora"}.get(spec.name, ""))
    borrowed = None
    if row is None:
        row, borrowed = _borrow(spec.name, methods, tables)
    if row is None:
        raise BadInput(
            f"no base rate of {spec.name} for model {model!r} in {path.name}; give --base-lr "
            "(and --lr-lambda and --boundary if it has a lambda)"
        )
    fields = Rates.__dataclass_fields__
    return Rates(**{key: value for key, value in row.items() if key in fields}, borrowed=borrowed)


def _borrow(method: str, methods: dict, tables: dict) -> tuple[dict | None, str | None]:
    """The row of a relative among `methods`, or the published row, and a word on where it comes from."""
    own = tables.get("untuned", {}).get("methods", {}).get(method, {})
    if (relative := own.get("like")) in methods:
        return {**methods[relative], **own}, f"that of {relative}"
    published = tables.get("sd15", {}).get("methods", {})
    if method in published:
        return published[method], "what is published for Stable Diffusion 1.5"
    return None, None


def describe_borrowed(spec: MethodSpec, rates: Rates, model: str) -> str:
    """A line that says which base rates are not the method's own."""
    boundary = "" if rates.boundary is None else f", boundary {rates.boundary:g}"
    return (
        f"{spec.name} was not tuned on {model}: what no flag gives is {rates.borrowed} (lr {rates.lr:g}{boundary}); "
        "sweeps/base_lr.py finds its own"
    )


def scaled(rates: Rates, multiplier: float, scale: str = "both") -> dict:
    """Absolute rates at a multiplier of the base; `scale` says which groups it scales."""

    def times(rate: float | None, on: bool) -> float | None:
        return None if rate is None else float(f"{rate * (multiplier if on else 1):.6g}")

    return {
        "lr": times(rates.lr, scale != "lambda"),
        "lr_lambda": times(
            rates.lr_lambda if rates.lr_lambda or rates.boundary is None else rates.lr, scale != "factors"
        ),
        "lr_magnitude": times(rates.lr_magnitude, scale != "lambda"),
        "boundary": rates.boundary,
    }


def write_rates(name: str, table: dict, path: Path = RATES) -> None:
    """Put the methods of a table into the data file's of that name; the others there stay, if they are of the same model.

    Args:
        name: of the table.
        table: model_hash, and methods: a row for each.
        path: the data file.
    """
    tables = read_rates(path)
    old = tables.get(name, {})
    kept = old.get("methods", {}) if old.get("model_hash") == table["model_hash"] else {}
    tables[name] = {**table, "methods": kept | table["methods"]}
    lines = ["# Base learning rates. The pocket's come from `python sweeps/base_lr.py`; do not edit them by hand.", ""]
    for key, values in tables.items():
        lines.append(f"[{key}]")
        lines += [f"{k} = {_toml(v)}" for k, v in values.items() if not isinstance(v, dict)]
        for method, row in values.get("methods", {}).items():
            lines += ["", f"[{key}.methods.{_toml_key(method)}]", *(f"{k} = {_toml(v)}" for k, v in row.items())]
        lines.append("")
    with writing(path) as aside:
        aside.write_text("\n".join(lines))


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key) else _toml(key)


def _toml(value: object) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)
