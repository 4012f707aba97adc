"""Base learning rates: those found by `sweeps/base_lr.py`, and published ones, of Stable Diffusion 1.5 and of GLUE."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters import MethodSpec, get_class
from adapters.errors import BadInput
from sweeps.options import Options
from sweeps.rate_file import RATES, read_rates

SD15 = "sd15"  # the table of what is published for Stable Diffusion 1.5
GIVEN = "given on the command line"
PRODIGY = "times Prodigy's estimate"


@dataclass(frozen=True)
class Rates:
    """The base setting of one method on one model.

    Attributes:
        lr: rate of the factors or vectors.
        lr_lambda: rate of a lambda that trains (DeLoRA's), None elsewhere.
        lr_magnitude: rate of DoRA's m, None elsewhere.
        boundary: lambda at the start (DeLoRA, NB-LoRA), None elsewhere.
        borrowed: where the setting comes from if nobody tuned the method on the model; None if somebody did.
        source: where it comes from, in words: tuned, published, borrowed, or given on the command line.
    """

    lr: float
    lr_lambda: float | None = None
    lr_magnitude: float | None = None
    boundary: float | None = None
    borrowed: str | None = None
    source: str = ""


FIELDS = {
    "lr": "base_lr",
    "lr_lambda": "lr_lambda",
    "lr_magnitude": "lr_magnitude",
    "boundary": "boundary",
}  # as users say


def base_rates(
    spec: MethodSpec, model: str, model_hash: str, path: Path = RATES, table: str | None = None, published: str = SD15
) -> Rates:
    """The base setting of a method: that of the model's own table, else the one published for its task.

    A method that nobody tuned on the model borrows: from the relative that the table `untuned` names, if that was tuned
    there, else from what is published.

    Args:
        spec: the method.
        model: its name.
        model_hash: of its weights.
        path: the data file.
        table: the table to read, in place of the model's own.
        published: the table that is read where the model has none of its own; "" for none.

    Raises:
        BadInput: if there is no such table, or none has the method; give --base-lr then.
    """
    rates = look_up_rates(spec, model, model_hash, path, table, published)
    if rates is None:
        raise BadInput(
            f"no base rate of {spec.name} for model {model!r} in {path.name}; give --base-lr "
            "(and --lr-lambda and --boundary if it has a lambda)"
        )
    return rates


def look_up_rates(
    spec: MethodSpec, model: str, model_hash: str, path: Path = RATES, table: str | None = None, published: str = SD15
) -> Rates | None:
    """As `base_rates`; None where no table has the method.

    Raises:
        BadInput: if there is no such table.
    """
    tables = read_rates(path)
    named = [name for name in tables if name != "untuned"]
    if table is not None and table not in named:
        raise BadInput(f"--rate-table is {table}; allowed: {', '.join(named)}")
    own = [name for name in named if tables[name].get("model_hash") == model_hash]
    name = table or (own[0] if own else "pocket" if model == "pocket" else published)
    methods = tables.get(name, {}).get("methods", {})
    row = methods.get(spec.name) or methods.get({"dora-fixed": "dora"}.get(spec.name, ""))
    borrowed, source = None, _origin(name, tables.get(name, {}), model_hash)
    if row is None:
        row, borrowed = _borrow(spec.name, methods, tables.get(published, {}), tables)
        source = f"borrowed from {(borrowed or '').removeprefix('that of ')}"
    if row is None:
        return None
    kept = {key: value for key, value in row.items() if key in FIELDS}
    return Rates(**kept, borrowed=borrowed, source=source)


def is_tuned(spec: MethodSpec, model_hash: str, path: Path = RATES) -> bool:
    """Whether a search has found the method's rate on the model of these weights."""
    tables = [table for table in read_rates(path).values() if table.get("model_hash") == model_hash]
    names = {spec.name, {"dora-fixed": "dora"}.get(spec.name, spec.name)}
    return any(names & table.get("methods", {}).keys() for table in tables)


def _origin(name: str, table: dict, model_hash: str) -> str:
    """Where a table's rates come from: measured on a model, whose hash it has, or published."""
    if "model_hash" not in table:
        return f"published for {_published_for(table)}"
    others = "" if table["model_hash"] == model_hash else ", with other weights"
    return f"tuned on {'the pocket' if name == 'pocket' else name}{others}"


def _published_for(table: dict) -> str:
    return str(table.get("of", "Stable Diffusion 1.5"))


def _borrow(method: str, methods: dict, published: dict, tables: dict) -> tuple[dict | None, str | None]:
    """The row of a relative among `methods`, or the published row, and a word on where it comes from."""
    own = tables.get("untuned", {}).get("methods", {}).get(method, {})
    if (relative := own.get("like")) in methods:
        return {**methods[relative], **own}, f"that of {relative}"
    if method in (rows := published.get("methods", {})):
        return rows[method], f"what is published for {_published_for(published)}"
    return None, None


def describe_borrowed(spec: MethodSpec, rates: Rates, model: str) -> str:
    """A line that says which base rates are not the method's own."""
    boundary = "" if rates.boundary is None else f", boundary {rates.boundary:g}"
    rate = f"lambda's lr {rates.lr_lambda:g}" if PRODIGY in rates.source else f"lr {rates.lr:g}"
    return (
        f"{spec.name} was not tuned on {model}: what no flag gives is {rates.borrowed} ({rate}{boundary}); "
        "sweeps/base_lr.py finds its own"
    )


def choose_rates(options: Options, spec: MethodSpec, model: str, model_hash: str) -> Rates:
    """A method's base rates: what is said of it, else what flags say, else those of the data file.

    `--base-lr` is for methods that have no rate of their own there, and for all with `--base-lr-for-all`.

    Raises:
        BadInput: for a rate that the method does not have; if there is none for it, or no such table.
    """
    cls = get_class(spec.name)
    with_lambda, with_magnitude = (cls.has_role(role, spec.options) for role in ("lambda", "magnitude"))
    has = {"lr": True, "lr_lambda": with_lambda, "lr_magnitude": with_magnitude, "boundary": cls.uses_boundary}
    words = {field: float(spec.words[word]) for field, word in FIELDS.items() if word in spec.words}
    if wrong := [field for field in words if not has[field]]:
        allowed = ", ".join(word for field, word in FIELDS.items() if has[field])
        raise BadInput(f"method {spec.name!r} has no {FIELDS[wrong[0]]}; its rates are: {allowed}")
    found = find_rates(options, spec, model, model_hash)
    given = {field: getattr(options, field) for field in ("lr_lambda", "lr_magnitude", "boundary")}
    if takes_base_lr(options, spec, found):
        given["lr"] = options.base_lr
    given = {field: value for field, value in (given | words).items() if value is not None and has[field]}
    own = {"lr": PRODIGY} if options.optimizer == "prodigy" else {}
    if own:
        check_one_rate(spec, given)
    if found is None:
        needed = {field for field in ("lr", "lr_lambda", "boundary") if has[field]} - set(own)
        found = (
            Rates(given.get("lr", 1.0))
            if needed <= given.keys()
            else base_rates(spec, model, model_hash, published=options.kind[0].published_rates)
        )
    kept = {field: getattr(found, field) for field in FIELDS if has[field]} | given
    origin = dict.fromkeys(FIELDS, found.source) | own | dict.fromkeys(given, GIVEN)
    sources = {FIELDS[field]: origin[field] for field, value in kept.items() if value}
    if with_lambda and kept["lr_lambda"] is None:
        kept["lr_lambda"] = kept["lr"]
    borrowed = None if set(sources.values()) <= {GIVEN, PRODIGY} else found.borrowed
    return Rates(**kept, borrowed=borrowed, source=_describe_sources(sources))


def find_rates(options: Options, spec: MethodSpec, model: str, model_hash: str) -> Rates | None:
    """What the data file has for a method. Under Prodigy every method's rate is 1, and lambda has that of AdamW's factors.

    Raises:
        BadInput: if there is no such table.
    """
    published = options.kind[0].published_rates
    found = look_up_rates(spec, model, model_hash, table=options.rate_table, published=published)
    if options.optimizer != "prodigy":
        return found
    if not get_class(spec.name).uses_boundary:
        return Rates(1.0, source=PRODIGY)
    return found and dataclasses.replace(found, lr=1.0, lr_lambda=found.lr_lambda or found.lr, lr_magnitude=None)


def check_one_rate(spec: MethodSpec, given: Mapping[str, float]) -> None:
    """Refuse a second rate under Prodigy, whose d is one for all weights of a run.

    Raises:
        BadInput: naming the option and its value.
    """
    one = "Prodigy estimates one rate for all weights of a run: leave it out, or give --optimizer adamw"
    if "lr_magnitude" in given:
        raise BadInput(f"lr_magnitude of method {spec.name!r} is {given['lr_magnitude']:g}; {one}")
    if spec.options.get("lr_ratio", 1) != 1:
        raise BadInput(f"lr_ratio of method {spec.name!r} is {spec.options['lr_ratio']}; {one}")


def takes_base_lr(options: Options, spec: MethodSpec, found: Rates | None) -> bool:
    """Whether `--base-lr` is this method's base rate; `found` is what the data file has for it."""
    has_own = options.optimizer == "prodigy" or (found is not None and found.borrowed is None)
    return options.base_lr is not None and "base_lr" not in spec.words and (options.base_lr_for_all or not has_own)


def check_base_lr(options: Options, specs: Sequence[MethodSpec], model: str, model_hash: str) -> None:
    """Refuse a `--base-lr` that no method would take.

    Raises:
        BadInput: naming each method with the rate that it has.
    """
    if options.base_lr is None or options.base_lr_for_all or not specs:
        return
    found = [find_rates(options, spec, model, model_hash) for spec in specs]
    if any(takes_base_lr(options, spec, rates) for spec, rates in zip(specs, found, strict=True)):
        return
    own = [choose_rates(options, spec, model, model_hash) for spec in specs]
    said = ", ".join(f"{spec.name} {rates.lr:g} ({rates.source})" for spec, rates in zip(specs, own, strict=True))
    raise BadInput(
        f"--base-lr is {options.base_lr:g}, and every method has a rate of its own: {said}; "
        f"give {specs[0].name.partition('@')[0]}:base_lr={options.base_lr:g} to one, or --base-lr-for-all"
    )


def _describe_sources(sources: Mapping[str, str]) -> str:
    """Where rates come from; which of them, where they come from several places."""
    places = {place: [name for name in sources if sources[name] == place] for place in sources.values()}
    if len(places) == 1:
        return next(iter(places))
    return "; ".join(f"{' and '.join(names)} {place}" for place, names in places.items())


def scaled(rates: Rates, multiplier: float, scale: str = "both") -> dict:
    """Absolute rates at a multiplier of the base; `scale` says which groups it scales."""

    def times(rate: float | None, on: bool) -> float | None:
        return None if rate is None else float(f"{rate * (multiplier if on else 1):.6g}")

    return {
        "lr": times(rates.lr, scale != "lambda"),
        "lr_lambda": times(rates.lr_lambda, scale != "factors"),
        "lr_magnitude": times(rates.lr_magnitude, scale != "lambda"),
        "boundary": rates.boundary,
    }
