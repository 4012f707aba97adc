"""Bad input ends in one line on stderr that names the thing, the value and what is allowed, exit code 2, before training."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from adapters import BadInput
from sweeps import lr_robustness
from sweeps.options import run_driver
from tests.make_dreambench import make_dreambench, published_text
from tests.make_driver import drive_studio
from tests.make_studio import Studio
from training.command_line import parse
from training.store import DamagedFile, RunFolder, read_json
from training.tasks.dreambench import check_named

Front = Callable[..., str]


@pytest.fixture
def refused(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Front:
    """Run the front door in this process, check that it refuses as promised, and return its one line."""

    def front(*more: str, runs: Path | None = None) -> str:
        runs = tmp_path / "runs" if runs is None else runs
        before = sorted(runs.rglob("*")) if runs.is_dir() else []
        monkeypatch.setattr(sys, "argv", studio.arguments(runs, *more)[1:])
        code = run_driver(lr_robustness.RobustnessOptions, lr_robustness.drive, "")
        lines = capsys.readouterr().err.strip().splitlines()
        assert code == 2
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        trained = [p for p in runs.rglob("run.json") if p not in before] if runs.is_dir() else []
        assert not trained, "something was trained"
        return lines[0]

    return front


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "delra"), ("'delra'", "did you mean delora", "lora, dora")),
        (("--method", "delora:start=eq8"), ("'start'", "'eq8'", "eq9, live, zero_b")),
        (("--method", "lora:beta=2"), ("'beta'", "alpha, init")),
        (("--method", "lora:alpha=-1"), ("'alpha'", "'-1'", "a positive number")),
        (("--multipliers", "1", "0"), ("--multipliers is 0", "positive")),
        (("--multipliers", "-2"), ("--multipliers is -2", "positive")),
        (("--multipliers", "nan"), ("--multipliers is nan", "positive")),
        (("--multipliers", "inf"), ("--multipliers is inf", "positive")),
        (("--sharpness-steps", "0"), ("--sharpness-steps is 0", "steps from 1 to 6")),
        (("--num-drift-prompts", "-1"), ("--num-drift-prompts is -1", "0 or a positive number")),
        (("--num-drift-prompts", "11"), ("--num-drift-prompts is 11", "there are 10 unrelated prompts")),
        (("--multipliers", "fast"), ("fast",)),
        (("--rank", "0"), ("--rank is 0", "from 1 on")),
        (("--rank", "33"), ("--rank is 33", "to_", "at most 32")),
        (("--rank", "four"), ("four",)),
        (("--method", "hra", "--rank", "3"), ("--rank is 3", "hra needs a multiple of 2")),
        (("--method", "ablation-relaxed", "--rank", "3"), ("--rank is 3", "ablation-relaxed", "multiple of 2")),
        (("--method", "etherplus:blocks=5"), ("etherplus", "blocks=5 does not divide matrix", "to_")),
        (("--method", "oft:blocks=7"), ("oft", "blocks=7 does not divide the input of matrix", "to_")),
        (("--method", "coft:radius=2"), ("'radius'", "released, peft")),
        (("--steps", "0"), ("--steps is 0", "from 1 on")),
        (("--steps", "-5"), ("--steps is -5",)),
        (("--eval-steps", "7"), ("--eval-steps is 7", "0 to 6")),
        (("--lr-warmup-steps", "7"), ("--lr-warmup-steps is 7", "steps from 0 to the 6 of the training")),
        (("--seeds", "-1"), ("--seeds is -1", "from 0 on")),
        (("--base-lr", "0"), ("--base-lr is 0", "positive")),
        (("--pack-size", "many"), ("--pack-size is many", "auto")),
        (("--workers", "0"), ("--workers is 0", "auto")),
        (("--pack-size", "²"), ("--pack-size is ²", "auto")),
        (("--guidance-scale", "nan"), ("--guidance-scale is nan", "0 or a positive number")),
        (("--sweep", "../x"), ("--sweep is ../x", "without a slash")),
        (("--sweep", "a\x1b[1m"), ("--sweep is a\\x1b[1m", "in one line")),
        (("--sweep", "."), ("--sweep is .", "without a slash")),
        (("--token", "a\nb"), ("--token is a b", "in one line")),
        (("--num-prompts", "99"), ("--num-prompts is 99", "prompts")),
        (("--guidance-scal", "3"), ("guidance-scal",)),
        (("--model", "/nowhere/at/all"), ("/nowhere/at/all", "pocket")),
        (("--dino", "/nowhere/dino"), ("/nowhere/dino",)),
        (("--device", "tpu"), ("tpu",)),
        (("--resolution", "30"), ("--resolution is 30; allowed: multiples of 4, such as 28 or 32", "VAE", "U-Net")),
        (("--resolution", "2"), ("--resolution is 2; allowed: multiples of 4, such as 4 (",)),
        (("--model", "org/name@v9"), ("'org/name@v9'", "HF_HUB_OFFLINE is set", "docs/real_runs.md")),
        (("--dino", "org/dino"), ("scorer 'org/dino'", "HF_HUB_OFFLINE is set", "docs/real_runs.md")),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_wrong_flags(arguments: tuple[str, ...], said: tuple[str, ...], refused: Front) -> None:
    line = refused(*arguments)
    for text in said:
        assert text in line


EMPTY = ("subjects", "method", "model", "runs", "sweep", "docs", "results", "init-adapter", "dino", "clip", "token", "account",
         "rate-table")  # fmt: skip


def test_empty_words_are_no_paths(refused: Front) -> None:
    for flag in EMPTY:
        assert refused(f"--{flag}", "") == f"error: --{flag} is ''; allowed: a word that is not empty"
    assert "--docs is ''" in refused("--docs=")
    assert "--subjects is ' '" in refused("--subjects", "bulb", " ")


@pytest.mark.parametrize(
    ("program", "words", "said"),
    [
        ("adapters.check", [""], "word 1 of the command line"),
        ("analysis.compact", ["", "--out", "x"], "word 1 of the command line"),
        ("analysis.query", ["select 1", ""], "word 2 of the command line"),
        ("analysis.verdicts", ["--results", ""], "--results"),
        ("figures", ["all", "--results", "x", "--out="], "--out"),
        ("slurm.status", [""], "word 1 of the command line"),
        ("training.export", ["x", "--model", "", "--out", "x"], "--model"),
    ],
)
def test_no_program_takes_an_empty_word(
    program: str, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [program, *words])
    warnings.simplefilter("ignore")  # that the module is loaded already
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    assert ended.value.code == 2
    assert re.fullmatch(rf"error: {said} is ''; allowed: a word that is not empty\n", capsys.readouterr().err)


def test_steps_and_numbers_that_are_given_twice_count_once() -> None:
    steps = "--eval-steps 10 10 5 --sharpness-steps 3 1 3"
    words = f"{steps} --seeds 1 0 1 --multipliers 2 1 2.0 --method lora lora --subjects a a"
    given = parse(lr_robustness.RobustnessOptions, "", words.split())
    assert (given.eval_steps, given.sharpness_steps) == ((5, 10), (1, 3)), "in order, as one run whichever was typed"
    assert (given.seeds, given.multipliers, given.method) == ((1, 0), (2.0, 1.0), ("lora",))
    assert given.subjects == ("a", "a"), "a folder, and a subject of its name"


def test_unknown_subject_names_near_ones(studio: Studio, refused: Front) -> None:
    line = refused("--subjects", str(studio.folder / "subjects"), "cupp")
    assert "'cupp'" in line
    assert "did you mean cup" in line
    assert "dog" in line


def test_more_subjects_than_there_are(studio: Studio, refused: Front) -> None:
    line = refused("--subjects", str(studio.folder / "subjects"), "9")
    assert "--subjects is 9" in line
    assert "has 3 subjects" in line


def test_cuda_where_there_is_none(refused: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert refused("--device", "cuda") == "error: --device is cuda; no CUDA device is usable here: use auto or cpu"


@pytest.fixture
def dreambench(tmp_path: Path) -> Path:
    """A whole copy of DreamBooth's data set that a test may break."""
    return make_dreambench(tmp_path / "dataset")


