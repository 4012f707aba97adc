"""Limits of a cluster, as SLURM's programs print them: array sizes, submitted jobs, wall time of each partition."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


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

    def time(self) -> str:
        """Its limit in words."""
        return "no time limit" if self.max_time_min is None else f"at most {self.max_time_min} min"


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
