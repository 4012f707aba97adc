"""How time and memory grow with the pack, the rank, the picture, the method and the sweep: the tables of docs/speed.md.

    python -m benchmarks.speed                       # print them
    python -m benchmarks.speed --docs docs           # also write each into docs/speed.md
    python -m benchmarks.speed --only packs ranks    # some of them
    python -m benchmarks.speed --clock processor     # where other programs take the cores

A step is one of the real training loop with all its dynamics, on one thread as in the front door's workers. What a table
compares takes turns in rounds; a value is the mean of the rounds, each the median of its steps, with the smallest and the
largest in brackets. Memory is the peak of a process of its own that trains a pack and makes its pictures.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import numpy as np

from adapters import METHODS
from benchmarks import peak, scene
from benchmarks.page import write_part
from benchmarks.rows import describe_run
from benchmarks.scene import Place, Scene, find_place, threads

PACK = 8  # runs in the pack where something else is varied
Name = Literal["packs", "ranks", "sides", "methods"]
Clock = Literal["wall", "processor"]


@dataclass(frozen=True)
class Options:
    """Flags of the tables."""

    only: tuple[Name, ...] = ("packs", "ranks", "sides", "methods")
    """Which tables."""
    rounds: int = 3
    """Rounds in which what is compared takes turns."""
    steps: int = 6
    """Counted steps of a variant in each round."""
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Pack sizes."""
    ranks: tuple[int, ...] = (1, 4, 16, 64)
    """Ranks."""
    sides: tuple[int, ...] = (32, 64, 96, 128)
    """Sides of the pictures in pixels."""
    method: tuple[str, ...] = tuple(METHODS)
    """Methods."""
    model: str = "auto"
    """As of `python -m benchmarks`."""
    clock: Clock = "wall"
    """Seconds that pass, or that the process computes: the same on an idle machine."""
    docs: Path | None = None
    """Folder whose `speed.md` gets the tables."""


@dataclass(frozen=True)
class Variant:
    """One line of a table: a pack."""

    method: str = "lora"
    size: int = PACK
    rank: int = 8
    resolution: int | None = None

    def part(self, place: Place) -> peak.Part:
        """The same as a pack whose memory is measured."""
        return peak.Part(str(place.folder), self.size, self.method, self.rank, self.resolution)


def time_variants(scene_: Scene, variants: Sequence[Variant], options: Options) -> dict[Variant, np.ndarray]:
    """Seconds of a step of each, one value a round."""
    order, times = random.Random(0), {variant: list[float]() for variant in variants}
    for _ in range(options.rounds):
        for variant in order.sample(list(variants), len(variants)):
            steps, side = options.steps + scene.WARMUP + 1, variant.resolution or scene_.defaults["resolution"]
            cells = scene_.make_cells(variant.method, variant.size, rank=variant.rank, steps=steps, resolution=side)
            with threads(1):
                times[variant].append(scene_.step_s(cells))
    return {variant: np.array(values) for variant, values in times.items()}


def measure_peaks(place: Place, variants: Sequence[Variant]) -> dict[Variant, float]:
    """Peak memory of each in MiB; two processes run at a time."""
    with ThreadPoolExecutor(2) as pool:
        costs = pool.map(lambda variant: peak.run_elsewhere(variant.part(place)), variants)
        return {variant: cost.peak_mib for variant, cost in zip(variants, costs)}


