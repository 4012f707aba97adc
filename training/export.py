"""Take trained adapters out to other programs, and look into theirs.

    python -m training.export RUN --to peft        # HF PEFT folder: LoRA, DoRA, DeLoRA that starts from B = 0
    python -m training.export RUN --to diffusers   # for pipeline.load_lora_weights: LoRA, DoRA
    python -m training.export RUN --to kohya       # for kohya's scripts, ComfyUI, A1111: LoRA, DoRA
    python -m training.export RUN --to merged      # the whole U-Net, for UNet2DConditionModel.from_pretrained
    python -m training.export RUN --to lora-svd    # any method as a LoRA, with the error that this costs
    python -m training.export --inspect FILE       # format, rank, targets, how far each matrix moves, a picture

RUN is a run folder, or any file or folder that --inspect reads: HF PEFT, diffusers, kohya, cloneofsimo/lora, the
released DeLoRA code. An export overwrites nothing, and nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from adapters import BadInput, parse_method
from training.command_line import parse
from training.store import RunFolder, write_json, writing

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from adapters.checkpoint import Checkpoint
    from training.base_weights import BaseWeights

Layout = Literal["peft", "diffusers", "kohya"]
ROOT = Path(__file__).resolve().parents[1]


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
    """Where to write; default: beside the adapter, named after it and the format."""
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


@dataclass(frozen=True)
class Opened:
    """What the user named.

    Attributes:
        checkpoint: the adapter.
        base: the pretrained weights, None where they are not at hand.
        stem: the path that names of new files begin with.
    """

    checkpoint: Checkpoint
    base: BaseWeights | None
    stem: Path

    def need_base(self, what: str) -> BaseWeights:
        """The pretrained weights.

        Raises:
            BadInput: they are not at hand.
        """
        if self.base is None:
            raise BadInput(f"{what} needs the base model: name it with --model")
        return self.base


def run(options: Options) -> int:
    """Export or inspect; print what was written."""
    options.check()
    if options.inspect is not None:
        return inspect(open_adapter(options.inspect, options.model), options.out)
    assert options.run is not None
    opened = open_adapter(options.run, options.model)
    opened = dataclasses.replace(opened, checkpoint=opened.checkpoint.of_unet())
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


def open_adapter(path: Path, model: str | None) -> Opened:
    """Read a run's adapter, or anybody's.

    Args:
        path: run folder, adapter folder or file.
        model: name of the base; None means the run's own, if it is still there.

    Raises:
        BadInput: it is no adapter, or one of another model.
    """
    from adapters.read_checkpoint import read_checkpoint
    from training.base_weights import BaseWeights
    from training.tasks.pipeline import locate

    folder = RunFolder(path)
    if not folder.exists():
        base = BaseWeights(locate(model)) if model else None
        checkpoint = read_checkpoint(path, base.layers if base else None)
        return Opened(checkpoint, base, path.with_suffix("") if path.is_file() else path)
    record = folder.read()
    if not folder.adapter.is_dir():
        raise BadInput(f"{path} is {record['status']} and holds no adapter: the run has to end first")
    try:
        base = BaseWeights(locate(model or str(record["labels"].get("model", ""))))
    except BadInput:
        if model:
            raise
        base = None
    cell = record["cell"]
    spec = parse_method(f"{cell['method']}:{cell['options']}")
    checkpoint = dataclasses.replace(read_checkpoint(folder.adapter), spec=spec)
    if base is not None:
        _check_norms(checkpoint, base, record["matrices"])
    return Opened(checkpoint, base, folder.path / folder.run_id)


def _check_norms(checkpoint: Checkpoint, base: BaseWeights, matrices: list[dict]) -> None:
    """Check the base against the norms that the run has recorded; the first matrix that differs is named."""
    for row in matrices:
        norm = float(base.read(row["matrix"], checkpoint.source).double().norm())
        if abs(norm - row["base_norm"]) > 1e-3 * row["base_norm"]:
            raise BadInput(
                f"{checkpoint.source} is of another model: matrix {row['matrix']!r} has norm {norm:.6g} in "
                f"{base.folder}, {row['base_norm']:.6g} where it was trained"
            )


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
        write_json(out / "adapter_config.json", {"base_model_name_or_path": name, **config})
        return
    tensors, metadata = to_diffusers(checkpoint) if layout == "diffusers" else to_kohya_layout(checkpoint)
    _write_tensors(out, tensors, metadata)


def _column_norms(opened: Opened) -> dict[str, Tensor]:
    """DeLoRA's norms of W0, where the checkpoint lacks them and the base is at hand."""
    from adapters.checkpoint import build_adapter

    checkpoint, base = opened.checkpoint, opened.base
    if checkpoint.spec.name != "delora" or base is None:
        return {}
    adapters = {path: build_adapter(checkpoint, path, base.read(path, checkpoint.source)) for path in checkpoint.shapes}
    return {path: adapter.get_buffer("column_norms").float() for path, adapter in adapters.items()}


