"""Checkpoints from which a killed pack continues: two generations, and the rows that belong to each."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import save as to_bytes

from adapters.errors import BadInput
from adapters.tensor_file import DamagedTensors, open_tensors
from training.cell import Cell
from training.optimizer import PackedAdamW
from training.run import Run
from training.states import ENDED
from training.store import DamagedFile, writing
from training.whole_files import Unreadable


def save_checkpoints(runs: Sequence[Run], optimizer: PackedAdamW, step: int) -> None:
    """Write the state after `step` of every run, once its rows are flushed; the newest two of each are kept.

    Raises:
        StoreError: if the disk is full or a folder cannot be written.
    """
    for row, run in enumerate(runs):
        if run.folder.checkpoint(step).exists():
            continue
        state = optimizer.state(row)
        metadata = {"cell": run.cell.identity(), "step": str(step), "crc32": str(_checksum(state))}
        with writing(run.folder.checkpoint(step)) as aside:
            aside.write_bytes(to_bytes(state, metadata))  # an OSError says when the disk is full
        run.folder.keep_checkpoints(2)


def resume(runs: Sequence[Run], optimizer: PackedAdamW) -> int | None:
    """Load the newest checkpoint that every run of the pack has whole, with whole rows up to it; drop what is later.

    A damaged checkpoint or table is named on stderr, and an earlier checkpoint taken.

    Returns:
        Its step, or None if there is none and the pack starts anew.

    Raises:
        StoreError: if a file is there that this user cannot read; nothing is dropped.
    """
    open_runs = [run for run in runs if run.folder.status() not in ENDED]
    common = set.intersection(*(set(run.folder.checkpoints()) for run in runs))
    found = None
    for step in sorted(common, reverse=True):
        try:
            states = [_load(run, step) for run in runs]
            for run in open_runs:
                run.folder.check_rows(expected_rows(run.cell, step), evaluated_before(run.cell, step))
        except DamagedFile as error:
            print(f"{error}: cannot go on at step {step}; going on from an earlier one", file=sys.stderr)
        else:
            for row, state in enumerate(states):
                optimizer.load_state(row, state, step)
            found = step
            break
    for run in open_runs:
        run.folder.rewind(-1 if found is None else found)
    for run in runs:
        run.folder.drop_checkpoints_after(-1 if found is None else found)
    return found


def expected_rows(cell: Cell, step: int) -> dict[str, set[int]]:
    """The steps that each table of a run has rows of once `step` is checkpointed."""

    def every(number: int) -> set[int]:
        last = {cell.steps} if step >= cell.steps else set()
        return set(range(0, step + 1, number)) | last

    return {
        "steps": set(range(1, step + 1)),
        "dynamics": every(cell.gauge_every),
        "norms": every(cell.norms_every),
    }


def evaluated_before(cell: Cell, step: int) -> set[int]:
    """The steps before `step` whose pictures and scores are made by then; those of `step` itself are made anew."""
    return {evaluated for evaluated in cell.evaluated_steps() if evaluated < step}


def _load(run: Run, step: int) -> dict[str, torch.Tensor]:
    path = run.folder.checkpoint(step)
    try:
        state, about = open_tensors(path)
    except DamagedTensors as error:
        raise DamagedFile(f"damaged checkpoint of step {step} ({error})") from None
    except BadInput as error:
        raise Unreadable(error) from None
    try:
        if about.get("cell") != run.cell.identity():
            raise ValueError("it belongs to another cell")
        if about.get("crc32", found := str(_checksum(state))) != found:
            raise ValueError("its checksum is another than when it was written")
    except ValueError as error:
        raise DamagedFile(f"damaged checkpoint of step {step} ({path}: {error})") from None
    return state


def _checksum(state: Mapping[str, torch.Tensor]) -> int:
    """CRC-32 over the tensors' bytes, by name."""
    crc = 0
    for name in sorted(state):
        values = state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        crc = zlib.crc32(values.numpy().data, crc)
    return crc