def spread(values: np.ndarray, scale: float = 1e3, digits: int = 0) -> str:
    """`173 [170, 178]`: mean, smallest and largest."""
    numbers = [f"{value * scale:.{digits}f}" for value in (values.mean(), values.min(), values.max())]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table whose first column is text."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def tabulate_packs(scene_: Scene, options: Options) -> str:
    """Against the number of runs in a pack."""
    variants = [Variant(size=size) for size in options.sizes]
    times, peaks = time_variants(scene_, variants, options), measure_peaks(scene_.place, variants)
    costs = peak.measure_costs(variants[0].part(scene_.place))
    alone = times[variants[0]] / variants[0].size
    rows = []
    for variant in variants:
        expected = peak.foresee(variant.part(scene_.place), costs)
        rows.append((
            variant.size, spread(times[variant]), spread(times[variant] / variant.size),
            spread(alone / (times[variant] / variant.size), 1, 2), f"{peaks[variant]:.0f}", f"{expected:.0f}",
            f"{expected / peaks[variant] - 1:+.0%}",
        ))  # fmt: skip
    head = (
        "runs in the pack", "step, ms", "a run's share, ms", f"times as fast as at {options.sizes[0]}", "peak, MiB",
        "expected, MiB", "error",
    )  # fmt: skip
    return f"LoRA, rank 8:\n\n{table(head, rows)}"


def tabulate_ranks(scene_: Scene, options: Options) -> str:
    """Against the rank."""
    variants = [Variant(method, rank=rank) for method in ("lora", "delora") for rank in options.ranks]
    times = time_variants(scene_, variants, options)
    peaks = measure_peaks(scene_.place, variants[: len(options.ranks)])
    head = ("rank", "LoRA's step, ms", "DeLoRA's step, ms", "LoRA's peak, MiB")
    rows = [
        (rank, spread(times[Variant("lora", rank=rank)]), spread(times[Variant("delora", rank=rank)]),
         f"{peaks[Variant('lora', rank=rank)]:.0f}")
        for rank in options.ranks
    ]  # fmt: skip
    return f"Packs of {PACK}:\n\n{table(head, rows)}"


def tabulate_sides(scene_: Scene, options: Options) -> str:
    """Against the side of the pictures."""
    variants = [Variant(resolution=side) for side in options.sides]
    times, peaks = time_variants(scene_, variants, options), measure_peaks(scene_.place, variants)
    first = times[variants[0]]
    rows = [
        (v.resolution, spread(times[v]), spread(times[v] / first, 1, 2), f"{peaks[v]:.0f}") for v in variants
    ]  # fmt: skip
    head = ("side, pixels", "step, ms", f"times that at {options.sides[0]}", "peak, MiB")
    return f"LoRA, rank 8, packs of {PACK}:\n\n{table(head, rows)}"


def tabulate_methods(scene_: Scene, options: Options) -> str:
    """Against the method."""
    variants = [Variant(method) for method in dict.fromkeys(("lora", *options.method))]
    times = time_variants(scene_, variants, options)
    rows = [(METHODS[v.method].label, spread(times[v]), spread(times[v] / times[variants[0]], 1, 2)) for v in variants]
    return f"Packs of {PACK}, rank 8:\n\n{table(('method', 'step, ms', 'over LoRA'), rows)}"


TABLES: dict[str, Callable[[Scene, Options], str]] = {
    "packs": tabulate_packs,
    "ranks": tabulate_ranks,
    "sides": tabulate_sides,
    "methods": tabulate_methods,
}


def run(options: Options) -> int:
    """Measure, print and write."""
    from training.process_setup import quiet_libraries

    quiet_libraries()
    read_clock = time.process_time if options.clock == "processor" else time.perf_counter
    note = f"n = {options.rounds} rounds of {options.steps} steps; seconds of the {options.clock} clock; one thread"
    with (
        tempfile.TemporaryDirectory(prefix="plateau-bench-") as scratch,
        patch.object(scene, "clock", lambda device: read_clock()),
    ):
        scene_ = Scene(find_place(options.model, Path(scratch)), "cpu")
        for name in options.only:
            print(f"measuring {name}", file=sys.stderr, flush=True)
            text = f"{TABLES[name](scene_, options)}\n\n{scene_.place.name}; {note}; {describe_run('benchmarks.speed')}"
            print(f"\n{text}", flush=True)
            if options.docs is not None:
                write_part(options.docs / "speed.md", name, text)
    return 0


if __name__ == "__main__":
    from training.command_line import run_program

    sys.exit(run_program(Options, run, __doc__ or ""))
