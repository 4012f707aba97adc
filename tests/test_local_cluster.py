"""A real SLURM on this machine: one line for each mistake, and up, down, stale files, busy ports, two callers at once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters import BadInput
from slurm.submit.processes import list_processes
from tests import make_cluster
from tests.waiting import wait_for
from tools.slurm_node import __main__ as local_cluster
from tools.slurm_node.__main__ import Options, check, find_ports, require_fit, require_packages
from tools.slurm_node.daemons import Daemon, last_error
from tools.slurm_node.files import LocalSlurm, program

ROOT = Path(__file__).resolve().parents[1]
slurm_only = pytest.mark.slurm


# Mistakes: one line, exit code 2, and no SLURM needed.


def test_root_is_asked_for_when_a_user_calls(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert local_cluster.main(["up"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: SLURM's daemons need root")
    assert said.count("\n") == 1


def test_missing_packages_are_named_with_their_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_cluster, "find_program", lambda name: None if name in ("slurmd", "munged") else name)
    with pytest.raises(BadInput, match="apt-get install -y --no-install-recommends munge slurmd$"):
        require_packages(Options("up"))


def test_missing_packages_are_installed_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    there, called = {"apt-get"}, []

    def run(words: list[str], **options: object) -> subprocess.CompletedProcess:
        called.append(words)
        there.update(local_cluster.PACKAGES if "install" in words else ())
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(local_cluster, "find_program", lambda name: name if name in there else None)
    monkeypatch.setattr(subprocess, "run", run)
    require_packages(Options("up", install=True))
    assert [words[1] for words in called] == ["update", "install"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"requeue_s": 2}, "--requeue-s 2: allowed are whole numbers from 5 on"),
        ({"cpus": 0}, "--cpus 0: allowed are whole numbers from 1 on"),
        ({"max_array_size": 1}, "--max-array-size 1: allowed are whole numbers from 2 on"),
    ],
)
def test_bad_options_are_refused(changes: dict, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(BadInput, match=said):
        check(Options("up", **changes))


def test_folder_is_refused_when_its_name_is_long() -> None:
    with pytest.raises(BadInput, match="at most 60 characters"):
        require_fit(Path("/var/lib") / (60 * "x"))


def test_folder_is_refused_when_it_holds_other_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_cluster, "LONGEST_FOLDER", 999)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BadInput, match="holds other things"):
        require_fit(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="a folder of somebody else: only root can make one")
def test_folder_is_refused_when_others_can_change_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_cluster, "LONGEST_FOLDER", 999)
    os.chown(tmp_path, 65534, -1)
    with pytest.raises(BadInput, match="others than root can change"):
        require_fit(tmp_path)


def test_other_ports_are_taken_when_one_is_busy() -> None:
    with socket.create_server(("", 0)) as busy:
        port = busy.getsockname()[1]
        found = find_ports([port])
        assert found[0] != port
    assert find_ports([port]) == (port,)


def test_status_says_when_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert local_cluster.main(["status", "--folder", str(tmp_path)]) == 1
    assert "No SLURM" in capsys.readouterr().out


# Daemons, with a harmless program.


def test_daemon_that_does_not_start_says_why(tmp_path: Path) -> None:
    failing = Daemon("sleeper", ("/bin/sh", "-c", "echo error: no bed >&2; exit 1"), tmp_path / "log")
    with pytest.raises(BadInput, match="sleeper does not start: error: no bed"):
        failing.start(lambda: False, wait_s=5)
    assert last_error(tmp_path / "absent") == "it wrote nothing"


def test_daemon_is_found_by_command_and_environment(tmp_path: Path) -> None:
    command = ("/bin/sleep", "61.5")
    one, two = (Daemon("sleeper", command, tmp_path / "log", (("WHOSE", name),)) for name in ("one", "two"))
    one.start(lambda: bool(one.find()))
    try:
        assert len(one.find()) == 1
        assert two.find() == []
    finally:
        one.stop()
    assert one.find() == []


# The real thing.


@slurm_only
def test_jobs_run_when_the_cluster_is_up(slurm_cluster: LocalSlurm, tmp_path: Path) -> None:
    job = make_cluster.submit(tmp_path, "hostname", "--array=0-3")
    make_cluster.wait_for_state(job, "COMPLETED")
    assert len(list(tmp_path.glob("*.out"))) == 4


@slurm_only
def test_up_again_changes_nothing_and_starts_what_was_killed(slurm_cluster: LocalSlurm) -> None:
    folder = slurm_cluster.folder
    before = slurm_cluster.slurmctld.find() + slurm_cluster.slurmd.find() + slurm_cluster.munged.find()
    assert len(before) == 3
    make_cluster.up(folder, *make_cluster.FLAGS)
    assert slurm_cluster.slurmctld.find() + slurm_cluster.slurmd.find() + slurm_cluster.munged.find() == before
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    for name in ("slurmctld", "slurmd", "munged"):  # stale, and of a process that lives
        (folder / f"{name}.pid").write_text(f"{os.getpid()}\n")
    make_cluster.up(folder, *make_cluster.FLAGS)
    assert slurm_cluster.node_state() == "idle"
    assert not set(before) & {pid for pid, _ in list_processes()}
    assert len(slurm_cluster.slurmctld.find()) == 1


@slurm_only
def test_other_options_are_refused_while_it_runs(slurm_cluster: LocalSlurm, capsys: pytest.CaptureFixture) -> None:
    assert local_cluster.main(["up", "--folder", str(slurm_cluster.folder), "--cpus", "3"]) == 2
    assert f"cpus is {make_cluster.CPUS}, not 3" in capsys.readouterr().err


@slurm_only
def test_clusters_that_start_at_once_have_ports_of_their_own(slurm_cluster: LocalSlurm) -> None:
    folders = [make_cluster.name_folder(f"twin{number}") for number in range(2)]
    try:
        with ThreadPoolExecutor(2) as team:
            done = list(team.map(lambda folder: make_cluster.run_local_cluster("up", "--folder", str(folder)), folders))
        assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
        found = [*map(LocalSlurm.read, folders), slurm_cluster]
        assert len({port for cluster in found if cluster is not None for port in cluster.ports}) == 3 * 4
    finally:
        for folder in folders:
            make_cluster.run_local_cluster("down", "--folder", str(folder))


@slurm_only
def test_a_second_cluster_comes_and_goes_beside_the_first(slurm_cluster: LocalSlurm, tmp_path: Path) -> None:
    folder, outcomes = make_cluster.name_folder("second"), []
    flags = ("--folder", str(folder), "--cpus", "2")
    pair = [threading.Thread(target=lambda: outcomes.append(make_cluster.run_local_cluster("up", *flags)))
            for _ in range(2)]  # fmt: skip
    try:
        for thread in pair:
            thread.start()
        for thread in pair:
            thread.join()
        assert [done.returncode for done in outcomes] == [0, 0], outcomes
        second = LocalSlurm.read(folder)
        assert second is not None
        assert not set(second.ports) & set(slurm_cluster.ports)
        assert len(second.slurmctld.find()) == len(second.munged.find()) == 1
        os.environ["SLURM_CONF"] = str(second.conf)
        job = make_cluster.submit(tmp_path, "trap '' TERM; sleep 300; sleep 300", "--array=0-1")
        make_cluster.wait_for_state(job, "RUNNING")
    finally:
        os.environ["SLURM_CONF"] = str(slurm_cluster.conf)
        done = make_cluster.run_local_cluster("down", *flags[:2])
    assert done.returncode == 0, done.stderr
    assert not folder.exists()
    assert not [command for _, command in list_processes() if any(str(folder) in word for word in command)]
    wait_for(lambda: slurm_cluster.node_state() == "idle", "the end of what the first one still ran")


@slurm_only
@pytest.mark.slow
def test_sacct_answers_when_accounting_is_on(tmp_path: Path) -> None:
    make_cluster.require_slurm("--accounting")
    folder = make_cluster.name_folder("accounting")
    with make_cluster.make_cluster(folder, "--accounting", "--cpus", "2"):
        job = make_cluster.submit(tmp_path, "hostname")
        wait_for(
            lambda: "COMPLETED" in make_cluster.call("sacct", "-X", "-n", "-j", job, "-o", "state"),
            "sacct's answer",
        )
        assert program("slurmdbd")
