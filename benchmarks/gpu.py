"""Speed and memory of packs at the real scale: Stable Diffusion 1.5's shapes, LoRA at rank 16, bf16.

    python -m benchmarks.gpu                       # a GPU if there is one: full width, 512 px; else a tiny one on the CPU
    python -m benchmarks.gpu --docs docs           # also writes docs/gpu.json and docs/gpu.md

Cells per second are compared with HF PEFT's plain loop at batch 1, whose base is bf16 throughout, as in diffusers' script. All
variants share the machine and take turns. The weights are random: they change no time.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import torch

from adapters import parse_method
from adapters.errors import BadInput
from adapters.words import counted
from benchmarks.device_limits import count_flop, peak_bytes, peak_rate
from benchmarks.real_scale import Bench, Scale, StackedPack
from benchmarks.rows import Row, describe_machine, to_markdown, write_page
from benchmarks.timing import Spread, clock, interleave, mean_of, once, ratio_of
from benchmarks.waiting import count_waits
from training.store import writing
from training.tasks.sampling import sample, start_noise
from training.tasks.text import Text

REFERENCE = 16  # the pack size at which methods are compared, where it is among the sizes
GAIN_AIM, BEST_AIM, PEAK_AIM, METHOD_AIM, SAMPLING_AIM = 8.0, 12.0, 0.4, 1.15, 0.3


@dataclass(frozen=True)
class Options:
    """Flags of the benchmark; what is not given follows from the device."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where; `auto` is a GPU if there is one."""
    width: Fraction | None = None
    """Share of the published widths: 1 on a GPU, 1/10 on a CPU."""
    resolution: int | None = None
    """Side of the pictures: 512 on a GPU, 64 on a CPU."""
    sizes: tuple[int, ...] = ()
    """StackedPack sizes: 1 2 4 8 16 32 on a GPU, 1 2 4 8 on a CPU."""
    methods: tuple[str, ...] = ("dora", "delora", "etherplus")
    """Methods that are set beside LoRA."""
    rank: int = 16
    """Rank of the low-rank factors."""
    mixed_precision: Literal["bf16", "no"] = "bf16"
    """Precision of the frozen base."""
    rounds: int = 8
    """Repetitions, the sample of every interval."""
    laps: int = 3
    """Steps of each variant in a repetition."""
    warmup: int = 3
    """Steps of each variant before the first repetition."""
    prompts: int = 8
    """Prompts that every replica draws in the sampling rows."""
    tried: tuple[Literal["channels_last", "compile"], ...] = ()
    """Means that are set beside the step as it is: convolutions' memory format, compiled transformer blocks (minutes)."""
    docs: Path | None = None
    """Folder to write gpu.json and gpu.md to."""


def measure(bench: Bench, options: Options) -> list[Row]:
    """All rows."""
    rows: list[Row] = []
    peak, source = peak_rate(bench.device, torch.bfloat16 if bench.scale.mixed_precision == "bf16" else torch.float32)
    flop = count_flop(bench.make_pack("lora", 1, reads=False))
    packs = {size: bench.make_pack("lora", size) for size in options.sizes}
    fitting = {}
    for size, pack in packs.items():
        taken = _fit(pack, bench.device)
        if taken is None:
            print(f"a pack of {size} does not fit into the memory; larger ones are left out", file=sys.stderr)
            break
        fitting[size] = pack
        if bench.device.type == "cuda":  # docs/speed.md has a CPU's, of whole processes
            rows.append(Row(f"peak memory of a pack of {size}", once(taken / 2**30), unit="GiB"))
    rows += _throughput(bench, options, fitting, flop, peak, source)
    size = REFERENCE if REFERENCE in fitting else max(fitting)
    rows += _methods(bench, options, fitting[size], size)
    rows += _sampling(bench, options, fitting[size], size, flop, peak)
    rows += _tried(bench, options, fitting[size], size)
    if bench.device.type == "cuda":
        return rows
    return [row if row.unit == "" else dataclasses.replace(row, aim=None) for row in rows]  # the aims are a GPU's


