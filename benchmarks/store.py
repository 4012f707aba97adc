"""What a thousand runs of full dynamics take: bytes on disk, seconds to write, seconds and memory to load for the figures.

    python -m benchmarks.store                         # 1,000 runs x 1,400 steps x 128 matrices: minutes, and 2 GB of disk
    python -m benchmarks.store --runs 100 --scratch D  # fewer, and where to put them

The runs are synthetic, of the exact schema: every gauge of DeLoRA, distances that grow and waver as those of training do.
Loading happens in a process of its own, with what was written still in the memory that files are kept in.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from adapters import parse_method
from adapters.words import counted
from benchmarks.rows import Row, to_markdown
from benchmarks.timing import mean_of, once
from training.cell import Cell
from training.store import GAUGES, RunFolder

PARTS = 8  # a run's checkpoints, each of which ends a part
KINDS = 8  # runs with values of their own; the others are copies of them under other names
MULTIPLIERS, SEEDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0), 5
GAUGES_OF_DELORA = ("lambda", "bound", "saturation", "norm_a", "norm_b", "angle_a", "angle_b")
ROUNDS = 5  # of loading, each in a process of its own
STEP_S = 0.1  # of a pack's step on a slow pocket, against which writing is held


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of the measurement."""

    runs: int = 1000
    """Runs."""
    steps: int = 1400
    """Steps of a run."""
    matrices: int = 128
    """Adapted matrices of a run."""
    scratch: Path | None = None
    """Folder for the runs; a temporary one otherwise."""
    load: str = ""
    """Load what one figure needs from --scratch, and print seconds and memory."""


def run(options: Options) -> int:
    """Write, load, print."""
    if options.load:
        print(json.dumps(measure_load(options.load, options.scratch or Path())))
        return 0
    if options.scratch is not None:
        options.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="plateau-store-", dir=options.scratch) as scratch:
        root = Path(scratch)
        print(to_markdown([*measure_writing(root, options), *measure_figures(root, options)]))
    return 0


# Writing.


def measure_writing(root: Path, options: Options) -> list[Row]:
    """Write all runs; bytes of a row of the dynamics, and the time of writing over that of training."""
    names = name_matrices(options.matrices)
    originals, seconds = [], []
    for kind in range(min(KINDS, options.runs)):
        folder, generator = RunFolder(root / f"original-{kind}"), np.random.default_rng(kind)
        tables = make_dynamics(generator, options.steps, names)
        for part in np.array_split(np.arange(options.steps + 1), PARTS):
            rows = {name: column[part[0] * len(names) : (part[-1] + 1) * len(names)] for name, column in tables.items()}
            began = time.perf_counter()
            folder.append("dynamics", rows, int(part[-1]))
            seconds.append((time.perf_counter() - began) / len(part))
        originals.append(folder)
    size = sum(path.stat().st_size for folder in originals for path in folder.parts("dynamics"))
    for number in range(options.runs):
        copy_run(originals[number % len(originals)], root / "sweep", number, options.steps, names)
    for folder in originals:
        shutil.rmtree(folder.path)
    count = len(originals) * (options.steps + 1) * len(names)
    return [
        Row("dynamics on disk, bytes for each step and matrix", once(size / count), 32.0, unit="B"),
        Row(
            f"writing them, share of a run's step of {STEP_S:g} s", mean_of(np.array(seconds) / STEP_S), 0.01, unit="%"
        ),
    ]


def name_matrices(count: int) -> list[str]:
    """Names as those of a U-Net."""
    kinds = ("to_q", "to_k", "to_v", "to_out.0")
    return [
        f"down_blocks.{n // 8}.attentions.0.transformer_blocks.0.attn{n // 4 % 2 + 1}.{kinds[n % 4]}"
        for n in range(count)
    ]


