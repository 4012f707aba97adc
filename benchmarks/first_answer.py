"""How long a first answer takes: the commands of `make quick` and `make run` as whole processes, and what they draw when.

    python -m benchmarks.first_answer                     # three times each, about half an hour
    python -m benchmarks.first_answer --only quick
    python -m benchmarks.first_answer --avx2              # as on a machine without AVX-512
    python -m benchmarks.first_answer --docs docs         # also writes the table into docs/speed.md

Each time has an empty runs folder and an empty cache, as on a machine that has not measured itself yet.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from adapters.errors import BadInput

FRONT_DOOR = ("sweeps/lr_robustness.py", "--method", "delora")
COMMANDS = {"quick": (*FRONT_DOOR, "--subjects", "rocket", "--multipliers", "0.25", "1", "4", "16"), "run": FRONT_DOOR}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "AVX2"}
PLANNED = re.compile(r"packs? of up to")  # in the line that ends the plan
FIGURE = Path("lr_robustness") / "fig2_lr_robustness.png"
EVERY_S = 0.1
HEAD = (
    "| command | instructions | plan shown | first figure, after the plan | whole | again | n |",
    "|---|---|---:|---:|---:|---:|---:|",
)


@dataclass(frozen=True)
class Options:
    """Flags of the benchmark."""

    only: tuple[Literal["quick", "run"], ...] = ("quick", "run")
    """Which of the commands."""
    times: int = 3
    """How often each is run anew."""
    avx2: bool = False
    """Whether torch is kept from using AVX-512."""
    more: str = ""
    """Further flags of each command, as in `--more="--steps 20"`."""
    docs: Path | None = None
    """Folder whose `speed.md` gets the table."""


@dataclass
class Waited:
    """Seconds that one command's user waited, one value a time.

    Attributes:
        plan: until the plan was shown.
        first: from then on until there was a figure.
        whole: until the command ended.
        again: until the same command, which then trains nothing, ended.
    """

    plan: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)


def wait_for(words: Sequence[str], more: Mapping[str, str], waited: Waited) -> None:
    """Run a command once with nothing there, and once more with everything there.

    Raises:
        BadInput: if the command fails; its last line is named.
    """
    with tempfile.TemporaryDirectory(prefix="plateau-bench-") as folder:
        runs = Path(folder) / "runs"
        there = {**os.environ, **more} | {"XDG_CACHE_HOME": str(Path(folder) / "cache"), "PYTHONUNBUFFERED": "1"}
        first: list[float] = []
        began = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, *words, "--runs", str(runs)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", env=there,
        ) as process:  # fmt: skip
            drawn = threading.Thread(target=_watch, args=(runs / FIGURE, process, first))
            drawn.start()
            lines, planned = [], None
            for line in process.stdout or ():
                lines.append(line)
                planned = planned or (time.perf_counter() if PLANNED.search(line) else None)
        drawn.join()
        if process.returncode or planned is None or not first:
            raise BadInput(
                f"{shlex.join(words)} ended with {process.returncode}: {(lines or ['no output'])[-1].strip()}"
            )
        waited.plan.append(planned - began)
        waited.first.append(first[0] - planned)
        waited.whole.append(time.perf_counter() - began)
        began = time.perf_counter()
        subprocess.run([sys.executable, *words, "--runs", str(runs)], env=there, check=True, capture_output=True)
        waited.again.append(time.perf_counter() - began)


def _watch(figure: Path, process: subprocess.Popen[str], seen: list[float]) -> None:
    """Note when a figure is there."""
    while not figure.exists() and process.poll() is None:
        time.sleep(EVERY_S)
    if figure.exists():
        seen.append(time.perf_counter())


def to_markdown(waited: Mapping[str, Waited], instructions: str) -> str:
    """The table: means, with the least and the most in brackets."""
    rows = [
        f"| `{shlex.join(['python', *COMMANDS[name]])}` | {instructions} | "
        + " | ".join(map(_in_words, (found.plan, found.first, found.whole, found.again)))
        + f" | {len(found.whole)} |"
        for name, found in waited.items()
    ]
    return "\n".join([*HEAD, *rows])


def _in_words(seconds: Sequence[float]) -> str:
    mean = sum(seconds) / len(seconds)
    return f"{mean:.0f} s ({min(seconds):.0f} to {max(seconds):.0f})"


def run(options: Options) -> int:
    """Wait, print and write."""
    import torch

    from benchmarks.page import write_part
    from benchmarks.rows import describe_run

    more = AVX2 if options.avx2 else {}
    waited: dict[str, Waited] = {name: Waited() for name in options.only}
    for _ in range(options.times):
        for name in options.only:
            wait_for((*COMMANDS[name], *shlex.split(options.more)), more, waited[name])
            print(f"{name}: {waited[name]}", file=sys.stderr, flush=True)
    instructions = "AVX2" if options.avx2 else torch.backends.cpu.get_cpu_capability()
    text = f"{to_markdown(waited, instructions)}\n\n{describe_run('benchmarks.first_answer')}"
    print(text)
    if options.docs is not None:
        write_part(options.docs / "speed.md", f"first-answer{'-avx2' if options.avx2 else ''}", text)
    return 0


if __name__ == "__main__":
    from training.command_line import run_program

    sys.exit(run_program(Options, run, __doc__ or ""))
