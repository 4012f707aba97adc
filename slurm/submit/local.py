"""Workers on this machine that outlive the command that started them.

They have a session of their own, which neither Ctrl-C nor a closed terminal reaches. Each is given all packs, each from another
place on, and takes those that nobody holds. Their process ids and start times go into the record, so that others can tell
whether they live.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from slurm.store.layout import SweepFolder
from slurm.store.leases import Owner, exclusive
from slurm.store.pack_states import survey
from slurm.store.states import Sent
from slurm.store.submissions import Submissions
from slurm.submit.clusters import Cluster
from slurm.submit.sbatch import open_private
from slurm.submit.send import make_record, next_number, read_missing, store
from slurm.worker.pool import start_process
from training.store import store_error

_outliving: list[subprocess.Popen] = []  # kept: Python warns of a process that nobody has waited for


def start_local(sweep: SweepFolder, packs: Sequence[str] | None, num_workers: int) -> list[Owner]:
    """Start workers for the packs that nobody works on or means to, which outlive this process; returns their processes.

    Raises:
        BadInput: if another process is submitting this sweep, or the workers cannot be started.
    """
    with exclusive(sweep.path, "submitter"):
        settle(sweep)
        missing = read_missing(sweep, survey(sweep, None), packs)
        if not missing:
            return []
        names = [pack.name for pack in missing]
        count = min(num_workers, len(names))
        tasks = [names[first:] + names[:first] for first in (len(names) * n // count for n in range(count))]
        device = "cuda" if any(pack.device == "cuda" for pack in missing) else "cpu"
        cluster, private = Cluster("local", gpus="1" if device == "cuda" else "0"), open_private(sweep.submissions)
        record = make_record(next_number(sweep), cluster, "local", private) | {"tasks": tasks, "workers": []}
        path = store(sweep, record)
        for number in range(count):
            record["workers"].append(dataclasses.asdict(_start_outliving(path, record["folder"], number, device)))
            store(sweep, record)
        store(sweep, record | {"state": Sent.SENT})
        return [Owner(**worker) for worker in record["workers"]]


def _start_outliving(record: Path, folder: str, number: int, device: str) -> Owner:
    log, arguments = Path(folder) / f"worker-{number}.log", ("--sent", str(record.resolve()), str(number))
    try:
        with open(log, "wb") as file:
            process = start_process(arguments, number, device, os.environ, start_new_session=True,
                                    stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)  # fmt: skip
    except OSError as error:
        raise store_error(error, log) from None
    _outliving.append(process)
    return Owner.of(process.pid)


def settle(sweep: SweepFolder) -> None:
    """Close the intents of starters that died; workers that they did start hold their packs by claims."""
    submissions = Submissions(sweep)
    submissions.refresh()
    for record in submissions.records:
        if record.get("executor") == "local" and record.get("state") == Sent.INTENT:
            state = Sent.SENT if record.get("workers") else Sent.REFUSED
            store(sweep, record | {"state": state, "error": "the process that started the workers died"})
