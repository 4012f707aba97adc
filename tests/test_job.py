"""A job at its packs: killed, stopped, out of memory, out of space, damaged; afterwards the results are equal to the bit."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from adapters import BadInput
from slurm.store import leases
from slurm.store.layout import PackFiles, read_contents
from slurm.store.leases import Heartbeat, read_beat, read_claims
from slurm.store.outcome import read_ended
from slurm.worker import attempt, own_job, pool
from slurm.worker import run as job
from slurm.worker.run import run_pack, run_task
from tests.compare_runs import assert_same, assert_same_results
from tests.make_studio import ROOT, Studio, make_pack
from tests.test_loop import make_cell
from tests.waiting import HANG_S, wait_for
from training import loop, shared_file_system
from training.cell import Cell
from training.loop import Interrupted
from training.run import Run
from training.stop import STOPPED, StopSignals
from training.store import RunFolder, StoreError, find_runs, write_json
from training.tasks.subject import SubjectTask

STEPS = 8
RATES = (1e-3, 2e-3)


@pytest.fixture(autouse=True)
def _no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "SETTLE_S", 0.0)
    monkeypatch.setattr(shared_file_system, "SETTLE_S", 0.0)


@pytest.fixture(scope="module")
def undisturbed(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a pack that nothing disturbed."""
    runs = tmp_path_factory.mktemp("undisturbed")
    assert run_pack(store(studio, runs)) == "done"
    return runs


def cells(rates: tuple[float, ...] = RATES, **changes: object) -> list[Cell]:
    """Short cells that are evaluated in the middle too."""
    return [make_cell("lora", lr=rate, steps=STEPS, eval_steps=(3,), **changes) for rate in rates]


def store(studio: Studio, runs: Path, rates: tuple[float, ...] = RATES, **changes: object) -> Path:
    """Store a pack below `<runs>/sweep`."""
    return make_pack(studio, runs / "sweep", cells(rates, **changes))


def at_step(step: int, do: Callable[[SubjectTask], None], patch: pytest.MonkeyPatch) -> None:
    """Do something before the losses of a step."""
    losses = SubjectTask.losses

    def changed(self: SubjectTask, at: int, micro: int = 0) -> torch.Tensor:
        if at == step:
            do(self)
        return losses(self, at, micro)

    patch.setattr(SubjectTask, "losses", changed)


def raiser(error: BaseException) -> Callable[[SubjectTask], None]:
    """Raises an error, whatever it is asked."""

    def fail(task: SubjectTask) -> None:
        raise error

    return fail


def send(number: int) -> Callable[[SubjectTask], None]:
    """Sends this process a signal."""
    return lambda task: os.kill(os.getpid(), number)


def statuses(runs: Path) -> dict[float, str]:
    """Status of every run, by its rate."""
    return {run.read()["cell"]["lr"]: run.status() for run in find_runs(runs)}


def outcomes(spec: Path) -> list[str]:
    """How the turns at a pack ended."""
    return [claim.get("outcome", "held") for claim in read_claims(PackFiles.of(spec))]


def cut(spec: Path, step: int = 6) -> None:
    """Leave a pack as a process that is killed before a step does: a claim without outcome, runs without end."""
    with pytest.MonkeyPatch.context() as patch:
        at_step(step, raiser(KeyboardInterrupt()), patch)
        patch.setattr(leases.Lease, "end", lambda self, outcome, **more: leases._mine.clear())
        with pytest.raises(KeyboardInterrupt):
            run_pack(spec)


# The ordinary course.


def test_pack_leaves_how_it_ended_and_is_not_run_twice(studio: Studio, tmp_path: Path) -> None:
    spec = store(studio, tmp_path)
    seen: list[str] = []
    assert run_pack(spec, lambda progress: seen.append(progress.phase)) == "done"
    assert {"training", "scoring", "done"} <= set(seen)
    files = PackFiles.of(spec)
    end = read_ended(files)
    assert end is not None
    assert end["runs"] == {run.run_id: "finished" for run in find_runs(tmp_path)}
    assert (end["pack"], end["turns"], end["reason"], end["errors"]) == (spec.stem, 1, None, {})
    assert outcomes(spec) == ["done"]
    beat = read_beat(files)
    assert (beat["turn"], beat["steps"]) == (1, STEPS)
    before = {run.path: run.read() for run in find_runs(tmp_path)}
    assert run_pack(spec) == "done"
    assert {run.path: run.read() for run in find_runs(tmp_path)} == before
    assert outcomes(spec) == ["done"]


