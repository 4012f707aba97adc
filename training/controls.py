"""Measure the controls of the scorers for run folders that have none, or whose photographs have changed since.

    python -m training.controls runs/lr_robustness
    python -m training.controls runs --subjects PATH --model PATH --dino PATH --clip PATH   # where they lie now

A sweep measures them when it scores the base model; run folders from before there were controls need this. Nothing else
in them is changed. `python -m analysis.controls RUNS` judges what was measured.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from adapters.errors import BadInput
from adapters.words import counted
from training.accelerator import arithmetic
from training.cell import BASE
from training.command_line import run_program
from training.pack import Setting, list_runs
from training.planned import list_specs, list_sweeps, read_spec_file
from training.run import Run
from training.states import RunStatus
from training.task_kinds import PICTURES
from training.tasks import pipeline as pipelines
from training.tasks import scorers as scoring
from training.tasks.controls import key_of, leave_controls
from training.tasks.picture_maker import MAKER


@dataclass(frozen=True)
class Options:
    """Flags of the measurement."""

    runs: Annotated[Path, tyro.conf.Positional]
    """A runs folder, or one sweep of it."""
    subjects: Path | None = None
    """Where the folder of subjects lies now; default: where it lay."""
    model: str | None = None
    """Where the model lies now."""
    dino: str | None = None
    """Where the scorer of DINO lies now."""
    clip: str | None = None
    """Where the scorer of CLIP-I lies now."""


def run(options: Options) -> int:
    """Measure, subject by subject, what is missing, and say what was done."""
    if not options.runs.is_dir():
        raise BadInput(f"no runs folder {options.runs}: give a folder that a sweep has written, such as runs/")
    found, began, count = 0, time.monotonic(), 0
    for sweep in list_sweeps(options.runs):
        for path in list_specs(sweep):
            contents = read_spec_file(path)
            runs = [one for one in list_runs(sweep, contents) if _is_due(one)]
            found += len(runs)
            if runs:
                count += _measure(runs, _place(Setting.read(path, contents), options))
    if not found:
        raise BadInput(f"no run of the base model has ended in {options.runs}: run its sweep to the end first")
    print(
        f"controls of {counted(count, 'subject')} measured in {time.monotonic() - began:.1f} s, "
        f"{found - count} were there; python -m analysis.controls {options.runs} judges them"
    )
    return 0


def _is_due(one: Run) -> bool:
    """Whether a run is one of the base model on pictures that has ended."""
    return one.cell.method == BASE and one.cell.task == PICTURES and one.folder.status() == RunStatus.FINISHED


def _place(setting: Setting, options: Options) -> Setting:
    """The setting with what the flags say of where things lie."""
    given: dict[str, Any] = {
        "subjects": options.subjects and str(options.subjects.resolve()),
        "model": options.model and str(pipelines.locate(options.model)),
        "dino": options.dino and scoring.locate(options.dino, scoring.POCKET_DINO),
        "clip": options.clip and scoring.locate(options.clip, scoring.POCKET_CLIP),
    }
    return dataclasses.replace(setting, **{name: value for name, value in given.items() if value})


def _measure(runs: Sequence[Run], setting: Setting) -> int:
    """Measure what a pack's runs lack; returns how many lacked something.

    Raises:
        BadInput: if model, scorers or subjects are others than those that the runs were scored with.
    """
    _check(runs[0], setting)
    key = key_of(Path(setting.subjects))
    lacking = [one for one in runs if one.folder.controls_key() != key]
    if lacking:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with arithmetic(allow_tf32=lacking[0].cell.allow_tf32, deterministic=setting.deterministic):
            task = MAKER.make(dataclasses.replace(setting, device=device), lacking)
            leave_controls(task, [one.folder for one in lacking])
    return len(lacking)


def _check(one: Run, setting: Setting) -> None:
    for flag, place in (("--model", setting.model), ("--subjects", setting.subjects)):
        if not Path(place).is_dir():
            raise BadInput(
                f"no folder {place}, which {one.folder.sweep.name} was made with: say by {flag} where it lies"
            )
    hashes = {
        "model_hash": ("--model", pipelines.content_hash(Path(setting.model))),
        "scorer_hash": ("--dino and --clip", scoring.hash_of(setting.dino, setting.clip)),
    }
    for name, (flag, value) in hashes.items():
        if (wanted := getattr(one.cell, name)) != value:
            raise BadInput(
                f"{one.folder.path} has {name} {wanted}, and what lies there now has {value}: name the right one by {flag}"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    return run_program(Options, run, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
