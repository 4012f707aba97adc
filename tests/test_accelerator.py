"""What an accelerator needs: steps that ask the host for nothing, a rounded base that changes no bit, arithmetic as asked."""

# ruff: noqa: F811 - the fixtures of another module are named as arguments

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from adapters import METHODS
from adapters.inject import find_targets
from benchmarks.real_scale import StackedPack
from benchmarks.waiting import count_waits
from tests.test_loop import make_cell, make_task, parts, studio, train  # noqa: F401
from training.accelerator import WORKSPACE, arithmetic, describe_arithmetic, round_base
from training.cell import Cell
from training.pack import Setting
from training.tasks.subject import SubjectTask


@contextlib.contextmanager
def make_pack(task: SubjectTask) -> Iterator[StackedPack]:
    """The cells of a task in its U-Net; taken out again at the end."""
    pack = StackedPack(task)
    try:
        yield pack
    finally:
        pack.attached.detach()


CPU = torch.device("cpu")


def test_questions_are_seen() -> None:
    """The counter itself: each way of asking is one."""
    values = torch.arange(4.0)

    def ask() -> None:
        float(values.sum())
        bool((values > 1).any())
        values[values > 1]
        values.nonzero()
        torch.where(values > 1, values, 0.0)

    assert count_waits(ask, CPU) == 4


@pytest.mark.parametrize("method", METHODS)
def test_a_step_asks_a_device_for_nothing(method: str, studio: Path, parts: tuple) -> None:
    """Forward, backward, clipping, optimiser and all readings of a pack: no value comes back to the host."""
    task = make_task(studio, parts, [make_cell(method), make_cell(method, seed=1)])
    with make_pack(task) as pack:
        pack()  # caches fill
        assert count_waits(pack, CPU) == 0
        assert count_waits(lambda: pack.dynamics.snapshot(2), CPU) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_a_step_synchronises_nothing_when_on_a_gpu(method: str, studio: Path) -> None:
    """CUDA itself says where the host waits."""
    from training.tasks import pipeline as pipelines

    on_gpu = (pipelines.load(studio / "pipeline", torch.device("cuda")), None)
    task = make_task(studio, on_gpu, [make_cell(method), make_cell(method, seed=1)])
    with make_pack(task) as pack:
        pack()
        assert count_waits(pack, torch.device("cuda")) == 0


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
        with make_pack(task) as pack:
            taken = [pack() for _ in range(3)]
            results.append([value.clone() for pair in taken for value in pair] + [pack.attached.flat.clone()])
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
    with make_pack(task) as pack:
        for _ in range(3):
            pack()
        stacks = pack.attached.stacks
        return torch.cat([stack.adapter.readings()["distance"].detach().clone() for stack in stacks], dim=1)


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
