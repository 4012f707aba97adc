"""Verdicts are computed: runs of known behaviour agree with a claim, contradict it, or leave it open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adapters import BadInput
from adapters.documents import read_toml
from analysis import load, subject_distances, subject_scores
from analysis.results import Results
from analysis.statements import fill
from analysis.statistics import Interval, t_interval
from analysis.verdicts import MEASURES, Claim, Options, judge, judge_claims, main, read_claims
from figures.registry import GALLERY, driver_of
from tests.make_runs import Shape, make_runs

ROOT = Path(__file__).resolve().parents[1]
SUBJECTS = tuple("abcdef")
SHAPES = {"lora": Shape(high=0.0, slope=0.3), "delora": Shape(high=4.0), "dora": Shape(diverges_from=4.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA falls from 1x on, DeLoRA does not, DoRA diverges at 4x."""
    root = tmp_path_factory.mktemp("results")
    shared = {"subjects": SUBJECTS, "noise_sd": 0.01, "multipliers": (1.0, 2.0, 4.0)}
    make_runs(root / "lr_robustness", shapes=SHAPES, **shared)
    make_runs(root / "one", shapes={"lora": Shape()}, subjects=("a",), multipliers=(1.0, 2.0), eval_steps=(10,))
    return root


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return load(folder / "lr_robustness")


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.1, 0.3), "agrees"), ((0.0, 0.5), "agrees"), ((0.6, 0.9), "contradicts"), ((-0.3, -0.1), "contradicts"),
        ((0.4, 0.6), "cannot be told"), ((-1.0, 2.0), "cannot be told"), ((np.nan, np.nan), "cannot be told"),
    ],
)  # fmt: skip
def test_an_interval_lies_inside_outside_or_neither(interval: tuple[float, float], verdict: str) -> None:
    assert judge(Interval(np.mean(interval), *interval, 8), 0.0, 0.5) == verdict


@pytest.mark.parametrize(
    ("measure", "arguments", "agrees", "contradicts"),
    [
        ("loss_at", {"series": "LoRA", "multiplier": 4.0}, (0.3, 0.9), (-np.inf, 0.05)),
        ("loss_at", {"series": "DeLoRA", "multiplier": 4.0}, (-0.15, 0.15), (0.2, np.inf)),
        ("difference", {"a": "DeLoRA", "b": "LoRA", "of": "sensitivity"}, (-np.inf, 0.0), (0.02, np.inf)),
        ("distance_octaves", {"series": "LoRA", "start": 1.0, "end": 4.0}, (1.9, 2.1), (-0.2, 0.2)),
        ("distance_reached", {"series": "DeLoRA", "share": 0.5}, (0.45, 0.55), (0.8, np.inf)),
        ("diverged", {}, (0.5, np.inf), (-np.inf, 0.2)),
    ],
)
def test_each_measure_gives_each_verdict(
    measure: str, arguments: dict, agrees: tuple[float, float], contradicts: tuple[float, float], folder: Path
) -> None:
    ranges = {"agrees": agrees, "contradicts": contradicts}
    claims = [Claim(v, "", "", "lr_robustness", measure, arguments, low, high) for v, (low, high) in ranges.items()]
    table = judge_claims(folder, claims)
    assert table["verdict"].to_list() == ["agrees", "contradicts"], table[["mean", "low", "high", "note"]]
    middle = table["mean"].iloc[0]
    (row,) = judge_claims(folder, [Claim("", "", "", "lr_robustness", measure, arguments, middle)]).to_dict("records")
    wide = row["high"] > row["low"]
    assert row["verdict"] == ("cannot be told" if wide else "agrees")


def test_loss_is_that_of_the_subjects_against_the_best_other_point(results: Results) -> None:
    found = MEASURES["loss_at"](results, "LoRA", 4.0)
    rows = subject_scores(results).query("series == 'LoRA' and metric == 'dino'")
    wide = rows.pivot(index="subject", columns="multiplier", values="value")
    gain = wide[1.0].mean() - rows.groupby("subject")["base"].mean().mean()
    assert found == pytest.approx(t_interval((wide[1.0] - wide[4.0]) / gain))
    assert MEASURES["loss_at"](results, "LoRA", 1.0).mean < 0, "the best point loses nothing, and gains on the next"


def test_loss_against_a_rate_named_beforehand_chooses_nothing(results: Results) -> None:
    rows = subject_scores(results).query("series == 'LoRA' and metric == 'dino'")
    wide = rows.pivot(index="subject", columns="multiplier", values="value")
    base = rows.groupby("subject")["base"].mean().mean()
    reference = min(set(wide) - {4.0}, key=lambda multiplier: wide[multiplier].mean())
    found = MEASURES["loss_at"](results, "LoRA", 4.0, reference=reference)
    expected = t_interval((wide[reference] - wide[4.0]) / (wide[reference].mean() - base))
    assert found == pytest.approx(expected)
    with pytest.raises(BadInput, match="no score of LoRA at 3;"):
        MEASURES["loss_at"](results, "LoRA", 4.0, reference=3.0)


