"""Jobs that die, are preempted, run out of time or are cancelled, on a real SLURM: the same command finishes the grid.

Every test ends with the comparison that matters: adapters, rows and pictures equal to the bit to those of runs that nothing
has disturbed, and no cell trained twice.
"""

from __future__ import annotations

import contextlib
import random
import re
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from tests import make_cluster
from tests.make_cluster import call, count_restarts, find_states
from tests.make_grid import MULTIPLIERS, STEPS, Grid, cells
from tests.waiting import HANG_S, wait_for
from tools.slurm_node.files import LocalSlurm
from training.store import read_json

pytestmark = pytest.mark.slurm


def preempt(cluster: LocalSlurm, folder: Path) -> str:
    """Take every CPU of the node for a moment, ahead of others; returns the job."""
    return make_cluster.submit(
        folder, "sleep 1", "--partition=urgent", f"--cpus-per-task={cluster.shape.cpus}", "--time=1"
    )


def test_ten_tasks_killed_at_random_steps_end_as_if_undisturbed(grid: Grid, undisturbed: Path) -> None:
    grid.flags = cells(MULTIPLIERS)
    steps = [random.randint(1, STEPS - 10) for _ in range(11)]
    print("killed at steps", steps)  # shown if the test fails
    grid.mood(sleep_s=0.05, kill_at=steps)
    grid.submit()
    assert grid.settle()["ended"] == 1  # the base's pack alone: it has no adapters
    states = [state.state for name, state in grid.states().items() if name in grid.packs()]
    assert set(states) <= {"preempted", "failed"}, states
    grid.mood()
    said = grid.submit()
    assert "10 tasks" in said, said
    assert grid.settle() == {"ended": 11}
    assert grid.outcomes() == {name: ["killed", "done"] for name in grid.packs()}
    assert len(grid.resumed()) >= 5, grid.resumed()  # those killed early had no checkpoint yet
    grid.assert_same_as(undisturbed, 10)


def test_preempted_with_user_signal_goes_on_by_itself(
    grid: Grid, slurm_cluster: LocalSlurm, undisturbed: Path, tmp_path: Path
) -> None:
    grid.mood(sleep_s=0.4)
    grid.submit()
    grid.wait_for_step(grid.packs(), 3)
    job = preempt(slurm_cluster, tmp_path)
    make_cluster.wait_for_state(job, "COMPLETED")
    grid.mood()
    assert grid.settle() == {"ended": 3}
    assert {tuple(outcomes) for outcomes in grid.outcomes().values()} == {("stopped", "done")}
    assert min(grid.resumed().values()) >= 3
    assert len(grid.resumed()) == 2
    assert len(grid.jobs()) == 1
    assert "Restarts=1" in call("scontrol", "show", "job", f"{grid.jobs()[0]}_1")
    grid.assert_same_as(undisturbed, 2)


def test_preempted_without_user_signal_goes_on_by_itself(
    grid: Grid, slurm_cluster: LocalSlurm, undisturbed: Path, tmp_path: Path
) -> None:
    grid.mood(sleep_s=0.4)
    folder = make_cluster.name_folder("silent")
    with make_cluster.make_cluster(folder, "--cpus", "4", "--grace-s", "3", "--no-user-signal") as silent:
        grid.submit()
        grid.wait_for_step(grid.packs(), 3)
        job = preempt(silent, tmp_path)
        make_cluster.wait_for_state(job, "COMPLETED")
        grid.mood()
        assert grid.settle() == {"ended": 3}
        assert len(grid.jobs()) == 1
    assert {tuple(outcomes) for outcomes in grid.outcomes().values()} <= {("stopped", "done"), ("killed", "done")}
    assert min(grid.resumed().values()) >= 3
    assert len(grid.resumed()) == 2
    grid.assert_same_as(undisturbed, 2)


def test_time_limit_that_draws_near_is_continued_by_requeue(grid: Grid, undisturbed: Path) -> None:
    grid.mood(sleep_s=4)
    grid.submit()
    grid.wait_for_step(grid.packs(), 3)
    (job,) = grid.jobs()
    limit_time(job, minutes_passed(job) + 2)  # it is warned 90 s before, so soon
    wait_for(lambda: all(turns[0] == "stopped" for turns in grid.outcomes().values()), "the end of both turns")
    limit_time(job, 240)
    grid.mood()
    assert grid.settle() == {"ended": 3}
    assert {tuple(outcomes) for outcomes in grid.outcomes().values()} == {("stopped", "done")}
    assert min(grid.resumed().values()) >= 3
    assert len(grid.resumed()) == 2
    assert grid.jobs() == [job]
    grid.assert_same_as(undisturbed, 2)


