"""Base rates: every method has one on the pocket, its own or a borrowed one, and which it is is said."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from adapters import METHODS, BadInput, get_class, parse_method
from sweeps import base_lr, grid
from sweeps.options import Options
from sweeps.rate_file import RATES, read_rates, write_rates
from sweeps.rates import (
    Rates,
    base_rates,
    check_base_lr,
    choose_rates,
    describe_borrowed,
)
from tests.rounds import told

TABLES = """
[sd15.methods.lora]
lr = 6e-4
[sd15.methods.oft]
lr = 6e-5
[mine]
model_hash = "abc"
[mine.methods.etherplus]
lr = 0.002
[untuned.methods.ether]
like = "etherplus"
[untuned.methods.naive]
like = "oft"
[untuned.methods.ablation-boundary]
like = "etherplus"
boundary = 2.0
"""


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """A data file in which one method was tuned."""
    path = tmp_path / "rates.toml"
    path.write_text(TABLES)
    return path


@pytest.mark.parametrize("model", ["pocket", "some/model"])
def test_every_method_has_rates(model: str) -> None:
    for method in METHODS:
        rates = base_rates(parse_method(method), model, "")
        with told(method):
            assert rates.lr > 0
            assert (rates.boundary is not None) == get_class(method).uses_boundary


def test_what_was_tuned_comes_first_then_a_relative_then_what_is_published(tables: Path) -> None:
    own = base_rates(parse_method("etherplus"), "mine", "abc", tables)
    assert (own.lr, own.borrowed) == (0.002, None)
    relative = base_rates(parse_method("ether"), "mine", "abc", tables)
    assert (relative.lr, relative.boundary, relative.borrowed) == (0.002, None, "that of etherplus")
    bounded = base_rates(parse_method("ablation-boundary"), "mine", "abc", tables)
    assert (bounded.lr, bounded.boundary) == (0.002, 2.0)
    published = base_rates(parse_method("oft"), "mine", "abc", tables)
    assert (published.lr, published.borrowed) == (6e-5, "what is published for Stable Diffusion 1.5")
    line = describe_borrowed(parse_method("ablation-boundary"), bounded, "mine")
    assert "ablation-boundary was not tuned on mine" in line
    assert "that of etherplus (lr 0.002, boundary 2)" in line


def test_without_any_rate_the_flags_are_named(tables: Path) -> None:
    for method in ("naive", "delora"):
        with pytest.raises(BadInput, match=rf"no base rate of {method} .*; give --base-lr \(and --lr-lambda"):
            base_rates(parse_method(method), "mine", "abc", tables)


def test_writing_a_table_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "rates.toml"
    path.write_text(RATES.read_text())
    before = tomllib.loads(path.read_text())
    write_rates("mine", {"model_hash": "abc", "methods": {"oft": {"lr": 1e-4}}}, path)
    after = tomllib.loads(path.read_text())
    assert after.pop("mine") == {"model_hash": "abc", "methods": {"oft": {"lr": 1e-4}}}
    assert after == before


def test_tuning_one_method_keeps_the_others_of_the_same_model(tables: Path) -> None:
    write_rates("mine", {"model_hash": "abc", "rule": "best", "methods": {"oft": {"lr": 1e-4}}}, tables)
    assert base_rates(parse_method("oft"), "mine", "abc", tables).lr == 1e-4
    assert base_rates(parse_method("etherplus"), "mine", "abc", tables).lr == 0.002
    write_rates("mine", {"model_hash": "trained longer", "methods": {"lora": {"lr": 1e-3}}}, tables)
    kept = tomllib.loads(tables.read_text(encoding="utf-8"))["mine"]["methods"]
    assert kept == {"lora": {"lr": 1e-3}}, "rates of other weights say nothing"


@pytest.mark.parametrize("model", ["/models/sd15", "/models/untuned", "/models/pocket", "me/glue"])
def test_a_model_that_is_called_as_a_table_is_leaves_it_alone(model: str, tmp_path: Path) -> None:
    path = tmp_path / "rates.toml"
    path.write_text(RATES.read_text())
    before = tomllib.loads(path.read_text())
    rows = {"lora": {"lr": 0.123}}
    name = write_rates(model, {"model_hash": "0123456789abcdef", "methods": rows}, path)
    after = tomllib.loads(path.read_text())
    assert after.pop(name)["methods"] == rows
    assert after == before
    assert base_rates(parse_method("lora"), model, "0123456789abcdef", path).lr == 0.123
    assert write_rates(model, {"model_hash": "0123456789abcdef", "methods": rows}, path) == name
    assert write_rates(model, {"model_hash": "fedcba9876543210", "methods": rows}, path) != name


@pytest.mark.parametrize("model", ["Qwen2.5-0.5B", "my model", "naïve", 'a"quote', "tab\there"])
def test_any_name_of_a_model_names_a_table(model: str, tables: Path) -> None:
    before = tomllib.loads(tables.read_text(encoding="utf-8"))
    rows = {"lora": {"lr": 0.5}, "peft:hra:r=8": {"lr": 0.25}}
    assert write_rates(model, {"model_hash": "h1", "methods": rows}, tables) == model
    assert base_rates(parse_method("lora"), model, "h1", tables).lr == 0.5
    assert tomllib.loads(tables.read_text(encoding="utf-8")) == before | {model: {"model_hash": "h1", "methods": rows}}


def tuned(method: str) -> dict[str, Any]:
    """What the data file has for a method on the pocket."""
    row: dict[str, Any] = read_rates()["pocket"]["methods"][method]
    return row


def choose(method: str, model: str = "pocket", **flags: Any) -> Rates:
    """The rates of a method under some flags, on a model of that name."""
    known = read_rates().get(model, {}).get("model_hash", "")
    return choose_rates(Options(**flags), parse_method(method), model, known)


def test_a_base_lr_is_for_methods_that_have_none_of_their_own() -> None:
    assert (choose("lora", base_lr=0.5).lr, choose("lora", base_lr=0.5).source) == (
        tuned("lora")["lr"],
        "tuned on the pocket",
    )
    assert choose("lora", base_lr=0.5, base_lr_for_all=True).lr == 0.5
    assert choose("lora:base_lr=0.25", base_lr=0.5, base_lr_for_all=True).lr == 0.25
    assert (choose("hra", base_lr=0.5).lr, choose("hra", base_lr=0.5).borrowed) == (0.5, None), (
        "a borrowed rate is not its own"
    )
    assert choose("hra").source == "borrowed from what is published for Stable Diffusion 1.5"
    given = choose("peft:hra:r=4", base_lr=0.5)
    assert (given.lr, given.source) == (0.5, "given on the command line")
    published = choose("lora", "some/model", base_lr=0.5)
    assert (published.lr, published.source) == (0.0006, "published for Stable Diffusion 1.5")


def test_a_methods_own_words_give_every_rate_that_it_has() -> None:
    rates = choose("delora:base_lr=0.25,lr_lambda=0.5,boundary=3", boundary=9.0, lr_lambda=9.0)
    assert (rates.lr, rates.lr_lambda, rates.boundary, rates.source) == (0.25, 0.5, 3.0, "given on the command line")
    some = choose("delora:boundary=3")
    assert (some.lr, some.boundary) == (tuned("delora")["lr"], 3.0)
    assert some.source == "base_lr and lr_lambda tuned on the pocket; boundary given on the command line"
    assert choose("dora:lr_magnitude=0.5").lr_magnitude == 0.5
    for method, word in (
        ("lora:boundary=3", "boundary"),
        ("lora:lr_lambda=1", "lr_lambda"),
        ("vera:lr_magnitude=1", "lr_magn"),
    ):
        with pytest.raises(BadInput, match=f"has no {word}.*; its rates are: base_lr"):
            choose(method)
    for wrong in ("0", "-1", "nan", "fast"):
        with pytest.raises(BadInput, match=rf"base_lr of method 'lora' is '{wrong}'; allowed: a positive number"):
            parse_method(f"lora:base_lr={wrong}")


def test_what_is_said_of_a_method_is_no_part_of_it() -> None:
    plain, said = parse_method("lora:alpha=16"), parse_method("lora:base_lr=0.5,alpha=16,label=My $5 method")
    assert (said.name, said.canonical, dict(said.options)) == (plain.name, plain.canonical, dict(plain.options))
    assert (plain.label, said.label) == ("LoRA (alpha=16)", "My $5 method")
    assert parse_method("peft:hra:r=4,base_lr=0.5,label=x").canonical == parse_method("peft:hra:r=4").canonical


def test_a_base_lr_that_no_method_takes_is_refused() -> None:
    known = read_rates()["pocket"]["model_hash"]
    specs = [parse_method(name) for name in ("lora", "delora")]
    lora, delora = tuned("lora")["lr"], tuned("delora")["lr"]
    said = rf"lora {lora:g} \(tuned on the pocket\), delora {delora:g} .* give lora:base_lr=0.5 to one"
    with pytest.raises(BadInput, match=said):
        check_base_lr(Options(base_lr=0.5), specs, "pocket", known)
    check_base_lr(Options(base_lr=0.5), [*specs, parse_method("hra")], "pocket", known)
    check_base_lr(Options(base_lr=0.5, base_lr_for_all=True), specs, "pocket", known)


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (("lora:label=X", "dora:label=X"), "two methods that are called 'X'"),
        (("lora:label=DoRA", "dora"), "two methods that are called 'DoRA'"),
        (("lora", "lora:base_lr=0.5"), "has lora twice, with different rates or labels"),
        (("lora:label=\x1b[31mred",), r"label of method 'lora' is '\\x1b\[31mred'"),
        (("lora:label=two\nlines",), r"label of method 'lora' is 'two\\nlines'"),
        (("lora:label=base model",), "label of method 'lora' is 'base model'"),
    ],
)
def test_labels_that_confuse_are_refused(methods: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Options(method=methods).specs()


def test_a_driver_that_varies_a_rate_goes_before_what_is_said_of_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(grid, "expand", lambda flags, scene, specs, quiet: seen.append((flags, specs)) or [])
    scene = type("S", (), {"of": lambda self, flags: self})()
    grid.expand_each(Options(method=("delora:boundary=3",)), scene, [{"boundary": 9.0}, {"boundary": None}, {}])
    assert [choose_rates(flags, *specs, "pocket", "").boundary for flags, specs in seen] == [9.0, 3.0, 3.0]


def test_the_search_for_base_rates_refuses_a_given_one(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in ({"method": ("lora:base_lr=0.5",)}, {"base_lr": 0.5}):
        with pytest.raises(BadInput, match="base_lr is given, and base_lr.py looks for it"):
            base_lr.drive(base_lr.TuningOptions(**flags))
