"""How planning, status and the file system bear large sweeps: synthetic plans, nothing is trained.

    python -m benchmarks.scale                         # 1,000, 10,000 and 100,000 cells: about two minutes
    python -m benchmarks.scale --cells 1000            # other numbers, multiples of 1,000
    python -m benchmarks.scale --docs docs             # also puts the tables into docs/scale.md

A plan has 100 methods x rates x 2 seeds x 5 subjects, in packs of 8. Each size is measured in a process of its own. Half of
its packs have ended, 64 run, for the refreshes. Operations are counted by wrappers around the calls that make them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

from adapters.words import counted
from benchmarks.operations import RUNS, count_operations, count_rates, watch_rates

PACK, RUNNING = 8, 64
MARK = "<!-- measured: python -m benchmarks.scale --docs docs -->"


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of the measurement."""

    cells: tuple[int, ...] = (1_000, 10_000, 100_000)
    """Sizes of the plans, multiples of 1,000."""
    docs: Path | None = None
    """Folder whose scale.md gets the tables."""
    alone: bool = False
    """Measure the one size here and print it as JSON."""


def run(options: Options) -> int:
    """Measure, print and write."""
    if options.alone:
        print(json.dumps(measure(options.cells[0])))
        return 0
    rows = [_in_a_process(cells) for cells in options.cells]
    text = f"{describe_machine()}\n\n{plan_table(rows)}\n\n{rate_table()}"
    print(text)
    if options.docs is not None:
        path = options.docs / "scale.md"
        head, mark, _ = path.read_text(encoding="utf-8").partition(MARK)
        path.write_text(f"{head}{mark or MARK}\n\n{text}\n", encoding="utf-8")
        print(path)
    return 0


