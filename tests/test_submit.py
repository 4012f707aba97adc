"""Packs become job arrays within the cluster's limits, and whenever a submitter dies, nothing is lost or sent twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from adapters import BadInput
from slurm.estimate.need import Need, Pack
from slurm.store.code_version import code_version
from slurm.store.layout import SweepFolder
from slurm.store.limits import Limits, Partition
from slurm.store.pack_states import survey
from slurm.store.queue import Scheduler, SchedulerError
from slurm.store.submissions import Submissions
from slurm.submit import export as exporting
from slurm.submit import sbatch
from slurm.submit import send as sending
from slurm.submit.arrays import choose_time, plan_arrays
from slurm.submit.clusters import Cluster
from slurm.submit.processes import list_processes
from slurm.submit.sbatch import Request, open_private
from slurm.submit.send import Report, submit_missing
from tests.make_slurm import FakeSlurm, make_slurm
from tests.make_sweep import Sweep
from tests.waiting import HANG_S
from training.cell import Cell

ROOT = Path(__file__).resolve().parents[1]
SECRET = "hf_thisTokenMustNotReachAnyDisk"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.setattr("slurm.store.leases.SETTLE_S", 0.01)
    monkeypatch.setenv("PLATEAU_SETTLE_S", "0.01")
    return make_slurm(tmp_path, monkeypatch)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Thirty planned packs of one kind."""
    made = Sweep(tmp_path / "runs" / "wide")
    for number in range(30):
        made.pack(f"p{number:02d}")
    return made


def minutes(pack: Pack) -> Need:
    """A minute a cell."""
    return Need(60.0 * pack.demand.num_cells)


def send(sweep: Sweep, cluster: Cluster | None = None) -> Report:
    return submit_missing(sweep.folder, cluster or Cluster(), minutes)


def states(sweep: Sweep) -> Counter:
    return Counter(state.state for state in survey(sweep.folder, Scheduler()))


def records(sweep: Sweep) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(sweep.folder.submissions.glob("*.json"))]


def live_packs(sweep: Sweep, slurm: FakeSlurm) -> Counter:
    """How often each pack stands in an array that is in the queue, its record read as the task would."""
    found: Counter = Counter()
    for job, (state, name) in slurm.jobs().items():
        if state == "PENDING" and name.startswith("plateau-"):
            number = int(job.partition("_")[2] or 0)
            text = (slurm.home / f"sbatch-{job.partition('_')[0]}.sh").read_text()
            record = json.loads(Path(shlex.split(text.splitlines()[-1])[-1]).read_text(encoding="utf-8"))
            found.update(record["tasks"][number] if record["state"] != "refused" else ())
    return found


# From packs to arrays.


def pack(name: str, steps: int = 100, method: str = "lora", threads: int = 1, device: str = "cpu") -> Pack:
    cell = Cell(method=method, options="", rank=4, subject="dog", seed=0, steps=steps, lr=1e-3)
    return Pack.of(name, [cell], {"threads": threads, "device": device})


def by_steps(pack: Pack) -> Need:
    return Need(float(pack.demand.rows))


def test_packs_of_the_same_needs_share_arrays_up_to_the_largest() -> None:
    packs = [pack(f"a{n}") for n in range(25)] + [pack(f"b{n}", 10_000) for n in range(3)]
    packs += [pack("c", threads=2), pack("d", method="dora")]
    found = plan_arrays(packs, Cluster(), by_steps, Limits(max_array_size=20))
    assert [(len(r.tasks), r.time_min, r.cpus) for r in found] == [(20, 5, 1), (6, 5, 1), (3, 360, 1), (1, 5, 2)]
    assert sorted(name for r in found for name in r.packs) == sorted(p.name for p in packs)
    assert found[0].expected_s == (100.0,) * 20


def test_tasks_hold_several_packs_of_one_kind_when_asked_for() -> None:
    packs = [pack(f"a{n}", 1800) for n in range(3)] + [pack(f"b{n}", method="dora") for n in range(2)]
    found = plan_arrays(packs, Cluster(packs_per_task=2), by_steps, Limits())
    assert [task for r in found for task in r.tasks] == [("a0", "a1"), ("a2",), ("b0", "b1")]
    assert [r.time_min for r in found] == [120, 60, 10]


