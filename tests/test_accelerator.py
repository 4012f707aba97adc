"""What an accelerator needs: steps that ask the host for nothing, a rounded base that changes no bit, arithmetic as asked."""

# ruff: noqa: F811 - the fixtures of another module are named as arguments

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adapters import METHODS, parse_method
from adapters.inject import Attached, attach, find_targets
from slurm.pack import Setting
from tests.test_loop import make_cell, make_task, parts, studio, train  # noqa: F401
from training.accelerator import WORKSPACE, arithmetic, describe_arithmetic, round_base
from training.cell import Cell
from training.dynamics import Dynamics
from training.loop import take_step
from training.optimizer import PackedAdamW
from training.tasks.subject import SubjectTask

# What hands a value of a device to the host, or makes a size of it.
ASKING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_consecutive", "_unique2", "bincount"}


class Questions(TorchDispatchMode):
    """Counts the operations that ask a device for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ASKING or (name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])):
            self.asked[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code takes the CPU for a device that is not to be asked."""
    for place in ("training.dynamics", "training.optimizer", "adapters.oft"):
        monkeypatch.setattr(f"{place}.is_free_to_ask", lambda tensor: False)


@contextlib.contextmanager
def make_pack(task: SubjectTask) -> Iterator[tuple[Attached, PackedAdamW, Dynamics]]:
    """The cells of a task in its U-Net, with optimiser and readings; taken out again at the end."""
    cell = task.shared
    spec = parse_method(f"{cell.method}:{cell.options}" if cell.options else cell.method)
    boundary = [c.boundary for c in task.cells if c.boundary is not None] or None
    pack = attach(task.pipeline.unet, spec, seeds=[c.seed for c in task.cells], rank=cell.rank, boundary=boundary)
    count = len(task.cells)
    optimizer = PackedAdamW(
        pack.flat, pack.grad, pack.segments, rates=dict.fromkeys(pack.segments, [cell.lr] * count),
        weight_decay=[0.01] * count, clip=[1.0] * count,
    )  # fmt: skip
    dynamics = Dynamics(pack)
    dynamics.remember()
    try:
        yield pack, optimizer, dynamics
    finally:
        pack.detach()


def test_questions_are_seen() -> None:
    """The counter itself: each way of asking is one."""
    with Questions() as questions:
        values = torch.arange(4.0)
        float(values.sum())
        bool((values > 1).any())
        values[values > 1]
        values.nonzero()
        torch.where(values > 1, values, 0.0)
    assert sum(questions.asked.values()) == 4


@pytest.mark.parametrize("method", METHODS)
def test_a_step_asks_a_device_for_nothing(method: str, studio: Path, parts: tuple, pretended: None) -> None:
    """Forward, backward, clipping, optimiser and all readings of a pack: no value comes back to the host."""
    task = make_task(studio, parts, [make_cell(method), make_cell(method, seed=1)])
    with make_pack(task) as (pack, optimizer, dynamics):
        take_step(pack, task, optimizer, 1)  # caches fill
        with Questions() as questions:
            take_step(pack, task, optimizer, 2)
            dynamics.record(2)
            dynamics.snapshot(2)
        assert not questions.asked


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_a_step_synchronises_nothing_when_on_a_gpu(method: str, studio: Path) -> None:
    """CUDA itself raises where the host would wait."""
    from training.tasks import pipeline as pipelines

    on_gpu = (pipelines.load(studio / "pipeline", torch.device("cuda")), None)
    task = make_task(studio, on_gpu, [make_cell(method), make_cell(method, seed=1)])
    with make_pack(task) as (pack, optimizer, dynamics):
        take_step(pack, task, optimizer, 1)
        torch.cuda.set_sync_debug_mode("error")
        try:
            take_step(pack, task, optimizer, 2)
            dynamics.record(2)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_noise_is_the_same_on_a_gpu(studio: Path, parts: tuple) -> None:
    """Batches and starting noise are drawn on the CPU, so that a run sees the same ones wherever it is trained."""
    from training.tasks import pipeline as pipelines
    from training.tasks.sampling import start_noise

    on_gpu = (pipelines.load(studio / "pipeline", torch.device("cuda")), None)
    cell = make_cell()
    assert torch.equal(start_noise(on_gpu[0], [1, 2], 16).cpu(), start_noise(parts[0], [1, 2], 16))
    losses = [make_task(studio, place, [cell]).losses(3).detach().cpu() for place in (parts, on_gpu)]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", ["lora", "dora", "delora", "etherplus", "oft", "full"])
