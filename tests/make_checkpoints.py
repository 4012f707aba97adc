"""A run with an adapter away from its start, and adapters in the layouts of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from adapters import parse_method, peft_format
from adapters.inject import attach
from adapters.pack import Attached
from training.base_norms import where
from training.cell import Cell
from training.store import RunFolder

RANK = 4


def load_unet(pipeline: Path) -> UNet2DConditionModel:
    """The U-Net of a pipeline folder."""
    return UNet2DConditionModel.from_pretrained(pipeline / "unet")


def make_batch(unet: UNet2DConditionModel) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps, context for one picture."""
    generator, config = torch.Generator().manual_seed(1), unet.config
    side = config.sample_size
    latents = torch.randn(1, config.in_channels, side, side, generator=generator)
    return latents, torch.tensor([7]), torch.randn(1, 5, config.cross_attention_dim, generator=generator)


@torch.no_grad()
def predict(unet: Any) -> Tensor:
    """The U-Net's answer to `make_batch`."""
    plain = unet.get_base_model() if hasattr(unet, "get_base_model") else unet
    return unet.eval()(*make_batch(plain)).sample


def make_moved(unet: UNet2DConditionModel, variant: str, rank: int = RANK) -> Attached:
    """A method in the U-Net, away from its start."""
    spec = parse_method(variant)
    attached = attach(unet, spec, seeds=[0], rank=rank, boundary=[1.5] if spec.name == "delora" else None)
    noise = torch.randn(attached.flat.shape, generator=torch.Generator().manual_seed(2))
    attached.flat += 0.05 * noise
    return attached


def make_run(root: Path, attached: Attached, pipeline: Path) -> RunFolder:
    """A finished run's folder with this adapter."""
    spec, rank = attached.spec, next(iter(attached.adapters.values())).rank
    cell = Cell(method=spec.name, options=spec.canonical, rank=rank, subject="dog", seed=0, steps=5, lr=1e-3)
    folder = RunFolder(root / "sweep" / cell.run_id("x1"))
    matrices = [
        {"matrix": path, **where(path), "num_out": a.shape[0], "num_in": a.shape[1],
         "base_norm": float(a.base_weight().double().norm())}
        for path, a in attached.adapters.items()
    ]  # fmt: skip
    folder.write(
        {"cell": cell.to_dict(), "labels": {"model": str(pipeline)}, "status": "finished", "matrices": matrices}
    )
    peft_format.save(folder.adapter, attached, 0, base_model=str(pipeline))
    return folder


def literal_distances(attached: Attached) -> dict[str, float]:
    """Norms of merged minus frozen weights."""
    merged = attached.merged(0)
    return {path: float((merged[path] - a.base.weight).double().norm()) for path, a in attached.adapters.items()}


def make_numbered(file: Path, shapes: list[tuple[int, int]], rank: int = 2) -> list[tuple[Tensor, Tensor]]:
    """A file of cloneofsimo/lora with text tokens; returns (up, down) in the order of their numbers."""
    generator, tensors, pairs = torch.Generator().manual_seed(3), {"<s1>": torch.zeros(8)}, []
    for number, (num_out, num_in) in enumerate(shapes):
        up = torch.randn(num_out, rank, generator=generator).half()
        down = torch.randn(rank, num_in, generator=generator).half()
        tensors |= {f"unet:{number}:up": up, f"unet:{number}:down": down}
        pairs.append((up.float(), down.float()))
    save_file(tensors, file, {"<s1>": "<embed>", "unet": '["CrossAttention", "Attention", "GEGLU"]'})
    return pairs
