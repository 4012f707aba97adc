"""Submitters that die, daemons that restart, and two users at once, on a real SLURM: no task is lost, and none runs twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slurm.store.layout import SweepFolder
from slurm.store.queue import Scheduler
from slurm.store.submissions import Submissions
from tests import make_cluster
from tests.make_cluster import call, find_states
from tests.make_grid import MULTIPLIERS, Grid, cells, copy_plan, count_jobs
from tests.waiting import HANG_S, wait_for
from tools.slurm_node.files import LocalSlurm

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slurm

# A submitter without a driver, which dies where it is told to.
SUBMITTER = """
import os, signal, sys
from slurm.submit import send as submit
from slurm.submit.clusters import Cluster
from slurm.estimate.need import Need
from slurm.store.layout import SweepFolder

def die(*args, **named):
    os.kill(os.getpid(), signal.SIGKILL)

def die_at(number, real, counted=[]):
    def call(*args, **named):
        counted.append(1)
        return die() if len(counted) == number else real(*args, **named)
    return call

end = print
exec(sys.argv[2])
end(submit.submit_missing(SweepFolder(sys.argv[1]), Cluster("slurm", time_min=240), lambda pack: Need(60.0)))
"""
DEATHS = {
    "before the intent": "submit.store = die",
    "before sbatch": "os.environ['PLATEAU_TEST_KILLS'] = 'before'",
    "while sbatch waits for the controller": "os.environ['PLATEAU_TEST_KILLS'] = 'waiting'",
    "after sbatch, before its answer": "os.environ['PLATEAU_TEST_KILLS'] = 'after'",
    "before the record has the job": "submit.store = die_at(2, submit.store)",
    "after the record has the job": "end = die",
}
SBATCH = """\
#!/bin/sh
[ "$PLATEAU_TEST_KILLS" = before ] && kill -9 $PPID && exit 1
[ "$PLATEAU_TEST_KILLS" = waiting ] && kill -9 $PPID && until [ -e {go} ]; do sleep 0.1; done
{sbatch} "$@"
code=$?
[ "$PLATEAU_TEST_KILLS" = after ] && kill -9 $PPID
exit $code
"""


def count_tasks(grid: Grid) -> int:
    """Tasks that SLURM has got for a sweep, from whichever submitter."""
    submissions = Submissions(grid.sweep)
    submissions.refresh()
    return sum(count_jobs(f"plateau-{record['token']}") for record in submissions.records)


def test_submitter_killed_anywhere_loses_nothing_and_sends_nothing_twice(
    grid: Grid, undisturbed: Path, tmp_path: Path
) -> None:
    programs, source = tmp_path / "programs", SweepFolder(undisturbed / "lr_robustness")
    programs.mkdir()
    (programs / "sbatch").write_text(SBATCH.format(sbatch=shutil.which("sbatch"), go=programs / "go"))
    (programs / "sbatch").chmod(0o755)
    base, *_, last = source.scan()
    grids = {moment: Grid(grid.studio, tmp_path / moment.replace(" ", "-"), ()) for moment in DEATHS}
    environment = grid.environment() | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def submit(moment: str, death: str = "") -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", SUBMITTER, str(grids[moment].sweep.path), death]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANG_S)

    for each in grids.values():
        copy_plan(source, each.sweep, (base, last))
    with ThreadPoolExecutor(2) as team:
        died = dict(zip(DEATHS, team.map(submit, *zip(*DEATHS.items()))))
        assert {done.returncode for done in died.values()} == {-signal.SIGKILL}, died
        sent = {moment: count_tasks(each) for moment, each in grids.items()}
        assert sorted(sent.values()) == [0, 0, 0, 2, 2, 2], sent
        (programs / "go").touch()
        said = dict(zip(DEATHS, team.map(submit, DEATHS)))
    kept = {moment for moment, done in said.items() if "the job is kept" in done.stdout}
    assert kept == {
        "while sbatch waits for the controller", "after sbatch, before its answer", "before the record has the job",
    }, said  # fmt: skip
    for moment, each in grids.items():
        assert each.settle() == {"ended": 2}, (moment, said[moment])
        assert set(map(tuple, each.outcomes().values())) == {("done",)}, moment
        assert count_tasks(each) == 2, (moment, said[moment])
        each.assert_same_as(undisturbed, 1)


def test_two_users_at_once_and_the_same_command_while_jobs_run(grid: Grid, undisturbed: Path) -> None:
    grid.mood(sleep_s=0.3)
    pair = [grid.start(), grid.start()]
    said = [process.communicate(timeout=HANG_S) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert count_tasks(grid) == 3, said
    grid.wait_for_step(grid.packs(), 1)
    grid.submit()
    inline = grid.run(cluster="inline")  # waits for the jobs to end, trains nothing itself
    assert inline.returncode == 0, inline.stderr
    assert count_tasks(grid) == 3
    assert grid.settle() == {"ended": 3}
    assert set(map(tuple, grid.outcomes().values())) == {("done",)}
    grid.assert_same_as(undisturbed, 2)


def test_daemons_restart_and_the_node_goes_down_and_up(
    grid: Grid, slurm_cluster: LocalSlurm, undisturbed: Path
) -> None:
    grid.mood(sleep_s=1.0)
    grid.submit()
    grid.wait_for_step(grid.packs(), 1)
    (job,) = grid.jobs()
    # The controller is away: status answers from the folders.
    slurm_cluster.slurmctld.stop()
    looked = grid.status("--once", "--json")
    assert looked.returncode == 0, looked.stderr
    assert '"running": 2' in looked.stdout, looked.stdout
    refused = grid.run()
    assert refused.returncode == 2
    assert refused.stderr.strip().count("\n") == 0, refused.stderr
    start(slurm_cluster)
    # The node's daemon is away: its jobs go on.
    slurm_cluster.slurmd.stop()
    time.sleep(1)
    start(slurm_cluster)
    assert grid.count()["running"] == 2
    assert all(len(turns) == 1 for turns in grid.outcomes().values())
    # The node is lost while its processes live: SLURM gives the jobs to whoever comes, and each cell is trained once.
    slurm_cluster.slurmd.stop()
    call("scontrol", "update", f"nodename={os.uname().nodename.partition('.')[0]}", "state=down", "reason=test")
    wait_for(lambda: not any(s.startswith("RUNNING") for s in find_states(job).values()), "the node's loss")
    assert grid.status("--once").returncode == 0
    start(slurm_cluster)
    grid.mood()
    assert grid.settle() == {"ended": 3}
    assert all(turns[-1] == "done" and turns.count("done") == 1 for turns in grid.outcomes().values())
    grid.assert_same_as(undisturbed, 2)


def start(cluster: LocalSlurm) -> None:
    """Start what does not run."""
    make_cluster.up(cluster.folder, *make_cluster.FLAGS)


def test_code_changed_after_submission_is_refused_with_both_versions(grid: Grid, tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    for room in ("adapters", "analysis", "figures", "slurm", "sweeps", "training"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__", "pictures"))
    grid.flags = cells(MULTIPLIERS[:1])

    def submit() -> None:
        words = grid.studio.arguments(grid.runs, *grid.words("--cluster", "slurm"))
        words[1] = words[1].replace(str(ROOT), str(copy))
        done = subprocess.run(words, cwd=copy, env=grid.environment(), capture_output=True, text=True, timeout=HANG_S)
        assert done.returncode == 0, done.stderr

    with make_cluster.closed_partition():
        submit()
        with open(copy / "training" / "loop.py", "a", encoding="utf-8") as file:
            file.write("# edited after the submission\n")
    grid.settle()
    states = {name: state for name, state in grid.states().items() if name in grid.packs()}
    (state,) = states.values()
    (claim,) = grid.claims()[state.name]
    assert (state.state, claim["outcome"]) == ("failed", "refused")
    versions = {record["code"] for record in read_records(grid)} | {claim["code"]}
    assert len(versions) == 2
    assert all(version in state.error for version in versions), state.error
    assert not [run for run in grid.runs_by_id().values() if run.status() != "planned"]
    submit()
    assert grid.settle() == {"ended": 2}


def test_environment_that_the_node_lacks_is_named_and_the_same_command_goes_on(grid: Grid, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "tests.pth").write_text("\n".join([str(ROOT), *(p for p in sys.path if "site-packages" in p)]), "utf-8")
    grid.flags = cells(MULTIPLIERS[:1])

    def submit() -> None:
        words = grid.studio.arguments(grid.runs, *grid.words("--cluster", "slurm"))
        words[0] = str(environment / "bin" / "python")
        told = grid.environment() | {"HOME": "/dev/null/nobody"}  # travels to the job, where it is no folder either
        done = subprocess.run(words, cwd=ROOT, env=told, capture_output=True, text=True, timeout=HANG_S)
        assert done.returncode == 0, done.stderr

    with make_cluster.closed_partition():
        submit()
        environment.rename(tmp_path / "away")
    grid.settle()
    (state,) = (state for name, state in grid.states().items() if name in grid.packs())
    assert state.state == "planned"  # nobody has tried it yet, but why is known
    assert re.fullmatch(f"job \\d+_?\\d*: FAILED: .*{environment}/bin/python: .*", state.error), state.error
    shown = grid.status("--once").stdout
    assert state.error[:60] in shown, shown
    (tmp_path / "away").rename(environment)
    submit()
    assert grid.settle() == {"ended": 2}


def read_records(grid: Grid) -> list[dict]:
    """What was sent."""
    submissions = Submissions(grid.sweep)
    submissions.refresh()
    return submissions.records


def test_waiting_ends_when_a_job_is_held(grid: Grid) -> None:
    grid.flags = cells(MULTIPLIERS[:1])
    with make_cluster.closed_partition():
        grid.submit()
        (job,) = grid.jobs()
        call("scontrol", "hold", job)
    waited = grid.status("--wait")
    assert waited.returncode == 3, waited.stdout + waited.stderr
    assert "Held" in waited.stdout
    assert grid.status("--cancel").returncode == 0
    assert set(grid.count()) == {"planned"}


@pytest.mark.slow
def test_accounting_hangs_nothing_and_its_limits_hold(grid: Grid, undisturbed: Path, tmp_path: Path) -> None:
    make_cluster.require_slurm("--accounting")
    with make_cluster.make_cluster(make_cluster.name_folder("accounting"), "--accounting", "--cpus", "4"):
        grid.submit()
        assert grid.status("--wait").returncode == 0
        assert grid.settle() == {"ended": 3}
        call("sacctmgr", "--immediate", "modify", "user", "root", "set", "MaxSubmitJobs=2")
        wait_for(lambda: Scheduler().limits().max_submit == 2, "the database's limit")
        tight = Grid(grid.studio, tmp_path / "tight", grid.flags)
        said = tight.submit()
        assert "1 pack still planned, there is no room in the queue" in said, said
        assert tight.status("--wait").returncode == 0, "whoever waits sends the rest"
        assert tight.settle() == {"ended": 3}
        assert len(tight.jobs()) == 2
    grid.assert_same_as(undisturbed, 2)
    tight.assert_same_as(undisturbed, 2)


@pytest.mark.slow
def test_driver_costs_less_than_a_twentieth_of_a_pack_when_cells_are_small(grid: Grid) -> None:
    multipliers = [round(0.25 * 1.2**n, 3) for n in range(20)]
    grid.flags = (*cells(multipliers, seeds=range(10)), "--pack-size", "16")
    began = time.monotonic()
    grid.submit()
    driver_s = time.monotonic() - began
    wait_for(lambda: grid.count().keys() == {"ended"}, "200 cells")
    seconds = [json.loads(files.ended.read_text())["seconds"] for files in grid.packs().values()]
    share = driver_s / 200 / (sum(seconds) / len(seconds))
    print(
        f"driver {driver_s:.1f} s for 200 cells, {len(seconds)} packs of {sum(seconds) / len(seconds):.1f} s: {share:.2%}"
    )
    assert share < 0.05