def _fit(pack: StackedPack, device: torch.device) -> int | None:
    """Peak bytes of a step; None where it does not fit."""
    try:
        pack()
        return peak_bytes(pack, device)
    except torch.OutOfMemoryError:
        gc.collect()
        torch.cuda.empty_cache()
        return None


def _throughput(
    bench: Bench, options: Options, packs: dict[int, StackedPack], flop: int, peak: float, source: str
) -> Iterator[Row]:
    """Packs of every size beside PEFT's loop."""
    plain = bench.plain_step()
    variants: dict[str, Callable[[], object]] = {"PEFT": plain} | {str(size): pack for size, pack in packs.items()}
    times = interleave(variants, rounds=options.rounds, laps=options.laps, device=bench.device, warmup=options.warmup)
    yield Row("HF PEFT LoRA alone, sample-steps a second", mean_of(1 / times["PEFT"]), unit="/s")
    gains = {size: ratio_of(size * times["PEFT"], times[str(size)]) for size in packs}
    best = max(gains, key=lambda size: gains[size].value)
    for size, gain in gains.items():
        rate = mean_of(size / times[str(size)])
        yield Row(f"LoRA in packs of {size}, sample-steps a second", rate, unit="/s")
        share_of_peak = mean_of(size * flop / times[str(size)] / peak)
        aim = PEAK_AIM if size == best else None
        yield Row(f"LoRA in packs of {size}, share of the peak ({source})", share_of_peak, aim, ">=", unit="%")
        aim = GAIN_AIM if size == REFERENCE else None
        yield Row(f"LoRA in packs of {size}, cells a second over HF PEFT's", gain, aim, ">=")
    yield Row(f"LoRA at the best pack size ({best}), cells a second over HF PEFT's", gains[best], BEST_AIM, ">=")


def _methods(bench: Bench, options: Options, lora: StackedPack, size: int) -> Iterator[Row]:
    """Other methods beside LoRA, what reading costs, and how often a step waits."""
    packs = {name: bench.make_pack(name, size) for name in options.methods}
    silent = bench.make_pack("lora", size, reads=False)
    variants: dict[str, Callable[[], object]] = {"lora": lora, "silent": silent, **packs}
    times = interleave(variants, rounds=options.rounds, laps=options.laps, device=bench.device, warmup=options.warmup)
    for name in packs:
        yield Row(
            f"{parse_method(name).label}'s step over LoRA's, packs of {size}",
            ratio_of(times[name], times["lora"]),
            METHOD_AIM,
        )
    cost = ratio_of(times["lora"], times["silent"])
    minus = Spread(cost.value - 1, cost.low - 1, cost.high - 1, cost.num)
    yield Row(f"reading all matrices at every step, share of LoRA's step, packs of {size}", minus, 0.01, unit="%")
    for name, pack in {"lora": lora, **packs}.items():
        waits = once(count_waits(pack, bench.device))
        yield Row(f"waits of the host inside a step, {parse_method(name).label}", waits, 0.0, unit="")


def _sampling(
    bench: Bench, options: Options, pack: StackedPack, size: int, step_flop: int, peak: float
) -> Iterator[Row]:
    """Pictures from all replicas together, guided: passes of the U-Net a second."""
    task, count, steps = pack.task, options.prompts, 2
    prompts = (bench.subject.prompts * count)[:count]
    text = Text.stack([task.text(prompt) for prompt in prompts]).expand(size, count)
    noise = start_noise(task.pipeline, list(range(count)), task.shared.resolution)

    def draw() -> None:
        sample(task.pipeline, text, noise, steps=steps, guidance=7.5, mixed_precision=bench.scale.mixed_precision)

    flop, passes = count_flop(draw), 2 * steps * size * count
    draw()
    seconds = []
    for _ in range(options.rounds):
        began = clock(bench.device)
        draw()
        seconds.append(clock(bench.device) - began)
    name = f"sampling by {counted(size, 'replica')}, {counted(count, 'prompt')} together"
    yield Row(f"{name}: passes a second", mean_of([passes / s for s in seconds]), unit="/s")
    yield Row(f"{name}: share of the peak", mean_of([flop / s / peak for s in seconds]), SAMPLING_AIM, ">=", unit="%")
    per_pass = once(flop / passes / step_flop)
    yield Row("a guided sampler's pass, operations over those of a training step", per_pass, unit="x")


