"""Base rates: every method has one on the pocket, its own or a borrowed one, and which it is is said."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from adapters import METHODS, BadInput, get_class, parse_method
from sweeps.rates import RATES, base_rates, describe_borrowed, write_rates

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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["pocket", "some/model"])
def test_every_method_has_rates(method: str, model: str) -> None:
    rates = base_rates(parse_method(method), model, "")
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
    kept = tomllib.loads(tables.read_text())["mine"]["methods"]
    assert kept == {"lora": {"lr": 1e-3}}, "rates of other weights say nothing"