@pytest.mark.parametrize(
    ("expected_s", "limit", "asked", "time_min"),
    [(60, None, 0, 5), (1000, None, 0, 45), (1e5, None, 0, 4320), (1e9, None, 0, 10080), (1e5, 600, 0, 600),
     (10, 3, 0, 3), (None, None, 0, 240), (None, 60, 0, 60), (1000, 60, 7, 7)],
)  # fmt: skip
def test_wall_time_has_a_margin_and_stays_below_the_limit(expected_s, limit, asked, time_min) -> None:
    assert choose_time(expected_s, Cluster(time_min=asked), Partition("p", limit)) == time_min


def test_memory_is_that_of_the_largest_pack_with_a_margin_unless_it_is_set() -> None:
    packs = [pack(f"a{n}") for n in range(3)]
    needs = {"a0": Need(60.0, 700.0), "a1": Need(60.0, 1400.0), "a2": Need(60.0, None)}

    def ask(names: str, cluster: Cluster) -> list[int]:
        found = plan_arrays([p for p in packs if p.name in names.split()], cluster, lambda p: needs[p.name], Limits())
        return [request.mib for request in found]

    assert ask("a0 a1", Cluster()) == [2560], "1.5 times the largest, in steps of half a GiB"
    assert ask("a0 a1 a2", Cluster()) == [0], "one was not measured: the cluster's own default"
    assert ask("a0 a1", Cluster(mem_gb=1)) == [1024]
    (request,) = plan_arrays(packs[:2], Cluster(), lambda p: needs[p.name], Limits())
    assert "#SBATCH --mem=2560M\n" in request.text("plateau-t0k3n", Path("/x/.private-me"))


def test_warning_comes_earlier_than_the_end_of_a_short_time() -> None:
    assert [Request(Cluster(), (), time, 1).warn_s() for time in (1, 2, 5, 6, 600)] == [15, 30, 75, 90, 90]


def test_packs_for_a_gpu_are_refused_when_tasks_get_none() -> None:
    packs = [pack("x", device="cuda")]
    with pytest.raises(BadInput, match="pack x was planned for cuda.*--gpus 1"):
        plan_arrays(packs, Cluster(), by_steps, Limits())
    (request,) = plan_arrays(packs, Cluster(gpus="2"), by_steps, Limits())
    assert request.cpus == 4


# The text for sbatch.


def test_sbatch_text_is_exactly_this(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sbatch, "ROOT", Path("/opt/plateau"))
    monkeypatch.setattr(sbatch.sys, "executable", "/opt/env/bin/python")
    cluster = Cluster("lab", "gpu,big", "ml team".replace(" ", "-"), "low", "a100:1", 8, 16.5, constraint="(a|b)&ib",
                      parallel=4, export=("WANDB_MODE",), setup=("module load cuda",))  # fmt: skip
    request = Request(cluster, (("p0",), ("p1",)), 45, 8, mib=16896)
    assert request.text("plateau-t0k3n", Path("/runs/a b/submissions/.private-me")) == GOLDEN


GOLDEN = """\
#!/bin/bash

# Parameters
#SBATCH --account=ml-team
#SBATCH --array=0-1%2
#SBATCH --chdir=/opt/plateau
#SBATCH --constraint='(a|b)&ib'
#SBATCH --cpus-per-task=8
#SBATCH --error='/runs/a b/submissions/.private-me/%A_%a_0_log.err'
#SBATCH --export=EXPORTED,WANDB_MODE
#SBATCH --gpus-per-node=a100:1
#SBATCH --job-name=plateau-t0k3n
#SBATCH --mem=16896M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/runs/a b/submissions/.private-me/%A_%a_0_log.out'
#SBATCH --partition=gpu,big
#SBATCH --qos=low
#SBATCH --requeue
#SBATCH --signal=B:URG@90
#SBATCH --time=45

# setup
SET_UP
[ -O '/runs/a b/submissions/.private-me' ] && [ ! -L '/runs/a b/submissions/.private-me' ] || \
{ echo 'the folder of this submission is not your own' >&2; exit 1; }
export PYTHONPATH=/opt/plateau${PYTHONPATH:+:$PYTHONPATH}

# command
export SUBMITIT_EXECUTOR=slurm
exec /opt/env/bin/python -P -u -m slurm.task --sent '/runs/a b/submissions/t0k3n.json'
""".replace("EXPORTED", ",".join(sbatch.EXPORT)).replace("SET_UP", "\n".join(sbatch.set_up(["module load cuda"])))