def test_criteria_of_the_second_edition_came_before_its_data() -> None:
    claims = read_claims(ROOT / "docs" / "claims.toml")
    assert not any(claim.is_exploratory for claim in claims)
    pilot = {claim.id for claim in read_claims(ROOT / "docs" / "pilot" / "claims.toml")}
    dropped = {row["id"] for row in read_toml(ROOT / "docs" / "claims.toml")[0]["dropped"]}
    assert pilot - {claim.id for claim in claims} == dropped, "every claim of the pilot stays counted"


def test_distances_are_compared_subject_by_subject(results: Results) -> None:
    wide = subject_distances(results).query("series == 'DeLoRA'").pivot(
        index="subject", columns="multiplier", values="value"
    )  # fmt: skip
    wanted = np.log2(wide[4.0] / wide[1.0]).mean()
    assert MEASURES["distance_octaves"](results, "DeLoRA", 1.0, 4.0).mean == pytest.approx(wanted)


def test_loss_at_the_end_counts_steps(tmp_path: Path) -> None:
    results = load(make_runs(tmp_path, multipliers=(1.0,), subjects=SUBJECTS, eval_steps=(4, 10), dynamics=False))
    assert MEASURES["loss_at_end"](results, "DeLoRA").mean == pytest.approx(0, abs=1e-6), "at its best since step 10"


@pytest.mark.parametrize(
    ("sweep", "measure", "arguments", "said"),
    [
        ("rank_robustness", "diverged", {}, "no results in .*: run python sweeps/rank_robustness.py"),
        ("lr_robustness", "loss_at", {"series": "OFT", "multiplier": 4.0}, "no dino of 'OFT'; there are LoRA"),
        ("lr_robustness", "loss_at", {"series": "LoRA", "multiplier": 3.0}, "no score of LoRA at 3; there are 1.0"),
        ("lr_robustness", "distance_octaves", {"series": "LoRA", "start": 1.0, "end": 9.0}, "no distance of LoRA at 9x"),
        ("lr_robustness", "difference", {"a": "OFT", "b": "LoRA", "of": "area"}, "no series 'OFT'"),
        ("lr_robustness", "distance_reached", {"series": "OFT", "share": 0.5}, "no series 'OFT'"),
        ("lr_robustness", "direction_correlation", {"series": "OFT"}, "no series 'OFT' at its base rate"),
        ("one", "loss_at", {"series": "LoRA", "multiplier": 2.0}, "one subject or none: no interval"),
    ],
)  # fmt: skip
def test_what_is_missing_cannot_be_told_and_is_named(
    sweep: str, measure: str, arguments: dict, said: str, folder: Path
) -> None:
    import re

    (row,) = judge_claims(folder, [Claim("x", "", "", sweep, measure, arguments, 0.0)]).to_dict("records")
    assert row["verdict"] == "cannot be told"
    assert re.search(said, row["note"]), row["note"]


@pytest.mark.parametrize("folder", [ROOT / "docs", ROOT / "docs" / "pilot"], ids=["second edition", "pilot"])
def test_claims_of_the_papers_can_be_read_and_name_drivers(folder: Path) -> None:
    claims, found = (read_claims(folder / name) for name in ("claims.toml", "findings.toml"))
    assert len({claim.id for claim in [*claims, *found]}) == len(claims) + len(found)
    assert all(claim.is_exploratory for claim in found)
    for claim in claims:
        assert (ROOT / "sweeps" / f"{driver_of(claim.sweep)}.py").is_file()
        assert claim.source
        assert claim.claim.endswith(".")


def test_claims_on_text_were_written_down_before_their_runs() -> None:
    claims = read_claims(ROOT / "docs" / "text_claims.toml")
    assert not any(claim.is_exploratory for claim in claims)
    assert {driver_of(claim.sweep) for claim in claims} <= set(GALLERY)
    assert all(claim.source and claim.claim.endswith(".") for claim in claims)


def test_every_measure_has_a_claim_and_the_pilots_of_fig_2_are_exploratory() -> None:
    files = [ROOT / "docs" / name for name in ("claims.toml", "pilot/claims.toml", "pilot/findings.toml")]
    claims, pilot, _ = read = [read_claims(path) for path in files]
    assert {claim.measure for some in read for claim in some} == set(MEASURES)
    assert all(claim.is_exploratory == (claim.sweep == "lr_robustness") for claim in pilot)
    assert not any(claim.is_exploratory for claim in claims)


def test_claims_are_judged_from_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(Options(folder, (ROOT / "docs" / "claims.toml",), tmp_path))
    assert "lora-degrades" in capsys.readouterr().out
    assert "run python sweeps/design_ablation.py" in (tmp_path / "verdicts.csv").read_text()


