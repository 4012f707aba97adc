"""Run one pack from its specification: all that a job does, wherever it runs."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from adapters import BadInput
from training.cell import Cell
from training.loop import Interrupted, Progress, Run, train_pack
from training.store import ENDED, RunFolder, read_json
from training.tasks import pipeline as pipelines
from training.tasks import scorers as scoring
from training.tasks import subjects as subject_folders
from training.tasks.class_pictures import class_latents
from training.tasks.subject import SubjectTask


@dataclass(frozen=True)
class Setting:
    """What every pack of a sweep shares, besides its cells.

    Attributes:
        model, dino, clip: folders or hub ids, already located.
        subjects: folder of subjects.
        token, instance_prompt: how a subject is called in prompts.
        runs: the runs folder (class pictures are kept in it).
        device: "cpu" or "cuda".
        threads: CPU threads of one worker; 0 leaves torch's choice.
        gradient_checkpointing, cache_latents, pre_compute_text_embeddings: trade time for memory; results agree
            up to rounding.
        checkpoint_every_s: seconds between checkpoints.
    """

    model: str
    dino: str
    clip: str
    subjects: str
    token: str
    instance_prompt: str
    runs: str
    device: str = "cpu"
    threads: int = 0
    gradient_checkpointing: bool = False
    cache_latents: bool = True
    pre_compute_text_embeddings: bool = True
    checkpoint_every_s: float = 30.0


@functools.cache
def _pipeline(model: str, device: str) -> pipelines.Pipeline:
    return pipelines.load(Path(model), torch.device(device))


@functools.cache
def _scorers(dino: str, clip: str, device: str) -> scoring.Scorers:
    return scoring.Scorers(dino, clip, torch.device(device))


def read_spec(path: Path) -> tuple[str, Setting, list[Run]]:
    """A pack's specification: its name, the sweep's setting, and its runs."""
    spec = read_json(path)
    folder = path.parents[1]
    runs = [Run(Cell.from_dict(r["cell"]), RunFolder(folder / r["run_id"]), r["labels"]) for r in spec["runs"]]
    return spec["pack"], Setting(**spec["setting"]), runs


def ended(runs: list[Run]) -> bool:
    """Whether every run of a pack has ended."""
    return all(run.folder.status() in ENDED for run in runs)


def run_pack(path: Path, report: Callable[[Progress], None] = lambda progress: None) -> str:
    """Run one pack, once: a pack that another process holds is left to it.

    Args:
        path: the pack's JSON specification, `<runs>/<sweep>/packs/<pack>.json`.
        report: called with the progress.

    Returns:
        "done", "busy" (another process has it) or "failed" (the traceback is in each run.json).

    Raises:
        BadInput: if the disk is full, a folder cannot be written, or an input changed since the plan.
        Interrupted: after a signal, with everything checkpointed.
    """
    pack, setting, runs = read_spec(path)
    lock = FileLock(path.with_suffix(".lock"), timeout=0)
    try:
        with lock:
            if ended(runs):
                return "done"
            if setting.threads:
                torch.set_num_threads(setting.threads)
            try:
                task = make_task(setting, runs)
                train_pack(runs, task, pack=pack, report=report, checkpoint_every_s=setting.checkpoint_every_s)
                return "done"
            except (BadInput, Interrupted):
                raise
            except Exception as error:
                _mark_failed(runs, error)
                return "failed"
    except Timeout:
        return "busy"


def make_task(setting: Setting, runs: list[Run]) -> SubjectTask:
    """Model, scorers, subjects and class pictures of a pack, loaded once in a process."""
    pipeline = _pipeline(setting.model, setting.device)
    if setting.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    load = functools.partial(
        subject_folders.load, Path(setting.subjects), token=setting.token, instance_prompt=setting.instance_prompt
    )
    cells = [run.cell for run in runs]
    subjects = {cell.subject: load(cell.subject) for cell in cells}
    for cell in cells:
        if subjects[cell.subject].content_hash() != cell.subject_hash:
            raise BadInput(f"the pictures or prompts of {cell.subject} changed since the sweep was planned")
    pool = Path(setting.runs) / "class_pictures"
    classes = {subjects[cell.subject].cls for cell in cells if cell.prior_loss_weight > 0}
    return SubjectTask(
        pipeline, _scorers(setting.dino, setting.clip, setting.device), cells, subjects,
        {cls: class_latents(pipeline, cls, cells[0], pool) for cls in classes},
        cache_latents=setting.cache_latents, cache_texts=setting.pre_compute_text_embeddings,
    )  # fmt: skip


def _mark_failed(runs: list[Run], error: Exception) -> None:
    text = "".join(traceback.format_exception(error))
    for run in runs:
        if run.folder.status() in ENDED:
            continue
        before = run.folder.read() if run.folder.exists() else {"cell": run.cell.to_dict(), "labels": run.labels}
        run.folder.write({**before, "status": "failed", "error": text})


def quiet_libraries() -> None:
    """Switch off the libraries' own progress bars and notices, which would break the live table."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next step, instead of giving them back and faulting fresh pages in.

    By default it returns large blocks at once: readings of a pack then took twice as long. Elsewhere nothing happens.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # names in malloc.h
    for option, value in ((trim_threshold, 256 << 20), (top_pad, 64 << 20), (mmap_threshold, 32 << 20)):
        set_option(option, value)


def spec_id(run_ids: list[str]) -> str:
    """A short name that depends on the membership and the order of a pack."""
    return hashlib.sha256("\n".join(run_ids).encode()).hexdigest()[:10]


def run_task(specs: list[str], code: str = "") -> None:
    """Run packs in order."""
    for spec in specs:
        run_pack(Path(spec))
