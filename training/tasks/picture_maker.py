"""Find the inputs of the DreamBooth task, a pipeline, scorers and subjects, and make its packs."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapters.errors import BadInput
from adapters.inject import find_targets
from adapters.words import counted
from training.accelerator import autocast, round_base
from training.base_norms import read_weights, where
from training.demand import PASSES
from training.run import Run
from training.setting import Setting
from training.store import RunFolder
from training.tasks import dreambench
from training.tasks import pipeline as pipelines
from training.tasks import scorers as scoring
from training.tasks import subjects as subject_folders
from training.tasks.class_pictures import class_latents
from training.tasks.controls import leave_controls
from training.tasks.picture_remarks import describe_inputs
from training.tasks.picture_size import check_resolution
from training.tasks.scorer_kind import check_scorers
from training.tasks.subject import MAX_ROWS, SubjectTask
from training.tasks.task import Check, Found, MeasuredModel

PICTURES_S = 30.0  # where one sampler call's pass takes longer, no pictures are made


class PictureMaker:
    """The DreamBooth task, to planning and to workers (`training.tasks.task.TaskMaker`)."""

    def locate(self, model: str) -> Path:
        """The folder of a pipeline."""
        return pipelines.locate(model)

    def where(self, path: str) -> Mapping[str, str]:
        """Block, attention and kind of a matrix, from its path in the U-Net."""
        return where(path)

    def weights(self, model: str, options: str) -> Iterator[tuple[str, Tensor]]:
        """Every attention projection of the U-Net in a pipeline's folder, with its path."""
        return read_weights(Path(model), pipelines.attention_shapes(Path(model)))

    def find(self, asked: Any, names: Sequence[str], folder: Path) -> Found:
        """Locate and check pipeline, scorers and subjects.

        Raises:
            BadInput: for anything that is missing or broken.
        """
        model = pipelines.locate(asked.model)
        defaults = pipelines.model_defaults(model)
        dino = scoring.locate(asked.dino, scoring.POCKET_DINO)
        clip = scoring.locate(asked.clip, scoring.POCKET_CLIP)
        check_scorers(dino, clip)
        dreambench.check_named(folder, names)
        prompt = defaults["instance_prompt"]
        subjects = [subject_folders.load(folder, n, token=asked.token, instance_prompt=prompt) for n in names]
        _check_prompts(asked, subjects)
        said = {name: defaults[name] for name in ("resolution", "num_inference_steps", "guidance_scale")}
        check_resolution(model, int(said["resolution"] if asked.resolution is None else asked.resolution))
        places = {
            "model": str(model), "dino": dino, "clip": clip, "subjects": str(folder.resolve()), "token": asked.token,
            "instance_prompt": prompt,
        }  # fmt: skip
        hashes = {"model_hash": pipelines.content_hash(model), "scorer_hash": scoring.hash_of(dino, clip)}
        return Found(places, hashes | said, subjects)

    def folder(self, asked: Sequence[str]) -> tuple[Path, list[str]]:
        """The folder of subjects that the words begin with, or the pocket's; and the rest of the words."""
        folder, rest = pipelines.POCKET_SUBJECTS, list(asked)
        if rest and ("/" in rest[0] or Path(rest[0]).is_dir()):
            folder = Path(rest.pop(0))
        return folder, rest

    def pool(self, folder: Path, split: str) -> tuple[list[str], str]:
        """Subjects of a split in the order of the folder's table, or all of a folder without splits; and of what they are."""
        splits = any(row["split"] for row in subject_folders.read_table(folder).values())
        names = subject_folders.names(folder, split if splits else None)
        which = f" of split {split!r}" if splits else dreambench.describe_missing(folder)
        return subject_folders.in_order(names, folder), which

    def shapes(self, model: str, options: str) -> Mapping[str, tuple[int, int]]:
        """Every attention projection of the U-Net in a pipeline's folder."""
        return pipelines.attention_shapes(Path(model))

    def make(self, setting: Setting, runs: Sequence[Run]) -> SubjectTask:
        """Pipeline, scorers, subjects and class pictures of a pack.

        Raises:
            BadInput: if a part cannot be loaded, or pictures have changed.
        """
        pipeline = _pipeline(setting.model, setting.device, runs[0].cell.mixed_precision)
        if setting.gradient_checkpointing:
            pipeline.unet.enable_gradient_checkpointing()
        load = functools.partial(
            subject_folders.load, Path(setting.subjects), token=setting.token, instance_prompt=setting.instance_prompt
        )
        cells = [run.cell for run in runs]
        subjects = {cell.subject: load(cell.subject) for cell in cells}
        for cell in cells:
            if subjects[cell.subject].content_hash(cell.num_drift_prompts) != cell.subject_hash:
                raise BadInput(f"the pictures or prompts of {cell.subject} changed since the sweep was planned")
        pool = Path(setting.runs) / "class_pictures"
        classes = {subjects[cell.subject].cls for cell in cells if cell.prior_loss_weight > 0}
        return SubjectTask(
            pipeline, _scorers(setting.dino, setting.clip, setting.device), cells, subjects,
            {cls: class_latents(pipeline, cls, cells[0], pool) for cls in classes},
            cache_latents=setting.cache_latents, cache_texts=setting.pre_compute_text_embeddings,
        )  # fmt: skip

    def leave_controls(
        self, task: SubjectTask, folders: Sequence[RunFolder | None], may_go_on: Check, before_write: Check
    ) -> None:
        """Leave what the scorers give photographs, other subjects and noise (`training.tasks.controls`)."""
        leave_controls(task, folders, may_go_on, before_write)

    def forget(self) -> None:
        """Load the pipeline anew next time."""
        _pipeline.cache_clear()

    def bench(self, load: Any) -> PictureModel:
        """The frozen U-Net on noise, and an evaluation's pictures of it."""
        return PictureModel(load)

    def remarks(self, inputs: Any) -> list[str]:
        """Where the pocket is out of its world, and what becomes of pictures and prompts."""
        return describe_inputs(inputs)


