"""The description of one run: everything that changes its result, and the name that follows from it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adapters import BadInput

BASE = "base"  # the method name of the untouched model's own run


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. Rates are absolute; every field here is part of the run's identity.

    Attributes:
        method: a name of `adapters.METHODS`, `peft:<type>`, the name of a user's own method with the hash of its
            file (`mymethod@1a2b3c4d5e`), or "base" for the untouched model.
        options: the method's options in canonical form (`key=value,key=value`, defaults filled in).
        rank: r of the low-rank factors; 0 for methods without a rank.
        subject: name of the subject's folder.
        seed: seed of the run: init, order of pictures, noise and time steps follow from (seed, step).
        steps: optimiser steps.
        lr: rate of the factors (B and A, or ETHER's vectors).
        lr_lambda: rate of DeLoRA's lambda; None where the method has none.
        lr_magnitude: rate of DoRA's m; None where the method has none.
        boundary: lambda at the start (DeLoRA); None elsewhere.
        adam_weight_decay: decoupled decay of `torch.optim.AdamW`, on every adapter parameter.
        max_grad_norm: largest gradient norm of one run (all its parameters together); 0 switches clipping off.
        train_batch_size: subject pictures in one micro-batch.
        gradient_accumulation_steps: micro-batches in one optimiser step.
        lr_scheduler: "constant" or "cosine", after `lr_warmup_steps` of linear warm-up.
        lr_warmup_steps: steps of the warm-up.
        prior_loss_weight: weight of DreamBooth's prior-preservation loss; 0 switches it off.
        num_class_images: pictures of the class, made once by the base, for that loss.
        snr_gamma: gamma of the min-SNR loss weight (arXiv 2303.09556); 0 is the plain loss.
        mixed_precision: "no" or "bf16" (autocast; the adapters stay float32).
        resolution: side of the training pictures in pixels.
        eval_steps: steps after which pictures are made and scored; the last step always is.
        num_prompts: how many of the subject's evaluation prompts are used, from the first on.
        num_images: pictures for each prompt.
        num_drift_prompts: unrelated prompts, one picture each, whose change from the untouched model's is scored.
        num_inference_steps: sampler steps.
        guidance_scale: classifier-free guidance.
        gauge_every: steps between two rows of the dynamics.
        norms_every: steps between two snapshots of the weight norms.
        model_hash, subject_hash, scorer_hash: contents of the model, pictures and prompts, and scorers.
        sharpness_steps: steps after which the loss's sharpness is measured (`training.sharpness`).
        init_adapter: content of the adapter that the run starts from; empty for the method's own start.
        num_instance_images: how many of the subject's pictures are trained on, from the first on; 0 for all of them. All are
            scored against.
        allow_tf32: whether an NVIDIA GPU may round the factors of float32 products to TF32 (10 bits of mantissa).

    A field of `NEWER` stands in no file and in no hash while it has its default: runs made before it existed keep their names.
    """

    method: str
    options: str
    rank: int
    subject: str
    seed: int
    steps: int
    lr: float
    lr_lambda: float | None = None
    lr_magnitude: float | None = None
    boundary: float | None = None
    adam_weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    train_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = 0
    prior_loss_weight: float = 0.0
    num_class_images: int = 0
    snr_gamma: float = 0.0
    mixed_precision: str = "no"
    resolution: int = 64
    eval_steps: tuple[int, ...] = ()
    num_prompts: int = 8
    num_images: int = 2
    num_inference_steps: int = 12
    guidance_scale: float = 4.0
    gauge_every: int = 1
    norms_every: int = 50
    model_hash: str = ""
    subject_hash: str = ""
    scorer_hash: str = ""
    init_adapter: str = ""
    num_drift_prompts: int = 0
    sharpness_steps: tuple[int, ...] = ()
    num_instance_images: int = 0
    allow_tf32: bool = False

    def identity(self) -> str:
        """SHA-256 over every field of `to_dict`, in hexadecimal: the same cell asked for twice runs once."""
        return self._identity

    @functools.cached_property
    def _identity(self) -> str:
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def run_id(self, label: str) -> str:
        """The folder's name, `delora-r16-x4-s0-dog-1a2b3c4d`; `label` is what stands for the rate or the step."""
        return f"{self.method_stem}-r{self.rank}-{label}-s{self.seed}-{self.subject}-{self.identity()[:10]}"

    @property
    def method_stem(self) -> str:
        """The method as the beginning of a file's name: `peft:boft` is `peft-boft`."""
        return self.method.replace(":", "-")

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        fields = {name: getattr(self, name) for name in FIELDS}
        fields |= {name: list(fields[name]) for name in STEP_LISTS}
        return {name: value for name, value in fields.items() if name not in NEWER or value != NEWER[name]}

    @classmethod
    def from_dict(cls, fields: Mapping) -> Cell:
        """The inverse of `to_dict`.

        Raises:
            BadInput: if a field is unknown or missing; the message lists the known ones.
        """
        if unknown := sorted(set(fields) - FIELDS.keys()):
            raise BadInput(f"unknown cell field {unknown[0]!r}; known fields: {', '.join(sorted(FIELDS))}")
        try:
            return cls(**(dict(fields) | {name: tuple(fields.get(name, ())) for name in STEP_LISTS}))
        except TypeError as error:
            raise BadInput(f"incomplete cell: {error}") from None

    def pack_key(self) -> tuple:
        """Cells with equal keys may train in one pack; rate, seed, subject and boundary are free inside it."""
        return tuple(getattr(self, name) for name in KEY_FIELDS)

    def evaluated_steps(self) -> list[int]:
        """Steps after which this run is scored, the last one included, in order."""
        return sorted({step for step in self.eval_steps if 0 <= step < self.steps} | {self.steps})

    def base(self) -> Cell:
        """The cell of the untouched model that this run is compared with: same subject, pictures and scorers."""
        return Cell(
            method=BASE, options="", rank=0, subject=self.subject, seed=0, steps=0, lr=0.0,
            resolution=self.resolution, num_prompts=self.num_prompts, num_images=self.num_images,
            num_inference_steps=self.num_inference_steps, guidance_scale=self.guidance_scale,
            mixed_precision=self.mixed_precision, model_hash=self.model_hash, subject_hash=self.subject_hash,
            scorer_hash=self.scorer_hash, num_drift_prompts=self.num_drift_prompts, allow_tf32=self.allow_tf32,
        )  # fmt: skip


STEP_LISTS = ("eval_steps", "sharpness_steps")
FIELDS = dict.fromkeys(f.name for f in dataclasses.fields(Cell))
NEWER: dict[str, object] = {
    "init_adapter": "", "num_instance_images": 0, "num_drift_prompts": 0, "sharpness_steps": [], "allow_tf32": False,
}  # fmt: skip
FREE = {
    "lr", "lr_lambda", "lr_magnitude", "boundary", "seed", "subject", "subject_hash", "adam_weight_decay",
    "max_grad_norm", "num_instance_images",
}  # fmt: skip
KEY_FIELDS = tuple(name for name in FIELDS if name not in FREE)


def by_pack_key(cells: Iterable[Cell]) -> dict[tuple, list[Cell]]:
    """Group cells that may share a pack, in the order given."""
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.pack_key(), []).append(cell)
    return groups
