"""Name a curve: the method's label, its options that are not the default, and the settings that vary."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from adapters import METHODS, PEFT, name_method
from adapters.method_words import TAKEN, clean
from adapters.words import counted
from training.cell import FLAGS

# Settings that may differ between runs of one method and would otherwise be averaged over without a word.
CURVES = {name: flag.curve for name, flag in FLAGS.items() if flag.curve}
# These come first, in the order that stored tables and claims have; all other flags follow as they are declared.
FIRST = (
    "rank", "steps", "scale", "boundary", "adam_weight_decay", "max_grad_norm", "train_batch_size",
    "gradient_accumulation_steps", "lr_scheduler", "lr_warmup_steps", "prior_loss_weight", "num_class_images",
)  # fmt: skip
SETTINGS = {
    **{name: {**CURVES, "scale": "{} scaled"}[name] for name in FIRST},
    **CURVES,
    "base_lr": "base rate {}",
    "base_lr_lambda": "lambda's base rate {}",
    "base_lr_magnitude": "m's base rate {}",
}
Key = tuple[str, str]  # a method and its options
BASE_AXIS, PRODIGY_AXIS = "multiple of the base learning rate", "multiplier of Prodigy's rate"
RATES = {"lr": "factors", "lr_lambda": "lambda", "lr_magnitude": "magnitude"}


def parse_options(options: Any) -> dict[str, str]:
    """Read a cell's `options`, `key=value,key=value` or a mapping, as text to text."""
    if isinstance(options, Mapping):
        return {str(key): str(value) for key, value in options.items()}
    pairs = [part.split("=", 1) for part in str(options or "").split(",") if "=" in part]
    return {key.strip(): value.strip() for key, value in pairs}


def method_label(method: str, options: Any = "") -> str:
    """The method's label, with those options that are not the default in brackets: `DeLoRA (start=live)`.

    Those of HF PEFT's tuners that train one run at a time say so: `PEFT LOKR (r=8, unpacked)`.
    """
    if method not in METHODS and not method.startswith(PEFT) and "@" not in method:
        return str(method)
    known = METHODS[method].options if method in METHODS else {}
    changed = {
        key: value for key, value in parse_options(options).items() if key not in known or value != str(known[key][0])
    }
    return name_method(method, changed)


def base_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """The rates at multiplier 1, columns base_lr, base_lr_lambda, base_lr_magnitude; rates that agree to 1e-4 are one.

    A rate that the label `scale` leaves alone ("lambda" or "factors" instead of "both") is its own base rate.
    """
    scale = runs["scale"].fillna("both")
    multiplier = runs["multiplier"].astype(float).fillna(1.0)
    columns = {}
    for rate, part in RATES.items():
        scaled = scale.isin(["both", part]) | ((part == "magnitude") & (scale == "factors"))
        columns[f"base_{rate}"] = merge_close(runs[rate].astype(float) / multiplier.where(scaled, 1.0))
    return pd.DataFrame(columns, index=runs.index)


def name_multipliers(runs: pd.DataFrame) -> str:
    """What an axis of multipliers is called, by the optimisers of the runs."""
    used = set(runs["optimizer"].fillna("adamw")) if "optimizer" in runs else {"adamw"}
    return BASE_AXIS if "prodigy" not in used else PRODIGY_AXIS if len(used) == 1 else f"{BASE_AXIS}, {PRODIGY_AXIS}"


def merge_close(values: pd.Series, tolerance: float = 1e-4) -> pd.Series:
    """Give numbers that agree to `tolerance`, relative, the value of the smallest of them; NaN stays.

    A cell keeps 6 digits of its rate, so that one base rate comes back differently from different multipliers.
    """
    known = values.dropna()
    order = np.sort(known.unique())
    starts = order[np.diff(order, prepend=-np.inf) > tolerance * np.abs(order)]
    place = np.searchsorted(starts, known, side="right") - 1
    return pd.Series(starts[place], known.index, dtype=float).reindex(values.index)


def name_series(runs: pd.DataFrame) -> pd.Series:
    """Name the series of every run.

    Args:
        runs: one row a run, with the cell's fields and labels.

    Returns:
        What the user calls the method, else its label with its non-default options; then every setting of `SETTINGS` that
        takes more than one value among the runs of that name: runs that differ in anything but subject, seed and multiplier
        are never averaged together.
    """
    names = name_methods(runs)
    frame = runs.assign(**base_rates(runs))  # in place of a label of the same name, which may be of another call
    result = names.copy()
    for _, group in frame.groupby(names, sort=False):
        for setting, text in SETTINGS.items():
            if setting in group and _num_values(group, setting) > 1:
                value = group[setting].map(_pictures if setting == "num_instance_images" else _short)
                one, many = text.replace("(s)", ""), text.replace("(s)", "s")
                result[group.index] += ", " + value.map(lambda v: (one if v == "1" else many).format(v))  # noqa: B023
    return result


def _num_values(group: pd.DataFrame, setting: str) -> int:
    """How many values a setting takes; a base rate, which optimisers do not share, among the runs of one of them."""
    keys = group[setting].map(_key) if group[setting].dtype == object else group[setting]
    if setting.startswith("base_lr") and "optimizer" in group:
        return int(keys.groupby(group["optimizer"].fillna("adamw")).nunique(dropna=False).max())
    return keys.nunique(dropna=False)


def name_methods(runs: pd.DataFrame) -> pd.Series:
    """Name the method of every run: the label that most of its runs were given, else `method_label`.

    Two methods never share a name: a label that several have is followed by what each is, and versions of one file by a
    number, in the order of their runs.
    """
    given = runs["label"] if "label" in runs else pd.Series(None, runs.index, dtype=object)
    keys = pd.Series(list(zip(runs["method"], runs["options"].map(str), strict=True)), runs.index, dtype=object)
    named: dict[Key, str] = {}
    for key, labels in given.groupby(keys, sort=False):
        known = [name for name in map(_clean, labels.dropna()) if name and name not in TAKEN]
        named[key] = Counter(known).most_common(1)[0][0] if known else _clean(method_label(*key))
    return keys.map(_keep_apart(named))


def _keep_apart(named: Mapping[Key, str]) -> dict[Key, str]:
    """The names of methods; those that several would share have behind them what each is, or else its number."""
    result = {}
    for name in dict.fromkeys(named.values()):
        keys = [key for key in named if named[key] == name]
        whats = [_clean(method_label(*key)) for key in keys]
        for number, (key, what) in enumerate(zip(keys, whats, strict=True), 1):
            note = what if what != name and whats.count(what) == 1 else f"version {number}"
            result[key] = f"{name} ({note})" if len(keys) > 1 else name
    return result


def _clean(name: Any) -> str:
    return clean(str(name))


def by_number(name: Any) -> str:
    """Sort key of a name in which numbers stand in their order: 4x before 16x."""
    return re.sub(r"\d+(\.\d+)?", lambda number: f"{float(number[0]):020.9f}", str(name))


def _key(value: Any) -> str:
    return json.dumps(None if value is None or value != value else value, default=str)


def _pictures(count: int) -> str:
    return counted(count, "picture") if count else "all pictures"


def _short(value: Any) -> str:
    if value is None or value != value:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
