"""What the paper's complete grid costs on Stable Diffusion 1.5, in GPU-hours: counted products, and an assumed speed.

    python -m benchmarks.price                       # prints the table; no GPU is needed, nothing is computed
    python -m benchmarks.price --share 0.3           # at another share of the GPU's peak
    python -m benchmarks.price --docs docs           # also writes it into docs/speed.md

The work is counted by `torch.utils.flop_counter` on tensors without contents, at the published size, forward and backward, with
each method's adapters in the U-Net: two operations for a product and a sum. How fast a GPU does that work is no
measurement but an assumption, a share of its peak, and stands beside each number.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

PEAK = 989e12  # operations a second: dense bf16 of an H100 or H200 (SXM), from NVIDIA's data sheet
NUM_SUBJECTS, NUM_CLASSES, NUM_SEEDS, NUM_TOKENS = 30, 15, 3, 77


@dataclass(frozen=True)
class Options:
    """Flags of the price."""

    method: tuple[str, ...] = ("lora", "dora", "delora", "etherplus", "ether")
    """Methods of the grid."""
    multipliers: int = 8
    """Learning rates of each."""
    subjects: int = NUM_SUBJECTS
    """Subjects of each."""
    seeds: int = NUM_SEEDS
    """Seeds of each."""
    share: float = 0.4
    """Assumed share of the peak while packs train: the aim, not a measurement."""
    picture_share: float = 0.3
    """Assumed share of the peak while pictures are made and scored: the aim, not a measurement."""
    plain_share: float = 0.05
    """Assumed share of the peak of the plain loop, one run at a time at batch 1: an eighth of the aim."""
    peak: float = PEAK
    """Operations a second that the GPU does at best."""
    docs: Path | None = None
    """Folder whose `speed.md` gets the table."""


@dataclass(frozen=True)
class PricedPreset:
    """What of a preset decides the work of a cell.

    Attributes:
        steps, rows: optimiser steps, and rows of each, class pictures included.
        evaluations, pictures: how often a run is scored, and how many pictures it makes for that.
        passes: through the U-Net for each picture.
        rank, resolution: as flags.
        class_pictures: made once for each class by the base model.
    """

    steps: int
    rows: int
    evaluations: int
    pictures: int
    passes: int
    rank: int
    resolution: int
    class_pictures: int


@dataclass(frozen=True)
class CellWork:
    """Operations of one sample through the U-Net of a method: a training step's, and a picture's pass."""

    step: float
    row: float


def read_setting() -> PricedPreset:
    """The preset `paper`; what it leaves open is as the flags' defaults have it."""
    from sweeps.options import Options
    from sweeps.presets import read_presets

    of = {setting.flag: setting.value for setting in read_presets()["paper"].settings}
    prior = of["prior_loss_weight"] > 0
    return PricedPreset(
        steps=of["steps"], rows=of["train_batch_size"] * (2 if prior else 1),
        evaluations=len({*of["eval_steps"], of["steps"]}),
        pictures=of["num_prompts"] * of["num_images"] + of.get("num_drift_prompts", Options.num_drift_prompts),
        passes=of["num_inference_steps"] * (2 if of["guidance_scale"] != 1 else 1), rank=of["rank"],
        resolution=of["resolution"], class_pictures=of["num_class_images"] if prior else 0,
    )  # fmt: skip


@contextlib.contextmanager
def without_contents() -> Iterator[None]:
    """Let tensors be made with shapes alone, and methods be attached to them: what they copy to the host stays as it is."""
    import torch

    with (
        torch.device("meta"),
        patch.object(torch.Tensor, "cpu", lambda tensor: tensor),
        patch.object(torch, "is_autocast_enabled", lambda *_: False),  # autocast knows no such device
        patch.object(torch, "autocast", lambda *_, **__: contextlib.nullcontext()),
    ):
        yield


@cache
def count_method(method: str, rank: int, resolution: int) -> CellWork:
    """Operations of one sample through the U-Net with a method's adapters; "" for none."""
    import torch

    from adapters import get_class, parse_method
    from adapters.inject import attach
    from benchmarks.device_limits import count_flop
    from benchmarks.sd15 import TEXT_WIDTH, make_unet

    with without_contents():
        unet, side = make_unet().requires_grad_(False), resolution // 8
        noise, times, text = (
            torch.empty(1, 4, side, side),
            torch.zeros(1, dtype=torch.long),
            torch.empty(1, NUM_TOKENS, TEXT_WIDTH),
        )
        if method:
            spec = parse_method(method)
            attach(unet, spec, seeds=[0], rank=rank, boundary=[1.0] if get_class(spec.name).uses_boundary else None)

        def forward() -> Any:
            return unet(noise, times, encoder_hidden_states=text).sample

        with torch.no_grad():
            row = count_flop(forward)
        return CellWork(count_flop(lambda: forward().sum().backward()) if method else 0.0, row)


