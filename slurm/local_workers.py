"""Workers on this machine that outlive whoever started them: submitit's local executor, from a session of its own.

    python -m slurm.local_workers SUBMISSION.json

Every worker is given all packs, each from another place on, and takes those that nobody holds. The processes' numbers and
start times go into the record, so that others can tell whether they live.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from adapters import BadInput
from slurm.claims import Holder, exclusive
from slurm.clusters import Cluster
from slurm.estimate import Pack
from slurm.gpus import choose_gpu, run_on
from slurm.sbatch import ROOT, open_private
from slurm.scheduler import in_one_line
from slurm.states import Sent
from slurm.submissions import Submissions
from slurm.submit import make_record, next_number, read_missing, spec_paths, store
from slurm.survey import survey
from slurm.sweep_folder import SweepFolder
from training.store import read_json

TIME_MIN = 366 * 1440  # submitit's local executor wants a limit
START_S = 300.0


def start_local(sweep: SweepFolder, packs: Sequence[str] | None, num_workers: int) -> list[Holder]:
    """Start workers for the packs that nobody works on or means to; returns their processes.

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
        private = open_private(sweep.submissions)
        cluster = Cluster("local", gpus="1" if _needs_gpu(missing) else "0")
        path = store(
            sweep, make_record(next_number(sweep), cluster, "local", private) | {"tasks": tasks, "workers": []}
        )
        return _launch(path)


def settle(sweep: SweepFolder) -> None:
    """Close the intents of starters that died; workers that they did start hold their packs by claims."""
    submissions = Submissions(sweep)
    submissions.refresh()
    for record in submissions.records:
        if record.get("executor") == "local" and record.get("state") == "intent":
            state = Sent.SENT if record.get("workers") else Sent.REFUSED
            store(sweep, record | {"state": state, "error": "the process that started the workers died"})


def _needs_gpu(packs: Sequence[Pack]) -> bool:
    return any(pack.device == "cuda" for pack in packs)


def _launch(path: Path) -> list[Holder]:
    """Run this module in a session of its own, so that neither Ctrl-C nor a closed terminal reaches the workers."""
    command = [sys.executable, "-m", "slurm.local_workers", str(path.resolve())]
    try:
        done = subprocess.run(
            command, cwd=ROOT, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, encoding="utf-8", errors="replace", timeout=START_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BadInput(f"the workers did not start within {START_S:g} s") from None
    if done.returncode:
        raise BadInput(f"the workers cannot be started: {in_one_line(done.stderr)[-300:]}")
    return [Holder(**worker) for worker in read_json(path)["workers"]]


def main(record_path: Path) -> None:
    """Start the workers of a record and write down their processes one by one."""
    import submitit

    from slurm.job import run_task

    record, sweep = read_json(record_path), SweepFolder(record_path.parents[1])
    device = "cpu" if record["settings"]["gpus"] == "0" else "cuda"
    for number, specs in enumerate(spec_paths(sweep, record["tasks"])):
        executor = submitit.LocalExecutor(record["folder"])
        executor.update_parameters(timeout_min=TIME_MIN)
        with _silence():
            job = executor.submit(run_on, choose_gpu(number, device), run_task, specs, record["code"])
        record["workers"].append(dataclasses.asdict(Holder.of(int(job.job_id))))
        store(sweep, record)
    store(sweep, record | {"state": Sent.SENT})


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Let what is started meanwhile not keep this process's stderr open: somebody waits for its end."""
    before, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nothing)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
