"""Group packs of the same needs into as few job arrays as the cluster's limits allow.

The wall time asked for is what the longest task is expected to need, with a margin, rounded up so that sweeps of many
shapes still share arrays, and never above the partition's limit: a task that needs longer is requeued and goes on. The memory
asked for is what the largest pack is expected to need, with a margin.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from adapters.errors import BadInput
from adapters.words import counted
from slurm.estimate.need import Need, Pack, Predict
from slurm.store.limits import Limits, Partition
from slurm.submit.clusters import Cluster
from slurm.submit.sbatch import Request

MARGIN = 2.0  # a node may be half as fast as the machine that was measured
MEMORY_MARGIN, MEMORY_STEP_MIB = 1.5, 512  # a task that takes more than it asked for is ended
TIMES_MIN = (5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 360, 480, 720, 960, 1440, 2160, 2880, 4320, 5760, 10080)
UNKNOWN_MIN = 240  # asked for where nothing was measured


def plan_arrays(packs: Iterable[Pack], cluster: Cluster, predict: Predict, limits: Limits) -> list[Request]:
    """The arrays that hold all packs, each below the cluster's largest array.

    Raises:
        BadInput: for an unknown partition, a time above its limit, or packs that need a GPU where none is asked for.
    """
    partition = choose_partition(cluster, limits)
    groups: dict[tuple[int, int], list[tuple[list[Pack], Need]]] = {}
    for task in _tasks(packs, cluster.packs_per_task):
        check_device(task[0], cluster)
        need = _together([predict(pack) for pack in task])
        key = (cluster.cpus(task[0].threads), choose_time(need.seconds, cluster, partition))
        groups.setdefault(key, []).append((task, need))
    return [
        _request(cluster, members[first : first + limits.max_array_size], cpus, time_min)
        for (cpus, time_min), members in groups.items()
        for first in range(0, len(members), limits.max_array_size)
    ]


def _together(needs: Sequence[Need]) -> Need:
    """Of packs that follow each other in one process."""
    seconds = [need.seconds for need in needs if need.seconds is not None]
    mib = [need.mib for need in needs if need.mib is not None]
    return Need(sum(seconds) if len(seconds) == len(needs) else None, max(mib) if len(mib) == len(needs) else None)


def _tasks(packs: Iterable[Pack], size: int) -> list[list[Pack]]:
    """Packs of one method and shape follow each other; a task holds packs of one kind."""
    kinds: dict[tuple, list[Pack]] = {}
    for pack in packs:
        kinds.setdefault((pack.device, pack.threads, pack.demand.group), []).append(pack)
    return [kind[first : first + size] for kind in kinds.values() for first in range(0, len(kind), size)]


def _request(cluster: Cluster, members: Sequence[tuple[list[Pack], Need]], cpus: int, time_min: int) -> Request:
    expected = tuple(need.seconds for _, need in members if need.seconds is not None)
    return Request(
        cluster, tuple(tuple(pack.name for pack in task) for task, _ in members), time_min, cpus,
        expected if len(expected) == len(members) else (), sum(pack.demand.num_cells for task, _ in members for pack in task),
        choose_mib([need for _, need in members], cluster),
    )  # fmt: skip


def choose_mib(needs: Sequence[Need], cluster: Cluster) -> int:
    """Memory of a task in MiB: the cluster's setting, or what the largest needs; 0, the cluster's default, if unknown."""
    if cluster.mem_gb:
        return round(cluster.mem_gb * 1024)
    known = [need.mib for need in needs if need.mib is not None]
    if len(known) < len(needs):
        return 0
    return MEMORY_STEP_MIB * math.ceil(MEMORY_MARGIN * max(known) / MEMORY_STEP_MIB)


def check_device(pack: Pack, cluster: Cluster) -> None:
    """Refuse a pack that was planned for a GPU where tasks get none.

    Raises:
        BadInput: naming the pack.
    """
    if pack.device == "cuda" and not cluster.num_gpus:
        raise BadInput(
            f"pack {pack.name} was planned for cuda, and tasks get no GPU: give --gpus 1, or another --sweep"
        )


def choose_partition(cluster: Cluster, limits: Limits) -> Partition:
    """The partition that jobs will go to.

    Raises:
        BadInput: for an unknown one, listing those there are.
    """
    name = cluster.partition or limits.default_partition()
    if not limits.partitions or name is None:
        return Partition(cluster.partition)
    asked = [limits.partitions.get(word) for word in name.split(",")]
    if None in asked:
        known = ", ".join(f"{p.name} ({p.time()})" for p in limits.partitions.values())
        raise BadInput(f"--partition is {name}; partitions of {limits.cluster or 'this cluster'}: {known}")
    times = [p.max_time_min for p in asked if p is not None and p.max_time_min is not None]
    return Partition(name, min(times, default=None))


def choose_time(expected_s: float | None, cluster: Cluster, partition: Partition) -> int:
    """Wall time in minutes.

    Args:
        expected_s: seconds that a task is expected to take; None if unknown.
        cluster: may fix the time.
        partition: limits it.

    Raises:
        BadInput: for a fixed time above the limit.
    """
    limit = partition.max_time_min
    if cluster.time_min:
        if limit is not None and cluster.time_min > limit:
            raise BadInput(
                f"--time-min is {cluster.time_min}; partition {partition.name} allows at most {counted(limit, 'minute')} "
                "(a longer run is continued by requeue)"
            )
        return cluster.time_min
    needed = UNKNOWN_MIN if expected_s is None else expected_s * MARGIN / 60
    time_min = next((time for time in TIMES_MIN if time >= needed), TIMES_MIN[-1])
    return time_min if limit is None else max(1, min(time_min, limit))


def fit(requests: Sequence[Request], room: int) -> list[Request]:
    """As many tasks, in order, as the queue still takes."""
    taken = []
    for request in requests:
        if room > 0:
            taken.append(request if len(request.tasks) <= room else split(request, room))
        room -= len(request.tasks)
    return taken


def split(request: Request, num_tasks: int) -> Request:
    """The first tasks of an array."""
    kept = request.tasks[:num_tasks]
    num_cells = round(request.num_cells * len(kept) / len(request.tasks))
    return dataclasses.replace(request, tasks=kept, expected_s=request.expected_s[:num_tasks], num_cells=num_cells)