STRANGE = '50%A it\'s a "pläce" of $HOME `x`'


def test_any_folder_can_stand_in_sbatchs_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / STRANGE
    python = root / "python"
    root.mkdir()
    python.write_text('#!/bin/sh\npwd; for word; do echo "$word"; done; echo "$PYTHONPATH"\n')
    python.chmod(0o755)
    for module in (sbatch, exporting):
        monkeypatch.setattr(module, "ROOT", root)
        monkeypatch.setattr(module.sys, "executable", str(python))
    private, request = root / "submissions" / ".private-me", Request(Cluster(), (("p q",),), 45, 1)
    private.mkdir(parents=True)
    text = request.text("plateau-t0k3n", private)
    logs = [
        shlex.split(line.partition("=")[2])
        for line in text.splitlines()
        if line.startswith(("#SBATCH --output", "#SBATCH --error"))
    ]
    assert logs == [[f"{private}/%j_0_log.{kind}".replace("50%A", "50%%A")] for kind in ("err", "out")]
    told = {"PATH": os.environ["PATH"]}
    said = subprocess.run(["bash"], input=text, cwd=tmp_path, env=told, capture_output=True, text=True).stdout
    assert said.splitlines()[-2:] == [f"{root}/submissions/t0k3n.json", str(root)]

    made = Sweep(root / "runs" / "a wide % one")
    for name in ("p q", "r"):
        made.pack(name, setting=dict.fromkeys(("model", "dino", "clip", "subjects", "runs"), "there"))
    exporting.export(made.folder, [Request(Cluster(), (("p q", "r"),), 45, 1)])
    text = (made.path / "export" / "array-001.sh").read_text()
    assert "#SBATCH --output='a wide %% one/export/logs/%j.out'" in text
    said = subprocess.run(["bash"], input=text, cwd=root / "runs", env=told, capture_output=True, text=True).stdout
    packs = [f"{made.path}/packs/{name}.json" for name in ("p q", "r")]
    assert said.splitlines()[-6:] == ["slurm.task", *packs, "--code", code_version(), str(root)]


def run_job(home: Path, *setup: str) -> subprocess.CompletedProcess[str]:
    """What a task does before Python, with the exported variables alone, and a login shell that defines `module`."""
    (home / ".bash_profile").write_text(
        'false\nmodule() { [ "$2" = cuda ] || { echo "no module $2" >&2; return 1; }; export CUDA=$2; }\nPATH=/site:$PATH\n'
    )
    text = "\n".join([*sbatch.set_up(setup), 'exec /bin/echo "$CUDA" "$PATH"'])
    told = {"HOME": str(home), "PATH": "/mine:/usr/bin:/bin"}
    return subprocess.run(["bash", "-c", text], env=told, capture_output=True, text=True, timeout=HANG_S)


def test_setup_has_what_a_login_shell_defines(tmp_path: Path) -> None:
    done = run_job(tmp_path, "module load cuda", "if false; then", "exit 3", "fi", "false || true")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("cuda /mine:/usr/bin:/bin:/site:"), "the submitter's PATH stays in front"


@pytest.mark.parametrize(
    ("line", "words"),
    [("module load cuda/12", "exit code 1: no module cuda/12"), ("modul load cuda", r"exit code 127: .*modul: command not found"),
     ("exit", "exit code 0: see above"), ("[ -d /none ]", r"exit code 1: \[ -d /none \]"), ("fi", "exit code 2: see above")],
)  # fmt: skip
def test_setup_that_fails_ends_the_job_with_its_words(tmp_path: Path, line: str, words: str) -> None:
    done = run_job(tmp_path, line, "echo later")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"setup failed with {words}", done.stderr.splitlines()[-1])


