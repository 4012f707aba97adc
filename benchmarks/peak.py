"""Peak memory of a worker that trains one pack and makes its pictures, in a process of its own, against the estimate.

python -m benchmarks.peak FIELDS     the fields of a `Part` as JSON; prints its peaks as one line of JSON
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scene import Place
from slurm.estimate.need import Estimate, Pack
from training.cell import Cell
from training.demand import Cost
from training.pack import Setting
from training.probe import Load, peak_mib

ROOT = Path(__file__).resolve().parents[1]
STEPS, SAMPLER_STEPS = 4, 2  # memory has its peak in the first steps, and in every pass of the sampler


@dataclass(frozen=True)
class Part:
    """A pack whose memory is measured.

    Attributes:
        place: folder with `pipeline/ clip/ dino/ subjects/`.
        size: runs in the pack.
        method, rank, resolution: as flags; None is the model's resolution.
        device: "cpu" or "cuda".
    """

    place: str
    size: int
    method: str = "lora"
    rank: int = 8
    resolution: int | None = None
    device: str = "cpu"

    def setting(self, runs: Path) -> Setting:
        """What its worker is told."""
        part = Place(Path(self.place), "").part
        return Setting(
            part("pipeline"), part("dino"), part("clip"), part("subjects"), "sks", "a {token} {cls}", str(runs),
            device=self.device, threads=1 if self.device == "cpu" else 0,
        )  # fmt: skip

    def cells(self, setting: Setting) -> list[Cell]:
        """Its runs, which differ in their rate."""
        from adapters import get_class, parse_method
        from training.tasks import pipeline as pipelines
        from training.tasks import subjects as subject_folders

        spec, folder = parse_method(self.method), Path(setting.subjects)
        name = subject_folders.names(folder, "evidence" if subject_folders.read_table(folder) else None)[0]
        subject = subject_folders.load(folder, name, token=setting.token, instance_prompt=setting.instance_prompt)
        resolution = self.resolution or pipelines.model_defaults(Path(setting.model))["resolution"]
        first = Cell(
            method=spec.name, options=spec.canonical, rank=self.rank, subject=name, seed=0, steps=STEPS, lr=1e-5,
            resolution=resolution, boundary=1.0 if get_class(spec.name).uses_boundary else None,
            num_inference_steps=SAMPLER_STEPS, subject_hash=subject.content_hash(0),
        )  # fmt: skip
        return [dataclasses.replace(first, lr=1e-5 * (1 + row)) for row in range(self.size)]


def run_elsewhere(part: Part) -> Cost:
    """Train the pack in a process of its own; returns its peaks, without seconds.

    Raises:
        RuntimeError: if it fails; with its last line on stderr.
    """
    command = [sys.executable, "-m", "benchmarks.peak", json.dumps(dataclasses.asdict(part))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise RuntimeError(f"{part} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return Cost(**json.loads(done.stdout.strip().splitlines()[-1]))


def run_here(part: Part) -> Cost:
    """Train the pack as a worker does; returns the peaks of this process, without seconds."""
    import torch

    from training.loop import train_pack
    from training.pack import make_task
    from training.process_setup import keep_freed_memory, quiet_libraries
    from training.run import Run
    from training.store import RunFolder

    quiet_libraries()
    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="plateau-bench-") as folder:
        setting = part.setting(Path(folder))
        if setting.threads:
            torch.set_num_threads(setting.threads)
        cells = part.cells(setting)
        runs = [Run(cell, RunFolder(Path(folder) / "bench" / f"run-{n}"), {}) for n, cell in enumerate(cells)]
        train_pack(runs, make_task(setting, runs))
    on_gpu = part.device == "cuda"
    return Cost(0.0, peak_mib(), torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0)


def foresee(part: Part, costs: Mapping[int, Cost]) -> float:
    """Peak in MiB, on the GPU or of the process, that a plan expects for the pack.

    Args:
        part: the pack.
        costs: what `training/probe.py` has measured of this model.
    """
    setting = part.setting(Path("runs"))
    pack = Pack.of("foreseen", part.cells(setting), dataclasses.asdict(setting))
    need = Estimate(costs).need(pack)
    expected = need.gpu_mib if part.device == "cuda" else need.mib
    assert expected is not None
    return expected


def measure_costs(part: Part) -> dict[int, Cost]:
    """What a plan measures of the pack's model, in a process of its own."""
    setting = part.setting(Path("runs"))
    load = Load.of(setting, part.cells(setting)[0])
    command = [sys.executable, "-m", "training.probe", json.dumps(dataclasses.asdict(load))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace", check=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])["costs"]
    return {int(size): Cost(**cost) for size, cost in found.items()}


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(run_here(Part(**json.loads(sys.argv[1]))))))
