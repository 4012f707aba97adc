"""Whether the order of methods carries over from one task to another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from adapters.errors import BadInput
from analysis import Results, load, plateau, subject_scores
from analysis.carry_over import MEASURES, carry_over, describe, main, spearman
from tests.make_runs import Shape, make_runs
from tests.make_tasks import as_text

SUBJECTS = tuple("abcdef")
WIDE = {
    "lora": 0.5,
    "dora": 1.0,
    "dora-fixed": 2.0,
    "etherplus": 3.0,
    "delora": 4.0,
}  # octaves above the base rate, and the gains' order


def make(folder: Path, order: dict[str, float], **more: object) -> Results:
    """Methods whose plateaus end one after the other."""
    shapes = {name: Shape(low=0.0, high=high, gain=0.2 + 0.1 * high) for name, high in order.items()}
    fields = {"noise_sd": 0.005, "dynamics": False, **more}
    return load(make_runs(folder, shapes=shapes, subjects=SUBJECTS, **fields))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Five methods in their order."""
    return make(tmp_path_factory.mktemp("pictures"), WIDE)


def test_the_same_order_carries_over_and_the_reverse_turns_round(pictures: Results, tmp_path: Path) -> None:
    reverse = dict(zip(WIDE, list(WIDE.values())[::-1], strict=True))
    for other, rho, verdict in (
        (as_text(pictures), 1.0, "carries over"),
        (make(tmp_path, reverse), -1.0, "turns round"),
    ):
        found = carry_over(pictures, other)
        assert found.ranks["rho"].to_list() == pytest.approx([rho, rho])
        assert found.ranks.set_index("measure")["verdict"]["area"] == verdict
        assert verdict in describe(found)[0]


def test_points_are_those_of_the_plateau_table(pictures: Results) -> None:
    table = plateau(subject_scores(pictures)).query("metric == 'dino'").set_index("series")
    points = carry_over(pictures, as_text(pictures)).points
    for measure in MEASURES:
        own = points[points["measure"] == measure].set_index("series")
        np.testing.assert_allclose(own["first"], table.loc[own.index, measure], rtol=1e-9)
        np.testing.assert_allclose(own["first"], own["second"], rtol=1e-9)
        assert (own["first_low"] <= own["first"] + 1e-9).all()
        assert (own["first"] <= own["first_high"] + 1e-9).all()


def test_three_methods_tell_nothing(pictures: Results, tmp_path: Path) -> None:
    """Drawn anew, three methods have any order."""
    few = make(tmp_path, {name: WIDE[name] for name in ("lora", "dora-fixed", "delora")})
    ranks = carry_over(pictures, few).ranks
    assert set(ranks["num_series"]) == {3}
    assert set(ranks["verdict"]) <= {"cannot be told", "carries over"}
    assert ranks["rho"].to_list() == pytest.approx([1.0, 1.0])


def test_the_correlation_is_scipys() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(6, 7)), draw.normal(size=(6, 7)).round(0)
    np.testing.assert_allclose(spearman(a, b), [stats.spearmanr(x, y)[0] for x, y in zip(a, b, strict=True)])
    assert np.isnan(spearman(np.ones((1, 4)), a[:1, :4])).all(), "one value for all has no order"


def test_methods_that_differ_by_nothing_are_not_told(tmp_path: Path) -> None:
    alike = dict.fromkeys(WIDE, 2.0)
    first, second = (make(tmp_path / str(steps), alike, steps=steps, noise_sd=0.05) for steps in (20, 22))
    assert carry_over(first, second).ranks["verdict"].to_list() == ["cannot be told"] * 2


def test_what_cannot_be_compared_is_one_line(
    pictures: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = make(tmp_path / "two", {name: WIDE[name] for name in ("lora", "dora-fixed")})
    with pytest.raises(
        BadInput, match=r"share 2 methods \(LoRA, DoRA \(fixed magnitude\)\); a correlation over methods needs 3"
    ):
        carry_over(pictures, two)
    other = make(tmp_path / "grid", WIDE, multipliers=(3.0, 5.0))
    with pytest.raises(BadInput, match="share 0 multipliers; their grids need 2 in common"):
        carry_over(pictures, other)
    assert main([str(tmp_path / "two"), str(tmp_path / "nowhere")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_command_writes_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        make(tmp_path / name, WIDE)
    assert main([str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "out")]) == 0
    assert "rank correlation 1.00" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").glob("*.md")} == {"carry_over.md", "carry_over_points.md"}