@cache
def count_picture(resolution: int) -> float:
    """Operations of what follows the sampler: decoding, and DINO's and CLIP's view of the picture."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

    from benchmarks.device_limits import count_flop
    from benchmarks.sd15 import make_vae

    dino = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}  # facebook/dino-vits16
    clip = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096, "num_hidden_layers": 24,
            "patch_size": 14}  # fmt: skip  # openai/clip-vit-large-patch14
    with without_contents(), torch.no_grad():
        vae, latents = make_vae(), torch.empty(1, 4, resolution // 8, resolution // 8)
        scorers = ViTModel(ViTConfig(**dino), add_pooling_layer=False), CLIPVisionModel(CLIPVisionConfig(**clip))
        picture = torch.empty(1, 3, 224, 224)
        return count_flop(lambda: [vae.decode(latents), *(scorer(picture) for scorer in scorers)])


@dataclass(frozen=True)
class Price:
    """GPU-hours of one method's part of the grid.

    Attributes:
        method: its name.
        cells: how many runs.
        step: operations of one sample's training step.
        training, evaluation: GPU-hours at the assumed shares.
        plain_training, plain_evaluation: the same by the plain loop.
    """

    method: str
    cells: int
    step: float
    training: float
    evaluation: float
    plain_training: float
    plain_evaluation: float


def price(method: str, options: Options, setting: PricedPreset) -> Price:
    """What a method's part of the grid costs."""
    cells = options.multipliers * options.subjects * options.seeds
    work = count_method(method, setting.rank, setting.resolution)
    training = cells * setting.steps * setting.rows * work.step
    each = setting.passes * work.row + count_picture(setting.resolution)
    evaluation = cells * setting.evaluations * setting.pictures * each

    def hours(operations: float, share: float) -> float:
        return operations / (share * options.peak) / 3600

    return Price(
        method, cells, work.step, hours(training, options.share), hours(evaluation, options.picture_share),
        hours(training, options.plain_share), hours(evaluation, options.plain_share),
    )  # fmt: skip


def price_classes(options: Options, setting: PricedPreset) -> float:
    """GPU-hours of the class pictures, which all runs share."""
    work = count_method("", setting.rank, setting.resolution)
    each = setting.passes * work.row + count_picture(setting.resolution)
    return NUM_CLASSES * setting.class_pictures * each / (options.picture_share * options.peak) / 3600


def to_markdown(rows: Sequence[Price], classes: float, options: Options, setting: PricedPreset) -> str:
    """The prices as a table, with what they assume."""
    lines = [
        "| method | cells | TFLOP of a sample's step | GPU-hours: training | evaluation | plain loop: training | evaluation |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.method} | {row.cells:,} | {row.step / 1e12:.2f} | {row.training:,.1f} | {row.evaluation:,.1f} "
            f"| {row.plain_training:,.1f} | {row.plain_evaluation:,.1f} |"
        )
    totals = [sum(getattr(row, name) for row in rows) for name in
              ("cells", "training", "evaluation", "plain_training", "plain_evaluation")]  # fmt: skip
    cells, *hours = totals
    lines.append(f"| together | {cells:,.0f} | | {' | '.join(f'{value:,.1f}' for value in hours)} |")
    return "\n".join([
        *lines,
        "",
        f"Work counted: {setting.steps:,} steps of {setting.rows} samples at {setting.resolution} px and rank {setting.rank}; "
        f"{setting.evaluations} evaluations of {setting.pictures} pictures, {setting.passes} passes each, decoded and scored "
        f"(the last evaluation alone: {hours[1] / setting.evaluations:,.0f} GPU-hours). Class pictures, made once: "
        f"{classes:.1f} GPU-hours. **Speed assumed, not measured**: a peak of {options.peak / 1e12:.0f} TFLOP/s (H100 or "
        f"H200, dense bf16), of which training reaches {options.share:.0%} and pictures {options.picture_share:.0%} (the "
        f"aims), and the plain loop {options.plain_share:.0%} in both (an eighth of the aim, as the aim has it).",
    ])  # fmt: skip


def run(options: Options) -> int:
    """Count, print and write."""
    from benchmarks.page import write_part
    from benchmarks.rows import describe_run

    setting = read_setting()
    rows = [price(method, options, setting) for method in options.method]
    text = to_markdown(rows, price_classes(options, setting), options, setting)
    text += f"\n\n{describe_run('benchmarks.price')}"
    print(text)
    if options.docs is not None:
        write_part(options.docs / "speed.md", "price", text)
    return 0


if __name__ == "__main__":
    from training.command_line import run_program

    sys.exit(run_program(Options, run, __doc__ or ""))
