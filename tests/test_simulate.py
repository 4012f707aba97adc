"""Simulated studies: printed intervals cover, tests keep their level, and wrong units do not. The full table is `slow`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from adapters import BadInput
from benchmarks.simulate import (
    SIZES,
    TABLES,
    Options,
    differences,
    dropped,
    false_findings,
    headline,
    main,
    matched,
    means_and_units,
    plateaus,
    simulate,
    write_table,
)
from benchmarks.simulated import SHAPES

CONSERVATIVE = ("width", "edge", "sensitivity", "at_best", "joint", "interquartile", "peak")  # may cover more than 97 %


def percentages(study: object, size: tuple[int, int], studies: int) -> pd.Series:
    """The percentage of every row of one size."""
    frame = simulate(study, (size,), studies, seed=1)  # type: ignore[arg-type]
    return frame.set_index("subjects x seeds").iloc[:, 0]


def test_means_cover_with_the_subject_as_unit_only() -> None:
    found = percentages(means_and_units, (8, 3), 1000)
    assert found["mean, subjects as units"] == pytest.approx(95, abs=2.0)
    assert found["mean, (subject, seed) pairs as units"] < 85
    assert found["mean, pictures as units"] < 50


def test_plateaus_cover_and_their_bootstrap_does_not() -> None:
    """60 studies: of a true 95 % fewer than 84 % are seen once in four thousand times."""
    found = percentages(plateaus, (8, 1), 60)
    assert (found > 83).all(), found[found <= 83]
    assert percentages(dropped, (8, 1), 40)["width, flat, bootstrap over subjects"] < 50


def test_differences_cover() -> None:
    found = percentages(differences, (8, 1), 60)
    assert (found > 83).all(), found[found <= 83]


def test_area_and_half_gain_width_cover_and_find() -> None:
    """30 studies: of a true 95 % fewer than 73 % are seen once in ten thousand times."""
    found = percentages(headline, (12, 1), 30)
    covers = found[[name.startswith("covers: area") for name in found.index]]
    assert (covers > 73).all(), covers
    assert found["finds: area, DeLoRA - LoRA"] > 90
    assert found["finds: half-gain width, DeLoRA - LoRA"] > found["finds: 5 % width, DeLoRA - LoRA"]
    matched_prompt = percentages(matched, (12, 1), 10)
    assert set(matched_prompt.index) == {"mean gain, LoRA", "mean gain, DeLoRA", "difference, LoRA - DeLoRA"}
    assert (matched_prompt > 50).all(), matched_prompt


def test_sign_flips_keep_their_level_and_holm_the_familys() -> None:
    found = percentages(false_findings, (8, 1), 60)
    assert (found.drop("any of 6, uncorrected") <= 15).all(), found
    assert found["any of 6, uncorrected"] > found["any of 6, Holm"]


def test_studies_depend_on_their_seed_only() -> None:
    one, two = (simulate(means_and_units, ((6, 1),), 50, num_processes=n) for n in (1, 2))
    pd.testing.assert_frame_equal(one, two)
    assert set(SHAPES) == {"flat", "hill", "peak"}


def test_page_keeps_what_stands_around_a_table(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    write_table(page, "one", "old")
    page.write_text(f"# Title\n\n{page.read_text()}\nThe end.\n")
    write_table(page, "one", "new")
    assert page.read_text() == "# Title\n\n<!-- one -->\nnew\n<!-- end of one -->\n\nThe end.\n"
    write_table(page, "two", "more")
    assert page.read_text().endswith("The end.\n\n<!-- two -->\nmore\n<!-- end of two -->\n")


def test_command_writes_the_tables_asked_for(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    main(Options(page, tables=("means_and_units", "spreads_and_rates"), studies=2))
    text = page.read_text()
    assert [name for name, (title, _) in TABLES.items() if f"### {title}" in text] == [
        "means_and_units",
        "spreads_and_rates",
    ]
    assert text.count("2 studies of each size") == 2
    with pytest.raises(BadInput, match="unknown table means; allowed: means_and_units"):
        main(Options(page, tables=("means",)))


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_coverage_and_levels_at_every_size(size: tuple[int, int]) -> None:
    """600 studies: the standard error of 95 % is 0.9."""
    for study in (differences, plateaus):
        found = percentages(study, size, 600)
        assert (found > 90).all(), found[found <= 90]
        exact = found[[not any(word in str(name) for word in CONSERVATIVE) for name in found.index]]
        assert (exact < 98).all(), exact[exact >= 98]
    levels = percentages(false_findings, size, 600)
    assert (levels.drop("any of 6, uncorrected") < 8).all(), levels
