"""What SLURM itself says: one query, one answer, a time limit on each; every error is one line with SLURM's own words.

Nothing here needs accounting: `squeue` and `scontrol` are asked, and `sacctmgr` only where there is a database. A job is
named as SLURM names it to people: `123`, of an array `123_4`.
"""

from __future__ import annotations

import functools
import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from adapters import BadInput

QUERY_S = 30.0  # SLURM's own programs give up on a silent controller after about ten
OVER = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
})  # fmt: skip
WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"})


class SchedulerError(BadInput):
    """SLURM did not answer, or refused; the message has its own words."""


@dataclass(frozen=True)
class State:
    """A job as the queue shows it.

    Attributes:
        state: SLURM's word, such as "PENDING", "RUNNING" or "COMPLETED".
        reason: why it waits, such as "Priority"; "None" where it does not.
        name: the job's name.
        user: whose it is.
    """

    state: str
    reason: str
    name: str
    user: str = ""

    @property
    def over(self) -> bool:
        """Whether it will never run again. A job that is requeued is not over."""
        return self.state in OVER

    @property
    def waiting(self) -> bool:
        """Whether it is yet to start."""
        return self.state in WAITING


@dataclass(frozen=True)
class Partition:
    """One partition.

    Attributes:
        name: as `--partition` takes it.
        max_time_min: longest wall time in minutes; None where there is no limit.
        default: whether jobs without `--partition` go there.
        up: whether it takes jobs.
        qos: the partition's own quality of service; "" for none.
    """

    name: str
    max_time_min: int | None = None
    default: bool = False
    up: bool = True
    qos: str = ""


@dataclass(frozen=True)
class Limits:
    """What the cluster allows.

    Attributes:
        cluster: the cluster's name.
        max_array_size: array tasks are numbered below this.
        max_submit: how many jobs, array tasks counted, a user may have in the queue; None where none is known.
        partitions: by name.
        accounting: whether a database keeps accounts.
        private_jobs: whether other users' jobs are hidden.
    """

    cluster: str = ""
    max_array_size: int = 1001
    max_submit: int | None = None
    partitions: Mapping[str, Partition] = field(default_factory=dict)
    accounting: bool = False
    private_jobs: bool = False

    def default_partition(self) -> str | None:
        """The partition of jobs that name none."""
        return next((p.name for p in self.partitions.values() if p.default), None)


class Scheduler:
    """The SLURM of this machine.

    Args:
        query_s: seconds that one query may take.
    """

    def __init__(self, query_s: float = QUERY_S) -> None:
        self.query_s = query_s
        self._limits: dict[tuple[str | None, str | None], Limits] = {}

    @staticmethod
    def is_here() -> bool:
        """Whether this machine can submit."""
        return shutil.which("sbatch") is not None

    def jobs(self, names: Iterable[str] | None = None, ids: Iterable[str] | None = None) -> dict[str, State]:
        """Jobs in the queue and those that ended a short while ago, in one query, arrays task by task.

        Args:
            names: only jobs of these names, whoever's they are.
            ids: only these jobs, or all tasks of these arrays; with neither, all jobs of this user.

        Raises:
            SchedulerError: if SLURM does not answer.
        """
        chosen = ["-u", _user()]
        if names is not None:
            chosen = ["-n", ",".join(names)]
        elif ids is not None:
            chosen = ["-j", ",".join(ids)]
        if not chosen[1]:
            return {}
        try:
            return read_queue(self._ask("squeue", "-h", "-r", "-t", "all", *chosen, "-o", "%i|%T|%u|%r|%j"))
        except SchedulerError as error:
            if "Invalid job id" in str(error):
                return {}
            raise

    def job_gone(self, job: str) -> bool | None:
        """Whether a job will never run again; None where that cannot be known. A requeued job is not gone."""
        try:
            found = self.jobs(ids=[job])
            if job in found:
                return found[job].over
            return None if self.limits().private_jobs else True
        except BadInput:
            return None

    def limits(self, account: str | None = None, qos: str | None = None) -> Limits:
        """What the cluster allows a job of this user under an account and a quality of service; asked once.

        Raises:
            SchedulerError: if SLURM does not answer.
        """
        key = (account, qos)
        if key not in self._limits:
            config = read_config(self._ask("scontrol", "show", "config"))
            partitions = read_partitions(self._ask("scontrol", "show", "partition", "--oneliner"))
            accounting = config.get("AccountingStorageType", "").endswith("slurmdbd")
            self._limits[key] = Limits(
                cluster=config.get("ClusterName", ""),
                max_array_size=int(config.get("MaxArraySize", "1001")),
                max_submit=self._max_submit(account, qos) if accounting else None,
                partitions=partitions, accounting=accounting,
                private_jobs="jobs" in config.get("PrivateData", "").split(","),
            )  # fmt: skip
        return self._limits[key]

    def cancel(self, ids: Sequence[str]) -> None:
        """Take jobs out of the queue, or end them.

        Raises:
            SchedulerError: in SLURM's words.
        """
        if ids:
            self._ask("scancel", *ids)

    def requeue(self, job: str) -> None:
        """Let a running job go back to the queue.

        Raises:
            SchedulerError: in SLURM's words.
        """
        self._ask("scontrol", "requeue", job)

    def _max_submit(self, account: str | None, qos: str | None) -> int | None:
        """The tightest submit limit of this user; None where the database does not say."""
        try:
            rows = self._ask(
                "sacctmgr", "-n", "-P", "show", "assoc", f"user={_user()}", "format=account,maxsubmit,qos,defaultqos"
            )
            services = self._ask("sacctmgr", "-n", "-P", "show", "qos", "format=name,maxsubmitpu,maxsubmitpa")
        except BadInput:
            return None
        return read_max_submit(rows, services, account, qos)

    def _ask(self, *command: str) -> str:
        if shutil.which(command[0]) is None:
            raise SchedulerError(no_slurm(command[0]))
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=self.query_s, env=query_env(), stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            raise SchedulerError(f"{command[0]} did not answer within {self.query_s:g} s") from None
        except OSError as error:
            raise SchedulerError(f"{command[0]} cannot be started: {error}") from None
        if done.returncode:
            raise SchedulerError(f"{command[0]}: {in_one_line(done.stderr or done.stdout)}")
        return done.stdout


