"""The benchmarks yield their rows on a tiny pipeline; nothing here asserts a time."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from adapters import BadInput
from benchmarks import dynamics, every_method, gpu, methods, packs, spectra
from benchmarks.device_limits import count_flop
from benchmarks.real_scale import Bench
from benchmarks.rows import Row, to_markdown, write_page
from benchmarks.scene import QUICK, Effort, Place, find_place
from benchmarks.timing import Spread, mean_of, ratio_of, ratio_of_means
from slurm.estimate.need import Estimate
from tests.make_pipeline import make_place
from tests.warm_program import run_warm
from training.demand import Cost

ROOT = Path(__file__).resolve().parents[1]
LEAST = dataclasses.replace(QUICK, rounds=2, laps=1, steps=2, sizes=(1, 2), read_steps=8)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A tiny model laid out as the pocket is."""
    folder = make_place(tmp_path_factory.mktemp("tiny"))
    return find_place(str(folder), folder)


@pytest.mark.parametrize(
    "script", [packs, methods, every_method, dynamics, spectra], ids=lambda module: module.__name__
)
def test_every_script_yields_its_rows(script: object, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "calibrate", lambda *_: Estimate({n: Cost(1.0, 1.0) for n in (1, 2)}, 2))
    monkeypatch.setattr(packs, "SEVERAL", 1)  # threads wait for each other where other tests keep the cores busy
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(packs.multiprocessing, "get_context", lambda kind: fork)  # whose imports are made already
    monkeypatch.setattr(dynamics, "PACK", 2)
    monkeypatch.setattr(every_method, "PACK", 2)
    monkeypatch.setattr(spectra, "PACK", 2)
    rows: list[Row] = script.measure(place, "cpu", LEAST)  # type: ignore[attr-defined]
    assert len({row.name for row in rows}) == len(rows) >= 4
    for row in rows:
        assert math.isfinite(row.measured.value), row.name
        assert row.measured.num >= 2
        assert row.met in ("yes", "no") if row.aim is not None else row.met == ""
    assert any(row.aim is not None for row in rows) or script is spectra, "a cost that is asked for has no aim"


def test_ratios_of_known_numbers() -> None:
    slow, fast = np.array([2.0, 4.0, 8.0]), np.array([1.0, 2.0, 4.0])
    assert ratio_of(slow, fast) == Spread(pytest.approx(2.0), pytest.approx(2.0), pytest.approx(2.0), 3)
    noisy = ratio_of([2.1, 1.9, 2.2, 1.8], [1.0, 1.0, 1.0, 1.0])
    assert noisy.low < 2 < noisy.high
    above = ratio_of_means([0.6, 0.7, 0.8], [1.0, 1.1, 1.2])
    assert above.value == pytest.approx(2.1 / 3.3)
    assert above.low < above.value < above.high
    assert ratio_of_means([1.0, 1.0], [1.0, -0.9]).high == math.inf
    assert math.isnan(mean_of([1.0]).low)


def test_a_row_is_judged_at_the_end_that_it_says() -> None:
    measured = Spread(1.0, 0.9, 1.1, 4)
    assert Row("a", measured, 1.05).met == "yes"
    assert Row("a", measured, 1.05, judged="high").met == "no"
    assert Row("a", measured, 1.05, sense=">=").met == "no"
    assert Row("a", measured).met == ""


def test_the_page_says_where_and_how(tmp_path: Path) -> None:
    import torch

    table = to_markdown([Row("a thing", Spread(1.5, 1.4, 1.6, 4), 2.0)])
    text = write_page(tmp_path, [table], "python -m benchmarks", torch.device("cpu"), "a model").read_text()
    for word in ("a thing", "1.500x", "[1.400x, 1.600x]", "python -m benchmarks", "machine:", "torch", "a model"):
        assert word in text


def test_wrong_flags_end_in_one_line() -> None:
    done = run_warm(["-m", "benchmarks", "--model", "/nowhere"], ROOT, os.environ)
    assert done.returncode == 2
    assert "--model is /nowhere" in done.stderr.strip().splitlines()[-1]
    assert Effort().rounds > QUICK.rounds


def test_the_real_scale_yields_its_rows_when_tiny(tmp_path: Path) -> None:
    """Every row of the GPU's benchmark, on this machine's CPU; pack sizes, precision and width as asked."""
    options = gpu.Options(
        device="cpu",
        sizes=(2, 1),
        methods=("delora",),
        rounds=2,
        laps=1,
        warmup=1,
        prompts=1,
        mixed_precision="no",
        tried=("channels_last",),
    )
    options, scale = gpu.fill(options)
    assert str(scale) == "Stable Diffusion 1.5 at 1/10 of its widths, random weights, 64 px, rank 16, float32"
    rows = gpu.measure(Bench(scale, tmp_path), options)
    assert len({row.name for row in rows}) == len(rows)
    values = {row.name: row.measured.value for row in rows}
    assert all(math.isfinite(value) for value in values.values())
    assert values["waits of the host inside a step, LoRA"] == values["waits of the host inside a step, DeLoRA"] == 0
    assert "LoRA in packs of 2, cells a second over HF PEFT's" in values
    assert [row.name for row in rows if row.aim is not None] == [name for name in values if name.startswith("waits")]
    # A pass has no backward; two of three parts of a step's work are left out.
    assert 0.3 < values["a guided sampler's pass, operations over those of a training step"] < 0.6
    gpu.write(tmp_path / "docs", scale, rows, "python -m benchmarks.gpu")
    written = json.loads((tmp_path / "docs" / "gpu.json").read_text())
    assert [row["name"] for row in written["rows"]] == [row.name for row in rows]
    assert "1/10 of its widths" in (tmp_path / "docs" / "gpu.md").read_text()


@pytest.mark.parametrize(("change", "words"), [({"rank": 0}, "--rank is 0"), ({"sizes": (4, 0)}, "--sizes is 4 0")])
def test_wrong_numbers_of_the_real_scale_are_named(change: dict, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        gpu.fill(dataclasses.replace(gpu.Options(), **change))


def test_operations_are_counted_as_products_and_sums() -> None:
    import torch

    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert count_flop(lambda: a @ b) == 2 * 3 * 5 * 7
