"""What this user may not read or write is named in one line; it is no damage, and nothing is set aside, dropped or left out."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file

from adapters import BadInput, parse_method
from adapters.peft_format import load as load_adapter
from adapters.starting_point import from_file
from adapters.tensor_file import open_tensors, read_shapes
from analysis.query import main as ask
from slurm.status.__main__ import Options
from slurm.status.__main__ import main as status
from sweeps.progress import _damage
from tests.make_runs import make_runs
from tests.make_sweep import Sweep
from training.base_norms import base_norms
from training.base_weights import BaseWeights
from training.cell import Cell
from training.checkpoints import _load
from training.command_line import end_well
from training.loop import Run
from training.store import DamagedFile, RunFolder, StoreError, find_runs, write_json
from training.tasks.class_pictures import class_latents
from training.tasks.pipeline import Pipeline, attention_shapes
from training.whole_files import Unreadable

NOBODY = 65534
EVERYTHING = "SELECT (SELECT count(*) FROM dynamics), (SELECT count(*) FROM scores), (SELECT count(*) FROM images)"

FIELDS = {"method": "lora", "options": "", "rank": 4, "subject": "dog", "seed": 0, "steps": 9, "lr": 1e-3}  # of a cell


@pytest.fixture
def root() -> Iterator[Path]:
    """Three runs, in a folder that every user may enter, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="plateau-tests-"))
    folder.chmod(0o755)
    sweep = make_runs(folder / "runs", multipliers=(1.0, 2.0), subjects=("cat",), pictures=True) / "lr_robustness"
    rows = [{"run_id": run.run_id, "cell": run.read()["cell"], "labels": {}} for run in find_runs(sweep)]
    write_json(sweep / "packs" / "p.json", {"pack": "p", "setting": {}, "runs": rows})
    Sweep(sweep).send("17", [["p"]], executor="local")
    yield folder / "runs"
    shutil.rmtree(folder)


@contextmanager
def no_right_to(path: Path) -> Iterator[None]:
    """Take every right to a file or folder away, and root's power over it from this process."""
    mode, is_root = path.stat().st_mode & 0o777, os.geteuid() == 0
    path.chmod(0)
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        path.chmod(mode)


def first(root: Path, pattern: str) -> Path:
    return min(root.glob(pattern))


@pytest.mark.parametrize(
    "pattern",
    [
        ".", "lr_robustness", "lr_robustness/*x1*", "lr_robustness/*x1*/run.json", "lr_robustness/*x1*/scores.parquet",
        "lr_robustness/*x1*/dynamics", "lr_robustness/*x1*/dynamics/*", "lr_robustness/*x1*/images",
        "lr_robustness/*x1*/images/index.json", "lr_robustness/packs", "lr_robustness/packs/p.json",
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_and_not_left_out(pattern: str, root: Path, capsys) -> None:
    path = root if pattern == "." else first(root, pattern)
    assert ask([EVERYTHING, str(root)]) == 0
    capsys.readouterr()
    with no_right_to(path):
        assert ask([EVERYTHING, str(root)]) == 2
    assert re.fullmatch(
        rf"error: {re.escape(str(path))}\S*( cannot be read)?: Permission denied\n", capsys.readouterr().err
    )


@pytest.mark.parametrize("pattern", ["", "lr_robustness", "lr_robustness/packs", "lr_robustness/submissions"])
def test_sweep_that_cannot_be_read_is_named_by_status(pattern: str, root: Path, capsys) -> None:
    path = root / pattern
    with no_right_to(path):
        assert end_well(lambda: status(Options(root, once=True))) == 2
    assert re.fullmatch(
        rf"error: {re.escape(str(path))}\S*( cannot be read)?: Permission denied\n", capsys.readouterr().err
    )


@pytest.mark.parametrize("pattern", ["dynamics", "dynamics/*", "scores.parquet", "images/index.json"])
def test_ended_run_that_cannot_be_read_is_not_trained_again(pattern: str, root: Path) -> None:
    run = find_runs(root / "lr_robustness")[0]
    path = first(run.path, pattern)
    with (
        no_right_to(path),
        pytest.raises(StoreError, match=f"{path.name}.* cannot be read: Permission denied") as caught,
    ):
        _damage(run)
    assert isinstance(caught.value, Unreadable)
    assert run.path.exists()


@pytest.mark.parametrize(
    "read",
    [
        open_tensors, lambda path: read_shapes(path.parent), lambda path: from_file(path, parse_method("lora")),
        lambda path: load_adapter(path.parent), lambda path: attention_shapes(path.parents[1]),
        lambda path: base_norms(path.parents[1]), lambda path: BaseWeights(path.parents[1]).shapes,
        lambda path: BaseWeights(path.parents[1]).unet_tensors(),
    ],
    ids=["open", "shapes", "start", "adapter", "attention", "norms", "base", "unet"],
)  # fmt: skip
def test_weights_that_cannot_be_read_are_not_called_damaged(read: Callable[[Path], object], root: Path) -> None:
    path = root / "unet" / "adapter_model.safetensors"
    path.parent.mkdir()
    save_file({"down.attn1.to_q.weight": torch.ones(2, 2)}, path)
    with no_right_to(path), pytest.raises(BadInput, match=rf"{path} cannot be read: Permission denied") as caught:
        read(path)
    assert "damaged" not in str(caught.value)


def test_class_pictures_that_cannot_be_read_are_not_made_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, pipeline = Cell(**FIELDS, num_class_images=1), Mock(spec=Pipeline, device="cpu")
    monkeypatch.setattr("training.tasks.class_pictures._make", lambda *_: torch.zeros(1, 4, 2, 2))
    class_latents(pipeline, "dog", cell, root)
    monkeypatch.setattr("training.tasks.class_pictures._make", Mock(side_effect=AssertionError))
    with no_right_to(first(root, "dog-1-*")), pytest.raises(BadInput, match="cannot be read: Permission denied"):
        class_latents(pipeline, "dog", cell, root)


def test_checkpoint_that_cannot_be_read_is_not_damaged(root: Path) -> None:
    run = find_runs(root / "lr_robustness")[0]
    run.checkpoint(3).parent.mkdir()
    run.checkpoint(3).touch()
    cell = Cell(**FIELDS)
    with no_right_to(run.checkpoint(3)), pytest.raises(Unreadable, match="cannot be read: Permission denied"):
        _load(Run(cell, run, {}), 3)
    with pytest.raises(DamagedFile, match="damaged checkpoint of step 3"):
        _load(Run(cell, run, {}), 3)


def test_run_does_not_go_on_without_what_it_cannot_read(root: Path) -> None:
    run: RunFolder = find_runs(root / "lr_robustness")[0]
    (run.path / "checkpoint").mkdir()
    with no_right_to(run.path / "checkpoint"), pytest.raises(StoreError, match="checkpoint cannot be read"):
        run.checkpoints()
    with no_right_to(run.parts("dynamics")[0]), pytest.raises(StoreError, match="cannot be read") as caught:
        run.check_rows({"dynamics": set(range(21))}, set())
    assert isinstance(caught.value, Unreadable), "or an earlier checkpoint would be taken, and the rows dropped"