LOSS = '[[claim]]\nid="x"\nsource=""\nclaim=""\nsweep="s"\nmeasure="loss_at"\nlow=0.0'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("claim = [", "cannot be read"),
        ('[[claim]]\nid = "x"\nvalue = 3', "unexpected keyword argument 'value'; keys are id, source"),
        ('[[claim]]\nid = "x"', "missing 4 required"),
        ('[[claim]]\nid="x"\nsource=""\nclaim=""\nsweep="s"\nmeasure="luck"\nlow=0.0', "unknown measure 'luck' of x"),
        ('[[claim]]\nid="x"\nsource=""\nclaim=""\nsweep="s"\nmeasure="diverged"', "x needs a low below its high"),
        (
            '[[claim]]\nid="x"\nsource=""\nclaim=""\nsweep="s"\nmeasure="diverged"\nhigh=0.25\nnum_subjects=8',
            "no outcome of 8 subjects can meet its criterion; 12 can",
        ),
        (
            '[[claim]]\nid="x"\nsource=""\nclaim=""\nsweep="s"\nmeasure="diverged"\nhigh=0.25\nfixed="yesterday"',
            "fixed is 'yesterday', not a time with its zone",
        ),
        (
            '[[claim]]\nid="x"\nsource=""\nclaim=""\nsweep="s"\nmeasure="diverged"\nlow=1.0\nhigh=0.0',
            "needs a low below",
        ),
        ("", "claim is missing"),
        ('[[claims]]\nid="x"', "unknown table 'claims'; allowed: \\[\\[claim\\]\\] and \\[\\[dropped\\]\\]"),
        (
            f"{LOSS}\narguments={{series='LoRA', multiplier=4.0, of='area'}}",
            "loss_at has no argument 'of'; allowed: series,",
        ),
        (f"{LOSS}\narguments={{series='LoRA'}}", "loss_at lacks the argument 'multiplier'"),
        (
            f"{LOSS}\narguments={{series='LoRA', multiplier='one'}}",
            "argument multiplier: it is 'one', not a finite number",
        ),
        (f"{LOSS}\narguments={{series=[1], multiplier=4.0}}", "argument series: it is \\[1\\], not text"),
        (f"{LOSS}\nnum_subjects=-5", "num_subjects is -5, not a whole number from 0 on"),
        (LOSS.replace('"s"', '"../../etc"'), "sweep is '../../etc', not a path that stays inside its folder"),
    ],
)
def test_claims_that_cannot_be_are_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "claims.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=said):
        read_claims(path)


def test_sweeps_of_one_name_are_told_apart_and_damage_is_named(folder: Path, tmp_path: Path) -> None:
    fewer = make_runs(
        tmp_path / "other" / "lr_robustness", shapes=SHAPES, multipliers=(1.0, 4.0), subjects=SUBJECTS[:3]
    )
    (tmp_path / "first").symlink_to(folder)
    arguments = {"series": "LoRA", "multiplier": 4.0}
    claims = [Claim(name, "", "", f"{name}/lr_robustness", "score", arguments, 0.0) for name in ("first", "other")]
    assert list(judge_claims(tmp_path, claims)["num_subjects"]) == [len(SUBJECTS), 3]
    next(fewer.rglob("run.json")).write_text("no")
    (row,) = judge_claims(tmp_path, claims[1:]).to_dict("records")
    assert "run.json" in row["note"]
    with pytest.raises(BadInput, match="no folder of results .*nowhere"):
        judge_claims(tmp_path / "nowhere", claims)
    with pytest.raises(BadInput, match="two claims have the id 'first'"):
        judge_claims(tmp_path, [claims[0], claims[0]])


def test_a_sentence_holds_what_is_measured_or_is_refused(folder: Path) -> None:
    claim = Claim(
        "keeps", "", "", "lr_robustness", "difference", {"a": "DeLoRA", "b": "LoRA", "of": "sensitivity"}, high=0.0
    )
    verdicts = judge_claims(folder, [claim])
    row = verdicts.iloc[0]
    text = fill("It loses less (<!-- keeps: agrees -->9 [8, 7]<!-- end -->).", verdicts)
    assert text == (
        f"It loses less (<!-- keeps: agrees -->{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]<!-- end -->)."
        if abs(row["mean"]) >= 0.1
        else f"It loses less (<!-- keeps: agrees -->{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]<!-- end -->)."
    )
    assert fill(text, verdicts) == text
    with pytest.raises(BadInput, match="keeps is 'agrees', the sentence says 'cannot be told'"):
        fill("<!-- keeps: cannot be told --><!-- end -->", verdicts)
    with pytest.raises(BadInput, match="no claim 'luck'"):
        fill("<!-- luck: agrees --><!-- end -->", verdicts)