def test_more_subjects_than_a_copy_of_dreambench_has(dreambench: Path, refused: Front) -> None:
    assert f"--subjects is 31; {dreambench} has 30 subjects" in refused("--subjects", str(dreambench), "31")
    shutil.rmtree(dreambench / "vase")
    line = refused("--subjects", str(dreambench), "30")
    assert f"--subjects is 30; {dreambench} has 29 subjects (of DreamBooth's 30 vase is missing)" in line


def test_copy_of_dreambench_that_is_broken(dreambench: Path, refused: Front) -> None:
    (dreambench / "can" / "03.jpg").unlink()
    line = refused("--subjects", str(dreambench), "30")
    assert f"{dreambench} is no whole copy of DreamBooth's data set: can: 5 pictures, not 6" in line
    assert f"`python -m training.tasks.dreambench check {dreambench}` lists everything" in line
    prompts = dreambench / "prompts_and_classes.txt"
    prompts.write_text(prompts.read_text().replace("vase,vase\n", ""))
    assert "vase: prompts_and_classes.txt gives it no class" in refused("--subjects", str(dreambench), "vase")
    prompts.write_text("no prompts at all")
    assert "has no classes" in refused("--subjects", str(dreambench), "dog")
    picture = dreambench / "dog" / "00.jpg"
    prompts.write_text(published_text())
    picture.write_bytes(picture.read_bytes()[:300])
    assert f"{picture} is broken or not a picture" in refused("--subjects", str(dreambench), "dog")