def _in_a_process(cells: int) -> dict[str, Any]:
    print(f"measuring {counted(cells, 'cell', ',')}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "benchmarks.scale", "--alone", "--cells", str(cells)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


# One size.


def measure(num_cells: int) -> dict[str, Any]:
    """Seconds, operations and memory of one size."""
    from slurm.store.layout import SweepFolder
    from slurm.store.pack_states import Surveyor
    from sweeps.grid import base_cells
    from sweeps.plan import Plan
    from sweeps.progress import PlanProgress

    planned, setting = make_cells(num_cells)
    row: dict[str, Any] = {"cells": num_cells, "imports_mib": _peak_mib()}
    with tempfile.TemporaryDirectory(prefix="plateau-scale-") as scratch:
        folder = Path(scratch) / "grid"
        folder.mkdir()

        def plan() -> Plan:
            cells = [*base_cells(planned), *planned]
            found = Plan.read(folder)
            found.add(cells, setting, PACK, 1)
            PlanProgress.look(found).todo({p.cell.identity(): 0 for p in cells})
            return found

        with _measured(row, "plan"):
            packs = list(plan().packs)
        for p in planned:
            p.cell.__dict__.pop("_identity", None)  # a new process would have to compute it
        with _measured(row, "again"):
            plan()
        row |= {"packs": len(packs), "files": _count_files(folder), "plan_mib": _peak_mib()}
        surveyor = Surveyor(SweepFolder(folder))
        with _measured(row, "survey"):
            _look(surveyor)
        _pretend(SweepFolder(folder), packs)
        surveyor = Surveyor(SweepFolder(folder))
        for name in ("cold", "warm"):
            with _measured(row, name):
                states = _look(surveyor)
        row["counts"] = Counter(state.state for state in states)
        row["largest"] = _largest_folder(folder, num_cells + num_cells // 100)
    row["mib"] = _peak_mib()
    return row


def _look(surveyor: Any) -> list[Any]:
    surveyor.gather()
    states: list[Any] = surveyor.judge({})
    return states


@contextmanager
def _measured(row: dict[str, Any], name: str) -> Iterator[None]:
    with count_operations() as counts:
        began, spent = time.perf_counter(), time.process_time()
        yield
        row[f"{name}_s"], row[f"{name}_cpu_s"] = time.perf_counter() - began, time.process_time() - spent
    row[f"{name}_operations"] = sum(counts.values())


def make_cells(num_cells: int) -> tuple[list[Any], Any]:
    """100 methods x rates x 2 seeds x 5 subjects, and the setting that they share."""
    from slurm.worker.run import Setting
    from sweeps.grid import LabelledCell
    from training.cell import Cell

    digest = "0123456789abcdef" * 4
    cells = [
        LabelledCell(
            Cell(method="lora", options=f"alpha={method}r,init=kaiming", rank=8, subject=f"subject{subject}", seed=seed,
                 steps=500, lr=1e-3 * (1 + rate), model_hash=digest, subject_hash=f"{subject}{digest[1:]}", scorer_hash=digest),
            f"x{1 + rate}", {"multiplier": 1.0 + rate, "model": "pocket", "class": "dog", "split": "evidence"},
        )
        for method in range(100) for rate in range(num_cells // 1000) for seed in range(2) for subject in range(5)
    ]  # fmt: skip
    return cells, Setting("model", "dino", "clip", "subjects", "sks", "a photo", "runs", threads=1)


def _pretend(sweep: Any, packs: list[str]) -> None:
    """Let half of the packs have ended and `RUNNING` be running in this process, as their files would say."""
    from slurm.store.leases import Owner

    files, holder = sweep.scan(), dataclasses.asdict(Owner.me())
    half = len(packs) // 2
    for number, name in enumerate(packs[: half + RUNNING]):
        claim = {"holder": holder, "began": 0.0}
        if number < half:
            rows = json.loads(files[name].spec.read_text(encoding="utf-8"))["runs"]
            ending = {
                "pack": name, "runs": {row["run_id"]: "finished" for row in rows}, "turns": 1, "seconds": 100.0,
                "reason": None, "errors": {},
            }  # fmt: skip
            files[name].ended.write_text(json.dumps(ending), encoding="utf-8")
            claim["outcome"] = "done"
        files[name].claim(1).write_text(json.dumps(claim), encoding="utf-8")
        beat = {"turn": 1, "count": 1, "time": time.time(), "phase": "training", "step": 100, "steps": 500, "rate": 2.0}
        files[name].beat.write_text(json.dumps(beat), encoding="utf-8")


def _count_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def _largest_folder(folder: Path, num_runs: int) -> int:
    """Entries of the largest folder once every run has its own, from where the plan puts them."""
    from slurm.store.layout import SweepFolder

    sweep = SweepFolder(folder)
    entries = Counter({Path(top): len(below) + len(files) for top, below, files in os.walk(folder)})
    entries.update(sweep.place_run(number) for number in range(num_runs))
    return max(entries.values())


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# Tables.


def describe_machine() -> str:
    """Machine, file system, date and command."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    mounts = [line.split() for line in _lines("/proc/mounts")]
    place = os.path.realpath(tempfile.gettempdir())
    found = max((m for m in mounts if place.startswith(m[1])), key=lambda m: len(m[1]), default=["", "", "unknown"])
    command = shlex.join(["python", "-m", "benchmarks.scale", *sys.argv[1:]])
    load = f"load average {os.getloadavg()[0]:.0f} when it ended"
    return (f"{cpu or platform.machine()}, {counted(len(os.sched_getaffinity(0)), 'core')}, {load}, {found[2]}, Python "
            f"{platform.python_version()}, {date.today().isoformat()}; `{command}`.")  # fmt: skip


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def plan_table(rows: list[dict[str, Any]]) -> str:
    """Planning and status, a column for each size."""

    def line(name: str, show: Callable[[dict[str, Any]], str]) -> str:
        return f"| {name} | {' | '.join(show(row) for row in rows)} |"

    def cost(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: f"{row[f'{name}_s']:.2f} s ({row[f'{name}_cpu_s']:.2f} s), {row[f'{name}_operations']:,}"

    return "\n".join([
        line("wall (processor) seconds, operations on the file system", lambda row: f"{counted(row['cells'], 'cell', ',')}"),
        f"|---|{'---|' * len(rows)}",
        line("packs", lambda row: f"{row['packs']:,}"),
        line("plan", cost("plan")),
        line("plan again, nothing is new", cost("again")),
        line("first look, nothing begun", cost("survey")),
        line(f"first look, half ended, {RUNNING} running", cost("cold")),
        line("refresh, the same", cost("warm")),
        line("files that the plan has", lambda row: f"{row['files']:,}"),
        line("entries of the largest folder, all runs begun", lambda row: f"{row['largest']:,}"),
        line("peak memory, MiB (imports alone)", lambda row: f"{row['mib']:.0f} ({row['imports_mib']:.0f})"),
    ])  # fmt: skip


def rate_table() -> str:
    """What jobs and one viewer ask of the file system and of SLURM, for some numbers of GPUs."""
    jobs, viewer = count_rates(), watch_rates()
    lines = [
        f"Counted: a heartbeat is {jobs.beat} operations; a checkpoint of one run with its rows, {jobs.checkpoint}; "
        f"to take a pack and to end it, {jobs.turn}; a refresh, {viewer.fixed} and {viewer.pack} for each running pack.",
        "",
        f"| GPUs, each with a pack of {RUNS} | 8 | 64 | 512 |",
        "|---|---|---|---|",
    ]
    for name, show in jobs.rows(viewer).items():
        lines.append(f"| {name} | {' | '.join(show(gpus) for gpus in (8, 64, 512))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    from training.command_line import run_program

    with mock.patch.dict(os.environ, {"TQDM_DISABLE": "1"}):
        sys.exit(run_program(Options, run, __doc__ or ""))