def test_what_else_sbatch_takes_is_passed_on(tmp_path: Path) -> None:
    told = Cluster(
        gpus="a100:1",
        mem_gb=2.0,
        memory="cpu",
        sbatch=(("comment", "a b; c"), ("exclusive", ""), ("gres", "gpu:a100:1")),
    )
    text = Request(told, (("p0",),), 45, 3, mib=2048).text("plateau-t0k3n", tmp_path)
    for line in ("comment='a b; c'", "exclusive", "gres=gpu:a100:1", "mem-per-cpu=683M"):
        assert f"#SBATCH --{line}\n" in text
    assert "--mem=" not in text
    assert "--gpus-per-node" not in text, "gres says it"
    assert "--mem" not in Request(Cluster(memory="none"), (("p0",),), 45, 3, mib=2048).text("plateau-t0k3n", tmp_path)


def test_warning_does_not_end_a_shell_that_has_not_come_to_python_yet(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sbatch.sys, "executable", "/bin/echo")
    private = open_private(tmp_path)
    request = Request(Cluster(setup=("kill -s WARNING $$", "sleep 0.1")), (("p0",),), 45, 1)
    text = request.text("plateau-t0k3n", private)
    text = text.replace("WARNING", re.search("--signal=B:(.*)@", text)[1])
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[-1] == str(tmp_path / "t0k3n.json")


