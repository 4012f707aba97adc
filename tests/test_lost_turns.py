"""A process that was thought dead and wakes up: another one has its pack, so it writes nothing more, wherever it is."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm.store import leases
from slurm.store.layout import PackFiles
from slurm.worker import attempt
from slurm.worker.run import run_pack
from tests.make_studio import Studio, make_pack
from tests.test_job import STEPS, at_step, cells, kill, store
from training import loop
from training.store import RunFolder, write_json
from training.tasks.subject import SubjectTask

Patch = pytest.MonkeyPatch


class TakeOver:
    """Makes the next turn's claim, once, as a process of another machine does, and remembers what was there.

    Args:
        spec: the pack's specification, below `<runs>/<sweep>/packs/`.
    """

    def __init__(self, spec: Path) -> None:
        self.runs, self.files = spec.parents[1], PackFiles.of(spec)
        self.before: dict[Path, bytes] | None = None

    def __call__(self, *about: object) -> None:
        if self.before is None:
            write_json(self.files.claim(self.files.newest_turn() + 1), {})
            self.before = self.contents()

    def written_since(self) -> list[str]:
        """Names of the files that are not as they were."""
        before, now = self.before or {}, self.contents()
        return sorted({path.name for path in before.keys() | now.keys() if before.get(path) != now.get(path)})

    def contents(self) -> dict[Path, bytes]:
        """Every file but claims and heartbeats."""
        paths = [path for path in self.runs.rglob("*") if path.is_file() and path.suffix != ".tmp"]
        return {path: path.read_bytes() for path in paths if not re.search(r"\.(claim-\d+|beat)\.json$", path.name)}


def after(owner: object, name: str, do: Callable, patch: Patch, when: Callable[..., bool] = lambda *a: True) -> None:
    """Do something whenever a function has been called with arguments of some kind."""
    real = getattr(owner, name)

    def called(*arguments: object, **named: object) -> object:
        result = real(*arguments, **named)
        if when(*arguments):
            do()
        return result

    patch.setattr(owner, name, called)


def at_the_start(take_over: TakeOver, patch: Patch) -> None:
    after(attempt, "make_task", take_over, patch)


def before_a_checkpoint(take_over: TakeOver, patch: Patch) -> None:
    at_step(5, take_over, patch)


def before_pictures(take_over: TakeOver, patch: Patch) -> None:
    after(SubjectTask, "evaluate", take_over, patch)


def before_the_end(take_over: TakeOver, patch: Patch) -> None:
    """The pictures of the last run are made."""
    last: list[Path] = []

    def is_second(folder: RunFolder, rows: object, step: int) -> bool:
        last.extend([folder.path] if step == STEPS else [])
        return len(last) == 2

    after(RunFolder, "add_scores", take_over, patch, is_second)


def when_stopped(take_over: TakeOver, patch: Patch) -> None:
    """After the checkpoint that a request to stop brings; `stop` of the test asks for it."""
    after(loop, "save_checkpoints", take_over, patch, lambda runs, optimizer, step: step == 5)


def before_closing(take_over: TakeOver, patch: Patch) -> None:
    after(attempt, "train_pack", take_over, patch)


def before_halving(take_over: TakeOver, patch: Patch) -> None:
    def fail(task: SubjectTask) -> None:
        take_over()
        raise RuntimeError("too much for one pack")

    at_step(2, fail, patch)


def before_failing(take_over: TakeOver, patch: Patch) -> None:
    """Killed as often as is allowed."""
    after(attempt, "count_kills", take_over, patch)


MOMENTS = {
    "the first run.json": at_the_start,
    "rows and checkpoint": before_a_checkpoint,
    "pictures and scores": before_pictures,
    "adapter and status": before_the_end,
    "the status of the stopped": when_stopped,
    "the pack's ending": before_closing,
    "what it takes less of": before_halving,
    "the status of the failed": before_failing,
}


@pytest.mark.parametrize("write", MOMENTS)
def test_turn_lost_before_a_write_leaves_the_file_to_the_other(
    write: str, studio: Studio, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(leases, "SETTLE_S", 0.0)
    fails = write == "the status of the failed"
    spec = store(studio, tmp_path, rates=(1e-3,) if fails else (1e-3, 2e-3))
    if fails:
        kill(spec, attempt.N_TRIES, phase="starting")
    take_over = TakeOver(spec)
    with monkeypatch.context() as patch:
        MOMENTS[write](take_over, patch)
        stops = write == "the status of the stopped"
        outcome = run_pack(spec, stop=lambda: stops and take_over.before is not None)
    assert take_over.before is not None
    assert take_over.written_since() == []
    assert outcome == "held"
    assert "another process has taken it over" in capsys.readouterr().err


def test_turn_lost_while_training_is_noticed_by_the_heart(studio: Studio, tmp_path: Path, monkeypatch: Patch) -> None:
    """Between two checkpoints nothing is written, but the time would be lost."""
    monkeypatch.setattr(leases, "BEAT_S", 0.02)
    spec = make_pack(studio, tmp_path / "sweep", cells((1e-3,)), checkpoint_every_s=1e9)
    take_over, steps = TakeOver(spec), []

    def slow(self: SubjectTask, step: int, micro: int = 0, real: Callable = SubjectTask.losses) -> object:
        steps.append(step)
        if step == 5:
            take_over()
        time.sleep(0.3 if step >= 5 else 0.0)
        return real(self, step, micro)

    monkeypatch.setattr(SubjectTask, "losses", slow)
    assert run_pack(spec) == "held"
    assert steps[-1] < STEPS, "it trained on to the next write"
    assert take_over.written_since() == []
