"""Runs given to experiment trackers: real TensorBoard files read back, others through accelerate's own interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking

from analysis import load
from sweeps.report_to import main
from tests.make_runs import make_runs
from training.store import RunFolder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return make_runs(tmp_path / "runs", multipliers=(1, 4), subjects=("cat",), steps=10, eval_steps=(5,))


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_tensorboard_holds_losses_gauges_and_scores_of_every_run(runs: Path, tmp_path: Path, capsys) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = tmp_path / "logs"
    assert run(runs, "--logging-dir", logs) == 0
    assert "2 runs given to tensorboard" in capsys.readouterr().out
    results = load(runs)
    for run_id in results.runs["run_id"]:
        events = EventAccumulator(str(logs / run_id)).Reload()
        one = results.select([run_id])
        steps = one.steps()
        assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("loss")] == list(
            zip(steps["step"], steps["loss"])
        )
        assert {"lr", "grad_norm", "lambda", "distance", "distance_rel/mid_block"} <= set(events.Tags()["scalars"])
        final = one.scores[(one.scores["step"] == 10) & (one.scores["metric"] == "dino")]["value"].mean()
        assert events.Scalars("dino")[-1].value == pytest.approx(final)
        assert [e.step for e in events.Scalars("dino")] == [5, 10]
    before = sorted(logs.rglob("*"))
    assert run(runs, "--logging-dir", logs) == 0
    assert "0 runs given" in capsys.readouterr().out
    assert sorted(logs.rglob("*")) == before, "given once"


@pytest.mark.parametrize(("name", "kind"), [("wandb", "WandBTracker"), ("trackio", "TrackioTracker")])
def test_other_trackers_get_the_same_under_the_project_and_the_name_of_the_run(
    name: str, kind: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class Fake:
        def __init__(self, project: str, **more: str) -> None:
            self.project, self.more, self.logged, self.ended = project, more, {}, False
            made.append(self)

        def start(self) -> None: ...

        def store_init_configuration(self, values: dict) -> None:
            self.config = values

        def log(self, values: dict, step: int) -> None:
            self.logged[step] = values

        def finish(self) -> None:
            self.ended = True

    monkeypatch.setattr(tracking, kind, Fake)
    assert run(runs, "--report-to", name, "--project", "mine") == 0
    assert [(fake.project, fake.ended) for fake in made] == [("mine", True)] * 2
    assert {fake.more["name"] for fake in made} == set(load(runs).runs["run_id"])
    first = made[0]
    assert (first.config["method"], first.config["rank"], first.config["seed"]) == ("delora", 8, 0)
    assert all(isinstance(value, str | int | float) for value in first.config.values())
    assert sorted(first.logged) == list(range(11))
    assert {"loss", "lr", "dino", "clip_t", "distance_rel"} <= first.logged[10].keys()
    assert "dino" not in first.logged[9]


def test_missing_package_and_folders_without_ended_runs_are_one_line(runs: Path, monkeypatch, capsys) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise ImportError("No module named 'wandb'")

    monkeypatch.setattr(tracking, "WandBTracker", gone)
    assert run(runs, "--report-to", "wandb") == 2
    assert capsys.readouterr().err == "error: --report-to wandb needs the package wandb: pip install wandb\n"
    for folder in load(runs).runs["path"]:
        record = RunFolder(folder).read()
        RunFolder(folder).write(record | {"status": "running"})
    assert run(runs) == 2
    assert "has ended yet" in capsys.readouterr().err
    assert run(runs / "nowhere") == 2
    assert "no results folder" in capsys.readouterr().err