def test_task_takes_no_module_from_the_folder_that_it_starts_in(tmp_path: Path, monkeypatch) -> None:
    """SLURM starts it in /tmp, which everybody can write to, where the checkout is missing."""
    for name in ("checkout", "tmp"):
        (tmp_path / name / "slurm").mkdir(parents=True)
        (tmp_path / name / "slurm" / "__init__.py").touch()
        (tmp_path / name / "slurm" / "task.py").write_text(f"print({name!r})")
    monkeypatch.setattr(sbatch, "ROOT", tmp_path / "checkout")
    text = Request(Cluster(), (("p0",),), 45, 1).text("plateau-t0k3n", open_private(tmp_path / "submissions"))
    done = subprocess.run(["bash", "-c", text], cwd=tmp_path / "tmp", capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("checkout\n", "")


def test_what_is_sent_is_the_text_that_is_shown(slurm: FakeSlurm, sweep: Sweep) -> None:
    (_, request), *_ = send(sweep).sent
    (first, *_) = records(sweep)
    (private,) = sweep.folder.submissions.glob(".private-*")
    texts = [path.read_text() for path in sorted(slurm.home.glob("sbatch-*.sh"))]
    names = [re.search("--job-name=(.*)", text)[1] for text in texts]
    assert request.text(names[0], private) == texts[0]
    assert f"plateau-{first['token']}" in names


# Sending.


def test_missing_packs_go_out_in_as_few_arrays_as_the_limit_allows(slurm: FakeSlurm, sweep: Sweep) -> None:
    sweep.end("p00", ["finished", "finished"])
    sweep.claim("p01")
    report = send(sweep)
    assert [(job, len(request.tasks)) for job, request in report.sent] == [("101", 20), ("102", 8)]
    assert (report.num_tasks, report.later, report.refusal) == (28, [], "")
    assert live_packs(sweep, slurm) == Counter(f"p{n:02d}" for n in range(2, 30))
    assert states(sweep) == {"ended": 1, "running": 1, "queued": 28}
    assert {r["state"] for r in records(sweep)} == {"sent"}
    assert send(sweep).sent == []


def test_what_the_limits_keep_out_goes_later(slurm: FakeSlurm, sweep: Sweep) -> None:
    slurm.add("7", "RUNNING")
    slurm.config["AccountingStorageType"] = "accounting_storage/slurmdbd"  # with a limit of 12 jobs
    slurm.write()
    report = send(sweep)
    assert (report.num_tasks, len(report.later)) == (11, 19)
    assert send(sweep).num_tasks == 0
    slurm.forget()
    assert send(sweep).num_tasks == 12
    assert send(sweep, Cluster(max_submit=3)).num_tasks == 0


def test_records_are_read_as_often_for_many_arrays_as_for_one(slurm: FakeSlurm, sweep: Sweep, monkeypatch) -> None:
    slurm.config["MaxArraySize"] = "4"
    slurm.write()
    looks, refresh = [], Submissions.refresh
    monkeypatch.setattr(Submissions, "refresh", lambda self: (looks.append(self), refresh(self))[1])
    assert len(send(sweep).sent) == 8
    assert sorted(record["number"] for record in records(sweep)) == list(range(1, 9))
    assert len(looks) < 8


def test_clock_that_is_set_back_sends_nothing_twice(slurm: FakeSlurm, sweep: Sweep, monkeypatch) -> None:
    times = iter(datetime(2026, 1, day) for day in (2, 2, 1, 1))
    with monkeypatch.context() as clock:
        clock.setattr(sending, "datetime", SimpleNamespace(now=lambda: next(times)))
        assert send(sweep).num_tasks == 30
        slurm.forget()
        assert send(sweep).num_tasks == 30
    assert send(sweep).num_tasks == 0
    assert states(sweep) == {"queued": 30}


def test_limit_that_only_sbatch_knows_is_found_by_halving(slurm: FakeSlurm, sweep: Sweep) -> None:
    slurm.most = 6
    slurm.write()
    report = send(sweep)
    assert ([len(request.tasks) for _, request in report.sent], len(report.later)) == ([5], 25)
    assert "QOSMaxSubmitJobPerUserLimit" in report.refusal
    assert live_packs(sweep, slurm) == Counter(f"p{n:02d}" for n in range(5))
    assert [r["state"] for r in records(sweep)] == ["sent"]
    assert send(sweep).num_tasks == 1
    full = send(sweep)
    assert (full.sent, len(full.later)) == ([], 24)
    assert [r["state"] for r in records(sweep)] == ["sent", "sent"]


def test_refusal_keeps_what_was_sent_and_speaks_slurms_words(slurm: FakeSlurm, sweep: Sweep, monkeypatch) -> None:
    slurm.refusal = "Invalid account or account/partition combination specified"
    slurm.write()
    with pytest.raises(BadInput, match="^sbatch refused: Batch job submission failed: Invalid account or account/"):
        send(sweep)
    assert [r["state"] for r in records(sweep)] == ["refused"]
    slurm.refusal = ""
    slurm.write()
    sent, real = [], Request.send

    def refuse_second(request: Request, *args: object) -> str:
        if sent:
            raise SchedulerError("sbatch refused: no more today")
        sent.append(request)
        return real(request, *args)

    monkeypatch.setattr(Request, "send", refuse_second)
    report = send(sweep)
    assert (report.num_tasks, len(report.later), report.refusal) == (20, 10, "sbatch refused: no more today")
    monkeypatch.setattr(Request, "send", real)
    send(sweep)
    assert live_packs(sweep, slurm) == Counter(f"p{n:02d}" for n in range(30))


ANSWERS = (
    "{job}", "{job};cluster", "Submitted batch job {job} on cluster big", "Welcome, 3 nodes are free.\n\x1b[1m{job}\x1b[0m\n",
    "Job <{job}> is submitted.", "", "taken, thanks (99 in the queue)",
)  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS)
def test_job_that_was_taken_is_recorded_whatever_sbatch_answers(answer: str, slurm: FakeSlurm, sweep: Sweep) -> None:
    slurm.answer = answer
    slurm.write()
    report = send(sweep)
    assert ([job for job, _ in report.sent], report.refusal) == (["101", "102"], "")
    assert {(r["job"], r["state"]) for r in records(sweep)} == {("101", "sent"), ("102", "sent")}
    assert send(sweep).sent == []
    assert live_packs(sweep, slurm) == Counter(f"p{n:02d}" for n in range(30))


