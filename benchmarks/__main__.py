"""Run the benchmarks and print one Markdown table.

    python -m benchmarks                    # every row, about half an hour on two idle cores
    python -m benchmarks --quick            # a few repetitions of each
    python -m benchmarks --only methods     # the rows of one script: packs, methods, every_method, dynamics, memory, spectra
    python -m benchmarks --docs docs        # also write docs/benchmarks.md, with machine, versions and date

Run it from the checkout, on a machine that does nothing else.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Script = Literal["packs", "methods", "every_method", "dynamics", "memory", "spectra"]


@dataclass(frozen=True)
class Options:
    """Flags of the benchmarks."""

    only: tuple[Script, ...] = ("packs", "methods", "every_method", "dynamics", "memory", "spectra")
    """Which scripts to run."""
    quick: bool = False
    """Few repetitions."""
    model: str = "auto"
    """`pocket`, `untrained` (the same shapes with random weights), a folder with pipeline/ clip/ dino/ subjects/, or
    `auto`: the pocket if its weights are there."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where: `auto` is the CPU, and the GPU as well if there is one."""
    docs: Path | None = None
    """Folder to write `benchmarks.md` to."""


def run(options: Options) -> int:
    """Measure, print and write."""
    import torch

    from benchmarks.rows import Row, to_markdown, write_page
    from benchmarks.scene import QUICK, Effort, find_place
    from training.process_setup import quiet_libraries

    quiet_libraries()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tables, effort = [], QUICK if options.quick else Effort()
    with tempfile.TemporaryDirectory(prefix="plateau-bench-") as scratch:
        place = find_place(options.model, Path(scratch))
        devices = choose_devices(options.device)
        for device in devices:
            rows: list[Row] = []
            for name in options.only:
                print(f"measuring {name} on {device}", file=sys.stderr, flush=True)
                rows += importlib.import_module(f"benchmarks.{name}").measure(place, device, effort)
            tables.append(f"On {device}, {place.name}:\n\n{to_markdown(rows)}")
            print(f"\n{tables[-1]}", flush=True)
    if options.docs is not None and tables:
        command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
        print(write_page(options.docs, tables, command, torch.device(devices[-1]), place.name))
    return 0


def choose_devices(device: str) -> list[str]:
    """The devices to measure on; without a GPU its rows are left out, with a word about it."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device is usable here: its rows are left out", file=sys.stderr)
    wanted = ["cpu", "cuda"] if device == "auto" else [device]
    return [name for name in wanted if name == "cpu" or torch.cuda.is_available()]


if __name__ == "__main__":
    from training.command_line import run_program

    sys.exit(run_program(Options, run, __doc__ or ""))