def make_dynamics(generator: np.random.Generator, steps: int, names: list[str]) -> dict[str, pa.Array]:
    """Rows step by step: values that grow to a limit of their own, with the wavering of single steps on it."""
    count = len(names)
    when = np.linspace(0, 1, steps + 1)[:, None]

    def gauge(scale: float, wavering: float) -> pa.Array:
        limit = scale * generator.uniform(0.5, 2.0, count)
        walk = np.cumsum(generator.standard_normal((steps + 1, count)), axis=0) * wavering
        values = limit * (1 - np.exp(-5 * when)) * np.exp(walk)
        return pa.array(values.astype(np.float32).ravel())

    step = np.repeat(np.arange(steps + 1, dtype=np.int32), count)
    matrix = pa.DictionaryArray.from_arrays(np.tile(np.arange(count, dtype=np.int32), steps + 1), names)
    gauges = {name: gauge(1.0, 1e-3) for name in GAUGES if name in GAUGES_OF_DELORA}
    return {"step": pa.array(step), "matrix": matrix, "distance": gauge(8.0, 1e-3), **gauges}


def copy_run(original: RunFolder, sweep: Path, number: int, steps: int, names: list[str]) -> None:
    """One more run, with scores and a description of its own."""
    subject, rest = number // (len(MULTIPLIERS) * SEEDS), number % (len(MULTIPLIERS) * SEEDS)
    multiplier, seed = MULTIPLIERS[rest % len(MULTIPLIERS)], rest // len(MULTIPLIERS)
    spec = parse_method("delora")
    cell = Cell(method=spec.name, options=spec.canonical, rank=8, subject=f"subject{subject}", seed=seed, steps=steps,
                lr=1e-3 * multiplier, boundary=1.0, num_prompts=4, eval_steps=tuple(range(200, steps + 1, 200)))  # fmt: skip
    folder = RunFolder(sweep / cell.run_id(f"x{multiplier:g}"))
    shutil.copytree(original.path, folder.path)
    parts = {"block": "down_blocks.0", "kind": "to_q", "attention": "attn1", "num_out": 64, "num_in": 64}
    matrices = [{"matrix": name, **parts, "base_norm": 8.0} for name in names]
    folder.write({
        "sweep": sweep.name, "cell": cell.to_dict(), "labels": {"multiplier": multiplier, "model": "synthetic"},
        "status": "finished", "diverged_step": None, "num_parameters": 1000, "matrices": matrices, "provenance": {},
        "error": None, "seconds": 1.0,
    })  # fmt: skip
    folder.write_scores(make_scores(cell, number))


def make_scores(cell: Cell, number: int) -> pd.DataFrame:
    """Three metrics of four prompts at every evaluation."""
    rows = [
        (step, metric, f"prompt {prompt}", 0.5 + 0.01 * (number % 7))
        for step in cell.evaluated_steps()
        for metric in ("dino", "clip_i", "clip_t")
        for prompt in range(4)
    ]
    return pd.DataFrame(rows, columns=["step", "metric", "prompt", "value"])


# Loading.


def load_fig2(root: Path) -> int:
    """Scores and last distances of every run."""
    from analysis import distance_curve, load, score_curve

    results = load(root)
    return len(score_curve(results)) + len(distance_curve(results))


def load_fig3(root: Path) -> int:
    """Scores, mean distance and lambda of every run at every step."""
    from analysis import load

    results = load(root)
    return len(results.scores) + len(results.trajectories("mean", ["distance_rel", "lambda"]))


LOADS: dict[str, Callable[[Path], int]] = {"Fig. 2": load_fig2, "Fig. 3": load_fig3}


def measure_figures(root: Path, options: Options) -> list[Row]:
    """Seconds and peak memory of loading what each figure needs."""
    rows = []
    for name in LOADS:
        command = [sys.executable, "-m", "benchmarks.store", "--load", name, "--scratch", str(root)]
        measured = []
        for _ in range(ROUNDS):
            done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True)
            measured.append(json.loads(done.stdout.splitlines()[-1]))
        what = f"load what {name} needs, {counted(options.runs, 'run', ',')}"
        seconds, gib = (mean_of(np.array([row[key] for row in measured])) for key in ("seconds", "gib"))
        rows.append(Row(what, seconds, 10.0, unit="s"))
        rows.append(Row(f"{what}: peak memory", gib, 2.0, unit="GiB"))
    return rows


def measure_load(name: str, root: Path) -> dict[str, float]:
    """Seconds from the import of `analysis` on, and the process's peak memory in GiB."""
    began = time.perf_counter()
    count = LOADS[name](root)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "rows": count, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


if __name__ == "__main__":
    from training.command_line import run_program

    sys.exit(run_program(Options, run, __doc__ or ""))
