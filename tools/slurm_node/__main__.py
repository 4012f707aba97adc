"""A real SLURM of one node on this machine, in a folder and on ports of its own: for tests, teaching and laptops.

    sudo python -m tools.slurm_node up --install
    export SLURM_CONF=/var/lib/plateau-slurm/slurm.conf
    python sweeps/lr_robustness.py --method delora --cluster slurm
    sudo python -m tools.slurm_node down

A SLURM or munge that is there already is left alone: key, socket, ports and state are the folder's own. There are two
partitions: jobs in `debug` are requeued when `urgent` needs their place. Imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from adapters.errors import BadInput
from adapters.words import counted
from tools.slurm_node import accounting
from tools.slurm_node.daemons import end_processes, wait_until
from tools.slurm_node.files import NUM_PORTS, LocalSlurm, Shape, find_program, program
from training.command_line import run_program

FOLDER = Path("/var/lib/plateau-slurm")
PACKAGES = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
ACCOUNTING_PACKAGES = {"slurmdbd": "slurmdbd", "sacctmgr": "slurm-client", "mariadbd": "mariadb-server"}
FIRST_PORT = 36817
LONGEST_FOLDER = 60  # characters: a socket's path ends at 107


@dataclass(frozen=True)
class Options:
    """What to do, and what the cluster is like."""

    action: Annotated[Literal["up", "down", "status"], tyro.conf.Positional]
    """up (again: start what has ended), down (end everything and remove the folder), or status."""
    folder: Path = FOLDER
    """Where the cluster lives."""
    cpus: int = len(os.sched_getaffinity(0))
    """CPUs that the node claims to have; may be more than there are."""
    max_array_size: int = 1001
    """SLURM's MaxArraySize: task numbers of a job array stay below it."""
    grace_s: int = 10
    """Seconds between a preempted job's first signal and its end."""
    user_signal: bool = True
    """Whether preemption sends the signal that a job asked for by sbatch's --signal."""
    requeue_s: int = 5
    """Seconds that a requeued job waits (cred_expire: by default 120, at least 5)."""
    kill_wait_s: int = 2
    """Seconds between SIGTERM and SIGKILL after scancel or a time limit."""
    job_age_s: int = 300
    """Seconds that squeue shows a job after its end."""
    node_timeout_s: int = 30
    """Seconds of silence after which the node counts as down."""
    accounting: bool = False
    """Also run slurmdbd with a MariaDB of its own, so that sacct answers."""
    install: bool = False
    """Install missing Debian packages with apt-get."""
    keep: bool = False
    """down: leave the folder, with its logs."""

    def shape(self) -> Shape:
        """The options that the cluster's configuration depends on."""
        return Shape(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Shape)})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    return run_program(Options, _run, __doc__ or "", arguments)


def _run(options: Options) -> int:
    check(options)
    folder = options.folder.absolute()
    if options.action == "status":
        return show_status(folder)
    if options.action == "up":
        require_packages(options)
    with locked(folder):
        if options.action == "down":
            print(down(folder, options.keep))
            return 0
        with starting_alone():
            print(up(folder, options.shape()))
    return 0


def check(options: Options) -> None:
    """Check who asks, and the options.

    Raises:
        BadInput: if this is not root's process, or a value is out of range.
    """
    if os.geteuid() != 0 and options.action != "status":
        raise BadInput(f"SLURM's daemons need root: run this as root, or with sudo (you are user {os.geteuid()})")
    lowest = {"max_array_size": 2, "requeue_s": 5, "job_age_s": 2, "grace_s": 0}
    for flag, value in dataclasses.asdict(options.shape()).items():
        if not isinstance(value, bool) and value < lowest.get(flag, 1):
            least = lowest.get(flag, 1)
            raise BadInput(f"--{flag.replace('_', '-')} {value}: allowed are whole numbers from {least} on")