def _tried(bench: Bench, options: Options, plain: StackedPack, size: int) -> Iterator[Row]:
    """What might speed a step up, beside the step as it is; what cannot be had here is said on stderr."""
    for means in options.tried:
        changed = bench.make_pack("lora", size, means=means)
        try:
            changed()
        except Exception as error:  # a compiler that is missing or fails raises anything
            print(f"{means} cannot be tried here: {(str(error).splitlines() or ['?'])[0]}", file=sys.stderr)
            continue
        variants: dict[str, Callable[[], object]] = {"plain": plain, means: changed}
        times = interleave(
            variants, rounds=options.rounds, laps=options.laps, device=bench.device, warmup=options.warmup
        )
        yield Row(
            f"LoRA's step with {means} over the step without, packs of {size}", ratio_of(times[means], times["plain"])
        )


def fill(options: Options) -> tuple[Options, Scale]:
    """The flags with what follows from the device, and the scale that they ask for.

    Raises:
        BadInput: for CUDA where there is none, or a number that is not allowed.
    """
    found = torch.cuda.is_available()
    if options.device == "cuda" and not found:
        raise BadInput("--device is cuda; no CUDA device is usable here: use auto or cpu")
    device = options.device if options.device != "auto" else ("cuda" if found else "cpu")
    width, resolution, sizes = (
        (1, 512, (1, 2, 4, 8, 16, 32)) if device == "cuda" else (Fraction(1, 10), 64, (1, 2, 4, 8))
    )
    for flag in ("rank", "rounds", "laps", "warmup", "prompts"):
        if getattr(options, flag) < 1:
            raise BadInput(f"--{flag} is {getattr(options, flag)}; allowed: a whole number from 1 on")
    if any(size < 1 for size in options.sizes):
        raise BadInput(f"--sizes is {' '.join(map(str, options.sizes))}; allowed: whole numbers from 1 on")
    scale = Scale(
        device,
        Fraction(options.width or width),
        options.resolution or resolution,
        options.rank,
        options.mixed_precision,
    )
    return dataclasses.replace(options, sizes=tuple(sorted(options.sizes or sizes))), scale


def write(folder: Path, scale: Scale, rows: Sequence[Row], command: str) -> None:
    """Write gpu.json and gpu.md to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(scale.device)
    page = {"model": str(scale), "machine": describe_machine(device), "command": command}
    with writing(folder / "gpu.json") as aside:
        aside.write_text(
            json.dumps(page | {"rows": [to_record(row) for row in rows]}, indent=1) + "\n", encoding="utf-8"
        )
    write_page(folder, [to_markdown(rows)], command, device, str(scale), name="gpu")


def to_record(row: Row) -> dict[str, Any]:
    """A row for JSON; a limit that is not known is null."""
    record = dataclasses.asdict(row) | {"met": row.met}
    record["measured"] = {
        k: None if isinstance(v, float) and math.isnan(v) else v for k, v in record["measured"].items()
    }
    return record


def run(options: Options) -> int:
    """Measure, print and write."""
    options, scale = fill(options)
    with tempfile.TemporaryDirectory(prefix="plateau-gpu-") as folder:
        print(f"measuring {scale} on {scale.device}", file=sys.stderr, flush=True)
        rows = measure(Bench(scale, Path(folder)), options)
    print(to_markdown(rows))
    if options.docs is not None:
        write(options.docs, scale, rows, shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]))
    return 0


if __name__ == "__main__":
    from training.command_line import run_program
    from training.process_setup import quiet_libraries

    quiet_libraries()
    sys.exit(run_program(Options, run, __doc__ or ""))