def test_job_whose_number_nobody_knows_is_not_sent_again_once_the_queue_shows_it(
    slurm: FakeSlurm, sweep: Sweep
) -> None:
    """sbatch gives up on SLURM's answer, which had taken the job, and the queue is silent as well."""
    slurm.answer, slurm.failures = "!Batch job submission failed: Socket timed out on send/recv operation", {}
    slurm.fail("squeue", "slurm_load_jobs error: Socket timed out")
    with pytest.raises(
        BadInput, match="^sbatch may have taken plateau-.*timed out.*the same command looks for it again"
    ):
        send(sweep)
    assert [r["state"] for r in records(sweep)] == ["intent"]
    slurm.answer, slurm.failures = "", {}
    slurm.write()
    report = send(sweep)
    assert (len(report.repaired), report.num_tasks) == (1, 10)
    assert live_packs(sweep, slurm) == Counter(f"p{n:02d}" for n in range(30))


def test_options_of_the_environment_do_not_overrule_the_file(slurm: FakeSlurm, sweep: Sweep, monkeypatch) -> None:
    for name in ("SBATCH_TIMELIMIT", "SBATCH_PARTITION", "SBATCH_ACCOUNT", "SLURM_RESTART_COUNT", "SLURM_CONF"):
        monkeypatch.setenv(name, "7")
    send(sweep, Cluster(partition="gpu"))
    seen = json.loads(next(slurm.home.glob("sbatch-*.env")).read_text())
    assert {n for n in seen if n.startswith(("SBATCH", "SLURM"))} == {"SBATCH_ACCOUNT", "SLURM_CONF"}
    assert os.environ["SBATCH_TIMELIMIT"] == "7"


# Bad input.


def test_unknown_partition_lists_those_there_are(slurm: FakeSlurm, sweep: Sweep) -> None:
    with pytest.raises(BadInput) as caught:
        send(sweep, Cluster(partition="gpus"))
    assert str(caught.value) == (
        "--partition is gpus; partitions of fake: debug (at most 60 min), gpu (at most 2880 min)"
    )
    assert not slurm.jobs()


def test_time_above_the_limit_names_the_limit(slurm: FakeSlurm, sweep: Sweep) -> None:
    with pytest.raises(BadInput, match="^--time-min is 61; partition debug allows at most 60 minutes"):
        send(sweep, Cluster(time_min=61))


def test_machine_without_sbatch_says_what_else_there_is(sweep: Sweep, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="^no sbatch on the PATH.*--cluster local.*--cluster export"):
        send(sweep)


# Security.


def test_private_folder_is_closed_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = open_private(tmp_path / "submissions")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert open_private(tmp_path / "submissions") == folder
    folder.chmod(0o770)
    with pytest.raises(BadInput, match=r"is open to others \(mode 0770; 0700 is needed\)"):
        open_private(tmp_path / "submissions")
    folder.chmod(0o700)
    user = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(sbatch.os, "geteuid", lambda: user + 1)
        with pytest.raises(BadInput, match=f"belongs to user {user}, not to you"):
            open_private(tmp_path / "submissions")
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="is no folder"):
        open_private(tmp_path / "submissions")