def write_merged(opened: Opened, out: Path) -> None:
    """Write the U-Net with its configuration: adapted matrices in single precision, the others as they are stored.

    Half precision would round away changes of a thousandth of a weight.
    """
    from training.base_weights import FILE
    from training.measure import changes

    base = opened.need_base("a merged U-Net")
    merged = {path: (weight.double() + delta) for path, delta, weight in changes(opened.checkpoint, base)}
    tensors = base.unet_tensors()
    for path, weight in merged.items():
        tensors[f"{path}.weight"] = weight.float()
    _write_tensors(out / FILE, tensors, {"format": "pt"})
    with writing(out / "config.json") as aside:
        shutil.copyfile(base.folder / "unet" / "config.json", aside)


def write_approximation(opened: Opened, rank: int | None, layout: Layout, out: Path) -> None:
    """Write the best LoRA of a rank, and print what it loses."""
    from adapters.lora_files import to_lora
    from training.measure import changes

    deltas = {path: delta for path, delta, _ in changes(opened.checkpoint, opened.need_base("a LoRA by SVD"))}
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


# Inspecting.


def inspect(opened: Opened, out: Path | None) -> int:
    """Print what an adapter is and how far it moves each block; write a table of all matrices and a picture of it."""
    from training.measure import measure, write_table

    checkpoint = opened.checkpoint
    rows = measure(checkpoint, opened.base)
    print("\n".join(describe(checkpoint, rows)))
    out = out or opened.stem.with_name(f"{opened.stem.name}-norms.png")
    table = out.with_suffix(".csv")
    with writing(table) as aside:
        write_table(rows, aside)
    print(f"\n{table}")
    if rows["distance"].notna().any():
        title = f"{opened.stem.name}: {checkpoint.spec.label}, rank {checkpoint.rank}"
        draw = [sys.executable, "-m", "figures.checkpoint_norms", str(table.resolve()), str(out.resolve()), title]
        done = subprocess.run(draw, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise BadInput(f"the picture {out} could not be drawn: {(done.stderr.splitlines() or ['?'])[-1]}")
        print(out)
    return 0


def describe(checkpoint: Checkpoint, rows: pd.DataFrame) -> list[str]:
    """Format, method, rank, targets and the change by block, as lines for a terminal."""
    from training.measure import by_block

    ranks = sorted(set(checkpoint.ranks.values()))
    kinds = rows.groupby(["component", "attention", "kind"], sort=False).size()
    lines = [
        f"format   {checkpoint.format}",
        f"method   {checkpoint.spec.label} ({checkpoint.spec.canonical})",
        f"rank     {', '.join(map(str, ranks))}",
        f"targets  {len(rows)} matrices: "
        + ", ".join(f"{count} {'.'.join(filter(None, key))}" for key, count in kinds.items()),
        *(f"note     {note}" for note in checkpoint.notes),
    ]
    if rows["distance"].isna().all():
        return [*lines, "note     how far it moves depends on the base model: name it with --model"]
    lines += ["", f"{'block':<28}{'matrices':>9}{'‖ΔW‖':>12}{'‖ΔW‖/‖W0‖':>12}"]
    for row in by_block(rows).itertuples():
        relative = f"{row.distance_rel:.4g}" if row.distance_rel == row.distance_rel else "-"
        lines.append(f"{row.component + '.' + row.block:<28}{row.num_matrices:>9}{row.distance:>12.5g}{relative:>12}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    try:
        return run(parse(Options, __doc__ or "", arguments))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
