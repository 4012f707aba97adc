"""Packs at the real scale: Stable Diffusion 1.5's shapes with random weights, trained step by step."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from adapters import get_class, parse_method
from adapters.inject import attach, find_targets
from adapters.pack import Attached
from benchmarks.methods import Batch, Step, peft_step
from benchmarks.sd15 import make_sd15
from training.accelerator import round_base
from training.cell import Cell
from training.dynamics import Dynamics
from training.optimizer import PackedAdamW
from training.step import take_step
from training.tasks import pipeline as pipelines
from training.tasks import subjects as subject_folders
from training.tasks.subject import SubjectTask
from training.tasks.task import share


@dataclass(frozen=True)
class Scale:
    """What is built.

    Attributes:
        device: "cpu" or "cuda".
        width: share of the published widths.
        resolution: side of the pictures in pixels.
        rank: of the low-rank factors.
        mixed_precision: "bf16" or "no".
    """

    device: str
    width: Fraction
    resolution: int
    rank: int
    mixed_precision: Literal["no", "bf16"]

    def __str__(self) -> str:
        width = "" if self.width == 1 else f" at {self.width} of its widths"
        precision = "bf16" if self.mixed_precision == "bf16" else "float32"
        return f"Stable Diffusion 1.5{width}, random weights, {self.resolution} px, rank {self.rank}, {precision}"


class Bench:
    """Random Stable Diffusion 1.5 on a device, and packs that train on it.

    Args:
        scale: what is built.
        folder: an empty folder.
    """

    def __init__(self, scale: Scale, folder: Path) -> None:
        self.scale, self.device = scale, torch.device(scale.device)
        # The text encoder is asked a few times before anything is measured, so one layer of it will do.
        model = make_sd15(folder / "model", scale.width, text_layers=1)
        self.pipeline = pipelines.load(model, self.device)
        name = subject_folders.names(pipelines.POCKET_SUBJECTS, "evidence")[0]
        self.subject = subject_folders.load(
            pipelines.POCKET_SUBJECTS, name, token="sks", instance_prompt="a photo of a {token} {cls}"
        )
        self.plain = share(self.pipeline.unet)  # what PEFT's loop trains on, in bf16 throughout
        if scale.mixed_precision == "bf16":
            self.plain = self.plain.to(torch.bfloat16)
            round_base(self.pipeline.unet, kept=find_targets(self.pipeline.unet).keys())

    def make_task(self, method: str, size: int) -> SubjectTask:
        """The training task of a pack of cells that differ in their seed, on a copy of the U-Net around the same tensors."""
        scale, spec = self.scale, parse_method(method)
        cell = Cell(
            method=spec.name, options=spec.canonical, rank=scale.rank, subject=self.subject.name, seed=0, steps=1,
            lr=1e-4, boundary=1.0 if get_class(spec.name).uses_boundary else None, resolution=scale.resolution,
            mixed_precision=scale.mixed_precision, guidance_scale=7.5,
        )  # fmt: skip
        cells = [dataclasses.replace(cell, seed=seed) for seed in range(size)]
        pipeline = dataclasses.replace(self.pipeline, unet=share(self.pipeline.unet))
        return SubjectTask(pipeline, None, cells, {self.subject.name: self.subject})

    def make_pack(self, method: str, size: int, *, reads: bool = True, means: str = "") -> StackedPack:
        """A pack, ready for its first step; `means` is "channels_last", "compile" (of the transformer blocks) or nothing."""
        task = self.make_task(method, size)
        if means == "channels_last":
            unet = copy.deepcopy(self.pipeline.unet).to(memory_format=torch.channels_last)
            task.pipeline = dataclasses.replace(task.pipeline, unet=unet)
        pack = StackedPack(task, reads)
        if means == "compile":
            task.pipeline.unet.compile_repeated_blocks()
        return pack

    def plain_step(self) -> Step:
        """HF PEFT's LoRA at batch 1, with torch's own AdamW, as diffusers' script trains it."""
        task = self.make_task("lora", 1)
        clean = task.latents[self.subject.name][:1]
        text = task.text(self.subject.instance_prompt).sequence[None]
        batch = Batch(
            clean, torch.tensor([500], device=self.device), text, torch.randn_like(clean), self.scale.mixed_precision
        )
        return peft_step(share(self.plain), batch, fused=None, rank=self.scale.rank)


class StackedPack:
    """A pack in the U-Net of its task, with optimiser and readings; one call is one step, to losses and gradient norms.

    Args:
        task: the task of its cells.
        reads: whether a step ends with reading the weights.
    """

    def __init__(self, task: SubjectTask, reads: bool = True) -> None:
        cells, shared = task.cells, task.shared
        spec = parse_method(f"{shared.method}:{shared.options}" if shared.options else shared.method)
        boundary = [cell.boundary for cell in cells if cell.boundary is not None] or None
        self.task, self.reads, self.number = task, reads, 0
        self.attached: Attached = attach(
            task.pipeline.unet, spec, seeds=[cell.seed for cell in cells], rank=shared.rank, boundary=boundary
        )
        pack = self.attached
        self.optimizer = PackedAdamW(
            pack.flat, pack.grad, pack.segments, rates=dict.fromkeys(pack.segments, [cell.lr for cell in cells]),
            weight_decay=[cell.adam_weight_decay for cell in cells], clip=[cell.max_grad_norm for cell in cells],
        )  # fmt: skip
        self.dynamics = Dynamics(pack)
        self.dynamics.remember()

    def __call__(self) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
        self.number += 1
        taken = take_step(self.attached, self.task, self.optimizer, self.number)
        if self.reads:
            self.dynamics.record(self.number)
        return taken