def test_a_rounded_base_changes_no_bit(method: str, studio: Path, parts: tuple) -> None:
    """Autocast rounds frozen weights at each call as `round_base` does once."""
    cells = [make_cell(method, mixed_precision="bf16"), make_cell(method, seed=1, mixed_precision="bf16")]
    rounded = dataclasses.replace(parts[0], unet=copy.deepcopy(parts[0].unet))
    targets = find_targets(rounded.unet)
    round_base(rounded.unet, kept=targets.keys())
    products = {p: m.weight.dtype for p, m in rounded.unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    kept = {path for path, dtype in products.items() if dtype == torch.float32}
    assert kept == targets.keys()
    assert {products[path] for path in products.keys() - kept} == {torch.bfloat16}
    results = []
    for pipeline in (parts[0], rounded):
        task = make_task(studio, (pipeline, None), cells)
        with make_pack(task) as (pack, optimizer, _):
            taken = [take_step(pack, task, optimizer, step) for step in (1, 2, 3)]
            results.append([value.clone() for pair in taken for value in pair] + [pack.flat.clone()])
    for plain, from_rounded in zip(*results, strict=True):
        assert torch.equal(plain, from_rounded)


@pytest.mark.parametrize(("mixed_precision", "tolerance"), [("no", 2e-4), ("bf16", 5e-2)])
@pytest.mark.parametrize("method", ["lora", "dora", "delora", "etherplus", "oft"])
def test_a_pack_agrees_with_its_cells_alone(
    method: str, mixed_precision: str, tolerance: float, studio: Path, parts: tuple
) -> None:
    """A pack changes the order of sums, no more: every matrix's distance after three steps agrees within the tolerance."""
    cells = [make_cell(method, seed=seed, mixed_precision=mixed_precision) for seed in range(3)]
    together = train_distances(make_task(studio, (parts[0], None), cells))
    for row, cell in enumerate(cells):
        (alone,) = train_distances(make_task(studio, (parts[0], None), [cell]))
        torch.testing.assert_close(together[row], alone, rtol=tolerance, atol=0)
        assert ((together[row] - alone).abs() / alone).median() < tolerance / 5


def train_distances(task: SubjectTask) -> Float[Tensor, "k matrices"]:
    """How far every matrix has moved after three steps."""
    with make_pack(task) as (pack, optimizer, _):
        for step in (1, 2, 3):
            take_step(pack, task, optimizer, step)
        return torch.cat([stack.adapter.readings()["distance"].detach().clone() for stack in pack.stacks], dim=1)


def test_arithmetic_is_set_and_put_back() -> None:
    before, workspace = describe_arithmetic(), os.environ.pop(WORKSPACE, None)
    try:
        with arithmetic(allow_tf32=True, deterministic=True):
            assert describe_arithmetic() == {"tf32_matmul": True, "tf32_convolutions": True, "deterministic": True}
            assert os.environ[WORKSPACE]
        assert describe_arithmetic() == before
        with arithmetic(allow_tf32=False, deterministic=False):
            assert not any(describe_arithmetic().values())
    finally:
        os.environ.pop(WORKSPACE, None)
        if workspace is not None:
            os.environ[WORKSPACE] = workspace


def test_deterministic_training_has_every_algorithm_it_needs(studio: Path, parts: tuple, tmp_path: Path) -> None:
    """Torch raises for what has no deterministic form; a whole run needs none of that, and is the same twice."""
    with arithmetic(allow_tf32=False, deterministic=True):
        first, again = (train(studio, parts, tmp_path / name, [make_cell("delora")])[0] for name in ("a", "b"))
    assert first.read()["provenance"]["arithmetic"]["deterministic"]
    assert first.read_dynamics().equals(again.read_dynamics())


def test_tf32_is_part_of_a_run_and_determinism_is_not() -> None:
    """TF32 changes results; runs made before the field existed keep their names."""
    cell = make_cell()
    assert "allow_tf32" not in cell.to_dict()
    rounded = dataclasses.replace(cell, allow_tf32=True)
    assert rounded.identity() != cell.identity()
    assert Cell.from_dict(rounded.to_dict()) == rounded
    assert rounded.base().allow_tf32
    assert rounded.pack_key() != cell.pack_key()
    assert "deterministic" in {field.name for field in dataclasses.fields(Setting)}