def test_pack_that_another_process_holds_is_left_to_it(studio: Studio, tmp_path: Path) -> None:
    spec = store(studio, tmp_path)
    claim = leases.take(PackFiles.of(spec), leases.StalenessTracker())
    assert claim is not None
    assert run_pack(spec) == "held"
    claim.end("stopped")
    assert not find_runs(tmp_path)


def test_runs_in_numbered_folders_belong_to_their_sweep(studio: Studio, tmp_path: Path, undisturbed: Path) -> None:
    flat = store(studio, tmp_path)
    spec = flat.parent / "001" / flat.name
    spec.parent.mkdir()
    contents = json.loads(flat.read_text())
    for row in contents["runs"]:
        row["folder"] = f"001/{row['run_id']}"
    spec.write_text(json.dumps(contents))
    flat.unlink()
    assert run_pack(spec) == "done"
    assert {run.path.parent for run in find_runs(tmp_path)} == {tmp_path / "sweep" / "001"}
    assert {run.read()["sweep"] for run in find_runs(tmp_path)} == {"sweep"}
    assert_same_results(undisturbed, tmp_path)


def test_missing_specification_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no file .*packs/none.json"):
        run_pack(tmp_path / "sweep" / "packs" / "none.json")


def test_job_waits_for_a_specification_that_is_not_visible_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_file_system, "SETTLE_S", 20.0)
    spec = tmp_path / "sweep" / "packs" / "late.json"
    run = {"run_id": "a", "cell": {"method": "lora", "steps": 1}}
    timer = threading.Timer(0.3, write_json, (spec, {"pack": "late", "setting": {}, "runs": [run]}))
    timer.start()
    assert read_contents(spec)["pack"] == "late"
    timer.join()


# Errors, memory, halving.