def no_slurm(program: str = "sbatch") -> str:
    """What to do where SLURM's programs are missing."""
    return (
        f"no {program} on the PATH: this machine cannot submit; use --cluster local for workers on this machine, or "
        "--cluster export for files that sbatch takes by hand"
    )


def query_env() -> dict[str, str]:
    """This environment without what would change a query's answer or its format."""
    hidden = ("SQUEUE_", "SCONTROL_", "SCANCEL_", "SLURM_TIME_FORMAT", "SLURM_CLUSTERS")
    return {name: value for name, value in os.environ.items() if not name.startswith(hidden)} | {"LC_ALL": "C"}


def in_one_line(text: str) -> str:
    """SLURM's complaint in one line, without the names of its programs."""
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line.strip()) for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line)) or "no reason given"


def read_queue(text: str) -> dict[str, State]:
    """Rows `id|state|user|reason|name` of `squeue -r`. Of one id the newest is first, and counts."""
    found: dict[str, State] = {}
    for line in text.splitlines():
        if line.count("|") < 4:
            continue
        job, state, user, reason, name = line.split("|", 4)
        found.setdefault(job.strip(), State(state, reason, name, user))
    return found


def read_config(text: str) -> dict[str, str]:
    """Lines `Name = value` of `scontrol show config`."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def read_partitions(text: str) -> dict[str, Partition]:
    """Rows of `scontrol show partition --oneliner`."""
    found = {}
    for line in text.splitlines():
        row = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "PartitionName" in row:
            found[row["PartitionName"]] = Partition(
                row["PartitionName"], read_minutes(row.get("MaxTime", "UNLIMITED")), row.get("Default") == "YES",
                row.get("State", "UP") == "UP", "" if row.get("QoS", "N/A") == "N/A" else row["QoS"],
            )  # fmt: skip
    return found


def read_minutes(text: str) -> int | None:
    """SLURM's time (`days-hours:minutes:seconds`, its shorter forms, or UNLIMITED) in whole minutes.

    Raises:
        ValueError: for anything else.
    """
    if text.upper() in ("UNLIMITED", "INFINITE", "NONE"):
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ValueError(f"{text!r} is no time; SLURM writes minutes, hours:minutes:seconds or days-hours")
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match[1] is not None:
        return days * 1440 + first * 60 + second
    return first * 60 + second if match[4] is not None else first


def read_max_submit(associations: str, services: str, account: str | None, qos: str | None) -> int | None:
    """The tightest of the limits on submitted jobs that concern one user.

    Args:
        associations: rows `account|maxsubmit|qos|defaultqos` of the user.
        services: rows `name|maxsubmit per user|maxsubmit per account`.
        account: the one to be charged; None for any of the user's.
        qos: the one asked for; None for the association's default.
    """
    per_service = {row.split("|")[0]: [int(n) for n in row.split("|")[1:] if n.isdigit()] for row in services.split()}
    found: list[int] = []
    for row in associations.splitlines():
        name, most, _, default = (row.split("|") + [""] * 4)[:4]
        if account in (None, name):
            found += [int(most)] if most.isdigit() else []
            found += per_service.get(qos or default or "normal", [])
    return min(found, default=None)


@functools.cache
def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
