"""Take trained adapters out to other programs, and look into theirs.

    python -m training.export RUN --to peft        # HF PEFT folder: LoRA, DoRA, DeLoRA (start=zero_b), OFT, HRA, VeRA
    python -m training.export RUN --to diffusers   # for pipeline.load_lora_weights: LoRA, DoRA
    python -m training.export RUN --to kohya       # for kohya's scripts, ComfyUI, A1111: LoRA, DoRA
    python -m training.export RUN --to merged      # the whole U-Net, for UNet2DConditionModel.from_pretrained
    python -m training.export RUN --to lora-svd    # any method as a LoRA, with the error that this costs
    python -m training.export --inspect FILE       # format, rank, targets, how far each matrix moves, a picture

RUN is a run folder, or any file or folder that --inspect reads: HF PEFT (any tuner that it can merge), diffusers, kohya,
cloneofsimo/lora, the released DeLoRA code. An export overwrites nothing, and nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from adapters.errors import BadInput
from training.command_line import run_program
from training.store import write_json, writing

if TYPE_CHECKING:
    from torch import Tensor

    from training.open_adapter import Opened

Layout = Literal["peft", "diffusers", "kohya"]


@dataclass(frozen=True)
class Options:
    """Flags of the export."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """A run folder, or an adapter's file or folder."""
    to: Literal["peft", "diffusers", "kohya", "merged", "lora-svd"] | None = None
    """Format to write."""
    inspect: Path | None = None
    """Look into this run, file or folder instead, and write nothing but a table and a picture."""
    out: Path | None = None
    """Where to write; default: beside the adapter, named after it and the format; with --inspect: the current folder."""
    model: str | None = None
    """Base model: `pocket`, a diffusers pipeline folder, or a hub id; default: the run's own."""
    rank: int | None = None
    """Rank of lora-svd; default: the rank of the changes, so that nothing but rounding is lost."""
    layout: Layout = "peft"
    """Layout in which lora-svd writes its LoRA."""

    def check(self) -> None:
        """Check that the flags go together.

        Raises:
            BadInput: naming the flag, its value, and what is allowed.
        """
        if (self.inspect is None) == (self.run is None):
            raise BadInput("give either a run (or adapter) to export, or --inspect FILE")
        if self.run is not None and self.to is None:
            raise BadInput("--to is missing; allowed: peft, diffusers, kohya, merged, lora-svd")
        if self.inspect is not None and self.to is not None:
            raise BadInput(f"--to is {self.to}; --inspect takes none")
        if self.rank is not None and (self.rank < 1 or self.to != "lora-svd"):
            raise BadInput(f"--rank is {self.rank}; allowed: a whole number from 1 on, with --to lora-svd")


def run(options: Options) -> int:
    """Export or inspect; print what was written."""
    from training.inspect_adapter import inspect
    from training.open_adapter import open_adapter

    options.check()
    if options.inspect is not None:
        return inspect(open_adapter(options.inspect, options.model), options.out)
    assert options.run is not None
    opened = open_adapter(options.run, options.model)
    opened = dataclasses.replace(opened, checkpoint=opened.checkpoint.of_unet().check_finite())
    suffix = (
        ""
        if options.to in ("peft", "merged") or (options.to, options.layout) == ("lora-svd", "peft")
        else ".safetensors"
    )
    out = options.out or opened.stem.with_name(f"{opened.stem.name}-{options.to}{suffix}")
    if out.exists():
        raise BadInput(f"{out} exists already and is left as it is; name another place with --out")
    if options.to == "merged":
        write_merged(opened, out)
    elif options.to == "lora-svd":
        write_approximation(opened, options.rank, options.layout, out)
    else:
        write_layout(opened, options.to or "peft", out)
    print(out)
    return 0


# Writing.


def write_layout(opened: Opened, layout: str, out: Path) -> None:
    """Write one of `Layout`.

    Raises:
        BadInput: the layout has no such method.
    """
    from adapters.lora_files import to_diffusers, to_kohya_layout, to_peft

    checkpoint = opened.checkpoint
    if layout == "peft":
        tensors, config = to_peft(checkpoint, _column_norms(opened))
        name = str(opened.base.folder) if opened.base else ""
        _write_tensors(out / "adapter_model.safetensors", tensors, {"format": "pt"})
        write_json(out / "adapter_config.json", config | {"base_model_name_or_path": name})
        return
    tensors, metadata = (
        to_diffusers(checkpoint) if layout == "diffusers" else to_kohya_layout(checkpoint, _is_xl_for_kohya(opened))
    )
    _write_tensors(out, tensors, metadata)
    if layout == "kohya" and checkpoint.spec.name != "lora":
        print(
            "note: diffusers drops dora_scale, DoRA's magnitudes in kohya's layout, and loads a plain LoRA; --to diffusers and "
            "--to peft keep them there",
            file=sys.stderr,
        )