def limit_time(job: str, minutes: int) -> None:
    """Give the tasks of a job another time limit; SLURM complains of those that have ended."""
    subprocess.run(["scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}"], capture_output=True, timeout=HANG_S)


def minutes_passed(job: str) -> int:
    """Whole minutes since the first of a job's tasks began."""
    began = re.findall(r"\bStartTime=(\S+)", call("scontrol", "show", "job", job))
    return int((datetime.now() - min(map(datetime.fromisoformat, began))).total_seconds() // 60)


def test_warning_before_python_listens_does_not_end_the_task(grid: Grid, undisturbed: Path) -> None:
    with make_cluster.closed_partition():
        grid.submit()
    (job,) = grid.jobs()
    wait_for(lambda: any(s.startswith("RUNNING") for s in find_states(job).values()), "the start of a task")

    def is_heard() -> bool:
        # scancel waits 11 s for a task that is being requeued; it would warn the next starts too, and three are given up.
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(["scancel", "--signal=URG", "--batch", job], capture_output=True, timeout=1)
        return any(grid.claims().values()) or count_restarts(job) > 0

    wait_for(is_heard, "a requeue or a claim")  # shell and imports come first
    assert grid.settle() == {"ended": 3}
    assert grid.jobs() == [job]
    grid.assert_same_as(undisturbed, 2)


def test_cancelled_tasks_are_seen_at_once_and_resumed(grid: Grid, undisturbed: Path) -> None:
    grid.flags = cells(MULTIPLIERS[:3])
    grid.mood(sleep_s=0.5)
    grid.submit()
    grid.wait_for_step(grid.packs(), 2)
    (job,) = grid.jobs()
    first = next(name for name, state in grid.states().items() if state.job == f"{job}_1")
    call("scancel", f"{job}_1")
    wait_for(lambda: not find_states(job)[f"{job}_1"].startswith("R"), "scancel")
    state = grid.states()[first]
    assert state.state in ("preempted", "failed", "running"), state  # COMPLETING: its processes may still write
    wait_for(lambda: find_states(job)[f"{job}_1"].startswith("CANCELLED"), "the end of the cancelled task")
    assert grid.states()[first].state == "preempted"  # one refresh
    assert grid.count()["running"] == 2
    call("scancel", job)
    wait_for(lambda: set(find_states(job).values()) <= {"CANCELLED None", "COMPLETED None"}, "the array's end")
    assert grid.count() == {"ended": 1, "preempted": 3}
    assert grid.status("--wait").returncode == 3
    grid.mood()
    grid.submit()
    assert grid.settle() == {"ended": 4}
    assert {tuple(outcomes) for outcomes in grid.outcomes().values()} == {("stopped", "done")}
    assert len(grid.resumed()) == 3
    grid.assert_same_as(undisturbed, 3)


def test_out_of_memory_halves_the_pack(grid: Grid, undisturbed: Path) -> None:
    grid.flags = (*cells(MULTIPLIERS[:4]), "--pack-size", "4", "--workers", "1")
    grid.mood(kill_above=1)
    for _ in range(2):  # it dies where memory is taken, and the same command tries again
        grid.submit()
        assert grid.settle()["ended"] == 1
    (whole,) = grid.packs()
    assert grid.outcomes()[whole][0] == "killed"
    grid.submit()
    for _ in range(4):  # two together die too
        if grid.settle()["ended"] == 2:
            break
        grid.submit()
    ending = read_json(grid.packs()[whole].ended)
    assert "out of memory" in ending["reason"], ending
    assert [claim["at_most"] for claim in grid.claims()[whole] if claim.get("at_most")] == [2, 1]
    grid.assert_same_as(undisturbed, 4)


def test_bad_cell_fails_alone(grid: Grid, undisturbed: Path) -> None:
    grid.flags = (*cells(MULTIPLIERS[:1], seeds=(0, 1)), "--pack-size", "2", "--workers", "1")
    grid.mood(raise_seed=1)
    grid.submit()
    grid.settle()
    runs = {run.read()["cell"]["seed"]: run.read() for run in grid.runs_by_id().values() if "base" not in run.run_id}
    assert (runs[0]["status"], runs[1]["status"]) == ("finished", "failed")
    assert "Traceback" in runs[1]["error"]
    assert "this cell is bad" in runs[1]["error"]
    bad = [state for state in grid.states().values() if state.num_cells and state.counts.get("failed")]
    assert [state.counts["failed"] for state in bad] == [1]
    assert "this cell is bad" in bad[0].error
    outcomes = grid.outcomes()[bad[0].name]
    assert outcomes == ["failed"], outcomes
    assert grid.status("--wait").returncode == 1
    grid.mood()  # it is good again, and the same command tries it again
    grid.submit()
    grid.settle()
    assert [run.status() for run in grid.runs_by_id().values()] == ["finished"] * 3
