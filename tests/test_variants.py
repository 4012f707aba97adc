"""Drivers that compare variants of a method: every variant is trained, drawn and compared with the one it is meant for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import figures
from adapters import BadInput
from analysis import load, plateau, plateau_by_setting, scores_by_setting, subject_scores
from analysis.results import Results
from figures.looks import looks
from sweeps import design_ablation, lr_robustness, rank_robustness, start_robustness
from tests.make_driver import Driven, drive_studio
from tests.make_runs import Shape, assert_drawn, make_runs
from tests.make_studio import Studio
from tests.test_figures import axes_of, line_of, words_of

GRID = ("--multipliers", "1", "4")


def assert_fig2_shows_the_table(driven: Driven, name: str) -> None:
    """Every DINO mean of the summary is on its series' line."""
    ax = axes_of(driven.drawn[name], "dino")
    summary = driven.table("summary").query("series != 'base model'")
    for series, rows in summary.groupby("series"):
        assert_drawn(line_of(ax, str(series)), rows[["multiplier", "dino"]])
    assert (driven.folder / f"{name}.png").stat().st_size > 10_000


@pytest.mark.slow
def test_ablation_compares_each_row_of_table_1_with_the_one_before(studio: Studio, tmp_path: Path) -> None:
    driven = drive_studio(studio, design_ablation, tmp_path, *GRID)
    assert driven.code == 0, driven.err
    rows = [
        "LoRA", "LoRA + boundary", "DeLoRA", "ETHER+ with boundary, rank, relaxed", "ETHER+ with boundary, rank",
        "ETHER+ with boundary", "ETHER+ (sides=one)",
    ]  # fmt: skip
    summary = driven.table("summary")
    assert list(summary["series"].unique()) == ["base model", *rows], "the order of the paper's table"
    assert_fig2_shows_the_table(driven, "table1_design_ablation")
    steps = driven.table("differences").query("measure == 'area'")
    assert list(zip(steps["b"], steps["a"])) == list(zip(rows, rows[1:]))
    area = driven.table("plateau").query("metric == 'dino'").set_index("series")["area"]
    np.testing.assert_allclose(steps["mean"], [area[a] - area[b] for b, a in zip(rows, rows[1:])], atol=1e-9)
    assert set(steps["num_subjects"]) == {2}


def test_starts_are_compared_with_the_first(studio: Studio, tmp_path: Path) -> None:
    driven = drive_studio(studio, start_robustness, tmp_path, *GRID)
    assert driven.code == 0, driven.err
    assert_fig2_shows_the_table(driven, "start_robustness")
    differences = driven.table("differences")
    assert set(differences["b"]) == {"DeLoRA"}
    assert differences["a"].nunique() == 5
    runs = load(driven.folder).runs
    assert runs.groupby(["multiplier", "subject"])["options"].nunique().eq(6).all()
    assert runs.groupby("multiplier")["lr"].nunique().eq(1).all(), "all of them have DeLoRA's base rate"


def test_ranks_have_a_plateau_each(studio: Studio, tmp_path: Path) -> None:
    driven = drive_studio(studio, rank_robustness, tmp_path, "--method", "lora", "delora", "--ranks", "1", "4", *GRID)
    assert driven.code == 0, driven.err
    assert_fig2_shows_the_table(driven, "rank_robustness")
    table = driven.table("plateau_vs_rank").query("metric == 'dino'")
    assert table[["series", "value"]].to_numpy().tolist() == [
        ["LoRA", 1], ["DeLoRA", 1], ["LoRA", 4], ["DeLoRA", 4],
    ]  # fmt: skip
    whole = driven.table("plateau").query("metric == 'dino'").set_index("series")
    for row in table.to_dict("records"):
        assert row["peak"] == pytest.approx(whole["peak"][f"{row['series']}, rank {row['value']:g}"])
    drawn = line_of(axes_of(driven.drawn["plateau_vs_rank"], "rank peak"), "LoRA")[:, 1]
    assert_drawn(drawn, table.query("series == 'LoRA'")["peak"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--ranks", "0", "4"), "--ranks is 0 4; allowed: whole numbers from 1 on"),
        (("--ranks", "64"), "--rank is 64; the smallest matrix"),
        (("--method", "lora", "etherplus"), "--method has etherplus, which has no rank"),
    ],
)
def test_ranks_that_cannot_be_are_refused(
    arguments: tuple[str, ...], said: str, studio: Studio, tmp_path: Path
) -> None:
    driven = drive_studio(studio, rank_robustness, tmp_path, *arguments)
    assert (driven.code, driven.out) == (2, "")
    assert driven.err.startswith(f"error: {said}")


# The numbers and the figure, on runs of known plateaus.


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """DeLoRA, whose plateau ends at 2^rank, and LoRA."""
    root = tmp_path_factory.mktemp("ranks")
    for rank in (1, 2, 3):
        shapes = {"lora": Shape(), "delora": Shape(high=float(rank))}
        make_runs(root, shapes=shapes, rank=rank, sweep=f"rank-{rank}", dynamics=False)
    return load(root)


def test_plateau_by_setting_is_the_plateau_of_those_runs(ranked: Results) -> None:
    frame = plateau_by_setting(ranked, {"rank": [1, 2, 3]})
    assert set(frame["setting"]) == {"rank"}
    for rank in (1, 2, 3):
        own = plateau(subject_scores(ranked.select(rank=rank))).drop(columns="series")
        found = frame[frame["value"] == rank].drop(columns=["setting", "value", "series"])
        pd.testing.assert_frame_equal(found.reset_index(drop=True), own)
    width = frame.query("series == 'DeLoRA' and metric == 'dino'")["width_octaves"].to_numpy()
    np.testing.assert_allclose(np.diff(width), 1.0, atol=1e-6)