def require_packages(options: Options) -> None:
    """Check that the packages are there, or install them.

    Raises:
        BadInput: naming the missing packages and the command that installs them.
    """
    wanted = PACKAGES | (ACCOUNTING_PACKAGES if options.accounting else {})

    def missing() -> list[str]:
        return sorted({package for name, package in wanted.items() if not find_program(name)})

    if not missing():
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing()]
    if not options.install:
        raise BadInput(f"Debian packages are missing; --install installs them, or: {' '.join(command)}")
    if find_program("apt-get") is None:
        raise BadInput(f"no apt-get here: install SLURM's daemons in this system's own way ({' '.join(missing())})")
    for words in (["apt-get", "update"], command):
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(
            words, env=quiet, capture_output=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL
        )
    if missing():
        said = done.stderr.strip().splitlines() or ["the programs are still not found"]
        raise BadInput(f"{' '.join(command)} failed: {said[-1]}")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let only one process at a time bring a folder's cluster up or down.

    Raises:
        BadInput: if there can be no such folder.
    """
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o755)
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise BadInput(f"--folder {folder}: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if folder.exists() and os.path.samestat(
                os.fstat(handle), folder.stat()
            ):  # not removed meanwhile by a `down`
                yield
                return
        finally:
            os.close(handle)


@contextlib.contextmanager
def starting_alone() -> Iterator[None]:
    """Let only one cluster of this machine start at a time: ports are free until the daemons that they were chosen for run."""
    handle = os.open(program("slurmctld"), os.O_RDONLY)  # a file that all clusters share
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


# Up.


def up(folder: Path, shape: Shape) -> str:
    """Bring a cluster up; what runs already stays.

    Returns:
        What to tell the user, with the line for the shell.

    Raises:
        BadInput: if the folder is not fit, another cluster runs in it, or a daemon does not start.
    """
    cluster = LocalSlurm.read(folder)
    if cluster is None:
        require_fit(folder)
    elif is_running(cluster) and cluster.shape != shape:
        old, new = dataclasses.asdict(cluster.shape), dataclasses.asdict(shape)
        changed = ", ".join(f"{name} is {old[name]}, not {new[name]}" for name in old if old[name] != new[name])
        raise BadInput(f"another cluster runs in {folder} ({changed}): `down` comes first")
    if cluster is None or not is_running(cluster):
        cluster = LocalSlurm(
            folder, shape, find_ports(cluster.ports if cluster else range(FIRST_PORT, FIRST_PORT + NUM_PORTS))
        )
        cluster.write()
    start(cluster)
    return (
        f"A SLURM with {counted(shape.cpus, 'CPU')} is up in {folder} (partitions: debug; urgent, which preempts it).\n"
        f"export SLURM_CONF={cluster.conf}"
    )


def require_fit(folder: Path) -> None:
    """Check that a folder is empty, that only root can change it, that others can enter it, and that its name is short.

    Raises:
        BadInput: saying what is wrong with it.
    """
    if len(str(folder)) > LONGEST_FOLDER:
        raise BadInput(f"--folder {folder}: at most {LONGEST_FOLDER} characters (paths of sockets are short)")
    if any(folder.iterdir()):
        raise BadInput(f"--folder {folder} holds other things: choose one that is new or empty")
    for place in (folder, *folder.parents):
        found = place.stat()
        if found.st_uid != 0 or (found.st_mode & 0o022 and not found.st_mode & 0o1000):
            raise BadInput(f"--folder {folder}: others than root can change {place}; choose another place")
        if not found.st_mode & 0o001:
            raise BadInput(f"--folder {folder}: users cannot enter {place}; choose another place")


def find_ports(wanted: Sequence[int]) -> tuple[int, ...]:
    """As many free ports as are wanted: those very ones if they are all free."""
    for ports in (wanted, [0] * len(wanted)):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            listening = [stack.enter_context(socket.create_server(("", port))) for port in ports]
            return tuple(each.getsockname()[1] for each in listening)
    raise BadInput("this machine has no free port")


def is_running(cluster: LocalSlurm) -> bool:
    """Whether the controller or the node runs."""
    return bool(cluster.slurmctld.find() or cluster.slurmd.find())


def start(cluster: LocalSlurm) -> None:
    """Start every daemon that does not run, and wait until the node takes jobs.

    Raises:
        BadInput: naming the daemon that does not start, and what it said.
    """
    munge = cluster.folder / "munge.socket"
    cluster.munged.start(lambda: cluster.ask("munge", "--no-input", f"--socket={munge}") is not None)
    if cluster.shape.accounting:
        accounting.start(cluster)
    cluster.slurmctld.start(lambda: cluster.ask("scontrol", "ping") is not None)
    cluster.slurmd.start(lambda: cluster.node_state() in ("idle", "mixed", "allocated", "completing"))


# Down.


def down(folder: Path, keep: bool) -> str:
    """End a cluster's jobs and daemons, and remove its folder.

    Args:
        folder: where the cluster lives.
        keep: leave the folder, with its logs.

    Returns:
        What to tell the user.
    """
    cluster = LocalSlurm.read(folder)
    if cluster is None:
        with contextlib.suppress(OSError):
            folder.rmdir()  # made by the lock
        return f"No SLURM in {folder}."
    if cluster.slurmctld.find():
        for partition in ("debug", "urgent"):
            cluster.ask("scancel", f"--partition={partition}")
        wait_until(lambda: not cluster.find_jobs(), cluster.shape.kill_wait_s + 3)
    for daemon in (cluster.slurmctld, cluster.slurmd):
        daemon.stop()
    end_processes(cluster.find_jobs, 2.0)
    if cluster.shape.accounting:
        accounting.stop(cluster)
    cluster.munged.stop()
    if not keep:
        shutil.rmtree(folder)
    return f"The SLURM in {folder} is down{'; its logs are there' if keep else ', and the folder is removed'}."


def show_status(folder: Path) -> int:
    """Print what runs; returns 0 if the node takes jobs, else 1."""
    cluster = LocalSlurm.read(folder)
    if cluster is None:
        print(f"No SLURM in {folder}.")
        return 1
    for daemon in (cluster.munged, cluster.slurmctld, cluster.slurmd):
        print(f"{daemon.name:10} {'runs' if daemon.find() else 'does not run'}")
    state = cluster.node_state()
    print(f"node       {state or 'unknown: the controller does not answer'}")
    print(f"export SLURM_CONF={cluster.conf}")
    return 0 if state in ("idle", "mixed", "allocated", "completing") else 1


if __name__ == "__main__":
    sys.exit(main())
