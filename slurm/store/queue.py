"""Query SLURM, each time with a time limit; every error is one line with SLURM's own words.

Nothing here needs accounting: `squeue` and `scontrol` are asked, and `sacctmgr` only where there is a database. A job is
named as SLURM names it to people: `123`, of an array `123_4`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from adapters.errors import BadInput
from slurm.store.leases import user_name
from slurm.store.limits import Limits, read_config, read_max_submit, read_partitions

QUERY_S = 30.0  # SLURM's own programs give up on a silent controller after about ten
OVER = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
})  # fmt: skip


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

    def jobs(self, wanted: Iterable[str] | None = None) -> dict[str, State]:
        """Jobs in the queue and those that ended a short while ago, in one query, arrays task by task.

        Args:
            wanted: ids of jobs, or of arrays, which stand for all their tasks, and names of jobs, whoever's they are;
                None for all jobs of this user.

        Raises:
            SchedulerError: if SLURM does not answer.
        """
        wanted = None if wanted is None else list(wanted)
        if wanted == []:
            return {}
        ids = [word for word in wanted or [] if re.fullmatch(r"\d+(_\d+)?", word)]
        chosen = ["-u", user_name()] if wanted is None else ["-j" if ids else "-n", ",".join(wanted)]
        if wanted and 0 < len(ids) < len(wanted):  # SLURM would look for jobs that have both, the id and the name
            found = self._queue()
            return {j: s for j, s in found.items() if {j, j.split("_")[0], s.name} & set(wanted)}
        return self._queue(*chosen)

    def _queue(self, *chosen: str) -> dict[str, State]:
        try:
            return read_queue(self._ask("squeue", "-h", "-r", "-t", "all", *chosen, "-o", "%i|%T|%u|%r|%j"))
        except SchedulerError as error:
            if "Invalid job id" in str(error):
                return {}
            raise

    def job_gone(self, job: str) -> bool | None:
        """Whether a job will never run again; None where that cannot be known. A requeued job is not gone."""
        try:
            found = self.jobs([job])
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
                "sacctmgr",
                "-n",
                "-P",
                "show",
                "assoc",
                f"user={user_name()}",
                "format=account,maxsubmit,qos,defaultqos",
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
                command,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=self.query_s,
                env=query_env(),
                stdin=subprocess.DEVNULL,
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
