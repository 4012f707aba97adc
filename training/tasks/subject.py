"""The DreamBooth task: learn a subject from a few pictures (Ruiz et al. 2023, arXiv 2208.12242).

Rows of every batch are replica-major: all rows of the first cell, then all of the second. What is random (pictures,
noise, time steps) is a function of (cell seed, step), never of the place in the pack.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from adapters.inject import find_targets
from training.accelerator import autocast, send
from training.cell import Cell
from training.seeds import seed_of
from training.tasks.order import shuffled
from training.tasks.pipeline import Pipeline
from training.tasks.sampling import sample, start_noise
from training.tasks.scorers import Scorers, to_tensor
from training.tasks.subjects import Subject, open_pictures
from training.tasks.task import Evaluation, TrainingTask
from training.tasks.text import Text

MAX_ROWS = 128  # rows of one sampler call on a CPU: larger ones are no faster


class Draw(NamedTuple):
    """What is random in a micro-batch of one seed, on the CPU; `order` are the places of its pictures (`shuffled`)."""

    times: Int[Tensor, " rows"]
    noise: Float[Tensor, "rows c h w"]
    order: range


class SubjectTask(TrainingTask):
    """Losses and evaluations of one pack.

    Args:
        pipeline: the model; its U-Net may carry adapters.
        scorers: DINO and CLIP; None if nothing is ever scored.
        cells: the cells of the pack, in its order.
        subjects: the cells' subjects, by name.
        class_latents: latents of class pictures by class, where a cell wants prior preservation.
        cache_latents, cache_texts: encode pictures and prompts once, not at every step.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        scorers: Scorers | None,
        cells: Sequence[Cell],
        subjects: dict[str, Subject],
        class_latents: dict[str, Tensor] | None = None,
        *,
        cache_latents: bool = True,
        cache_texts: bool = True,
    ) -> None:
        self.pipeline, self.scorers, self.cells = pipeline, scorers, list(cells)
        self.subjects = [subjects[cell.subject] for cell in cells]
        self.pictures = {s.name: self._open(s) for s in subjects.values()}
        self.latents = {name: self._encode(name) for name in self.pictures} if cache_latents else {}
        self.class_latents = class_latents or {}
        self.cache_texts = cache_texts
        self._texts: dict[str, Text] = {}
        self._real: dict[str, tuple[Tensor, Tensor]] = {}
        self._untouched: Tensor | None = None

    def _open(self, subject: Subject) -> Float[Tensor, "n 3 h w"]:
        return to_tensor(open_pictures(subject.pictures, self.shared.resolution))

    def _encode(self, name: str, chosen: slice | list[int] = slice(None)) -> Float[Tensor, "n c h w"]:
        """Latents of a subject's pictures."""
        return self.pipeline.encode_pictures(self.pictures[name][chosen] * 2 - 1)

    def clean_latents(self, name: str, chosen: list[int]) -> Float[Tensor, "n c h w"]:
        """Latents of some of a subject's pictures, from the cache where there is one."""
        if name not in self.latents:
            return self._encode(name, chosen)
        return torch.stack([self.latents[name][i] for i in chosen])  # an index of numbers would be copied to the device

    def text(self, prompt: str) -> Text:
        """The embedding of a prompt, from the cache where there is one."""
        if prompt in self._texts:
            return self._texts[prompt]
        embedding = self.pipeline.encode_text([prompt])[0]
        if self.cache_texts:
            self._texts[prompt] = embedding
        return embedding

    # What the loop asks of every task

    @property
    def model(self) -> nn.Module:
        """The U-Net."""
        unet: nn.Module = self.pipeline.unet
        return unet

    @property
    def targets(self) -> dict[str, nn.Linear]:
        """Every attention projection of the U-Net."""
        return find_targets(self.model)

    @property
    def device(self) -> torch.device:
        """Where the pipeline lies."""
        return self.pipeline.device

    # Training

    def losses(self, step: int, micro: int = 0) -> Float[Tensor, " k"]:
        """The loss of each replica on its micro-batch of `step`: the mean over its own rows.

        With prior preservation each replica's batch is its subject's rows, then as many rows of its class.
        """
        batch, prior = self.shared.train_batch_size, self.shared.prior_loss_weight > 0
        draws = {seed: self._draw(seed, step, micro) for seed in {cell.seed for cell in self.cells}}
        latents, text = zip(*(self._rows(cell, s, draws[cell.seed]) for cell, s in zip(self.cells, self.subjects)))
        clean, context = torch.cat(latents), Text.cat(text)
        noise = send(torch.cat([draws[cell.seed].noise for cell in self.cells]), clean.device).to(clean.dtype)
        times = send(torch.cat([draws[cell.seed].times for cell in self.cells]), clean.device)
        alpha = self.pipeline.alphas_cumprod[times][:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        v_prediction = self.pipeline.prediction_type == "v_prediction"
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean if v_prediction else noise
        with self.autocast():
            output = self.pipeline.predict(noisy, times, context)
        errors = F.mse_loss(output.float(), target, reduction="none").mean(dim=(1, 2, 3))
        if self.shared.snr_gamma > 0:
            errors = errors * _snr_weight(alpha.flatten(), self.shared.snr_gamma, v_prediction)
        rows = errors.unflatten(0, (len(self.cells), -1))
        if not prior:
            return rows.mean(dim=1)
        return rows[:, :batch].mean(dim=1) + self.shared.prior_loss_weight * rows[:, batch:].mean(dim=1)

    @functools.cached_property
    def _latent_shape(self) -> torch.Size:
        return self.clean_latents(self.subjects[0].name, [0]).shape[1:]

    def autocast(self) -> contextlib.AbstractContextManager:
        """bf16 autocast where the pack asks for it."""
        return autocast(self.pipeline.device, self.shared.mixed_precision)

    def _draw(self, seed: int, step: int, micro: int) -> Draw:
        """Noise, time steps and order numbers of one micro-batch; drawn on the CPU."""
        generator = torch.Generator().manual_seed(seed_of("batch", seed, step, micro))
        rows = self.shared.train_batch_size * (2 if self.shared.prior_loss_weight > 0 else 1)
        shape = self._latent_shape
        times = torch.randint(0, len(self.pipeline.alphas_cumprod), (rows,), generator=generator)
        first = ((step - 1) * self.shared.gradient_accumulation_steps + micro) * self.shared.train_batch_size
        order = range(first, first + self.shared.train_batch_size)
        return Draw(times, torch.randn(rows, *shape, generator=generator), order)

    def _rows(self, cell: Cell, subject: Subject, draw: Draw) -> tuple[Tensor, Text]:
        """Clean latents and text embeddings of one replica's rows."""
        count = cell.num_instance_images or len(subject.pictures)
        chosen = [shuffled(cell.seed, "subject", i, count) for i in draw.order]
        latents = [self.clean_latents(subject.name, chosen)]
        text = [self.text(subject.instance_prompt).expand(len(chosen))]
        if cell.prior_loss_weight > 0:
            pool = self.class_latents[subject.cls]
            chosen = [shuffled(cell.seed, "class", i, len(pool)) for i in draw.order]
            latents.append(torch.stack([pool[i] for i in chosen]))
            text.append(self.text(class_prompt(subject.cls)).expand(len(chosen)))
        return torch.cat(latents), Text.cat(text)

    # Evaluation

    @torch.no_grad()
    def evaluate(self, step: int, may_go_on: Callable[[], None] = lambda: None) -> list[Evaluation]:
        """Pictures and scores of every replica, with starting noise that is the same for all runs.

        Args:
            step: for the scores' rows.
            may_go_on: called between pictures; may raise, to break off.
        """
        count, side = self.shared.num_images, self.shared.resolution
        seeds = [seed_of("picture", p, i) for p in range(self.num_prompts) for i in range(count)]
        noise = start_noise(self.pipeline, seeds, side)
        text = Text.stack([self._prompt_texts(subject) for subject in self.subjects])
        latents, evaluations = self._sample(text, noise, may_go_on), []
        for row, subject in enumerate(self.subjects):
            may_go_on()
            evaluations.append(self._score(step, subject, latents[row], seeds))
        for evaluation, rows_of_drift in zip(evaluations, self._drift(step, may_go_on)):
            evaluation.scores = pd.concat([evaluation.scores, rows_of_drift], ignore_index=True)
        return evaluations

    # Drift: memorising is not learning, and what is forgotten of everything else is neither.

    @property
    def unrelated(self) -> tuple[str, ...]:
        """The prompts by which drift is measured: the same for all of a pack."""
        return self.subjects[0].unrelated[: self.shared.num_drift_prompts] if self.scorers is not None else ()

    @torch.no_grad()
    def begin(self) -> None:
        """Keep the features of the model's own pictures for the unrelated prompts; called before adapters are in it."""
        if self.unrelated:
            (self._untouched,) = self._unrelated_features(1)

    def _unrelated_features(self, replicas: int) -> list[Float[Tensor, "n d"]]:
        """DINO features of one picture for each unrelated prompt, by each replica."""
        assert self.scorers is not None
        noise = start_noise(self.pipeline, [seed_of("drift", p) for p in self.unrelated], self.shared.resolution)
        text = Text.stack([self.text(prompt) for prompt in self.unrelated]).expand(replicas, -1)
        return [self.scorers.dino_features(self.to_pictures(rows) / 255) for rows in self._sample(text, noise)]

    def _drift(self, step: int, may_go_on: Callable[[], None]) -> list[pd.DataFrame]:
        """Rows of the metric "drift" for each replica: (1 - cosine)/2 of DINO features, as HF PEFT's comparison has it.

        Of vectors of length 1 that is a quarter of their squared distance, which is 0 where nothing has changed.
        """
        if self._untouched is None:
            return []
        may_go_on()
        values = [
            (rows - self._untouched).square().sum(dim=1) / 4 for rows in self._unrelated_features(len(self.cells))
        ]
        return [
            pd.DataFrame({"step": step, "metric": "drift", "prompt": self.unrelated, "value": rows.tolist()})
            for rows in values
        ]

    def _sample(self, text: Text, noise: Tensor, may_go_on: Callable[[], None] = lambda: None) -> Tensor:
        """Latents ``[k, n, c, h, w]`` for the n prompts of each of k replicas, as many at a time as are fast."""
        rows = max(1, MAX_ROWS // (2 * text.places[0]))
        steps, guidance = self.shared.num_inference_steps, self.shared.guidance_scale
        parts = []
        for a in range(0, len(noise), rows):
            may_go_on()
            part, start = text[:, a : a + rows], noise[a : a + rows]
            precision = self.shared.mixed_precision
            parts.append(sample(self.pipeline, part, start, steps=steps, guidance=guidance, mixed_precision=precision))
        return torch.cat(parts, dim=1)

    @property
    def num_prompts(self) -> int:
        """How many prompts each subject is asked: the same for all of a pack."""
        return min(self.shared.num_prompts, *(len(s.prompts) for s in self.subjects), self.shared.num_prompts)

    def _prompt_texts(self, subject: Subject) -> Text:
        prompts = subject.prompts[: self.num_prompts]
        return Text.stack([self.text(prompt) for prompt in prompts]).repeat_each(self.shared.num_images)

    def _score(self, step: int, subject: Subject, latents: Tensor, seeds: list[int]) -> Evaluation:
        pictures = self.to_pictures(latents)
        images = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pictures]
        prompts, count = subject.prompts[: self.num_prompts], self.shared.num_images
        triples = [(prompts[i // count], seeds[i], image) for i, image in enumerate(images)]
        return Evaluation(self._score_rows(step, subject, pictures / 255), triples)

    def to_pictures(self, latents: Float[Tensor, "n c hh ww"]) -> Tensor:
        """Pictures of latents as the sweep scores them: values from 0 to 255, on the CPU."""
        with self.autocast():
            pictures = self.pipeline.decode_latents(latents)
        return (pictures * 255).round().to(torch.uint8).cpu()

    def _score_rows(self, step: int, subject: Subject, pictures: Float[Tensor, "n 3 h w"]) -> pd.DataFrame:
        """Scores by prompt: DINO and CLIP-I over all (real, generated) pairs, CLIP-T over the pictures of the prompt."""
        if self.scorers is None:
            return pd.DataFrame({"step": [], "metric": [], "prompt": [], "value": []}).astype(
                {"metric": object, "prompt": object}
            )
        if subject.name not in self._real:
            real = self.pictures[subject.name]
            self._real[subject.name] = self.scorers.dino_features(real), self.scorers.clip_features(real)
        real_dino, real_clip = self._real[subject.name]
        clip = self.scorers.clip_features(pictures)
        text = self.scorers.text_features(list(subject.plain_prompts[: self.num_prompts]))
        values = {
            "dino": (self.scorers.dino_features(pictures) @ real_dino.T).mean(dim=1),
            "clip_i": (clip @ real_clip.T).mean(dim=1),
            "clip_t": (clip * text.repeat_interleave(self.shared.num_images, dim=0)).sum(dim=1),
        }
        rows = [
            (step, metric, prompt, float(value))
            for metric, by_picture in values.items()
            for prompt, value in zip(subject.prompts, by_picture.unflatten(0, (self.num_prompts, -1)).mean(dim=1))
        ]
        return pd.DataFrame(rows, columns=["step", "metric", "prompt", "value"])


def class_prompt(cls: str) -> str:
    """The prompt of a class's pictures."""
    return f"a {cls}"


def _snr_weight(alpha: Float[Tensor, " n"], gamma: float, v_prediction: bool) -> Float[Tensor, " n"]:
    """Min-SNR weights (Hang et al. 2023, arXiv 2303.09556): min(snr, gamma) / snr, over snr + 1 for v-prediction."""
    snr = alpha / (1 - alpha)
    return snr.clamp(max=gamma) / (snr + 1 if v_prediction else snr)