def test_bad_cell_fails_after_its_tries_and_the_others_finish(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rates = (1e-3, 2e-3, 3e-3, 4e-3)
    spec, tries = store(studio, tmp_path, rates), []

    def fail_for_one(task: SubjectTask) -> None:
        if any(cell.lr == 3e-3 for cell in task.cells):
            tries.append(len(task.cells))
            raise RuntimeError("this cell is cursed")

    at_step(5, fail_for_one, monkeypatch)
    assert run_pack(spec) == "failed"
    assert statuses(tmp_path) == {1e-3: "finished", 2e-3: "finished", 3e-3: "failed", 4e-3: "finished"}
    assert tries == [4, 2] + [1] * attempt.N_TRIES
    (bad,) = [run for run in find_runs(tmp_path) if run.status() == "failed"]
    assert "Traceback" in bad.read()["error"]
    assert "cursed" in bad.read()["error"]
    whole = read_ended(PackFiles.of(spec))
    assert whole is not None
    assert whole["reason"] == "RuntimeError: this cell is cursed"
    assert whole["errors"] == {bad.run_id: "RuntimeError: this cell is cursed"}
    sizes = {run.read()["cell"]["lr"]: run.read()["provenance"]["pack_size"] for run in find_runs(tmp_path)}
    assert sizes == {1e-3: 2, 2e-3: 2, 3e-3: 1, 4e-3: 1}
    assert outcomes(spec) == ["failed"]
    assert "goes on with at most 2 runs at a time" in capsys.readouterr().err
    assert run_pack(spec) == "failed", "what has failed is not tried again unasked"
    assert len(tries) == 2 + attempt.N_TRIES


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_halves_the_pack_which_goes_on_from_its_checkpoints(
    error: BaseException, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, tries = store(studio, tmp_path), []

    def fill(task: SubjectTask) -> None:
        if len(task.cells) > 1:
            tries.append(len(task.cells))
            pytest.fail(f"as many again and again: {tries}") if len(tries) > 4 else raiser(error)(task)

    at_step(5, fill, monkeypatch)
    assert run_pack(spec) == "done"
    assert tries == [2]
    made = [run.read()["provenance"] for run in find_runs(tmp_path)]
    assert [(m["pack_size"], m["resumed_at"]) for m in made] == [(1, 4), (1, 4)]
    assert type(error).__name__ in json.loads(PackFiles.of(spec).ended.read_text())["reason"]


def test_single_run_that_does_not_fit_into_memory_says_what_takes_less(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = store(studio, tmp_path, rates=(1e-3,))
    at_step(1, raiser(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")), monkeypatch)
    assert run_pack(spec) == "failed"
    (run,) = find_runs(tmp_path)
    *traceback, last = run.read()["error"].strip().splitlines()
    assert "Tried to allocate 9 GiB" in traceback[-1]
    smaller = "--gradient-checkpointing, --resolution 8, --gradient-checkpointing --resolution 8, --rank 2"
    assert last == f"one run of lora of rank 4 at 16 px does not fit into memory; what takes less: {smaller}"


def test_model_is_loaded_anew_after_an_error_that_left_adapters_in_it(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach, failed = loop.attach, []

    def attach_and_fail(*arguments: object, **named: object) -> object:
        made = attach(*arguments, **named)
        if not failed:
            failed.append(made)
            raise MemoryError
        return made

    whole, spec = (store(studio, tmp_path / name, rates=(1e-3,)) for name in ("whole", "fallen"))
    assert run_pack(whole) == "done"
    monkeypatch.setattr(loop, "attach", attach_and_fail)
    assert run_pack(spec) == "done"
    assert outcomes(spec) == ["done"]
    assert_same_results(tmp_path / "whole", tmp_path / "fallen")


def kill(spec: Path, times: int, **beat: object) -> None:
    """Claims of processes that were killed at a place."""
    files = PackFiles.of(spec)
    for number in range(1, times + 1):
        last = {"turn": number, "count": 1, **beat}
        files.claim(number).write_text(json.dumps({"outcome": "killed", "last": last, "holder": {"job": "7"}}))


@pytest.mark.parametrize(
    ("times", "beat", "halved"),
    [
        (2, {"phase": "starting"}, True),
        (2, {"phase": "scoring", "step": 3}, True),
        (1, {"phase": "starting"}, False),
        (5, {"phase": "training", "step": 4}, False),
    ],
)
def test_two_kills_where_memory_is_taken_halve_the_pack(
    times: int, beat: dict, halved: bool, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def finish(self: attempt.Attempt, heart: Heartbeat, runs: Sequence[Run]) -> None:
        sizes.append(len(runs))
        for run in runs:
            run.folder.write(run.folder.read() | {"status": "finished"})

    monkeypatch.setattr(attempt.Attempt, "_train", finish)
    spec = store(studio, tmp_path)
    kill(spec, times, **beat)
    for row in json.loads(spec.read_text())["runs"]:
        (tmp_path / "sweep" / row["run_id"]).mkdir()
        RunFolder(tmp_path / "sweep" / row["run_id"]).write({"status": "running", "cell": row["cell"], "labels": {}})
    run_pack(spec)
    end = read_ended(PackFiles.of(spec))
    assert end is not None
    assert sizes == ([1, 1] if halved else [2])
    assert ("killed 2 times in a row" in str(end["reason"])) == halved


def test_one_kill_halves_the_pack_when_slurm_says_out_of_memory(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(attempt, "is_out_of_memory", lambda name: not asked.append(name))
    assert attempt.count_kills([{"outcome": "killed", "holder": {"job": "7"}, "last": {"turn": 1, "phase": "training"}}]) == (
        1, "SLURM ended it: out of memory",
    )  # fmt: skip
    assert asked == ["7"]
    assert attempt.count_kills([{"outcome": "stopped"}]) == (0, None)


def test_single_cell_that_is_killed_every_time_ends_as_failed(studio: Studio, tmp_path: Path) -> None:
    spec = store(studio, tmp_path, rates=(1e-3,))
    kill(spec, attempt.N_TRIES, phase="starting")
    assert run_pack(spec) == "failed"
    (run,) = find_runs(tmp_path)
    assert run.read()["error"].startswith("killed 3 times")


def test_pack_that_was_killed_after_it_took_less_goes_on_with_less(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = store(studio, tmp_path)
    with monkeypatch.context() as patch:
        at_step(2, lambda task: raiser(MemoryError() if len(task.cells) > 1 else KeyboardInterrupt())(task), patch)
        with pytest.raises(KeyboardInterrupt):
            run_pack(spec)
    assert run_pack(spec) == "done"
    assert outcomes(spec) == ["stopped", "done"]
    assert {run.read()["provenance"]["pack_size"] for run in find_runs(tmp_path)} == {1}


def test_damaged_ending_of_a_pack_that_took_less_is_restored(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    spec = store(studio, tmp_path)
    with monkeypatch.context() as patch:
        at_step(2, lambda task: raiser(RuntimeError("two"))(task) if len(task.cells) > 1 else None, patch)
        assert run_pack(spec) == "done"
    ended = PackFiles.of(spec).ended
    before = json.loads(ended.read_text())
    ended.write_text(ended.read_text()[:30])
    assert run_pack(spec) == "done"
    assert f"damaged file {ended}" in capsys.readouterr().err
    assert json.loads(ended.read_text())["reason"] == before["reason"] == "RuntimeError: two"
    assert {run.read()["provenance"]["pack_size"] for run in find_runs(tmp_path)} == {1}


def test_replica_that_is_not_finite_diverges_and_its_neighbours_do_not(studio: Studio, tmp_path: Path) -> None:
    wild, tame = (store(studio, tmp_path / n, rates=(1e-3, r)) for n, r in (("wild", 1e30), ("tame", 1e-4)))
    assert run_pack(wild) == run_pack(tame) == "done"
    assert statuses(tmp_path / "wild") == {1e-3: "finished", 1e30: "diverged"}
    left, right = (
        next(run for run in find_runs(tmp_path / name) if run.read()["cell"]["lr"] == 1e-3) for name in ("wild", "tame")
    )
    assert_same(left, right)


# Signals.


@pytest.fixture
def requeued(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The jobs that were requeued."""
    found: list[str] = []
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setattr(job, "requeue", found.append)
    return found


@pytest.mark.parametrize(
    ("number", "jobs"),
    [
        (signal.SIGUSR2, ["4711"]),
        (signal.SIGURG, ["4711"]),
        (signal.SIGTERM, []),
        (signal.SIGINT, []),
        (signal.SIGHUP, []),
    ],
)
def test_signal_checkpoints_stops_and_only_a_warning_requeues(
    number: int, jobs: list[str], studio: Studio, tmp_path: Path, requeued: list[str], undisturbed: Path
) -> None:
    spec = store(studio, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        at_step(5, send(number), patch)
        with StopSignals(signal.SIGURG) as stop:
            run_task([str(spec)], stop=stop)
    assert requeued == jobs
    assert outcomes(spec) == ["stopped"]
    assert set(statuses(tmp_path).values()) == {"preempted"}
    assert all(run.checkpoints()[-1] == 5 for run in find_runs(tmp_path))
    run_task([str(spec)])
    assert outcomes(spec) == ["stopped", "done"]
    assert_same_results(undisturbed, tmp_path)


def test_sigterm_requeues_when_slurm_says_so(
    studio: Studio, tmp_path: Path, requeued: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where preemption and time limits come without a warning."""
    monkeypatch.setattr(job, "is_to_go_on", lambda name: name == "4711")
    at_step(5, send(signal.SIGTERM), monkeypatch)
    run_task([str(store(studio, tmp_path))])
    assert requeued == ["4711"]


def test_signal_among_the_pictures_does_not_wait_for_them(
    studio: Studio, tmp_path: Path, requeued: list[str], undisturbed: Path
) -> None:
    spec, evaluate, scored = store(studio, tmp_path), SubjectTask.evaluate, []

    def stopped(self: SubjectTask, step: int, may_go_on: Callable[[], None]) -> list:
        os.kill(os.getpid(), signal.SIGUSR2)
        result = evaluate(self, step, may_go_on)
        scored.append(step)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SubjectTask, "evaluate", stopped)
        run_task([str(spec)])
    assert not scored
    assert requeued == ["4711"]
    assert set(statuses(tmp_path).values()) == {"preempted"}
    run_task([str(spec)])
    assert_same_results(undisturbed, tmp_path)


def test_worker_stops_when_its_driver_is_gone(
    studio: Studio, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that is killed can tell its workers nothing; what it fed them by is closed."""
    spec, (ours, theirs) = store(studio, tmp_path), os.pipe()
    with (
        monkeypatch.context() as patch,
        open(ours, encoding="utf-8") as stdin,
        open(theirs, "w", encoding="utf-8") as driver,
    ):
        print(json.dumps([str(spec)]), file=driver, flush=True)
        patch.setattr(sys, "stdin", stdin)
        at_step(5, lambda _: driver.close(), patch)
        assert job.run_fed(lambda: False) == STOPPED
    assert outcomes(spec) == ["stopped"]
    assert set(statuses(tmp_path).values()) == {"preempted"}
    assert run_pack(spec) == "done"
    assert_same_results(undisturbed, tmp_path)


def test_worker_ends_when_its_driver_died_before_it_said_what_to_run() -> None:
    done = subprocess.run([*pool.WORKER, "-"], stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_requeue_says_when_slurm_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        '#!/bin/sh\necho "$@" >> $0.called\n[ "$2" = 1 ] || { echo "Requests not allowed" >&2; exit 1; }\n'
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    own_job.requeue("1")
    assert capsys.readouterr().err == ""
    own_job.requeue("2")
    assert "job 2 is not requeued: Requests not allowed" in capsys.readouterr().err
    assert Path(f"{scontrol}.called").read_text(encoding="utf-8").splitlines() == ["requeue 1", "requeue 2"]


# Code, other tasks.


def test_other_code_than_was_submitted_is_refused_with_both_versions(studio: Studio, tmp_path: Path) -> None:
    spec = store(studio, tmp_path)
    with pytest.raises(BadInput) as caught:
        run_task([str(spec)], "0123456789ab")
    assert "0123456789ab" in str(caught.value)
    assert job.code_version() in str(caught.value)
    (claim,) = read_claims(PackFiles.of(spec))
    assert claim["outcome"] == "refused"
    assert claim["error"] == str(caught.value)
    assert not find_runs(tmp_path)
    run_task([str(spec)], job.code_version())
    assert outcomes(spec) == ["refused", "done"]


def test_code_version_changes_with_any_file_that_jobs_run(tmp_path: Path) -> None:
    from slurm.store.code_version import ROOMS, hash_files

    for room in ROOMS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "a.py").write_text("x = 1\n")
    versions = {hash_files(tmp_path)}
    for room in ROOMS:
        (tmp_path / room / "a.py").write_text("x = 2\n")
        versions.add(hash_files(tmp_path))
    (tmp_path / "adapters" / "a.py").rename(tmp_path / "adapters" / "b.py")
    versions.add(hash_files(tmp_path))
    assert len(versions) == 5


def test_task_goes_on_when_one_of_its_packs_cannot_be_run(
    studio: Studio, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    good, bad = store(studio, tmp_path, rates=(1e-3,)), store(studio, tmp_path, rates=(2e-3,))
    contents = json.loads(bad.read_text())
    contents["runs"][0]["cell"]["subject_hash"] = "of other pictures"
    bad.write_text(json.dumps(contents))
    with pytest.raises(BadInput, match="1 of 2 packs could not be run; the first: the pictures or prompts of cup"):
        run_task([str(bad), str(good)])
    assert outcomes(good) == ["done"]
    assert read_claims(PackFiles.of(bad))[0]["error"].startswith("the pictures or prompts of cup changed")


# Disks.

WRITES = {
    "run.json": r"/\.run\.json",
    "part": r"/dynamics/\.part",
    "checkpoint": r"/\.step-0*5\.safetensors",
    "scores": r"/\.scores",
    "picture": r"/\.000\.png",
    "index of pictures": r"/\.index\.json",
    "adapter": r"/\.adapter",
    "ending": r"\.ended\.json",
}


@pytest.mark.parametrize(
    ("what", "number"), [*((what, errno.ENOSPC) for what in WRITES), ("part", errno.EDQUOT), ("run.json", errno.EROFS)]
)
def test_no_space_for_a_write_is_a_clear_failure_and_it_goes_on_later(
    what: str, number: int, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Path
) -> None:
    spec, fsync, hits = store(studio, tmp_path), os.fsync, []

    def fail(handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        if re.search(WRITES[what], path):
            hits.append(path)
            raise OSError(number, os.strerror(number))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(BadInput) as caught:
            run_pack(spec)
    assert hits
    assert "\n" not in str(caught.value)
    assert "no space left" in str(caught.value) or os.strerror(number) in str(caught.value)
    assert outcomes(spec) == ["failed"]
    assert read_claims(PackFiles.of(spec))[0]["error"] == str(caught.value)
    assert not list(tmp_path.rglob("*.tmp")), "half a file was left"
    assert run_pack(spec) == "done"
    assert_same_results(undisturbed, tmp_path)


def test_file_size_limit_of_a_real_process_is_one_line(studio: Studio, tmp_path: Path, undisturbed: Path) -> None:
    """The operating system itself refuses, in the middle of a write."""
    spec = store(studio, tmp_path)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [sys.executable, "-m", "slurm.job", str(spec)]
    done = subprocess.run(command, cwd=ROOT, env=studio.environment(), capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    assert outcomes(spec) == ["failed"]
    assert not list(tmp_path.rglob("*.tmp"))
    assert run_pack(spec) == "done"
    assert_same_results(undisturbed, tmp_path)


# Damage.


def damage_half(path: Path) -> None:
    """What a crash of the machine may leave of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_byte(path: Path) -> None:
    """One byte in the middle, as from a bad disk."""
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)


def newest(pattern: str) -> Callable[[Path], Path]:
    """The last file of a run that fits a pattern."""
    return lambda run: sorted(run.glob(pattern))[-1]


DAMAGED = {
    "part": (newest("dynamics/part-*.parquet"), damage_half),
    "byte of a part": (newest("norms/part-*.parquet"), damage_byte),
    "missing part": (newest("steps/part-*.parquet"), Path.unlink),
    "checkpoint": (newest("checkpoint/*.safetensors"), damage_half),
    "byte of a checkpoint": (newest("checkpoint/*.safetensors"), damage_byte),
    "description": (newest("run.json"), damage_half),
    "scores": (newest("scores.parquet"), damage_half),
    "missing scores": (newest("scores.parquet"), Path.unlink),
    "index of pictures": (newest("images/index.json"), damage_half),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_is_told_of_and_made_good_from_the_last_whole_generation(
    what: str, studio: Studio, tmp_path: Path, undisturbed: Path, capsys: pytest.CaptureFixture
) -> None:
    spec = store(studio, tmp_path)
    cut(spec)
    find, harm = DAMAGED[what]
    path = find(find_runs(tmp_path)[0].path)
    harm(path)
    assert run_pack(spec) == "done"
    told = capsys.readouterr().err
    assert "damaged" in told
    assert str(path) in told or str(path.parent) in told
    assert_same_results(undisturbed, tmp_path)


@pytest.mark.parametrize("name", ["beat", "claim", "ended"])
def test_damaged_files_of_a_pack_lose_nothing(
    name: str, studio: Studio, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = store(studio, tmp_path)
    assert run_pack(spec) == "done"
    before = {run.path: run.read() for run in find_runs(tmp_path)}
    files = PackFiles.of(spec)
    path = {"beat": files.beat, "claim": files.claim(1), "ended": files.ended}[name]
    damage_half(path)
    monkeypatch.setattr(job, "_WATCH", leases.StalenessTracker(stale_s=0.0))
    wait_for(lambda: run_pack(spec) == "done", "its end")
    assert {run.path: run.read() for run in find_runs(tmp_path)} == before, "something was trained again"
    assert read_ended(PackFiles.of(spec)) is not None


def test_ended_run_that_was_set_aside_is_trained_again_alone(studio: Studio, tmp_path: Path, undisturbed: Path) -> None:
    spec = store(studio, tmp_path)
    assert run_pack(spec) == "done"
    kept, lost = find_runs(tmp_path)
    before = kept.read()
    aside = lost.set_aside()
    assert run_pack(spec) == "done"
    shutil.rmtree(aside)
    assert kept.read() == before
    assert_same_results(undisturbed, tmp_path)


def test_what_killed_writers_left_in_a_run_is_removed(studio: Studio, tmp_path: Path, undisturbed: Path) -> None:
    spec = store(studio, tmp_path)
    cut(spec)
    run = find_runs(tmp_path)[0]
    names = (".run.json", "steps/.part-00000007.parquet", "images/step-000006/.000.png")
    asides = [run.path / f"{name}.0123abcd-7.tmp" for name in names]
    for path in asides:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    assert run_pack(spec) == "done"
    assert not any(path.exists() for path in asides)
    assert_same_results(undisturbed, tmp_path)


# Kills.


@pytest.fixture
def worker(studio: Studio) -> Iterator[Callable[[Path], subprocess.Popen]]:
    """Starts real jobs; none outlives the test."""
    started: list[subprocess.Popen] = []

    def start(spec: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "slurm.job", str(spec)]
        environment = studio.environment() | {"PLATEAU_BEAT_S": "0.1", "PLATEAU_SETTLE_S": "0"}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_kill_9_at_random_moments_changes_nothing(studio: Studio, tmp_path: Path, worker: Callable) -> None:
    """Two processes are killed at moments that no one chose; a third one finishes."""
    long = {"rates": (1e-3, 2e-3), "seed": 3}
    changed = [cell.__class__(**(cell.__dict__ | {"steps": 60, "eval_steps": (20, 40)})) for cell in cells(**long)]
    spec, other = (make_pack(studio, tmp_path / name / "sweep", changed) for name in ("killed", "whole"))
    assert run_pack(other) == "done"
    chance, at = random.Random(), []
    for number in range(1, 3):
        process, files = worker(spec), PackFiles.of(spec)
        wait_for(
            lambda n=number, f=files: read_beat(f).get("turn") == n and "step" in read_beat(f), "a step", process, 0.005
        )
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.wait()
        at.append(read_beat(files).get("step"))
    assert run_pack(spec) == "done"
    assert outcomes(spec) == ["killed", "killed", "done"], f"killed at {at}"
    assert_same_results(tmp_path / "whole", tmp_path / "killed")


def test_interrupted_before_it_starts_leaves_no_run(studio: Studio, tmp_path: Path) -> None:
    spec = store(studio, tmp_path)
    with pytest.raises(Interrupted):
        run_pack(spec, stop=lambda: True)
    assert outcomes(spec) == ["stopped"]
    assert not find_runs(tmp_path)


def test_late_files_bring_no_double_training_and_no_false_failure(studio: Studio, tmp_path: Path) -> None:
    """Two machines want one pack; the first is stopped on the way and the second goes on; a third finds it done."""
    long = [Cell(**(cell.__dict__ | {"steps": 60})) for cell in cells()]
    server, log = tmp_path / "server", tmp_path / "log"
    spec, other = (make_pack(studio, runs / "sweep", long) for runs in (server, tmp_path / "whole"))
    assert run_pack(other) == "done"
    environment = studio.environment() | {
        "PLATEAU_BEAT_S": "0.1", "PLATEAU_SETTLE_S": str(settle_s := 3.0), "PLATEAU_STALE_S": "20",
    }  # fmt: skip

    def start(machine: str) -> subprocess.Popen:
        places = [server, tmp_path / machine, machine, log, spec.relative_to(server), str(settle_s / 2)]
        command = [sys.executable, "-m", "tests.late_files", *map(str, places)]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    def steps() -> list[tuple[str, int]]:
        lines = log.read_text().split("\n")[:-1] if log.exists() else []
        return [(line.split()[0], int(line.split()[1])) for line in lines]

    team = {name: start(name) for name in ("one", "two")}
    wait_for(lambda: len(steps()) >= 12, "twelve steps", team["one"], 0.005)
    first = steps()[0][0]
    team[first].send_signal(signal.SIGTERM)
    for process in team.values():
        _, errors = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, errors
    assert [step for _, step in steps()] == list(range(1, 61)), "a step was trained twice, or left out"
    assert len({machine for machine, _ in steps()}) == 2
    last = start("three")
    _, errors = last.communicate(timeout=HANG_S)
    assert last.returncode == 0, errors
    assert len(steps()) == 60
    assert_same_results(tmp_path / "whole", server)
