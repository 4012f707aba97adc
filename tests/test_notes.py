"""What stands beside the numbers: names, base rates, missing runs, the load of a plan, and the smaller sweep it offers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from analysis import export_compact, load
from analysis.notes import describe_missing, describe_rates
from analysis.results import Results
from figures.figure_set import FigureSet
from sweeps.grid import LabelledCell
from sweeps.plan_lines import describe_load
from sweeps.smaller import offer_smaller
from tests.make_runs import Shape, make_runs
from training.cell import Cell
from training.demand import Cost


def relabelled(results: Results, **columns: dict[str, object]) -> Results:
    """The same runs with labels by method."""
    runs = results.all_runs
    return Results(runs.assign(**{name: runs["method"].map(given) for name, given in columns.items()}), results.sources)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two methods at two rates, with the plan that they were made by."""
    root = make_runs(
        tmp_path_factory.mktemp("runs"),
        shapes={"lora": Shape(), "delora": Shape()},
        multipliers=(1.0, 4.0),
    )
    sweep = root / "lr_robustness"
    runs = [json.loads(path.read_text()) | {"run_id": path.parent.name} for path in sorted(sweep.glob("*/run.json"))]
    (sweep / "packs").mkdir()
    spec = {"setting": {}, "runs": [{name: run[name] for name in ("run_id", "cell", "labels")} for run in runs]}
    (sweep / "packs" / "lora-1.json").write_text(json.dumps(spec))
    ended = {"runs": {run["run_id"]: "finished" for run in runs[1:]}}
    (sweep / "packs" / "lora-1.ended.json").write_text(json.dumps(ended))
    return root


def test_a_deleted_run_is_missed_in_words_tables_and_copies(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(root, copy)
    assert load(copy).missing.empty
    assert describe_missing(load(copy)) == ""
    lost = sorted(path.parent for path in copy.glob("lr_robustness/*/run.json"))
    for folder in (lost[0], lost[-1]):
        shutil.rmtree(folder)
    results = load(copy)
    assert len(results.runs) == 10, "a run that is not there is in no table of numbers"
    assert sorted(results.missing["status"]) == ["gone", "not run"], "the pack says which of them had ended"
    said = describe_missing(results)
    assert said.startswith("Of 15 planned runs 2 are missing (")
    assert "LoRA at 4x on owl, seed 0" in said
    assert len(results.select(subject="cat").missing) == 1
    drawn = FigureSet.of(results)
    assert said in drawn.notes
    drawn.save(tmp_path / "out")
    assert "owl" in (tmp_path / "out" / "missing.md").read_text()
    export_compact(results, tmp_path / "compact")
    assert describe_missing(load(tmp_path / "compact")) == said
    FigureSet.of(load(root)).save(tmp_path / "out")
    assert not list((tmp_path / "out").glob("missing.*")), "what is there again is no longer missed"
    assert load(copy, root).missing.empty, "another folder has them"


def test_notes_say_each_base_rate_and_its_source(root: Path) -> None:
    found = load(root)
    assert describe_rates(found.runs) == "Base rates: DeLoRA 0.001, LoRA 0.001."
    sources = {"lora": "given on the command line", "delora": "tuned on the pocket\x1b[31m"}
    said = describe_rates(relabelled(found, rate_source=sources, label={"lora": "mine"}).runs)
    assert said == "Base rates: DeLoRA 0.001 (tuned on the pocket[31m); mine 0.001 (given on the command line)."


def test_names_are_the_users_without_a_hash_and_never_shared(root: Path) -> None:
    found = load(root)

    def names(runs: Results) -> set[str]:
        return set(runs.runs["series"])

    assert names(relabelled(found, label={"lora": "My $5 method"})) == {"My $5 method", "DeLoRA"}
    assert names(relabelled(found, label={"lora": "X", "delora": "X"})) == {"X (LoRA)", "X (DeLoRA)"}
    assert names(relabelled(found, label={"lora": "\x1b[31mred\n"})) == {"[31mred", "DeLoRA"}
    assert names(relabelled(found, label={"lora": "base model"})) == {"LoRA", "DeLoRA"}
    files = {"lora": "mine@1a2b3c4d5e", "delora": "mine@5e4d3c2b1a"}
    runs = found.all_runs.assign(method=found.all_runs["method"].replace(files), options="")
    assert names(Results(runs, found.sources)) == {"mine (version 1)", "mine (version 2)"}


def test_a_plan_says_the_load_that_it_was_measured_under() -> None:
    again = Path("cache.json")
    calm, busy = ({1: Cost(1.0, 1.0, load=load)} for load in (0.2, 3.0))
    assert describe_load(calm, 0.1, again, cores=2) == ["measured under a load of 0.2 on 2 cores"]
    (line,) = describe_load(busy, 0.1, again, cores=2)
    assert "a load of 3.0 on 2 cores: the machine was busy" in line
    assert "remove cache.json to measure again" in line
    assert describe_load(calm, 1.9, again, cores=2)[1].startswith("the load is 1.9 on 2 cores now")
    assert "not noted" in describe_load({1: Cost(1.0, 1.0)}, None, again, cores=2)[0]
    assert describe_load({}, 9.0, again) == []


def make_plan(subjects: int, multipliers: tuple[float, ...]) -> list[LabelledCell]:
    return [
        LabelledCell(
            Cell(method="lora", options="", rank=8, subject=f"s{number}", seed=0, steps=10, lr=1e-3 * m),
            "",
            {"multiplier": m},
        )
        for number in range(subjects)
        for m in multipliers
    ]


@pytest.mark.parametrize(
    ("arguments", "asked", "each_s", "offered"),
    [
        (["--method", "lora"], (), 30.0, "--method lora --subjects 2"),
        (["--subjects", "4", "--seeds", "0"], ("4",), 30.0, "--seeds 0 --subjects 2"),
        (["--subjects=4"], ("4",), 30.0, "--subjects 2"),
        (
            ["--subjects", "pics/", "s0", "s1", "s2", "s3"],
            ("pics/", "s0", "s1", "s2", "s3"),
            30.0,
            "--subjects pics/ s0 s1",
        ),
        (["--dry-run"], (), 150.0, "--subjects 1 --multipliers 0.25 1 4 16"),
        ([], (), 1e4, "--subjects 1 --multipliers 0.25 4 16"),
    ],
)
def test_a_long_sweep_offers_a_smaller_command(
    arguments: list[str], asked: tuple[str, ...], each_s: float, offered: str
) -> None:
    planned = make_plan(4, (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0))
    command = ["sweeps/lr_robustness.py", *arguments]
    (line,) = offer_smaller(planned, command, asked, lambda kept: each_s * len(kept))
    assert line.split(": ", 1)[1] == f"python sweeps/lr_robustness.py {offered}"
    assert offer_smaller(planned[:2], command, (), lambda kept: each_s, kinds=()) == []
    assert offer_smaller(planned, command, asked, lambda kept: each_s * (100 + len(kept))) == [], "hardly any less"
    (apart,) = offer_smaller(planned, command, asked, lambda kept: each_s * len(kept), sweep="lr_robustness-small")
    if "--dry-run" not in arguments:
        assert apart == f"{line} --sweep lr_robustness-small"
