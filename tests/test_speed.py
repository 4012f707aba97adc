"""The tables of docs/speed.md: each is written into its place, counts what it says, and asserts no time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from adapters import BadInput
from benchmarks import first_answer, forecast, peak, price, speed
from benchmarks.forecast import Foreseen
from benchmarks.page import list_parts, write_part
from benchmarks.price import CellWork, PricedPreset
from tests.make_pipeline import make_place
from training.demand import Cost

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "speed.md"


def test_page_has_a_place_for_every_table() -> None:
    assert list_parts(PAGE) == ["first-answer", "first-answer-avx2", *speed.TABLES, "forecast", "price"]
    assert "## On a GPU" in PAGE.read_text()


def test_part_of_a_page_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    page.write_text(PAGE.read_text())
    write_part(page, "ranks", "| new |\n")
    before, after = PAGE.read_text(), page.read_text()
    start, end = (before.index(f"<!-- {word} ranks -->") for word in ("begin", "end"))
    assert after.startswith(before[:start])
    assert after.endswith(before[end:])
    assert "<!-- begin ranks -->\n\n| new |\n\n<!-- end ranks -->" in after
    write_part(page, "ranks", "| new |\n")
    assert page.read_text() == after
    with pytest.raises(BadInput, match="has 0 parts between '<!-- begin nothing -->'"):
        write_part(page, "nothing", "")
    with pytest.raises(BadInput, match="cannot be read"):
        write_part(tmp_path / "none.md", "ranks", "")


# The price.

SETTING = PricedPreset(
    steps=1000, rows=2, evaluations=5, pictures=100, passes=50, rank=16, resolution=512, class_pictures=200
)


def test_preset_decides_the_work_of_a_cell() -> None:
    found = price.read_setting()
    assert found == PricedPreset(1400, 2, 7, 104, 50, 16, 512, 200)


def test_price_is_work_over_the_assumed_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(price, "count_method", lambda method, rank, side: CellWork(step=2e12, row=1e12))
    monkeypatch.setattr(price, "count_picture", lambda side: 3e12)
    options = price.Options(peak=1e15, share=0.5, picture_share=0.25, plain_share=0.05)
    row = price.price("lora", options, SETTING)
    assert row.cells == 8 * 30 * 3
    assert row.training == pytest.approx(720 * 1000 * 2 * 2e12 / 0.5e15 / 3600)
    assert row.evaluation == pytest.approx(720 * 5 * 100 * (50 * 1e12 + 3e12) / 0.25e15 / 3600)
    assert row.plain_training == pytest.approx(10 * row.training)
    assert price.price_classes(options, SETTING) == pytest.approx(15 * 200 * 53e12 / 0.25e15 / 3600)
    text = price.to_markdown([row, dataclasses.replace(row, method="dora")], 1.0, options, SETTING)
    assert "Speed assumed, not measured" in text
    assert "| together | 1,440 |" in text


def test_counted_work_is_that_of_the_published_unet() -> None:
    lora = price.count_method("lora", 16, 512)
    plain = price.count_method("", 16, 512)
    assert plain.row == pytest.approx(0.803e12, rel=0.01), "401.6 GMAC"
    assert 1 < lora.row / plain.row < 1.01
    assert 2 < lora.step / lora.row < 2.4, "no gradients of frozen weights"
    assert 2e12 < price.count_picture(512) < 4e12


# The tables.


def test_forecast_says_how_far_off_it_was() -> None:
    row = Foreseen("a sweep", 8, 2, 2, 100.0, 60.0, 110.0, 3.0)
    assert row.errors == pytest.approx((-0.4, 0.1))
    text = forecast.to_markdown([row])
    assert "| a sweep | 8 in 2, 2 | 100 s | 60 s | -40% | 110 s | +10% |" in text
    assert "met: yes" in text
    assert "met: no" in forecast.to_markdown([row, dataclasses.replace(row, after_s=75.0)])


@pytest.mark.parametrize("name", speed.TABLES)
def test_tables_have_a_line_for_each_variant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = speed.Options(method=("dora", "oft"), sizes=(1, 4))
    monkeypatch.setattr(
        speed, "time_variants", lambda _, variants, __: {v: np.array([0.1, 0.3]) * v.size for v in variants}
    )
    monkeypatch.setattr(speed, "measure_peaks", lambda _, variants: {v: 100.0 * v.size for v in variants})
    monkeypatch.setattr(speed.peak, "measure_costs", lambda _: {1: Cost(1.0, 1.0)})
    monkeypatch.setattr(speed.peak, "foresee", lambda part, costs: 90.0 * part.size)
    place = type("Scene", (), {"place": speed.Place(ROOT, "")})()
    text = speed.TABLES[name](place, options)
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    count = {"packs": 2, "ranks": len(options.ranks), "sides": len(options.sides), "methods": 3}[name]
    assert len(lines) == count
    if name == "packs":
        assert lines[1] == "| 4 | 800 [400, 1200] | 200 [100, 300] | 1.00 [1.00, 1.00] | 400 | 360 | -10% |"


def test_tables_are_measured_and_written(tmp_path: Path) -> None:
    place = make_place(tmp_path / "tiny")
    (tmp_path / "speed.md").write_text(PAGE.read_text())
    few = speed.Options(only=("methods",), rounds=2, steps=1, method=("delora",), model=str(place), docs=tmp_path)
    assert speed.run(few) == 0
    part = (tmp_path / "speed.md").read_text().split("<!-- begin methods -->")[1].split("<!-- end methods -->")[0]
    assert "| LoRA | " in part
    assert "| DeLoRA | " in part
    assert "n = 2 rounds of 1 steps; seconds of the wall clock" in part


def test_pack_whose_memory_is_measured_is_a_real_one(tmp_path: Path) -> None:
    part = peak.Part(str(make_place(tmp_path / "tiny")), 2, "delora", rank=4)
    assert peak.run_here(part).peak_mib > 100
    assert peak.foresee(part, {1: Cost(1.0, 500.0), 2: Cost(1.0, 520.0)}) > 520


@pytest.mark.slow
def test_every_table_is_measured(tmp_path: Path) -> None:
    place = make_place(tmp_path / "tiny")
    assert speed.run(speed.Options(only=("packs", "ranks", "sides"), rounds=1, steps=1, sizes=(1, 2), ranks=(4,),
                                   sides=(16,), model=str(place))) == 0  # fmt: skip


@pytest.mark.parametrize("name", forecast.SWEEPS)
def test_sweeps_of_the_forecast_are_valid(name: str) -> None:
    from sweeps.lr_robustness import RobustnessOptions
    from training.command_line import parse

    _, words = forecast.SWEEPS[name]
    options = parse(RobustnessOptions, "", list(words))
    options.check()
    assert len(options.specs()) == len(options.method)


STAND_IN = """
import pathlib, sys, time
runs = pathlib.Path(sys.argv[sys.argv.index("--runs") + 1]) / "lr_robustness"
if runs.exists():
    sys.exit()
print("2 packs of up to 4, 2 workers on cpu: about 1 s")
runs.mkdir(parents=True)
if "--fails" in sys.argv:
    sys.exit("no such subject")
(runs / "fig2_lr_robustness.png").touch()
time.sleep(0.5)
"""


def test_a_first_answer_is_timed_as_its_user_waits_for_it(tmp_path: Path) -> None:
    script, waited = tmp_path / "stand_in.py", first_answer.Waited()
    script.write_text(STAND_IN)
    first_answer.wait_for([str(script)], {}, waited)
    assert 0 < waited.plan[0] < waited.whole[0] - 0.5
    assert waited.first[0] < 0.4, "it is there while the command goes on"
    assert waited.again[0] < waited.whole[0] - 0.4
    assert "| 1 |" in first_answer.to_markdown({"run": waited}, "AVX2")
    with pytest.raises(BadInput, match="ended with 1: no such subject"):
        first_answer.wait_for([str(script), "--fails"], {}, waited)


def test_first_answers_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for words in first_answer.COMMANDS.values():
        assert f"$(BIN)/python {' '.join(words)} $(ARGS)" in makefile
