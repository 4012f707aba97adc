"""Disks that are full or closed, damaged, stale and late files, a replica that is not finite, on a real SLURM; and the same
stored plan wherever it is run.

Every test ends as those of `test_faults.py` do: with the comparison to runs that nothing has disturbed.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from slurm.store.layout import PackFiles
from slurm.store.leases import Owner
from tests import make_cluster
from tests.compare_runs import assert_same, assert_same_results, rows
from tests.make_cluster import find_states
from tests.make_disk import make_disk, make_quota, read_only, why_no_quota
from tests.make_grid import MULTIPLIERS, NAN_STEP, STEPS, Grid, cells, copy_plan, write_method
from tests.make_studio import Studio
from tests.waiting import wait_for
from tools.slurm_node.files import LocalSlurm
from training.store import RunFolder, read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
HOUR_S = 3600.0
LATE_S = 5.0  # how late a file server shows the files of others
pytestmark = pytest.mark.slurm


# Disks.


def train_until_it_holds(grid: Grid) -> None:
    """Have the base done, and one pack on its way."""
    grid.flags = cells(MULTIPLIERS[:1])
    grid.mood(sleep_s=0.8)
    grid.submit()
    grid.wait_for_step(grid.packs(), 3)
    wait_for(lambda: grid.count()["ended"] == 1, "the base's pack")


def assert_failed(grid: Grid, reason: str) -> None:
    """The pack has failed for a reason that is one line, and no file is half there."""
    assert grid.settle() == {"ended": 1, "failed": 1}
    (error,) = (state.error for state in grid.states().values() if state.state == "failed")
    assert reason in error
    assert "\n" not in error
    waited = grid.status("--wait")
    assert waited.returncode == 1
    assert error in waited.stdout
    for run in grid.runs_by_id().values():
        rows(run)  # reads every table
        run.images()


def has_asides(grid: Grid) -> bool:
    """Whether a file that was begun lies beside its place; on a read-only file system nobody can take it away."""
    return any(grid.runs.rglob("*.tmp"))


def assert_refused(grid: Grid) -> None:
    """The same command ends at once, in one line, while there is no space."""
    refused = grid.run()
    assert refused.returncode == 2, refused.stdout
    assert "no space left to write" in refused.stderr
    assert refused.stderr.strip().count("\n") == 0, refused.stderr


def assert_goes_on(grid: Grid, undisturbed: Path) -> None:
    """The same command takes the pack from its checkpoint to the end."""
    grid.mood()
    grid.submit()
    assert grid.settle() == {"ended": 2}
    assert not has_asides(grid)
    assert [(len(turns), turns[-1]) for turns in grid.outcomes().values()] == [(2, "done")]
    assert len(grid.resumed()) == 1
    grid.assert_same_as(undisturbed, 1)


def test_full_disk_is_a_clear_failure_and_more_space_is_enough(grid: Grid, undisturbed: Path, tmp_path: Path) -> None:
    with make_disk(tmp_path / "disk") as disk:
        grid.runs = disk.path / "runs"
        train_until_it_holds(grid)
        disk.fill()
        assert_failed(grid, f"no space left to write {grid.sweep.path}")
        assert not has_asides(grid)
        assert_refused(grid)
        disk.grow()
        assert_goes_on(grid, undisturbed)


@pytest.mark.skipif(bool(why_no_quota()), reason=f"NO DISK: no quota is used up: {why_no_quota()}")
def test_quota_that_is_used_up_is_a_failure_and_a_larger_one_is_enough(
    grid: Grid, undisturbed: Path, tmp_path: Path
) -> None:
    """Here not even the reason can be written any more, nor a line of a log: SLURM alone knows of the failure."""
    with make_quota(tmp_path / "quota") as quota:
        grid.runs = quota.path / "runs"
        train_until_it_holds(grid)
        quota.fill()
        assert_failed(grid, "FAILED")
        assert not has_asides(grid)
        assert_refused(grid)
        quota.grow()
        assert_goes_on(grid, undisturbed)


def test_read_only_folder_is_a_clear_failure_and_it_goes_on_when_it_is_open(grid: Grid, undisturbed: Path) -> None:
    train_until_it_holds(grid)
    with read_only(grid.runs):
        assert_failed(grid, "Read-only file system")
    assert_goes_on(grid, undisturbed)


# Damage.


def harm(path: Path) -> Path:
    """Leave half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_damaged_files_are_told_of_and_made_good(grid: Grid, undisturbed: Path) -> None:
    grid.flags = cells(MULTIPLIERS[:3])
    grid.mood(sleep_s=0.1, kill_at=[30] * 4)
    grid.submit()
    assert grid.settle()["ended"] == 1
    one, two, three = (run for name, run in grid.runs_by_id().items() if "base" not in name)
    newest = {run.run_id: run.checkpoints()[-1] for run in (one, two, three)}
    part = next(part for part in one.parts("dynamics") if int(part.stem[5:]) == newest[one.run_id])
    harmed = [harm(part), harm(two.checkpoint(newest[two.run_id])), harm(three.path / "run.json")]
    grid.mood()
    again = grid.run()
    assert again.returncode == 0, again.stderr
    assert grid.settle() == {"ended": 4}
    told = [line for line in (again.stderr + grid.said()).splitlines() if line.startswith("damaged")]
    assert [sum(str(path) in line for line in told) for path in harmed] == [1, 1, 1], told
    resumed = grid.resumed()
    assert 0 < resumed[one.run_id] < newest[one.run_id]
    assert 0 < resumed[two.run_id] < newest[two.run_id]
    assert resumed[three.run_id] == newest[three.run_id]
    assert {tuple(outcomes) for outcomes in grid.outcomes().values()} == {("killed", "done")}
    grid.assert_same_as(undisturbed, 3)


