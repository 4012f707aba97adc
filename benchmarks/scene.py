"""What is timed: packs of cells in the real training loop, with a stopwatch in place of the pictures."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from adapters import get_class, parse_method
from adapters.errors import BadInput
from benchmarks.timing import clock
from benchmarks.untrained import make_untrained
from training.cell import Cell
from training.loop import train_pack
from training.run import Run
from training.store import RunFolder
from training.tasks import pipeline as pipelines
from training.tasks import subjects as subject_folders
from training.tasks.class_pictures import class_latents
from training.tasks.subject import Evaluation, SubjectTask

WARMUP = 2  # first steps of every run, never counted
NUM_CLASS_IMAGES = 8  # enough for a prior-preservation batch; their number does not change a step's cost


@dataclass(frozen=True)
class Effort:
    """How often everything is repeated.

    Attributes:
        rounds: paired repetitions.
        laps: steps of each variant in a round of `methods`.
        steps: counted steps of a run of `packs`.
        sizes: pack sizes that are tried.
        read_steps: steps of a run of `dynamics`.
        starts: how often `--help` is timed.
        run_flags: flags of the default run whose memory is measured.
    """

    rounds: int = 12
    laps: int = 12
    steps: int = 12
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    read_steps: int = 400
    starts: int = 12
    run_flags: tuple[str, ...] = ()


QUICK = Effort(
    rounds=4, laps=5, steps=6, sizes=(1, 4, 8, 16), read_steps=120, starts=4,
    run_flags=("--steps", "4", "--num-inference-steps", "2"),
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A folder with `pipeline/ clip/ dino/ subjects/`, as `training/pocket` is.

    Attributes:
        folder: where it lies.
        name: what the table calls it.
    """

    folder: Path
    name: str

    def part(self, name: str) -> str:
        """Path of one of the four."""
        return str(self.folder / name)


def find_place(model: str, scratch: Path) -> Place:
    """The pocket, its untrained twin (made in `scratch`), or a folder laid out like it.

    Args:
        model: "auto" (the pocket; where it has no weights, its twin), "pocket", "untrained", or a folder.
        scratch: an empty folder.

    Raises:
        BadInput: if the folder holds no pipeline.
    """
    trained = (pipelines.POCKET_MODEL / "model_index.json").is_file()
    if model == "pocket" or (model == "auto" and trained):
        pipelines.check_parts(pipelines.POCKET_MODEL)
        return Place(pipelines.POCKET, "the pocket pipeline")
    if model in ("auto", "untrained"):
        return Place(make_untrained(scratch / "untrained"), "the pocket's shapes with untrained weights")
    folder = Path(model).resolve()
    if not (folder / "pipeline").is_dir():
        raise BadInput(f"--model is {model}; give auto, pocket, untrained, or a folder with pipeline/ and subjects/")
    pipelines.check_parts(folder / "pipeline")
    return Place(folder, folder.name)


class Stopwatch(SubjectTask):
    """The training task without pictures; it notes when each step starts, and when the last one is stored."""

    marks: dict[int, float]

    def losses(self, step: int, micro: int = 0) -> torch.Tensor:
        """The losses, after a look at the clock."""
        if micro == 0:
            self.__dict__.setdefault("marks", {})[step] = clock(self.pipeline.device)
        return super().losses(step, micro)

    def evaluate(self, step: int, may_go_on: Callable[[], None] = lambda: None) -> list[Evaluation]:
        """Nothing, for every replica."""
        return [Evaluation(self._score_rows(step, subject, torch.empty(0, 3, 1, 1)), []) for subject in self.subjects]


class Scene:
    """A loaded model with one subject, on which packs are trained for a few steps.

    Args:
        place: the folder.
        device: "cpu" or "cuda".
    """

    def __init__(self, place: Place, device: str) -> None:
        self.place, self.device = place, torch.device(device)
        self.pipeline = pipelines.load(Path(place.part("pipeline")), self.device)
        self.defaults = pipelines.model_defaults(Path(place.part("pipeline")))
        folder = Path(place.part("subjects"))
        name = subject_folders.names(folder, "evidence" if subject_folders.read_table(folder) else None)[0]
        prompt = self.defaults["instance_prompt"]
        self.subject = subject_folders.load(folder, name, token="sks", instance_prompt=prompt)

    def make_cells(self, method: str, size: int, *, rank: int = 8, prior: bool = False, **fields: int) -> list[Cell]:
        """Cells that differ in their rate, as those of one subject in the default run do."""
        spec = parse_method(method)
        boundary = 1.0 if get_class(spec.name).uses_boundary else None
        cell = Cell(
            method=spec.name, options=spec.canonical, rank=rank, subject=self.subject.name, seed=0, steps=1, lr=1e-4,
            boundary=boundary, resolution=self.defaults["resolution"], prior_loss_weight=float(prior),
            num_class_images=NUM_CLASS_IMAGES * prior, num_inference_steps=self.defaults["num_inference_steps"],
        )  # fmt: skip
        changed = dataclasses.replace(cell, **fields)  # type: ignore[arg-type]
        return [dataclasses.replace(changed, lr=1e-4 * (1 + row)) for row in range(size)]

    def time_steps(self, cells: Sequence[Cell]) -> list[float]:
        """Seconds of every step but the first `WARMUP` and the last (which also stores the run), in the real loop.

        Each reaches from the start of a step to the start of the next: batch, forward, backward, optimiser, dynamics,
        log and progress.
        """
        with tempfile.TemporaryDirectory(prefix="plateau-bench-") as folder:
            runs = [Run(cell, RunFolder(Path(folder) / "bench" / f"run-{i}"), {}) for i, cell in enumerate(cells)]
            task = Stopwatch(self.pipeline, None, cells, {self.subject.name: self.subject}, self._class_latents(cells))
            train_pack(runs, task, keep_adapters=False)
        marks = [task.marks[step] for step in sorted(task.marks)]
        return [after - before for before, after in zip(marks, marks[1:])][WARMUP:]

    def step_s(self, cells: Sequence[Cell]) -> float:
        """Median seconds of a step."""
        return statistics.median(self.time_steps(cells))

    def _class_latents(self, cells: Sequence[Cell]) -> dict[str, torch.Tensor]:
        return {self.subject.cls: self._class_pool} if cells[0].prior_loss_weight > 0 else {}

    @functools.cached_property
    def _class_pool(self) -> torch.Tensor:
        cell = self.make_cells("lora", 1, prior=True)[0]
        with tempfile.TemporaryDirectory(prefix="plateau-bench-") as folder:
            return class_latents(self.pipeline, self.subject.cls, cell, Path(folder))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use this many CPU threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