def test_other_settings_are_kept_at_their_defaults(ranked: Results) -> None:
    frame = plateau_by_setting(ranked, {"rank": [2], "boundary": [0.5, None]})
    assert set(frame.query("setting == 'rank'")["value"]) == {1, 2, 3}
    lambdas = frame.query("setting == 'boundary'")
    assert set(lambdas["series"]) == {"DeLoRA"}, "LoRA has no lambda, and so no row"
    own = plateau(subject_scores(ranked.select(rank=2, method="delora")))
    assert_drawn(lambdas["width_octaves"], own["width_octaves"])
    with pytest.raises(BadInput, match="rank="):
        plateau_by_setting(ranked, {"rank": [4], "boundary": [0.5]})


def test_what_else_differs_is_in_the_name_and_never_left_out(ranked: Results) -> None:
    frame = plateau_by_setting(ranked, {"boundary": [0.5, None]})
    assert set(frame["series"]) == {f"DeLoRA, rank {rank}" for rank in (1, 2, 3)}
    figures.rate_by_setting.draw(scores_by_setting(ranked, {"boundary": [0.5, None]}))


def test_figure_draws_every_plateau_with_its_interval(ranked: Results) -> None:
    frame = plateau_by_setting(ranked, {"rank": [1, 2, 3]})
    figure = figures.plateau_vs_setting.draw(frame)
    dino = frame[frame["metric"] == "dino"]
    for measure in ("peak", "area", "half_width"):
        ax = axes_of(figure, f"rank {measure}")
        for series in ("LoRA", "DeLoRA"):
            rows = dino[dino["series"] == series]
            assert_drawn(line_of(ax, series)[:, 1], rows[measure])
            (bars,) = [part for part in ax.collections if part.get_label() == f"_bar {series}"]
            ends = np.array(bars.get_segments())[:, :, 1]
            np.testing.assert_allclose(ends, rows[[f"{measure}_low", f"{measure}_high"]], rtol=5.1e-6, atol=1e-9)
    assert [text.get_text() for text in axes_of(figure, "rank half_width").get_xticklabels()] == ["1", "2", "3"]
    assert line_of(axes_of(figure, "rank peak"), "_base")[0, 1] == pytest.approx(dino["base"].mean())
    assert "DeLoRA (n = 3)" in words_of(figure)
    with pytest.raises(BadInput, match="no finished run"):
        figures.plateau_vs_setting.draw(frame[:0])


def test_open_plateaus_are_marked_and_all_pictures_come_last(ranked: Results) -> None:
    frame = plateau_by_setting(ranked, {"rank": [1, 2, 3]}).query("metric == 'dino'")
    frame = frame.assign(setting="num_instance_images", value=frame["value"].map({1: 2.0, 2: 4.0, 3: 0.0}))
    frame["half_open_low"], frame["half_open_high"] = False, frame["value"] == 0
    figure = figures.plateau_vs_setting.draw(frame)
    ax = axes_of(figure, "num_instance_images half_width")
    assert [text.get_text() for text in ax.get_xticklabels()] == ["2", "4", "all"]
    widths = frame.query("series == 'DeLoRA' and value == 0")["half_width"]
    assert_drawn(line_of(ax, "_open DeLoRA")[:, 1], widths)
    assert "at least so wide" in words_of(figure)


def test_variants_of_one_method_are_told_apart_by_colour() -> None:
    alone = looks(pd.DataFrame({"series": list("abcdefg"), "method": "delora"}))
    assert len({look.color for look in alone.values()}) == 7
    beside = looks(pd.DataFrame({"series": list("abc"), "method": ["lora", "lora", "dora"]}))
    assert len({look.color for look in beside.values()}) == 3
    assert beside["a"].color == "#0072B2"


@pytest.mark.parametrize("diverges_from", [None, 0.1])
def test_one_subject_and_runs_that_all_diverged_are_drawn(diverges_from: float | None, tmp_path: Path) -> None:
    shapes = {"delora": Shape(diverges_from=diverges_from)}
    for rank in (1, 2):
        make_runs(tmp_path, shapes=shapes, rank=rank, sweep=f"rank-{rank}", subjects=("cat",), dynamics=False)
    figure = figures.plateau_vs_setting.draw(plateau_by_setting(load(tmp_path), {"rank": [1, 2]}))
    figure.draw_without_rendering()
    assert "One subject: no interval" in words_of(figure)
    assert ("some runs diverged" in words_of(figure)) == (diverges_from is not None)


def test_further_seeds_split_the_spread_of_the_first_subjects(studio: Studio, tmp_path: Path) -> None:
    flags = (
        "--method",
        "lora",
        "--base-lr",
        "1e-2",
        "--base-lr-for-all",
        "--multipliers",
        "1",
        "--split-subjects",
        "1",
    )
    driven = drive_studio(studio, lr_robustness, tmp_path, *flags, "--split-seeds", "0", "1", "2")
    assert driven.code == 0, driven.err
    assert "4 cells: 0 done, 4 to train" in driven.out, "one seed on two subjects, two more on the first"
    variance = driven.table("variance")
    assert variance[["num_subjects", "num_seeds", "num_runs"]].to_numpy().tolist() == [[1, 3, 3]]
    again = drive_studio(studio, lr_robustness, tmp_path / "none", *flags[:-1], "3", "--split-seeds", "1")
    assert (again.code, again.out) == (2, "")
    assert "--split-subjects is 3; allowed: a number from 1 to 2, that of the subjects" in again.err