class PictureModel(MeasuredModel):
    """A pipeline with its scorers, on which packs are measured.

    Args:
        load: a `training.probe.Load`.
    """

    def __init__(self, load: Any) -> None:
        self.load = load
        self.parts = pipelines.load(Path(load.model), torch.device(load.device))
        self.scorers = scoring.Scorers(load.dino, load.clip, torch.device(load.device)) if load.dino else None
        if load.precision == "bf16":
            round_base(self.parts.unet, kept=find_targets(self.parts.unet).keys())
        if load.checkpointing:
            self.parts.unet.enable_gradient_checkpointing()
        self.model: nn.Module = self.parts.unet
        self.targets = find_targets(self.model)
        self._side = load.resolution // self.parts.vae_factor
        self._text = self.parts.encode_text([""])

    def train(self, rows: int) -> Tensor:
        """Send noise through the U-Net."""
        channels, device = self.parts.unet.config.in_channels, self.parts.device
        noise = torch.randn(rows, channels, self._side, self._side, device=device)
        times = torch.zeros(rows, dtype=torch.long, device=device)
        with autocast(device, self.load.precision):
            return self.parts.predict(noise, times, self._text.expand(rows)).float()

    @torch.no_grad()
    def evaluate(self, size: int, row_s: float) -> None:
        """One sampler call as large as those of an evaluation, and what one run's pictures go through after it."""
        rows = 2 * size * max(1, min(self.load.pictures, MAX_ROWS // (2 * size)))
        if rows * row_s / PASSES > PICTURES_S:
            return
        made = self.train(rows)
        pictures = self.parts.decode_latents(made[:1].expand(self.load.pictures, -1, -1, -1))
        if self.scorers is not None:
            self.scorers.dino_features(pictures)
            self.scorers.clip_features(pictures)


def _check_prompts(asked: Any, subjects: Sequence[subject_folders.Subject]) -> None:
    few = min(subjects, key=lambda s: len(s.prompts))
    if asked.num_prompts > len(few.prompts):
        raise BadInput(f"--num-prompts is {asked.num_prompts}; {few.name} has {counted(len(few.prompts), 'prompt')}")
    if asked.num_drift_prompts > (most := len(few.unrelated)):
        raise BadInput(f"--num-drift-prompts is {asked.num_drift_prompts}; there are {most} unrelated prompts")


@functools.cache
def _pipeline(model: str, device: str, mixed_precision: str) -> pipelines.Pipeline:
    pipeline = pipelines.load(Path(model), torch.device(device))
    if mixed_precision == "bf16":
        round_base(pipeline.unet, kept=find_targets(pipeline.unet).keys())
    return pipeline


@functools.cache
def _scorers(dino: str, clip: str, device: str) -> scoring.Scorers:
    return scoring.Scorers(dino, clip, torch.device(device))


MAKER = PictureMaker()
