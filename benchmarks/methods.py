"""One training step of one run: each method compared with HF PEFT's on the same frozen U-Net.

A step is forward, backward, clipping as in diffusers' training scripts, and AdamW. All variants share the U-Net's frozen
tensors and take turns. The **frozen base** is the same step without adapters: gradients flow to the output of every
layer that would be adapted (and from there through everything above the first of them), but nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.inject import find_targets
from benchmarks.rows import Row
from benchmarks.scene import Effort, Place, Scene
from benchmarks.timing import interleave, ratio_of, ratio_of_means
from training.accelerator import autocast
from training.step_price import make_step
from training.tasks.task import share

RANK, RATE, CLIP = 8, 1e-4, 1.0
LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]  # PEFT's target_modules; the same layers as `adapters.inject` finds

Step = Callable[[], object]


@dataclass(frozen=True)
class Batch:
    """What goes into the U-Net, and the noise that should come out."""

    noisy: Tensor
    times: Tensor
    text: Tensor
    target: Tensor
    mixed_precision: str = "no"

    def loss(self, unet: nn.Module) -> Tensor:
        """The denoising loss."""
        with autocast(self.noisy.device, self.mixed_precision):
            output = unet(self.noisy, self.times, encoder_hidden_states=self.text).sample
        return F.mse_loss(output.float(), self.target)


def measure(place: Place, device: str, effort: Effort) -> list[Row]:
    """The rows of single steps on one device."""
    scene = Scene(place, device)
    unet, batch = scene.pipeline.unet, make_batch(scene)
    steps: dict[str, Step] = {"base": base_step(share(unet), batch)}
    for name in ("lora", "dora", "delora:start=eq9", "etherplus"):
        steps[name] = our_step(share(unet), batch, name)
    for name, options in {
        "PEFT LoRA": {}, "PEFT LoRA unclipped": {"clip": False}, "PEFT LoRA default": {"fused": None},
        "PEFT DoRA": {"dora": True},
    }.items():  # fmt: skip
        steps[name] = peft_step(share(unet), batch, **options)  # type: ignore[arg-type]
    times = interleave(steps, rounds=effort.rounds, laps=effort.laps, device=scene.device)
    return make_rows(times)


def make_rows(times: dict[str, np.ndarray]) -> list[Row]:
    """Ratios of the steps' times, round by round."""
    lora, base = times["lora"], times["base"]
    above = {name: values - base for name, values in times.items()}
    return [
        Row("LoRA's step over PEFT LoRA's, both with fused AdamW", ratio_of(lora, times["PEFT LoRA"]), 1.02,
            judged="high"),
        Row("LoRA's step over PEFT LoRA's, fused AdamW, PEFT without clipping",
            ratio_of(lora, times["PEFT LoRA unclipped"])),
        Row("LoRA's step over PEFT LoRA's with torch's default AdamW", ratio_of(lora, times["PEFT LoRA default"])),
        Row("LoRA's time above the frozen base over PEFT LoRA's", ratio_of_means(above["lora"], above["PEFT LoRA"])),
        Row("DoRA's time above the frozen base over PEFT DoRA's", ratio_of_means(above["dora"], above["PEFT DoRA"]),
            0.7),
        Row("DoRA's step over PEFT DoRA's", ratio_of(times["dora"], times["PEFT DoRA"])),
        Row("DoRA's step over LoRA's", ratio_of(times["dora"], lora), 1.2),
        Row("DeLoRA's step (eq9) over LoRA's", ratio_of(times["delora:start=eq9"], lora), 1.15),
        Row("ETHER+'s step over LoRA's", ratio_of(times["etherplus"], lora), 1.3),
        Row("LoRA's step over the frozen base's", ratio_of(lora, base)),
    ]  # fmt: skip


def make_batch(scene: Scene) -> Batch:
    """One row of random latents with the subject's prompt."""
    pipeline, draw = scene.pipeline, torch.Generator().manual_seed(0)
    side = scene.defaults["resolution"] // 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    shape = (1, pipeline.unet.config.in_channels, side, side)
    noisy, target = (torch.randn(shape, generator=draw).to(scene.device) for _ in range(2))
    times = torch.tensor([500], device=scene.device)
    return Batch(noisy, times, pipeline.encode_text([scene.subject.instance_prompt]).sequence, target)


def base_step(unet: nn.Module, batch: Batch) -> Step:
    """The frozen base: gradients flow as if every target had an adapter, and nothing is trained."""
    for layer in find_targets(unet).values():
        layer.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    return lambda: batch.loss(unet).backward()


def our_step(unet: nn.Module, batch: Batch, method: str, size: int = 1) -> Step:
    """A step of a pack of one of our methods; the batch has as many rows as the pack has replicas."""
    return make_step(unet, method, RANK, lambda: batch.loss(unet), size=size)


def peft_step(
    unet: nn.Module, batch: Batch, *, dora: bool = False, fused: bool | None = True, clip: bool = True, rank: int = RANK
) -> Step:
    """A step of HF PEFT's LoRA or DoRA, attached as diffusers' training scripts do.

    Args:
        unet: the model.
        batch: what it sees.
        dora: DoRA instead of LoRA.
        fused: torch's fused AdamW; None is torch's default.
        clip: clip the gradient as those scripts do by default.
        rank: of the factors.
    """
    from peft import LoraConfig

    unet.add_adapter(  # type: ignore[operator]
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LAYERS, use_dora=dora)
    )
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01, fused=fused)

    def step() -> None:
        optimizer.zero_grad()
        batch.loss(unet).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()

    return step
