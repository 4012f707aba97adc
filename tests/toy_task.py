"""A third task, as a package outside of Plateau would bring it: regression, less is better, no pictures.

A small frozen network learns a wave of another phase: its units are waves, its one score the mean squared error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from training.cell import BASE
from training.seeds import seed_of
from training.task_kinds import Metric, TaskKind, read_options
from training.tasks.task import Evaluation, Found, MeasuredModel, TrainingTask

WAVES = {f"wave-{n}": 0.3 * n for n in range(1, 9)}

KIND = TaskKind(
    name="toy",
    title="regression: a small network learns a wave",
    metrics=(
        Metric("error", "error", "mean squared error", 0.0, lower_is_better=True),
        Metric(
            "drift", "drift", "change of its answers elsewhere", 0.0, 1.0, lower_is_better=True, is_side_effect=True
        ),
    ),
    maker="tests.toy_task:MAKER",
    unit="wave",
    part="network",
    options={"width": 16},
    defaults={"model": "none", "steps": 20, "train_batch_size": 8},
    passes=lambda cell: 32,
)


@dataclass(frozen=True)
class Wave:
    """A wave to learn."""

    name: str
    cls: str = "wave"
    split: str = "evidence"
    picture: None = None

    def fields(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """Its name and its content."""
        return {"subject": self.name, "subject_hash": sha256(repr(WAVES[self.name]).encode()).hexdigest()[:16]}


class ToyTask(TrainingTask):
    """Waves of a pack."""

    def __init__(self, cells: list, width: int) -> None:
        self.cells = list(cells)
        self._net = build(width)

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self._net

    @property
    def targets(self) -> dict[str, nn.Linear]:
        """Its two layers."""
        return {path: m for path, m in self._net.named_modules() if isinstance(m, nn.Linear)}

    @property
    def device(self) -> torch.device:
        """A CPU."""
        return torch.device("cpu")

    def losses(self, step: int, micro: int = 0) -> Tensor:
        """The mean squared error of each replica on its batch."""
        points = [self._points(cell.seed, step, micro) for cell in self.cells]
        said = self._net(torch.cat(points)[:, None]).view(len(points), -1)
        true = torch.stack([wave(cell.subject, x) for cell, x in zip(self.cells, points, strict=True)])
        return (said - true).square().mean(dim=1)

    def _points(self, seed: int, step: int, micro: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of("toy", seed, step, micro))
        return torch.rand(self.shared.train_batch_size, generator=generator) * 2 - 1

    @torch.no_grad()
    def evaluate(self, step: int, may_go_on: Any = lambda: None) -> list[Evaluation]:
        """The error on a fixed grid of points, and drift on one that is never trained on."""
        x, far = torch.linspace(-1, 1, 32), torch.linspace(2, 3, 8)
        count = len(self.cells) if self.shared.method != BASE else 1
        said, away = (self._net(p.repeat(count)[:, None]).view(count, -1) for p in (x, far))
        before = build(read_options("toy", self.shared.task_options)["width"])(far[:, None]).view(-1)
        found = []
        for row, cell in enumerate(self.cells):
            error = float((said[row % count] - wave(cell.subject, x)).square().mean())
            drift = float((away[row % count] - before).abs().mean().clamp(max=1))
            rows = [(step, "error", "grid", error), (step, "drift", "beyond", drift)]
            found.append(Evaluation(pd.DataFrame(rows, columns=["step", "metric", "prompt", "value"])))
        return found


class ToyModel(MeasuredModel):
    """The network, to be measured."""

    def __init__(self) -> None:
        self.model = build(16)
        self.targets = {path: m for path, m in self.model.named_modules() if isinstance(m, nn.Linear)}

    def train(self, rows: int) -> Tensor:
        """Send points through it."""
        said: Tensor = self.model(torch.rand(rows, 1))
        return said

    def evaluate(self, size: int, row_s: float) -> None:
        """A grid of points."""
        self.train(32 * size)


class ToyMaker:
    """Finds nothing on disk: all of it is made up."""

    def locate(self, model: str) -> Path:
        """Nowhere."""
        return Path(model)

    def where(self, path: str) -> dict[str, str]:
        """Each layer is a block."""
        return {"block": f"layer.{path}", "kind": "linear", "attention": ""}

    def weights(self, model: str, options: str) -> Iterator[tuple[str, Tensor]]:
        """Its two layers."""
        net = build(read_options("toy", options)["width"])
        return ((path, m.weight) for path, m in net.named_modules() if isinstance(m, nn.Linear))

    def find(self, asked: Any, names: Sequence[str], folder: Path) -> Found:
        """The waves of these names."""
        return Found({"model": asked.model, "subjects": str(folder)}, {"model_hash": "toy"}, [Wave(n) for n in names])

    def folder(self, asked: Sequence[str]) -> tuple[Path, list[str]]:
        """No folder: one that is named is left alone."""
        return Path("waves"), [word for word in asked if "/" not in word]

    def pool(self, folder: Path, split: str) -> tuple[list[str], str]:
        """Half of the waves choose settings, the others are reported."""
        return [name for place, name in enumerate(WAVES) if (place % 2 == 1) == (split == "tuning")], ""

    def shapes(self, model: str, options: str) -> dict[str, tuple[int, int]]:
        """Those of the network."""
        width = read_options("toy", options)["width"]
        return {"1": (width, width), "3": (width, width)}

    def make(self, setting: Any, runs: Sequence[Any]) -> ToyTask:
        """A pack."""
        return ToyTask([run.cell for run in runs], read_options("toy", runs[0].cell.task_options)["width"])

    def leave_controls(self, task: Any, folders: Any, may_go_on: Any, before_write: Any) -> None:
        """None."""

    def forget(self) -> None:
        """Nothing is kept."""

    def bench(self, load: Any) -> ToyModel:
        """The network."""
        return ToyModel()

    def remarks(self, found: Any) -> list[str]:
        """None."""
        return []


class Fixed(nn.Module):
    """A layer that nobody trains."""

    def __init__(self, num_in: int, num_out: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(num_out, num_in, generator=generator) / math.sqrt(num_in))

    def forward(self, x: Tensor) -> Tensor:
        """A product."""
        return x @ self.weight.T


def build(width: int) -> nn.Sequential:
    """The pretrained network: the same each time."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        Fixed(1, width, generator), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), Fixed(width, 1, generator)
    )  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(width))
    return net.requires_grad_(False)


def wave(name: str, x: Tensor) -> Tensor:
    """A wave's values."""
    return torch.sin(3 * x + WAVES[name])


MAKER = ToyMaker()