# One stored plan: packs of three replicas of two methods.


@pytest.fixture(scope="module")
def planned(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Grid:
    """The sweep whose plan others get, trained inline."""
    methods = ("--method", str(write_method(studio)), "delora")
    flags = (*methods, *cells([1.0], seeds=range(3)), "--pack-size", "3")
    grid = Grid(studio, tmp_path_factory.mktemp("planned"), flags)
    grid.submit(cluster="inline")
    assert sorted(state.num_cells for state in grid.states().values()) == [1, 3, 3]
    return grid


def plan_alike(planned: Grid, runs: Path, **changes: object) -> Grid:
    """A new sweep of the same stored plan, whose own flags would give every run a pack of its own."""
    grid = dataclasses.replace(planned, runs=runs, flags=(*planned.flags, "--pack-size", "1"), **changes)
    grid.mood()
    copy_plan(planned.sweep, grid.sweep)
    return grid


def find_pack(grid: Grid, method: str) -> PackFiles:
    """The pack of a method."""
    return next(files for name, files in grid.packs().items() if name.startswith(method))


def test_same_plan_gives_the_same_results_inline_locally_and_on_slurm(
    planned: Grid, slurm_cluster: LocalSlurm, tmp_path: Path
) -> None:
    local, remote = (plan_alike(planned, tmp_path / name) for name in ("local", "slurm"))
    local.submit(cluster="local")
    remote.submit()
    for grid in (local, remote):
        assert grid.settle() == {"ended": 3}
        assert grid.sweep.scan().keys() == planned.sweep.scan().keys()
        wait_for(lambda: set(map(tuple, grid.outcomes().values())) == {("done",)}, "one turn at each pack")  # noqa: B023
        assert_same_results(planned.runs, grid.runs)
    assert not local.jobs()
    holders = [claim["holder"]["job"] for claims in remote.claims().values() for claim in claims]
    assert all(job.startswith(f"{remote.jobs()[0]}_") for job in holders), holders


def test_replica_that_is_not_finite_diverges_alone(planned: Grid, slurm_cluster: LocalSlurm, tmp_path: Path) -> None:
    grid = plan_alike(planned, tmp_path / "runs")
    grid.mood(nan_seed=1)
    grid.submit()
    waited = grid.status("--wait")
    assert waited.returncode == 0, waited.stdout
    assert "7 cells: 6 finished, 1 diverged" in waited.stdout
    assert grid.settle() == {"ended": 3}
    before = {run.run_id: run for run in planned.runs_by_id().values()}
    for name, run in grid.runs_by_id().items():
        record = run.read()
        if record["cell"]["method"].startswith("patient") and record["cell"]["seed"] == 1:
            assert (record["status"], record["diverged_step"]) == ("diverged", NAN_STEP)
        else:
            assert_same(before[name], run)
    assert sum(state.counts.get("diverged", 0) for state in grid.states().values()) == 1


def haunt(files: PackFiles, ahead_s: float) -> list[Path]:
    """Leave what a process of a dead host leaves whose clock was wrong: a claim, a heartbeat, and files half written."""
    then = time.time() + ahead_s
    holder = dataclasses.replace(Owner.me(), host="node7", machine="another-boot", job="")
    write_json(files.claim(1), {"holder": dataclasses.asdict(holder), "began": then})
    write_json(files.beat, {"turn": 1, "count": 9, "time": then, "phase": "training", "step": 5, "steps": STEPS})
    row = read_json(files.spec)["runs"][0]
    run = RunFolder(files.folder.parent / row["run_id"])
    run.write({"cell": row["cell"], "labels": row["labels"], "status": "running"})
    asides = [run.path / ".run.json.0123abcd-7.tmp", run.path / "steps" / ".part-00000007.parquet.0123abcd-7.tmp"]
    for aside in asides:
        aside.parent.mkdir(exist_ok=True)
        aside.write_text("{")
    for path in (*asides, files.beat, files.claim(1), run.path / "run.json"):
        os.utime(path, (then, then))
    return asides


def test_what_a_dead_host_left_is_taken_over_whatever_its_clock_said(
    planned: Grid, slurm_cluster: LocalSlurm, tmp_path: Path
) -> None:
    grid = plan_alike(planned, tmp_path / "runs", times={"PLATEAU_STALE_S": "4"})
    asides = haunt(find_pack(grid, "patient"), HOUR_S) + haunt(find_pack(grid, "delora"), -HOUR_S)
    with make_cluster.closed_partition():
        grid.submit()
        (job,) = grid.jobs()
    assert grid.settle() == {"ended": 3}
    assert {tuple(outcomes) for outcomes in grid.outcomes().values()} == {("killed", "done")}
    assert not [path for path in asides if path.exists()]
    assert all(text.startswith("COMPLETED") for text in find_states(job).values()), find_states(job)
    assert grid.jobs() == [job]
    assert_same_results(planned.runs, grid.runs)


# Late files.


@dataclasses.dataclass
class LateMachines:
    """An array of two tasks that want one pack, each on a machine of its own that sees the other's files late.

    Attributes:
        folder: of logs and of what each machine sees.
        grid: the sweep as the file server has it.
        files: the pack.
    """

    folder: Path
    grid: Grid
    files: PackFiles

    def start(self) -> str:
        """Submit the array; returns its job."""
        machine = "machine-$SLURM_ARRAY_TASK_ID"
        words = [sys.executable, "-m", "tests.late_files", self.grid.runs, self.folder / machine, machine,
                 self.log, self.files.spec.relative_to(self.grid.runs), LATE_S]  # fmt: skip
        times = {"PLATEAU_BEAT_S": 0.2, "PLATEAU_STALE_S": 60, "PLATEAU_SETTLE_S": 2 * LATE_S}
        settings = " ".join(f"{name}={value}" for name, value in times.items())
        script = f"cd {ROOT}; export OMP_NUM_THREADS=1 {settings}; exec {' '.join(map(str, words))}"
        return make_cluster.submit(self.folder, script, "--array=0-1")

    @property
    def log(self) -> Path:
        """A line `machine step` for each step that was trained."""
        return self.folder / "steps.log"

    def steps(self) -> list[tuple[str, int]]:
        """What was trained, in order."""
        lines = self.log.read_text().split("\n")[:-1] if self.log.exists() else []
        return [(line.split()[0], int(line.split()[1])) for line in lines]


def test_files_seen_late_bring_no_double_training_and_no_false_start(
    planned: Grid, slurm_cluster: LocalSlurm, tmp_path: Path
) -> None:
    """The first of two machines is killed on its way, and SLURM says so long before its last files are seen."""
    grid = plan_alike(planned, tmp_path / "server")
    machines = LateMachines(tmp_path, grid, files := find_pack(grid, "patient"))
    grid.mood(sleep_s=0.15)
    job = machines.start()
    wait_for(lambda: len(machines.steps()) >= 20, "twenty steps")
    first, *_ = (machine for machine, _ in machines.steps())
    second = {"machine-0": "machine-1", "machine-1": "machine-0"}[first]
    os.kill(grid.claims()[files.name][0]["holder"]["pid"], signal.SIGKILL)
    grid.mood()
    wait_for(lambda: not find_states(job)[f"{job}_{second[-1]}"].startswith("RUNNING"), "the end of the other")
    states = {task[-1]: text for task, text in find_states(job).items()}
    assert states[first[-1]].startswith("FAILED"), states
    assert states[second[-1]].startswith("COMPLETED"), states
    counts = Counter(machine for machine, _ in machines.steps())
    begun = STEPS - counts[second] + 1
    assert machines.steps() == [(first, step) for step in range(1, counts[first] + 1)] + [
        (second, step) for step in range(begun, STEPS + 1)
    ], "both trained at once"
    assert 1 < begun <= counts[first] + 1, "it did not go on from the last that the first had written"
    for name in (row["run_id"] for row in read_json(files.spec)["runs"]):
        assert_same(planned.runs_by_id()[name], grid.runs_by_id()[name])
