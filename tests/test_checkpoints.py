"""What a run goes on from: checkpoints and rows that are damaged, another's, half done, or left at the end."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.compare_runs import assert_same
from tests.test_job import at_step, raiser
from tests.test_loop import make_cell, parts, studio, train
from training import loop
from training.cell import Cell
from training.store import DamagedFile, RunFolder, StoreError, check_part
from training.whole_tables import CRC_MARK

__all__ = ["parts", "studio"]  # fixtures

pytestmark = pytest.mark.unchecked


class Killed(Exception):
    """What ends a run in the middle."""


def cut(studio: Path, parts: tuple, folder: Path, cells: list[Cell], step: int = 7) -> list[RunFolder]:
    """Train until a step; returns the runs' folders, with checkpoints of every step before."""
    with pytest.MonkeyPatch.context() as patch:
        at_step(step, raiser(Killed()), patch)
        with pytest.raises(Killed):
            train(studio, parts, folder, cells, checkpoint_every_s=0.0)
    return [RunFolder(folder / f"run-{cell.identity()[:10]}") for cell in cells]


def test_damaged_checkpoint_is_replaced_when_its_step_is_passed_again(
    studio: Path, parts: tuple, tmp_path: Path
) -> None:
    cells = [make_cell("lora", steps=8)]
    (run,) = cut(studio, parts, tmp_path, cells)
    run.checkpoint(6).write_bytes(b"damaged")
    cut(studio, parts, tmp_path, cells)
    assert run.read()["provenance"]["resumed_at"] == 5
    cut(studio, parts, tmp_path, cells)
    assert run.read()["provenance"]["resumed_at"] == 6


def test_checkpoint_that_cannot_be_read_is_not_passed_over(
    studio: Path, parts: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = cut(studio, parts, tmp_path, cells := [make_cell("lora", steps=8)])
    newest, read = run.checkpoint(run.checkpoints()[-1]), Path.open

    def refuse(path: Path, *words: str, **named: str) -> object:
        if path == newest:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path, *words, **named)

    monkeypatch.setattr(Path, "open", refuse)
    before = run.checkpoints(), run.parts("steps")
    with pytest.raises(StoreError, match=f"{newest.name} cannot be read: Permission denied"):
        train(studio, parts, tmp_path, cells, checkpoint_every_s=0.0)
    assert (run.checkpoints(), run.parts("steps")) == before


def test_checkpoint_of_another_cell_is_not_taken(
    studio: Path, parts: tuple, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cells = [make_cell("lora", steps=8), make_cell("lora", steps=8, lr=2e-3)]
    undisturbed = train(studio, parts, tmp_path / "whole", cells, checkpoint_every_s=0.0)
    runs = cut(studio, parts, tmp_path / "cut", cells)
    shutil.copy(runs[0].checkpoint(6), runs[1].checkpoint(6))
    resumed = train(studio, parts, tmp_path / "cut", cells, checkpoint_every_s=0.0)
    assert "it belongs to another cell" in capsys.readouterr().err
    for left, right in zip(undisturbed, resumed, strict=True):
        assert_same(left, right)


def test_pack_killed_between_two_ends_goes_on_from_its_last_checkpoint(
    studio: Path, parts: tuple, tmp_path: Path
) -> None:
    cells = [make_cell("lora", steps=8), make_cell("lora", steps=8, lr=2e-3)]
    write, ended = RunFolder.write, []

    def fall(self: RunFolder, run: Mapping) -> None:
        if run["status"] == "finished" and ended:
            raise Killed
        ended.extend([self] if run["status"] == "finished" else [])
        write(self, run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "write", fall)
        with pytest.raises(Killed):
            train(studio, parts, tmp_path, cells, checkpoint_every_s=0.0)
    first, second = train(studio, parts, tmp_path, cells, checkpoint_every_s=0.0)
    assert first.read()["provenance"]["resumed_at"] is None, "it had ended, and is left as it was"
    assert second.read()["provenance"]["resumed_at"] == 8
    assert first.checkpoints() == second.checkpoints() == []


def test_rows_without_their_checkpoint_are_not_doubled(studio: Path, parts: tuple, tmp_path: Path) -> None:
    """Killed between the two; what goes on afterwards makes its checkpoints at other steps."""
    cells = [make_cell("lora", steps=8)]
    (undisturbed,) = train(studio, parts, tmp_path / "whole", cells, checkpoint_every_s=0.0)
    save = loop.save_checkpoints

    def fall(runs: list, optimizer: object, step: int) -> None:
        if step == 6:
            raise Killed
        save(runs, optimizer, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_checkpoints", fall)
        with pytest.raises(Killed):
            train(studio, parts, tmp_path / "cut", cells, checkpoint_every_s=0.0)
    run = RunFolder(tmp_path / "cut" / undisturbed.run_id)
    assert run.checkpoints()[-1] == 5
    assert run.parts("steps")[-1].stem.endswith("6")
    (resumed,) = train(studio, parts, tmp_path / "cut", cells, checkpoint_every_s=1e9)
    assert_same(undisturbed, resumed)


def test_one_wrong_byte_of_a_table_from_before_whole_checksums_is_noticed(tmp_path: Path) -> None:
    """What cannot be compressed is stored as it is: a wrong byte there is no error of the compression, and still a number."""
    run, bits = RunFolder(tmp_path), np.random.default_rng(0).integers(2**32, size=1000, dtype=np.uint32)
    losses = bits.view(np.float32)
    run.append("steps", {"step": np.arange(1000, dtype=np.int32), "loss": losses}, 1000)
    (part,) = run.parts("steps")
    whole = bytearray(part.read_bytes().replace(CRC_MARK, CRC_MARK.upper()))  # only the pages' own are left
    lowest = losses.view(np.uint8)[0::4]  # bytes of one weight lie side by side
    whole[whole.index(lowest[500:516].tobytes())] ^= 0xFF
    part.write_bytes(whole)
    with pytest.raises(DamagedFile, match=f"damaged file {part}"):
        run.read_steps()
    with pytest.raises(DamagedFile, match=f"damaged file {part}"):
        check_part(part)
