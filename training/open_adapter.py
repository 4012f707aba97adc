"""Open the adapter that a user names, a run's or another program's, with its base model where that can be found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters import PEFT, MethodSpec, parse_method
from adapters.checkpoint import Checkpoint
from adapters.errors import BadInput
from adapters.foreign_names import is_of_stable_diffusion
from adapters.read_checkpoint import read_checkpoint
from training.base_weights import BaseWeights
from training.store import RunFolder, method_file
from training.tasks.pipeline import locate


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


def open_adapter(path: Path, model: str | None) -> Opened:
    """Read a run's adapter, or anybody's.

    Args:
        path: run folder, adapter folder or file.
        model: name of the base; None means the run's own, if it is still there.

    Raises:
        BadInput: it is no adapter, or one of another model.
    """
    folder = RunFolder(path)
    if not folder.exists():
        base = BaseWeights(locate(model)) if model else None
        checkpoint = read_checkpoint(path, base.layers if base else None)
        checkpoint = checkpoint.sized(base.shapes if base else {})
        if base is None:
            _check_names(checkpoint)
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
    folder.check_adapter()
    checkpoint = _read_run(folder, record)
    if base is not None:
        _check_norms(checkpoint, base, record["matrices"])
    return Opened(checkpoint, base, folder.path / folder.run_id)


def _read_run(folder: RunFolder, record: Mapping[str, Any]) -> Checkpoint:
    """A run's adapter, by the name and with all options that the run had: a file of PEFT's does not know them all."""
    cell, shapes = record["cell"], {row["matrix"]: (row["num_out"], row["num_in"]) for row in record["matrices"]}
    spec = _spec_of(folder, cell["method"], cell["options"])
    checkpoint = read_checkpoint(folder.adapter).sized(shapes)
    return checkpoint if spec.name.startswith(PEFT) else dataclasses.replace(checkpoint, spec=spec)


def _spec_of(folder: RunFolder, name: str, options: str) -> MethodSpec:
    if "@" in name:  # a user's own method, of which the sweep keeps a copy
        name = str(method_file(folder.path.parent, name))
    return parse_method(f"{name}:{options}" if options else name)


def _check_names(checkpoint: Checkpoint) -> None:
    """Check, where no base can tell, that the matrices are ones that a Stable Diffusion may have; a stranger is named."""
    if strange := next((path for path in checkpoint.shapes if not is_of_stable_diffusion(path)), None):
        raise BadInput(
            f"{checkpoint.source} is not of a model that Plateau knows: no Stable Diffusion has a matrix {strange!r}"
        )


def _check_norms(checkpoint: Checkpoint, base: BaseWeights, matrices: list[dict]) -> None:
    """Check the base against the norms that the run has recorded; the first matrix that differs is named."""
    for row in matrices:
        norm = float(base.read(row["matrix"], checkpoint.source).double().norm())
        if abs(norm - row["base_norm"]) > 1e-3 * row["base_norm"]:
            raise BadInput(
                f"{checkpoint.source} is of another model: matrix {row['matrix']!r} has norm {norm:.6g} in "
                f"{base.folder}, {row['base_norm']:.6g} where it was trained"
            )
