"""Controls of the scorers: what is measured, when they pass, and that no report leaves out where they fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import figures
from adapters import BadInput
from analysis import controls as command
from analysis import export_compact, judge_controls, load, plateau_sentence, robustness
from analysis.control_verdicts import FAILS, OPEN, PASSES, control_gaps, control_scores
from analysis.control_words import (
    describe_controls,
    failing,
    failing_words,
    unmeasured_subjects,
    unreliable,
    with_controls,
)
from analysis.results import Results
from analysis.statements import fill
from analysis.verdicts import Claim, judge_claims
from figures.figure_set import FigureSet
from figures.registry import draw_lr_robustness
from slurm.worker.run import run_pack
from sweeps.report import say_plateaus
from tests.make_controls import BLIND, GOOD, make_control_rows, write_controls
from tests.make_runs import make_runs
from training import controls as measure
from training.cell import BASE, Cell
from training.pack import Setting
from training.store import COLUMNS, CONTROL_KINDS, DamagedFile, find_runs, write_json
from training.tasks import pipeline as pipelines
from training.tasks.controls import PATCHES, Controls, blur, key_of, shuffle_patches
from training.tasks.scorers import POCKET_CLIP, POCKET_DINO, to_tensor
from training.tasks.subject import SubjectTask
from training.tasks.subjects import Subject, open_pictures
from training.tasks.subjects import load as load_subject

SIDE = 32
SUBJECTS = ("cat", "cat2", "dog", "owl")


# What is measured.


def draw_subjects(folder: Path, num_photographs: int = 4) -> Path:
    """Photographs with a pattern of bright squares, the subject's own, and a little noise."""
    draw = np.random.default_rng(3)
    for name in SUBJECTS:
        (folder / name).mkdir(parents=True)
        pattern = np.kron(draw.integers(0, 2, (8, 8)), np.ones((4, 4)))[..., None] * 140 + 50
        for number in range(num_photographs):
            pixels = np.clip(pattern + draw.normal(0, 15, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    return folder


class Knowing:
    """Two scorers: by DINO each subject's pattern is known, and all else is like nothing; to CLIP-I all pictures are alike."""

    def __init__(self, folder: Path) -> None:
        shown = [to_tensor(open_pictures(sorted((folder / name).iterdir()), SIDE)).mean(0) for name in SUBJECTS]
        self.patterns = F.normalize(torch.stack([_pattern(picture) for picture in shown]), dim=-1)

    def dino_features(self, pictures: Tensor) -> Tensor:
        """What is left of the likeness to each pattern, and a direction of its own for the rest."""
        likeness = F.normalize(torch.stack([_pattern(p) for p in pictures]), dim=-1) @ self.patterns.T
        rest = [torch.randn(64, generator=torch.Generator().manual_seed(int(p.sum() * 1e4))) for p in pictures]
        return F.normalize(
            torch.cat([likeness.clamp(min=0) ** 4, 0.2 * F.normalize(torch.stack(rest), dim=-1)], 1), dim=-1
        )

    def clip_features(self, pictures: Tensor) -> Tensor:
        """The same for all."""
        return torch.full((len(pictures), 4), 0.5)


def _pattern(picture: Tensor) -> Tensor:
    grey = F.avg_pool2d(picture.mean(0, keepdim=True), 4).flatten()
    return grey - grey.mean()


class Standing(SubjectTask):
    """A task whose VAE gives back what it is given."""

    def __init__(self, subjects: list[Subject], scorers: Knowing) -> None:
        self.subjects, self.scorers = subjects, scorers
        self.pictures = {s.name: to_tensor(open_pictures(s.pictures, SIDE)) for s in subjects}
        self.cells = [SimpleNamespace(resolution=SIDE)]
        unet = SimpleNamespace(config=SimpleNamespace(in_channels=3))
        self.pipeline = SimpleNamespace(vae_factor=1, unet=unet, device=torch.device("cpu"))

    def clean_latents(self, name: str, chosen: list[int]) -> Tensor:
        """The photographs."""
        return self.pictures[name][chosen]

    def to_pictures(self, latents: Tensor) -> Tensor:
        """The latents, from 0 to 255."""
        return (latents.clamp(0, 1) * 255).round()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_subjects(tmp_path_factory.mktemp("subjects"))


@pytest.fixture(scope="module")
def measured(folder: Path) -> dict[str, pd.DataFrame]:
    subjects = [load_subject(folder, name, token="sks", instance_prompt="a {token} {cls}") for name in SUBJECTS]
    controls = Controls(Standing(subjects, Knowing(folder)), folder)
    return {subject.name: controls.measure(subject) for subject in subjects}


@pytest.mark.unchecked
def test_every_kind_is_scored_against_every_photograph_but_itself(measured: dict[str, pd.DataFrame]) -> None:
    for name, rows in measured.items():
        dino = rows[rows["metric"] == "dino"]
        assert set(rows["metric"]) == {"dino", "clip_i"}
        assert list(rows.columns) == list(COLUMNS["controls"])
        own = name.startswith("cat")
        assert set(dino["kind"]) == set(CONTROL_KINDS) - (set() if own else {"same_class"})
        assert (dino["picture"] != dino["against"]).all()
        assert dino["value"].notna().all()
        counts = dino.groupby("kind").size().to_dict()
        assert all(counts[kind] == 4 * 3 for kind in ("real", "vae", "blurred", "shuffled", "flat"))
        assert all(counts[kind] == 8 * 4 for kind in ("noise", "latent_noise"))
        assert counts["other"] == (2 if own else 3) * 3 * 4, "three photographs of each subject of another class"
        if own:
            other = {"cat": "cat2", "cat2": "cat"}[name]
            assert {p.split("/")[0] for p in dino.loc[dino["kind"] == "same_class", "picture"]} == {other}


@pytest.mark.unchecked
def test_a_scorer_that_knows_its_subjects_passes_and_one_that_cannot_tell_noise_fails(
    measured: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    root = make_runs(tmp_path / "runs", subjects=SUBJECTS, multipliers=(1.0,), dynamics=False)
    for run in find_runs(root / "base"):
        run.write_controls(measured[run.read()["cell"]["subject"]], "key")
    results = load(root)
    verdicts = judge_controls(results).set_index(["subject", "metric"])
    for name in SUBJECTS:
        assert verdicts.loc[(name, "dino"), "verdict"] == PASSES, verdicts.loc[(name, "dino"), "why"]
        blind = verdicts.loc[(name, "clip_i")]
        assert blind["verdict"] == FAILS
        assert {"noise near 0", "flat colour near 0", "other subjects near 0"} <= set(blind["why"].split("; "))
        assert blind["noise"] == pytest.approx(blind["real"])
    assert failing(results) == {name: ["clip_i"] for name in SUBJECTS}


@pytest.mark.unchecked
def test_the_key_follows_the_photographs_of_the_others(folder: Path, tmp_path: Path) -> None:
    assert key_of(folder) == key_of(folder)
    other = draw_subjects(tmp_path / "subjects")
    assert key_of(other) == key_of(folder), "where they lie does not matter"
    Image.new("RGB", (SIDE, SIDE), "red").save(other / "owl" / "00.png")
    assert key_of(other) != key_of(folder)


@pytest.mark.unchecked
def test_a_photograph_that_cannot_be_read_is_left_out_aloud(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = draw_subjects(tmp_path / "subjects")
    cat = load_subject(other, "cat", token="sks", instance_prompt="a {token} {cls}")
    (other / "owl" / "01.png").write_bytes(b"no picture")
    rows = Controls(Standing([cat], Knowing(folder)), other).measure(cat)
    assert "owl/00.png" in set(rows["picture"])
    assert "owl/01.png" not in set(rows["picture"])
    assert "left out of the controls: " in capsys.readouterr().err


def test_shuffled_patches_are_the_same_patches_elsewhere() -> None:
    pictures = torch.rand(3, 3, 18, 18)
    shuffled, side = shuffle_patches(pictures), 18 // PATCHES

    def patches(picture: Tensor) -> set[bytes]:
        places = [(side * row, side * column) for row in range(PATCHES) for column in range(PATCHES)]
        return {picture[:, y : y + side, x : x + side].numpy().tobytes() for y, x in places}

    for before, after in zip(pictures, shuffled, strict=True):
        assert patches(before) == patches(after)
        assert not torch.equal(before, after)
    assert torch.equal(pictures[..., 16:, :], shuffled[..., 16:, :])
    assert torch.equal(shuffled, shuffle_patches(pictures)), "the same whenever it is done"


def test_blur_keeps_flat_pictures_and_takes_detail() -> None:
    flat = torch.full((1, 3, 64, 64), 0.25)
    torch.testing.assert_close(blur(flat), flat)
    noise = torch.rand(1, 3, 64, 64)
    assert blur(noise).std() < 0.3 * noise.std()
    torch.testing.assert_close(blur(noise).mean(), noise.mean(), atol=5e-3, rtol=0)


# When controls pass.


def made_results(root: Path, levels: Mapping[str, Mapping[str, float] | None], num_photographs: int = 5) -> Results:
    """Results of as many subjects as levels name, with controls of those levels; None leaves a subject without."""
    make_runs(root, subjects=tuple(levels), multipliers=(1.0, 2.0))
    write_controls(root, {name: own for name, own in levels.items() if own is not None}, num_photographs)
    return load(root)


def judged(tmp_path: Path, levels: dict[str, float], num_photographs: int = 5) -> pd.Series:
    """The verdict on one subject's DINO."""
    return judge_controls(made_results(tmp_path / "runs", {"cat": levels}, num_photographs)).iloc[0]


def test_means_are_the_obvious_ones_and_intervals_hold_them(tmp_path: Path) -> None:
    results = made_results(tmp_path / "runs", {"cat": GOOD})
    rows = results.controls[results.controls["metric"] == "dino"]
    row = judge_controls(results).iloc[0]
    for kind, mean in rows.groupby("kind", observed=True)["value"].mean().items():
        assert row[kind] == pytest.approx(mean, abs=1e-6)
        assert row[f"{kind}_low"] <= mean <= row[f"{kind}_high"], kind
    assert row["base"] == pytest.approx(results.base.query("metric == 'dino'")["value"].mean())
    gaps = control_gaps(results).query("metric == 'dino'").set_index("criterion")
    assert gaps.loc["photographs > noise", "mean"] == pytest.approx(row["real"] - row["noise"])
    assert gaps.loc["noise near 0", "mean"] == pytest.approx(0.25 * row["real"] - row["noise"])
    again = load(tmp_path / "runs")
    pd.testing.assert_frame_equal(judge_controls(again), judge_controls(results))


def test_intervals_are_those_of_a_literal_bootstrap(tmp_path: Path) -> None:
    """Photographs are drawn; a photograph that was drawn twice is not scored against itself."""
    from analysis.statistics import subject_bootstrap

    results = made_results(tmp_path / "runs", {"cat": GOOD}, num_photographs=4)
    rows = results.controls[(results.controls["metric"] == "dino")]
    names = sorted(rows["against"].astype(str).unique())
    value = rows.astype({"kind": str, "picture": str, "against": str}).set_index(["kind", "picture", "against"])[
        "value"
    ]

    def literal(draws: np.ndarray) -> np.ndarray:
        found = []
        for draw in draws:
            pairs = [(names[i], names[j]) for i in draw for j in draw if i != j]
            real = np.mean([value["real", one, two] for one, two in pairs]) if pairs else np.nan
            noise = np.mean([value["noise", f"noise/{number}", names[j]] for number in range(4) for j in draw])
            found.append([real, real - noise])
        return np.array(found)

    (real_low, gap_low), (real_high, gap_high) = subject_bootstrap(literal, len(names))
    row = judge_controls(results).iloc[0]
    gap = control_gaps(results).set_index(["metric", "criterion"]).loc[("dino", "photographs > noise")]
    np.testing.assert_allclose([row["real_low"], row["real_high"]], [real_low, real_high], rtol=1e-6)
    np.testing.assert_allclose([gap["low"], gap["high"]], [gap_low, gap_high], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "verdict", "why"),
    [
        ({}, PASSES, ""),
        ({"noise": 0.75}, FAILS, "noise near 0"),
        ({"latent_noise": 0.5}, FAILS, "decoded noise near 0"),
        ({"flat": 0.3}, FAILS, "flat colour near 0"),
        ({"other": 0.4, "same_class": 0.5}, FAILS, "other subjects near 0"),
        ({"shuffled": 0.3}, FAILS, "other subjects not below shuffled patches"),
        ({"vae": 0.9}, FAILS, "photographs not below their VAE reconstructions"),
        ({"vae": 0.805}, PASSES, ""),
        ({"same_class": 0.9}, FAILS, "photographs > same class"),
        ({"latent_noise": 0.203}, OPEN, "decoded noise near 0"),
        (dict.fromkeys(GOOD, 0.0), OPEN, "photographs > noise"),
        (dict.fromkeys(GOOD, 0.9), FAILS, "noise near 0"),
    ],
)
def test_each_criterion_fails_alone(change: dict[str, float], verdict: str, why: str, tmp_path: Path) -> None:
    row = judged(tmp_path, GOOD | change)
    assert row["verdict"] == verdict, row["why"]
    assert why in row["why"].split("; ") if why else not row["why"]


def test_where_too_little_is_there_nothing_can_be_told(tmp_path: Path) -> None:
    for number, words in ((1, "1 photograph; 3 are needed"), (2, "2 photographs; 3 are needed")):
        row = judged(tmp_path / str(number), BLIND, number)
        assert (row["verdict"], row["why"]) == (OPEN, words)
        assert np.isnan(row["noise_low"])
    alone = {kind: level for kind, level in GOOD.items() if kind not in ("other", "same_class")}
    row = judged(tmp_path / "alone", alone)
    assert (row["verdict"], row["why"]) == (OPEN, "there are no other subjects")
    assert np.isnan(row["other"])
    no_class = {kind: level for kind, level in GOOD.items() if kind != "same_class"}
    assert judged(tmp_path / "class", no_class)["verdict"] == PASSES, "most classes have one subject"


# Reports.


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on three subjects; noise is taken for the second, nothing was measured on the third."""
    root = tmp_path_factory.mktemp("runs")
    made_results(root, {"cat": GOOD, "snail": BLIND, "owl": None})
    return root


def test_the_subjects_are_named_in_words(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = load(root)
    assert failing_words(results) == "controls fail on: snail (DINO, CLIP-I)"
    assert failing_words(results, ["dino"]) == "controls fail on: snail (DINO)"
    assert failing_words(results.select(subject="cat")) == ""
    assert unmeasured_subjects(results) == ["owl"]
    assert with_controls("So.", results) == "So. Controls fail on: snail (DINO, CLIP-I)."
    said = describe_controls(results)
    assert said == "Controls of the scorers fail on: snail (DINO, CLIP-I); were not measured on: owl."
    assert describe_controls(results.select(subject="owl")) == ""
    passes = "Controls of the scorers pass on 1 subject, all that there are."
    assert describe_controls(results.select(subject="cat")) == passes
    alone = made_results(root.parent / "no_class", {"cat": {k: v for k, v in GOOD.items() if k != "same_class"}})
    assert describe_controls(alone) == f"{passes[:-1]} (not measured: same class)."
    of_evidence = Results(results.all_runs.assign(split="evidence"), results.sources)
    say_plateaus(robustness(results).plateaus, of_evidence)
    sentences = capsys.readouterr().out.splitlines()
    assert sentences
    assert all(line.endswith("Controls fail on: snail (DINO).") for line in sentences)


def test_no_plateau_is_named_where_something_else_is_taken_for_every_subject(tmp_path: Path) -> None:
    results = made_results(tmp_path / "blind", dict.fromkeys(("cat", "dog", "owl"), BLIND))
    row = robustness(results).plateaus.query("metric == 'dino'").iloc[0]
    failed = unreliable(results, "dino")
    assert "No plateau is named: DINO takes other pictures for the subject" in plateau_sentence(row, failing=failed)
    assert "every subject" not in plateau_sentence(row, failing=failed[:2])
    order_alone = GOOD | {"shuffled": GOOD["real"] / 2}
    results = made_results(tmp_path / "order", dict.fromkeys(("cat", "dog", "owl"), order_alone))
    assert list(failing(results, ["dino"])) == ["cat", "dog", "owl"], "shuffled patches above other subjects"
    assert unreliable(results, "dino") == []


def test_notes_tables_and_figure_carry_them(root: Path, tmp_path: Path) -> None:
    results = load(root)
    drawn = draw_lr_robustness(results)
    assert describe_controls(results) in drawn.notes
    drawn.save(tmp_path, ())
    for name in ("summary", "plateau"):
        table = pd.read_csv(tmp_path / f"{name}.csv")
        assert set(table["controls_fail"]) == {"snail (DINO, CLIP-I)"}, name
    for name in ("controls", "control_gaps"):
        assert all((tmp_path / f"{name}.{ending}").exists() for ending in ("md", "tex", "csv"))
    found = pd.read_csv(tmp_path / "controls.csv").set_index(["subject", "metric"])["verdict"]
    assert found.to_dict() == {(s, m): v for s, v in (("cat", PASSES), ("snail", FAILS)) for m in ("dino", "clip_i")}
    texts = " ".join(text.get_text() for text in drawn.figures["fig2_lr_robustness"].texts)
    assert "snail (DINO, CLIP-I)" in " ".join(texts.split())


def test_the_figure_shows_every_picture_and_names_failures_in_red(root: Path) -> None:
    results = load(root)
    scores = control_scores(results)
    figure = figures.controls.draw(scores, judge_controls(results))
    assert [ax.get_label() for ax in figure.axes] == ["dino", "clip_i"]
    ax = figure.axes[0]
    shown = {line.get_label(): line.get_xdata() for line in ax.lines}
    for (kind, subject), rows in scores[scores["metric"] == "dino"].groupby(["kind", "subject"]):
        np.testing.assert_allclose(shown[f"_{kind} {subject}"], rows["value"], rtol=1e-5)
    colors = {text.get_text(): text.get_color() for text in ax.get_yticklabels()}
    assert colors["snail"] == figures.style.ALARM != colors["cat"]
    assert "photographs (n\u00a0=\u00a05)" in [text.get_text() for text in figure.legends[0].get_texts()]
    with pytest.raises(BadInput, match=r"training\.controls"):
        figures.controls.draw(scores[:0], judge_controls(results)[:0])


def test_claims_and_their_sentences_name_them(root: Path) -> None:
    claim = Claim("gain", "", "", root.name, "gain", {"series": "DeLoRA", "multiplier": 1.0}, low=-1.0)
    (row,) = judge_claims(root.parent, [claim]).to_dict("records")
    assert row["note"] == "controls fail on: snail (DINO, CLIP-I)"
    text = fill(f"<!-- gain: {row['verdict']} -->x<!-- end -->", pd.DataFrame([row]))
    assert "] (controls fail on: snail (DINO, CLIP-I))<!-- end -->" in text


def test_a_compact_copy_keeps_them(root: Path, tmp_path: Path) -> None:
    results = load(root)
    export_compact(results, tmp_path / "one")
    export_compact(load(tmp_path / "one"), tmp_path / "two")
    for name in ("one", "two"):
        pd.testing.assert_frame_equal(judge_controls(load(tmp_path / name)), judge_controls(results))
    export_compact(results.select(subject="owl"), tmp_path / "two")
    assert not (tmp_path / "two" / "controls.parquet").exists()
    assert judge_controls(load(tmp_path / "two")).empty


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def front(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command; its exit code and what it says."""

    def run(main: Callable[[list[str]], int], *words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_the_command_prints_and_writes(root: Path, tmp_path: Path, front: Command) -> None:
    code, out, err = front(command.main, root, "--out", tmp_path / "tables")
    assert (code, err) == (0, "")
    assert "| snail" in out
    assert out.rstrip().endswith("fail on: snail (DINO, CLIP-I); were not measured on: owl.")
    assert (tmp_path / "tables" / "control_gaps.csv").exists()


def test_folders_from_before_controls_are_read_and_told_what_to_do(tmp_path: Path, front: Command) -> None:
    results = made_results(tmp_path / "runs", {"cat": None, "dog": None})
    assert describe_controls(results) == ""
    drawn = FigureSet.of(results)
    assert not drawn.tables
    assert not drawn.controls_fail
    code, out, err = front(command.main, tmp_path / "runs")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert f"python -m training.controls {tmp_path / 'runs'}" in err
    for main in (command.main, measure.main):
        code, _, err = front(main, tmp_path / "none")
        assert (code, len(err.splitlines())) == (2, 1)
    code, _, err = front(measure.main, tmp_path / "runs")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "no run of the base model has ended" in err


def test_a_damaged_table_is_named_and_stops_no_figure(tmp_path: Path, front: Command) -> None:
    made_results(tmp_path / "runs", {"cat": GOOD, "dog": GOOD})
    (run, *_) = [run for run in find_runs(tmp_path / "runs") if run.controls.exists()]
    whole = run.controls.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:]):
        run.controls.write_bytes(damaged)
        assert run.controls_key() == "", "it is measured anew"
        with pytest.raises(DamagedFile, match=r"controls\.parquet"):
            run.verify()
        results = load(tmp_path / "runs")
        code, out, err = front(command.main, tmp_path / "runs")
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert str(run.controls) in err
        assert "controls.parquet" in describe_controls(results)
        assert failing(results) == {}
        assert not FigureSet.of(results).tables
    run.controls.write_bytes(whole)
    run.verify()
    run.write_controls(make_control_rows(GOOD), "key")
    assert run.controls_key() == "key"


# The pocket.


def test_the_pockets_own_scorers_are_measured_with_the_base_model(pocket: Path, tmp_path: Path, front: Command) -> None:
    subject = load_subject(pocket / "subjects", "teapot", token="sks", instance_prompt="a {token} {cls}")
    cell = Cell(
        method=BASE, options="", rank=0, seed=0, steps=0, lr=0.0, subject="teapot", num_prompts=1, num_images=1,
        num_inference_steps=2, model_hash=pipelines.content_hash(pocket / "pipeline"),
        scorer_hash=pipelines.content_hash(POCKET_DINO, POCKET_CLIP), subject_hash=subject.content_hash(),
    )  # fmt: skip
    setting = Setting(
        str(pocket / "pipeline"), str(POCKET_DINO), str(POCKET_CLIP), str(pocket / "subjects"), "sks", "a {token} {cls}",
        str(tmp_path), threads=2,
    )  # fmt: skip
    spec = tmp_path / "sweep" / "packs" / "base.json"
    rows = [{"run_id": cell.run_id("base"), "cell": cell.to_dict(), "labels": {"model": "pocket"}}]
    write_json(spec, {"schema": 1, "pack": "base", "setting": dataclasses.asdict(setting), "runs": rows})
    assert run_pack(spec) == "done"
    (run,) = find_runs(tmp_path)
    found = run.read_controls()
    means = found[found["metric"] == "dino"].groupby("kind", observed=True)["value"].mean()
    assert means["real"] > 0.75
    assert means[["other", "flat", "noise", "latent_noise"]].abs().max() < 0.25 * means["real"]
    assert "same_class" not in means.index
    code, out, _ = front(measure.main, tmp_path)
    assert code == 0
    assert "controls of 0 subjects measured" in out
    before = run.controls.read_bytes()
    run.controls.unlink()
    code, out, _ = front(measure.main, tmp_path, "--subjects", pocket / "subjects")
    assert code == 0
    assert "controls of 1 subject measured" in out
    assert run.controls.read_bytes() == before, "the same again"
    moved = tmp_path / "elsewhere"
    code, _, err = front(measure.main, tmp_path, "--subjects", moved)
    assert (code, len(err.splitlines())) == (2, 1)
    assert str(moved) in err