def test_subjects_of_ones_own_beside_dreambench(dreambench: Path) -> None:
    (dreambench / "my_mug").mkdir()
    check_named(dreambench, ["my_mug", "dog"])


def test_subjects_folder_that_is_missing(refused: Front) -> None:
    assert "/nowhere/subjects" in refused("--subjects", "/nowhere/subjects")


@pytest.fixture
def own_subjects(studio: Studio, tmp_path: Path) -> Path:
    """A copy of the subjects that a test may break."""
    return Path(shutil.copytree(studio.folder / "subjects", tmp_path / "subjects"))


def test_empty_subject_folder(own_subjects: Path, refused: Front) -> None:
    for path in (own_subjects / "cup").iterdir():
        path.unlink()
    line = refused("--subjects", str(own_subjects), "cup")
    assert "no pictures in" in line
    assert "cup" in line
    assert ".png" in line


@pytest.mark.parametrize("damage", ["half", "text", "empty"])
def test_broken_picture(damage: str, own_subjects: Path, refused: Front) -> None:
    picture = own_subjects / "cup" / "01.png"
    whole = picture.read_bytes()
    picture.write_bytes({"half": whole[: len(whole) // 2], "text": b"no picture at all", "empty": b""}[damage])
    line = refused("--subjects", str(own_subjects), "cup")
    assert str(picture) in line
    assert "broken or not a picture" in line


def test_model_folder_without_a_unet(studio: Studio, tmp_path: Path, refused: Front) -> None:
    model = tmp_path / "model"
    shutil.copytree(studio.folder / "pipeline", model)
    shutil.rmtree(model / "unet")
    line = refused("--model", str(model))
    assert str(model) in line
    assert "no unet/" in line


def test_model_with_pickled_weights_is_not_read(studio: Studio, tmp_path: Path, refused: Front) -> None:
    model = tmp_path / "model"
    shutil.copytree(studio.folder / "pipeline", model)
    (weights,) = (model / "unet").glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    assert "only safetensors" in refused("--model", str(model))


def test_runs_folder_below_a_file(tmp_path: Path, refused: Front) -> None:
    (tmp_path / "file").write_text("not a folder")
    line = refused(
        "--base-lr",
        "1e-3",
        "--base-lr-for-all",
        "--lr-lambda",
        "1e-3",
        "--boundary",
        "1",
        runs=tmp_path / "file" / "runs",
    )
    assert str(tmp_path / "file" / "runs") in line
    assert "cannot write" in line


def test_runs_folder_that_cannot_be_written(refused: Front) -> None:
    """``/proc`` takes no folder from anybody, root included."""
    line = refused(
        "--base-lr", "1e-3", "--base-lr-for-all", "--lr-lambda", "1e-3", "--boundary", "1", runs=Path("/proc/plateau")
    )
    assert "/proc/plateau" in line
    assert "cannot write" in line


def test_runs_folder_of_another_model(studio: Studio, tmp_path: Path, refused: Front) -> None:
    sweep = tmp_path / "runs" / "lr_robustness"
    (sweep / "packs").mkdir(parents=True)
    (sweep / "sweep.json").write_text(json.dumps({"schema": 1, "model": "another", "model_hash": "0123"}))
    (sweep / "packs" / "p.json").write_text("{}")
    line = refused()
    assert "belongs to model 'another' (0123)" in line
    assert str(studio.folder / "pipeline") in line
    assert "--sweep" in line


def test_runs_folder_of_other_scorers(studio: Studio, trained: Path, tmp_path: Path, refused: Front) -> None:
    runs, _ = copy_of(trained, tmp_path)
    dino = Path(shutil.copytree(studio.folder / "dino", tmp_path / "dino"))
    config = json.loads((dino / "preprocessor_config.json").read_text())
    (dino / "preprocessor_config.json").write_text(json.dumps(config | {"image_mean": [0.4] * 3}))
    stored = read_json(runs / "lr_robustness" / "sweep.json")
    line = refused(*ONE_CELL, "--dino", str(dino), runs=runs)
    assert f"was scored by {studio.folder / 'dino'}, {studio.folder / 'clip'} ({stored['scorer_hash']})" in line
    assert f"not by {dino}, {studio.folder / 'clip'}" in line
    assert "--sweep" in line


def test_earlier_results_of_other_scorers(studio: Studio, trained: Path, tmp_path: Path, refused: Front) -> None:
    dino = Path(shutil.copytree(studio.folder / "dino", tmp_path / "dino"))
    (dino / "more.json").write_text("{}")
    line = refused(*ONE_CELL, "--dino", str(dino), "--results", str(trained))
    assert f"--results {trained} was scored by other scorers" in line
    assert str(dino) in line


def test_scorers_in_each_others_place(studio: Studio, refused: Front) -> None:
    line = refused("--dino", str(studio.folder / "clip"))
    assert f"--dino {studio.folder / 'clip'} is of type 'clip'" in line


@pytest.fixture(scope="module")
def trained(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one cell on two subjects, ended."""
    runs = tmp_path_factory.mktemp("trained")
    done = drive_studio(studio, lr_robustness, runs, *ONE_CELL)
    assert done.code == 0, done.err
    return runs


ONE_CELL = (
    "--method",
    "lora",
    "--multipliers",
    "1",
    "--base-lr",
    "1e-3",
    "--base-lr-for-all",
    "--pack-size",
    "1",
    "--steps",
    "6",
)


def copy_of(trained: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the ended runs, and one LoRA run's folder in it."""
    runs = Path(shutil.copytree(trained, tmp_path / "copy"))
    return runs, sorted(runs.glob("lr_robustness/lora-*"))[0]


def test_damaged_parquet_is_named_set_aside_and_recomputed(studio: Studio, trained: Path, tmp_path: Path) -> None:
    runs, run = copy_of(trained, tmp_path)
    (part,) = (run / "dynamics").glob("*.parquet")
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    done = drive_studio(studio, lr_robustness, runs, *ONE_CELL)
    assert done.code == 0, done.err
    assert f"damaged file {part}" in done.out + done.err
    assert f"run {run.name} is trained again" in done.out + done.err
    assert part.read_bytes() == whole, "the run trained again differs"
    assert len(list(runs.glob(f"lr_robustness/.{run.name}.damaged-*"))) == 1


def test_one_wrong_bit_of_rows_weights_or_description_is_found_and_the_run_recomputed(
    studio: Studio, trained: Path, tmp_path: Path
) -> None:
    runs, one = copy_of(trained, tmp_path)
    two = sorted(runs.glob("lr_robustness/lora-*"))[1]
    base = sorted(runs.glob("lr_robustness/base-*"))[0]
    harmed = [next(one.glob("steps/*.parquet")), next(two.glob("adapter/*.safetensors")), base / "scores.parquet"]
    whole = [path.read_bytes() for path in harmed]
    for path, content in zip(harmed, whole, strict=True):
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(DamagedFile, match=path.name):
            RunFolder(find_run(path)).verify()
    done = drive_studio(studio, lr_robustness, runs, *ONE_CELL)
    assert done.code == 0, done.err
    for path in harmed:
        assert f"damaged file {path}" in done.out + done.err
        RunFolder(find_run(path)).verify()
    assert harmed[1].read_bytes() == whole[1], "the run trained again differs"
    assert drive_studio(studio, lr_robustness, runs, *ONE_CELL).code == 0


def find_run(path: Path) -> Path:
    """The run's folder that a file lies in."""
    return next(folder for folder in path.parents if (folder / "run.json").exists())


def test_unknown_column_version(trained: Path, tmp_path: Path, refused: Front) -> None:
    runs, run = copy_of(trained, tmp_path)
    (part,) = (run / "steps").glob("*.parquet")
    table = pq.read_table(part)
    pq.write_table(table.replace_schema_metadata({"plateau_schema": "99"}), part)
    line = refused(*ONE_CELL, runs=runs)
    assert str(part) in line
    assert "unknown column version 99" in line
    assert part.exists(), "a table of another version must stay where it is"


def test_unknown_run_schema(trained: Path, tmp_path: Path, refused: Front) -> None:
    runs, run = copy_of(trained, tmp_path)
    RunFolder(run).update(schema=99)
    line = refused(*ONE_CELL, runs=runs)
    assert str(run / "run.json") in line
    assert "99" in line


def test_a_long_path_of_the_program_is_no_part_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Options:
        steps: int = 1

    monkeypatch.setattr(sys, "argv", [f"/a/{'very-long-folder-' * 12}/program.py", "--nonsense", "3"])
    with pytest.raises(BadInput) as told:
        parse(Options, "nothing")
    assert str(told.value) == "Unrecognized options: --nonsense, 3"