def test_no_secret_of_the_environment_reaches_a_disk(slurm: FakeSlurm, sweep: Sweep, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    send(sweep)
    written = [path for path in sweep.path.rglob("*") if path.is_file()]
    assert len(written) > 30
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    (text, *_) = (path.read_text() for path in slurm.home.glob("sbatch-*.sh"))
    exported = re.search("--export=(.*)", text)[1].split(",")
    assert "ALL" not in exported
    assert SECRET not in [os.environ.get(name) for name in exported]


def test_setup_commands_stand_nowhere_but_in_the_private_folder(slurm: FakeSlurm, sweep: Sweep) -> None:
    """People put keys there; what others may read is told neither the commands nor the names that they export."""
    send(sweep, Cluster(setup=(f"export WANDB_API_KEY={SECRET}",)))
    holding = [path for path in sweep.path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert holding
    assert {path.parent for path in holding} == set(sweep.folder.submissions.glob(".private-*"))


# A submitter that dies.

DEATHS = {
    "before the intent": "submit.store = die",
    "after the intent": "sbatch.Request.send = die",
    "before sbatch has asked SLURM": "os.environ['FAKE_SLURM_KILLS_PARENT'] = 'before'",
    "after SLURM has the job": "os.environ['FAKE_SLURM_KILLS_PARENT'] = 'after'",
    "before the record has the job": "submit.store = die_at(2)",
    "between two arrays": "submit.store = die_at(3)",
}
SUBMITTER = """
import os, signal, sys
from slurm.submit import sbatch, send as submit
from slurm.submit.clusters import Cluster
from slurm.estimate.need import Need
from slurm.store.layout import SweepFolder

def die(*args, **named):
    os.kill(os.getpid(), signal.SIGKILL)

def die_at(number, counted=[]):
    real = submit.store
    def call(*args, **named):
        counted.append(1)
        return die() if len(counted) == number else real(*args, **named)
    return call

exec(sys.argv[2])
submit.submit_missing(SweepFolder(sys.argv[1]), Cluster(), lambda pack: Need(60.0))
"""


@pytest.mark.parametrize("moment", DEATHS)
def test_nothing_is_lost_or_sent_twice_when_the_submitter_is_killed(
    moment: str, slurm: FakeSlurm, sweep: Sweep
) -> None:
    program = [sys.executable, "-c", SUBMITTER, str(sweep.path), DEATHS[moment]]
    died = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    before = len(slurm.jobs())
    report = send(sweep)
    assert live_packs(sweep, slurm) == Counter(f"p{n:02d}" for n in range(30))
    assert states(sweep) == {"queued": 30}
    assert report.num_tasks == 30 - before
    assert bool(report.repaired) == (moment not in ("before the intent", "between two arrays"))
    assert sending.submit_missing(sweep.folder, Cluster(), minutes).sent == []


def test_sbatch_that_outlives_its_submitter_is_waited_for(slurm: FakeSlurm, sweep: Sweep, monkeypatch) -> None:
    """The controller is busy, and sbatch tries again; its job comes long after the submitter's death."""
    death = "os.environ['FAKE_SLURM_KILLS_PARENT'] = 'while it waits'"
    died = subprocess.run([sys.executable, "-c", SUBMITTER, str(sweep.path), death], cwd=ROOT, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert slurm.jobs() == {}
    go = slurm.home / "go"

    def look() -> list:
        found = list(list_processes())
        go.touch()  # now the controller answers it
        return found

    monkeypatch.setattr(sending, "list_processes", look)
    report = send(sweep)
    go.touch()
    assert "its submitter died, the job is kept" in report.repaired[0]
    assert live_packs(sweep, slurm) == Counter(f"p{n:02d}" for n in range(30))
    assert len(slurm.jobs()) == 30


def test_void_intent_is_sent_anew_when_its_job_was_never_there(slurm: FakeSlurm, sweep: Sweep) -> None:
    sweep.send(None, [["p00"], ["p01"]], token="gone", made="2026-01-01")
    report = send(sweep)
    assert report.repaired == ["submission gone was never sent: its submitter died"]
    assert report.num_tasks == 30
    assert SweepFolder(sweep.path).submissions.joinpath("gone.json").exists()


def test_array_that_shows_up_late_is_adopted(slurm: FakeSlurm, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its submitter died a moment ago, and the first look at the queue does not show it yet."""
    sweep.send(None, [["p00"], ["p01"]], token="late", made="2026-01-01")
    ask, asked = Scheduler.jobs, []

    def jobs(self: Scheduler, wanted: Sequence[str] | None = None) -> dict:
        asked.append(wanted)
        if len(asked) == 2:
            slurm.add("55_0", "PENDING", "plateau-late")
            slurm.add("55_1", "PENDING", "plateau-late")
        return ask(self, wanted)

    monkeypatch.setattr(Scheduler, "jobs", jobs)
    report = send(sweep)
    assert report.repaired == ["submission late is job 55: its submitter died, the job is kept"]
    assert report.num_tasks == 28


def test_two_submitters_at_once_send_each_pack_once(
    slurm: FakeSlurm, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both look before either sends, if they may."""
    monkeypatch.setattr(sending, "survey", lambda *about: [survey(*about), time.sleep(1.0)][0])
    context = multiprocessing.get_context("fork")
    team = [context.Process(target=send, args=(sweep,)) for _ in range(2)]
    for process in team:
        process.start()
    for process in team:
        process.join(60)
        assert process.exitcode == 0
    assert live_packs(sweep, slurm) == Counter(f"p{n:02d}" for n in range(30))