def _is_xl_for_kohya(opened: Opened) -> bool:
    """Whether kohya's names are those of SDXL: for that the base must be known.

    Raises:
        BadInput: it is not known, though it can only be an SDXL; or its blocks are not those that kohya's scripts name.
    """
    from adapters.layer_names import LAYERS_PER_BLOCK
    from training.tasks.model_kind import is_xl, read_config

    if opened.base is None:
        deep = next((path for path in opened.checkpoint.shapes if ".transformer_blocks.1." in path), None)
        if deep:
            raise BadInput(
                f"{deep!r} is of an SDXL, whose names for kohya hang on the base model: name it with --model"
            )
        return False
    layers = read_config(opened.base.folder / "unet" / "config.json").get("layers_per_block", LAYERS_PER_BLOCK)
    if (xl := is_xl(opened.base.folder)) and layers != LAYERS_PER_BLOCK:
        raise BadInput(
            f"kohya's layout names SDXL's U-Net, of {LAYERS_PER_BLOCK} layers a block; {opened.base.folder} has {layers}: "
            "export to diffusers"
        )
    return xl


def _column_norms(opened: Opened) -> dict[str, Tensor]:
    """DeLoRA's norms of W0, where the checkpoint lacks them and the base is at hand."""
    from adapters.attach_checkpoint import build_adapter

    checkpoint, base = opened.checkpoint, opened.base
    if checkpoint.spec.name != "delora" or base is None:
        return {}
    adapters = {path: build_adapter(checkpoint, path, base.read(path, checkpoint.source)) for path in checkpoint.shapes}
    return {path: adapter.get_buffer("column_norms").float() for path, adapter in adapters.items()}


def write_merged(opened: Opened, out: Path) -> None:
    """Write the U-Net with its configuration: adapted matrices in single precision, the others as they are stored.

    Half precision would round away changes of a thousandth of a weight.

    Raises:
        BadInput: a merged weight is beyond single precision.
    """
    from training.base_weights import FILE
    from training.measure import changes

    base = opened.need_base("a merged U-Net")
    tensors = base.unet_tensors()
    for one in changes(opened.checkpoint, base):
        tensors[f"{one.path}.weight"] = (one.weight.double() + one.delta).float()
        if not tensors[f"{one.path}.weight"].isfinite().all():
            raise BadInput(f"the merged weight of {one.path!r} is not finite: its run has diverged")
        if one.bias is not None:
            tensors[f"{one.path}.bias"] = one.bias
    _write_tensors(out / FILE, tensors, {"format": "pt"})
    with writing(out / "config.json") as aside:
        shutil.copyfile(base.folder / "unet" / "config.json", aside)


def write_approximation(opened: Opened, rank: int | None, layout: Layout, out: Path) -> None:
    """Write the best LoRA of a rank, and print what it loses.

    Raises:
        BadInput: the adapter changes biases, which a LoRA does not.
    """
    from adapters.lora_files import to_lora
    from training.measure import changes

    deltas = {}
    for one in changes(opened.checkpoint, opened.need_base("a LoRA by SVD")):
        if one.bias is not None:
            raise BadInput(f"{opened.checkpoint.spec.label} changes the bias of {one.path!r} too: export it to merged")
        deltas[one.path] = one.delta
    made = to_lora(opened.checkpoint, deltas, rank)
    worst = max(made.errors, key=lambda path: made.errors[path])
    print(
        f"LoRA of rank {made.checkpoint.rank}: relative error {made.error:.3g} of the whole change, "
        f"at most {made.errors[worst]:.3g} of one matrix ({worst})"
    )
    write_layout(dataclasses.replace(opened, checkpoint=made.checkpoint), layout, out)


def _write_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save

    with writing(file) as aside:
        aside.write_bytes(save({key: tensor.contiguous() for key, tensor in tensors.items()}, metadata))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    return run_program(Options, run, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
