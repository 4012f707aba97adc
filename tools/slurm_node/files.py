"""A local cluster's folder: its record, SLURM's configuration, and the daemons that read it; imports no torch."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import secrets
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import BadInput
from slurm.submit.processes import list_processes
from tools.slurm_node.daemons import Daemon, read_environment

NUM_PORTS = 4  # of slurmctld, slurmd, slurmdbd and MariaDB
CONF = """\
# Written by slurm.local_cluster.
ClusterName=plateau
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits; SLURM's default is 120 s.
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue_s}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldTimeout=30
SlurmdTimeout={node_timeout_s}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{user_signal}
SlurmdParameters=config_overrides
JobRequeue=1
KillWait={kill_wait_s}
MinJobAge={job_age_s}
MaxArraySize={max_array_size}
ReturnToService=2
{accounting}
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mib} State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={grace_s}
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""
USER_SIGNAL = "SlurmctldParameters=preempt_send_user_signal"
WITHOUT_ACCOUNTING = "AccountingStorageType=accounting_storage/none"
WITH_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports[2]}
AccountingStoragePass={folder}/munge.socket
AccountingStorageEnforce=associations,limits,qos"""
DBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={ports[2]}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports[3]}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
"""


@dataclass(frozen=True)
class Shape:
    """What a cluster is like; `tools.slurm_node.__main__.Options` says what each field means."""

    cpus: int
    max_array_size: int
    grace_s: int
    user_signal: bool
    requeue_s: int
    kill_wait_s: int
    job_age_s: int
    node_timeout_s: int
    accounting: bool


@dataclass(frozen=True)
class LocalSlurm:
    """A cluster: its folder, its shape, and its ports."""

    folder: Path
    shape: Shape
    ports: tuple[int, ...]

    @classmethod
    def read(cls, folder: Path) -> LocalSlurm | None:
        """The cluster of a folder, running or not; None if there is none."""
        try:
            found = json.loads((folder / "cluster.json").read_text(encoding="utf-8"))
            return cls(folder, Shape(**found["shape"]), tuple(found["ports"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def conf(self) -> Path:
        """SLURM's configuration."""
        return self.folder / "slurm.conf"

    def write(self) -> None:
        """Write the configuration, the key if there is none, and last the record that makes the folder a cluster's."""
        for name in ("state", "spool"):
            (self.folder / name).mkdir(exist_ok=True, mode=0o755)
        key = self.folder / "munge.key"
        if not key.exists():
            _write(key, secrets.token_bytes(128), 0o600)
        host = socket.gethostname().partition(".")[0]
        accounting = WITH_ACCOUNTING if self.shape.accounting else WITHOUT_ACCOUNTING
        values = dataclasses.asdict(self.shape) | {
            "host": host, "folder": self.folder, "ports": self.ports, "memory_mib": _memory_mib(),
            "password": key.read_bytes().hex()[:32],
            "user_signal": USER_SIGNAL if self.shape.user_signal else "# without " + USER_SIGNAL,
            "accounting": accounting.format(ports=self.ports, folder=self.folder),
        }  # fmt: skip
        _write(self.conf, CONF.format(**values).encode(), 0o644)
        if self.shape.accounting:
            _write(self.folder / "slurmdbd.conf", DBD_CONF.format(**values).encode(), 0o600)
        record = {"shape": dataclasses.asdict(self.shape), "ports": self.ports}
        _write(self.folder / "cluster.json", json.dumps(record).encode(), 0o644)

    # Daemons, in the order of their start.

    @property
    def munged(self) -> Daemon:
        """Signs and checks messages, with a key of its own."""
        names = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid",
                 "log-file": "munged.log", "seed-file": "munged.seed"}  # fmt: skip
        files = tuple(f"--{option}={self.folder / name}" for option, name in names.items())
        return Daemon("munged", (program("munged"), "--foreground", *files), self.folder / "munged.out")

    @property
    def slurmdbd(self) -> Daemon:
        """Accounting, between the controller and the database."""
        environment = (("SLURM_CONF", str(self.conf)),)
        return Daemon("slurmdbd", (program("slurmdbd"), "-D"), self.folder / "slurmdbd.out", environment)

    @property
    def slurmctld(self) -> Daemon:
        """The controller."""
        return Daemon("slurmctld", (program("slurmctld"), "-D", "-f", str(self.conf)), self.folder / "slurmctld.out")

    @property
    def slurmd(self) -> Daemon:
        """The node."""
        return Daemon("slurmd", (program("slurmd"), "-D", "-f", str(self.conf)), self.folder / "slurmd.out")

    # What it is asked.

    def ask(self, *command: str, timeout_s: float = 10.0) -> str | None:
        """The output of one of SLURM's commands; None if it fails."""
        try:
            done = subprocess.run(
                command,
                env=os.environ | {"SLURM_CONF": str(self.conf)},
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout_s,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    def node_state(self) -> str:
        """What sinfo says of the node: idle, mixed, allocated, down, ...; empty if the controller does not answer."""
        return (self.ask("sinfo", "--noheader", "--partition=debug", "--format=%T") or "").rstrip("*")

    def find_jobs(self) -> list[int]:
        """The ids of processes that jobs of this cluster have started, and of their shepherds (slurmstepd)."""
        found = []
        for pid, command in list_processes():
            environment = dict(read_environment(pid))
            if environment.get("SLURM_CONF") != str(self.conf):
                continue
            if "SLURM_JOB_ID" in environment or (command and "slurmstepd" in command[0]):
                found.append(pid)
        return found


@functools.cache
def program(name: str) -> str:
    """Where a program is.

    Raises:
        BadInput: if it is not installed.
    """
    found = find_program(name)
    if found is None:
        raise BadInput(f"{name} is not installed")
    return found


def find_program(name: str) -> str | None:
    """Where a program is, also looked for where only root's path leads; None if it is not installed."""
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin")


def _memory_mib() -> int:
    """What the node offers: nine tenths of this machine's memory."""
    return int(0.9 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20)


def _write(path: Path, content: bytes, mode: int) -> None:
    aside = path.with_name(f".{path.name}.tmp")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    aside.chmod(mode)
    aside.replace(path)
