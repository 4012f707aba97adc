"""A rehearsal: a few steps and pictures of one pack of each kind, as a worker runs them; one worker's part of it.

    python -m slurm.rehearse TIME SPEC.json ...     prints each pack's number as it begins, then the costs as a line of JSON

`slurm/expect.py` starts it, as often as the sweep will have workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slurm.libraries import keep_freed_memory, quiet_libraries
from slurm.pack import Setting, make_task, read_spec
from slurm.sweep_folder import read_spec_file
from slurm.sweep_time import ROWS, SAMPLER_STEPS, STEPS, KindCost
from training.loop import train_pack
from training.run import Run
from training.store import RunFolder
from training.tasks import subjects as subject_folders
from training.tasks.subject import Evaluation, SubjectTask

Seconds = np.ndarray  # [2]: that have passed, and that this process has computed


def measure(specs: Sequence[Path], began: float) -> list[dict[str, dict[str, float]]]:
    """What packs cost in this process, by clock.

    Args:
        specs: the packs.
        began: when the process was started, by `time.monotonic`, which all processes of a machine share and nobody sets.
    """
    quiet_libraries()
    keep_freed_memory()
    setting = Setting.read(specs[0], read_spec_file(specs[0]))
    if setting.threads:
        torch.set_num_threads(setting.threads)
    make_task(setting, shorten(specs[0], "loading")[:1])
    start_s = np.array([time.monotonic() - began, time.process_time()])
    _rehearse(setting, shorten(specs[0], "first")[:1])  # what is slow for the first time
    costs = []
    for number, spec in enumerate(specs):
        print(number, flush=True)  # whoever waits knows what it is
        costs.append([start_s, *_rehearse(setting, shorten(spec, spec.stem))])
    names = [field.name for field in dataclasses.fields(KindCost)]
    return [
        {clock: dict(zip(names, (float(part[n]) for part in cost))) for n, clock in enumerate(("wall", "processor"))}
        for cost in costs
    ]


def shorten(spec: Path, name: str) -> list[Run]:
    """The runs of a pack with a few steps, one sampler call of pictures, and rates at which nothing diverges."""
    _, setting, runs = read_spec(spec)
    shared, size = runs[0].cell, len(runs)
    images = min(shared.num_images, max(1, ROWS // (2 * size)))
    fewer: dict[str, Any] = {
        "steps": min(shared.steps, STEPS), "eval_steps": (1,) if shared.steps > 1 else (), "sharpness_steps": (),
        "num_images": images, "num_prompts": max(1, min(shared.num_prompts, ROWS // (2 * size * images))),
        "num_drift_prompts": 0, "num_inference_steps": min(shared.num_inference_steps, SAMPLER_STEPS),
        "num_class_images": min(1, shared.num_class_images), "lr": 1e-6, "init_adapter": "",
    }  # fmt: skip
    hashes = {subject: _hash(setting, subject) for subject in {run.cell.subject for run in runs}}
    cells = [dataclasses.replace(run.cell, subject_hash=hashes[run.cell.subject], **fewer) for run in runs]
    return [Run(cell, RunFolder(spec.parents[1] / f"{name}-{n}"), {}) for n, cell in enumerate(cells)]


def _hash(setting: Setting, subject: str) -> str:
    folder, prompt = Path(setting.subjects), setting.instance_prompt
    return subject_folders.load(folder, subject, token=setting.token, instance_prompt=prompt).content_hash(0)


def _rehearse(setting: Setting, runs: list[Run]) -> tuple[Seconds, Seconds, Seconds, Seconds]:
    """Train a shortened pack, and look at the clocks between its parts; returns the costs but for the start."""
    began = _now()
    task = make_task(setting, runs)
    with Watch(task).looking() as watch:
        train_pack(runs, task, checkpoint_every_s=setting.checkpoint_every_s)
    return watch.split(_now() - began)


def _now() -> Seconds:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


class Watch:
    """Notes when each step begins, how long evaluations take, and the passes through the U-Net within them.

    Args:
        task: what is watched, and used once.
    """

    def __init__(self, task: SubjectTask) -> None:
        self.task = task
        self.steps: list[Seconds] = []  # when each began
        self.evaluations: list[tuple[Seconds, Seconds]] = []  # when each began and ended
        self.passes: list[Seconds] = []  # beginning and end of each of the last evaluation
        self.num_pictures = 0  # of the last evaluation

    @contextlib.contextmanager
    def looking(self) -> Iterator[Watch]:
        """Watch for a while."""
        unet, losses, evaluate = self.task.pipeline.unet, self.task.losses, self.task.evaluate

        def begin_step(step: int, micro: int = 0) -> Tensor:
            if micro == 0:
                self.steps.append(_now())
            return losses(step, micro)

        def note_evaluation(step: int, may_go_on: Callable[[], None] = lambda: None) -> list[Evaluation]:
            self.passes.clear()
            began = _now()
            found = evaluate(step, may_go_on)
            self.evaluations.append((began, _now()))
            self.num_pictures = sum(len(evaluation.pictures) for evaluation in found)
            return found

        hooks = (
            unet.register_forward_pre_hook(lambda *_: self.passes.append(_now())),
            unet.register_forward_hook(lambda *_: self.passes.append(_now())),
        )
        self.task.losses, self.task.evaluate = begin_step, note_evaluation  # type: ignore[method-assign]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def split(self, total: Seconds) -> tuple[Seconds, Seconds, Seconds, Seconds]:
        """What of the seconds that the pack took is fixed, and what a step, a row's pass and a picture cost."""
        nothing = np.zeros(2)
        laps = [after - before for before, after in zip(self.steps[1:], self.steps[2:])]
        step = np.median(laps, axis=0) if laps else nothing
        began, ended = self.evaluations[-1]
        passes = [after - before for before, after in zip(self.passes[::2], self.passes[1::2])]
        stored = self.steps[1] - self.evaluations[0][1] if len(self.steps) > 1 else nothing
        picture = (ended - began - sum(passes, nothing) + stored) / self.num_pictures
        guided = 2 if self.task.shared.guidance_scale != 1 else 1
        other = len(self.steps) * step + len(self.evaluations) * (ended - began + stored)
        return np.maximum(0, total - other), step, passes[-1] / (guided * self.num_pictures), picture


def _say(words: Sequence[str]) -> None:
    print(json.dumps(measure([Path(word) for word in words[1:]], float(words[0]))))


if __name__ == "__main__":
    _say(sys.argv[1:])
