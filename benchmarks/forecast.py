"""Whether a sweep takes as long as its plan says: three different sweeps on the pocket, foreseen and then run.

    python -m benchmarks.forecast                    # the three, one after the other
    python -m benchmarks.forecast --only packs       # one of the three
    python -m benchmarks.forecast --docs docs        # also writes the table into docs/speed.md

Each sweep is foreseen right before it runs, from a cache that was empty when the first began. Seconds that pass are what a
user waits for; seconds that the workers' processors computed are compared as well: where other programs take the
cores, they still tell whether the model of the cost is right.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

AIM = 0.2
SWEEPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "packs": ("LoRA and DeLoRA, packs as chosen, 150 steps",
              ("--method", "lora", "delora", "--multipliers", "0.5", "1", "2", "4", "--subjects", "3", "--steps", "150")),
    "long": ("DoRA and ETHER+, rank 16, packs of 4, 400 steps, two evaluations",
             ("--method", "dora", "etherplus", "--rank", "16", "--pack-size", "4", "--multipliers", "1", "4",
              "--subjects", "2", "--steps", "400", "--eval-steps", "200")),
    "pictures": ("OFT, packs of 3, 60 steps, 32 pictures a run of 20 sampler steps",
                 ("--method", "oft", "--base-lr", "0.0001", "--base-lr-for-all", "--pack-size", "3",
                  "--multipliers", "0.5", "1", "2", "--subjects", "3", "--steps", "60", "--num-images", "4",
                  "--num-inference-steps", "20")),
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Flags of the comparison."""

    only: tuple[Literal["packs", "long", "pictures"], ...] = ("packs", "long", "pictures")
    """Which of the sweeps to run."""
    more: str = ""
    """Further flags for each of them, as in `--more="--steps 20 --num-prompts 2"`."""
    json: Path | None = None
    """File to write the numbers to."""
    docs: Path | None = None
    """Folder whose `speed.md` gets the table."""


@dataclass(frozen=True)
class Foreseen:
    """One sweep: what was expected and what came.

    Attributes:
        name: what the sweep is.
        cells, packs, workers: how much of what there was, and how many worked on it.
        measuring_s: seconds that the forecast itself took.
        wall_s, wall_expected_s: seconds until all packs were done.
        processor_s, processor_expected_s: seconds that the workers' processors computed.
        load: mean number of processes that wanted a core, this sweep's among them, when it ended.
    """

    name: str
    cells: int
    packs: int
    workers: int
    measuring_s: float
    wall_s: float
    wall_expected_s: float
    processor_s: float
    processor_expected_s: float
    load: float

    @property
    def wall_error(self) -> float:
        """By which share the seconds that passed were overestimated."""
        return self.wall_expected_s / self.wall_s - 1

    @property
    def processor_error(self) -> float:
        """By which share the computed seconds were overestimated."""
        return self.processor_expected_s / self.processor_s - 1


def foresee(name: str, words: Sequence[str], runs: Path) -> Foreseen:
    """Plan, foresee and run one sweep in this process and its workers.

    Args:
        name: what the table calls it.
        words: flags of `sweeps/lr_robustness.py`.
        runs: an empty runs folder.
    """
    from slurm import inline
    from sweeps import lr_robustness, work
    from sweeps.options import run_driver

    seen: dict[str, Any] = {}
    expect, run_inline = work.expect, inline.run_inline

    def note_forecast(packs: Any, setting: Any, coarse: Any, workers: int, worth_s: float | None) -> Any:
        began = time.perf_counter()
        expected = expect(packs, setting, coarse, workers, None)
        seen.update(packs=packs, expected=expected, workers=workers, measuring_s=time.perf_counter() - began)
        return expected

    def note_run(specs: Sequence[Path], **more: Any) -> str:
        before, began = _workers_s(), time.perf_counter()
        outcome = run_inline(specs, **more)
        seen.update(wall_s=time.perf_counter() - began, processor_s=_workers_s() - before)
        return outcome

    arguments = [lr_robustness.__file__, *words, "--runs", str(runs)]
    with (
        patch.object(sys, "argv", arguments),
        patch.object(work, "expect", note_forecast),
        patch.object(inline, "run_inline", note_run),
        contextlib.redirect_stdout(sys.stderr),
    ):
        code = run_driver(lr_robustness.RobustnessOptions, lr_robustness.drive, "")
    if code:
        raise RuntimeError(f"the sweep of {name} ended with {code}")
    packs, expected = seen["packs"], seen["expected"]
    return Foreseen(
        name, sum(len(pack.cells) for pack in packs), len(packs), seen["workers"], seen["measuring_s"], seen["wall_s"],
        expected.seconds(packs), seen["processor_s"], expected.processor_s(packs), os.getloadavg()[0],
    )  # fmt: skip


def _workers_s() -> float:
    """Seconds that ended processes of this one have computed."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def to_markdown(rows: Sequence[Foreseen]) -> str:
    """The sweeps as a table."""
    head = "| sweep | cells in packs, workers | expected | took | error | processor: expected | took | error | forecast took |"
    lines = [head, "|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.cells} in {row.packs}, {row.workers} | {row.wall_expected_s:.0f} s | {row.wall_s:.0f} s "
            f"| {row.wall_error:+.0%} | {row.processor_expected_s:.0f} s | {row.processor_s:.0f} s "
            f"| {row.processor_error:+.0%} | {row.measuring_s:.0f} s |"
        )
    worst = max((abs(row.wall_error) for row in rows), default=math.nan)
    met = "yes" if worst <= AIM else "no"
    loads = ", ".join(f"{row.load:.1f}" for row in rows)
    lines += [
        "",
        f"Aim: each within {AIM:.0%} of the seconds that pass; met: {met}. Load averages at the ends: {loads}.",
    ]
    return "\n".join(lines)


@contextlib.contextmanager
def empty_cache() -> Iterator[Path]:
    """An empty folder, and in it a cache in which nothing was measured yet."""
    with (
        tempfile.TemporaryDirectory(prefix="plateau-bench-") as folder,
        patch.dict(os.environ, {"XDG_CACHE_HOME": str(Path(folder) / "cache")}),
    ):
        yield Path(folder)


def run(options: Options) -> int:
    """Foresee, run, print and write."""
    from benchmarks.page import write_part
    from benchmarks.rows import describe_run

    sweeps: Mapping[str, tuple[str, tuple[str, ...]]] = {key: SWEEPS[key] for key in options.only}
    with empty_cache() as folder:
        rows = [
            foresee(name, (*words, *shlex.split(options.more)), folder / key) for key, (name, words) in sweeps.items()
        ]
    text = f"{to_markdown(rows)}\n\n{describe_run('benchmarks.forecast')}"
    print(text)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    if options.docs is not None:
        write_part(options.docs / "speed.md", "forecast", text)
    return 0


if __name__ == "__main__":
    from training.command_line import run_program

    sys.exit(run_program(Options, run, __doc__ or ""))
