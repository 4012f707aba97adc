"""Whether a sweep takes as long as its plan says: three different sweeps on the pocket, foreseen and then run.

    python -m benchmarks.forecast                    # the three, one after the other
    python -m benchmarks.forecast --only packs       # one of the three
    python -m benchmarks.forecast --docs docs        # also writes the table into docs/speed.md

Each sweep is foreseen right before it runs, from a cache that was empty when the first began; and once more, as its plan
would be by then, from what the first pack of each method took.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
        seconds: until all packs were done.
        before_s, after_s: as expected before the first pack, and after the first of each method.
        load: mean number of processes that wanted a core, this sweep's among them, when it ended.
    """

    name: str
    cells: int
    packs: int
    workers: int
    seconds: float
    before_s: float
    after_s: float
    load: float

    @property
    def errors(self) -> tuple[float, float]:
        """By which share the seconds were overestimated, before and after."""
        return self.before_s / self.seconds - 1, self.after_s / self.seconds - 1


def foresee(name: str, words: Sequence[str], runs: Path) -> Foreseen:
    """Plan, foresee and run one sweep in this process and its workers.

    Args:
        name: what the table calls it.
        words: flags of `sweeps/lr_robustness.py`.
        runs: an empty runs folder.
    """
    from slurm.estimate.need import Pack, learn
    from slurm.store.layout import PackFiles
    from slurm.worker import pool
    from sweeps import driver, lr_robustness
    from sweeps.options import run_driver
    from training.store import read_json

    seen: dict[str, Any] = {}
    plan_work, run_inline = driver.plan_work, pool.run_inline

    def note_plan(sweep: Any) -> Any:
        seen["work"] = plan_work(sweep)
        return seen["work"]

    def note_run(specs: Sequence[Path], **more: Any) -> str:
        began = time.perf_counter()
        outcome = run_inline(specs, **more)
        seen.update(seconds=time.perf_counter() - began, specs=specs)
        return outcome

    arguments = [lr_robustness.__file__, *words, "--runs", str(runs)]
    with (
        patch.object(sys, "argv", arguments),
        patch.object(driver, "plan_work", note_plan),
        patch.object(pool, "run_inline", note_run),
        contextlib.redirect_stdout(sys.stderr),
    ):
        code = run_driver(lr_robustness.RobustnessOptions, lr_robustness.drive, "")
    if code:
        raise RuntimeError(f"the sweep of {name} ended with {code}")
    packs, expected = [Pack.read(spec) for spec in seen["specs"]], seen["work"].expected
    endings = {read_json(PackFiles.of(spec).ended)["cost"]["kind"]: spec for spec in reversed(seen["specs"])}
    first = [read_json(PackFiles.of(spec).ended) for spec in endings.values()]
    return Foreseen(
        name, sum(pack.demand.num_cells for pack in packs), len(packs), expected.workers, seen["seconds"],
        expected.seconds(packs), replace(expected, paid=learn(expected.costs, first)).seconds(packs), os.getloadavg()[0],
    )  # fmt: skip


def to_markdown(rows: Sequence[Foreseen]) -> str:
    """The sweeps as a table."""
    head = "| sweep | cells in packs, workers | took | expected before | error | after a pack of each method | error |"
    lines = [head, "|---|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        before, after = row.errors
        lines.append(
            f"| {row.name} | {row.cells} in {row.packs}, {row.workers} | {row.seconds:.0f} s | {row.before_s:.0f} s "
            f"| {before:+.0%} | {row.after_s:.0f} s | {after:+.0%} |"
        )
    worst = max((abs(row.errors[1]) for row in rows), default=math.nan)
    met = "yes" if worst <= AIM else "no"
    loads = ", ".join(f"{row.load:.1f}" for row in rows)
    lines += [
        "",
        f"Aim: each within {AIM:.0%} once a pack of each method has ended; met: {met}. Load averages at the ends: {loads}.",
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
