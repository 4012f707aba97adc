"""The description of one run: everything that changes its result, and the identity that follows from it.

A training flag is declared here and nowhere else, as a field of `TrainingFlags`: its default, its help (the text below it),
and in its `Flag` what it may be, whether cells of a pack may differ in it, and how a curve's name tells it. The options of
drivers, their checks, the stored cell, its hash and the columns of frames follow.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

from adapters.documents import Form
from adapters.errors import BadInput
from training.task_kinds import PICTURES

BASE = "base"  # the method name of the base model's own run
FROM_ONE = Form("a whole number from 1 on", lambda value: value >= 1)
POSITIVE = Form("a positive number", lambda value: 0 < value < float("inf"))
NOT_NEGATIVE = Form("0 or a positive number", lambda value: 0 <= value < float("inf"))
ANY_OF_TYPE = Form("what its type allows", lambda value: True)


@dataclass(frozen=True)
class Flag:
    """What is declared of a training flag beside its name, type, default and help.

    Attributes:
        allowed: what its value may be; of flags with steps in them, `Options.check` says more.
        varies_in_pack: whether cells of one pack may differ in it; else a pack's cells agree.
        added_later: whether it stands in no file and in no hash while a cell has its default: runs made before it existed keep
            their names. Every flag that is added from now on is.
        changes_base: whether the pictures of the base model depend on it.
        curve: how the name of a curve tells its value, as in "weight decay {}" or "{} step(s)", where curves differ in it.
    """

    allowed: Form = ANY_OF_TYPE
    varies_in_pack: bool = False
    added_later: bool = False
    changes_base: bool = False
    curve: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """How cells train and are evaluated: flags that are part of a run's identity."""

    rank: Annotated[int, Flag(FROM_ONE, curve="rank {}")] = 8
    """Rank of the low-rank factors."""
    steps: Annotated[int, Flag(NOT_NEGATIVE, curve="{} step(s)")] = 500
    """Optimiser steps; 0, with --init-adapter, only scores it."""
    eval_steps: Annotated[tuple[int, ...], Flag()] = ()
    """Steps after which pictures are made and scored, besides the last."""
    adam_weight_decay: Annotated[float, Flag(NOT_NEGATIVE, varies_in_pack=True, curve="weight decay {}")] = 0.01
    """Decoupled weight decay on every adapter parameter."""
    max_grad_norm: Annotated[float, Flag(NOT_NEGATIVE, varies_in_pack=True, curve="clip {}")] = 1.0
    """Largest gradient norm of one run; 0 switches clipping off."""
    train_batch_size: Annotated[int, Flag(FROM_ONE, curve="batch {}")] = 1
    """Subject pictures in one micro-batch."""
    gradient_accumulation_steps: Annotated[int, Flag(FROM_ONE, curve="accumulation {}")] = 1
    """Micro-batches in one step."""
    optimizer: Annotated[Literal["adamw", "prodigy"], Flag(added_later=True, curve="{}")] = "adamw"
    """`prodigy` (arXiv 2306.06101) estimates one rate d for all weights of a run, and the base rate, 1, is a multiple of d;
    DeLoRA's lambda keeps AdamW and its own rate; LoRA+'s second rate and --lr-magnitude, which one d cannot give, are refused."""
    d_coef: Annotated[float, Flag(POSITIVE, varies_in_pack=True, added_later=True, curve="d_coef {}")] = 1.0
    """Factor on Prodigy's estimate of d."""
    lr_scheduler: Annotated[Literal["constant", "cosine", "linear"], Flag(curve="{}")] = "constant"
    """Learning-rate schedule after the warm-up."""
    lr_warmup_steps: Annotated[int, Flag(NOT_NEGATIVE, curve="warm-up {}")] = 0
    """Steps of linear warm-up."""
    num_instance_images: Annotated[
        int, Flag(NOT_NEGATIVE, varies_in_pack=True, added_later=True, curve="trained on {}")
    ] = 0
    """Pictures of each subject that are trained on, from the first on; 0: all. All are scored against."""
    prior_loss_weight: Annotated[float, Flag(NOT_NEGATIVE, curve="prior {}")] = 0.0
    """Weight of the prior-preservation loss; 0 switches it off."""
    num_class_images: Annotated[int, Flag(NOT_NEGATIVE, curve="{} class picture(s)")] = 64
    """Class pictures for that loss, made once by the base."""
    snr_gamma: Annotated[float, Flag(NOT_NEGATIVE, curve="SNR gamma {}")] = 0.0
    """Gamma of the min-SNR loss weight (arXiv 2303.09556); 0 is the plain loss."""
    mixed_precision: Annotated[Literal["no", "bf16"], Flag(changes_base=True, curve="precision {}")] = "no"
    """bf16 autocast of the frozen base; adapters stay float32."""
    allow_tf32: Annotated[bool, Flag(changes_base=True, added_later=True)] = False
    """Let an NVIDIA GPU round float32 products to TF32."""
    resolution: Annotated[int | None, Flag(POSITIVE, changes_base=True, curve="{} px")] = None
    """Side of the pictures in pixels; default: the model's."""
    num_prompts: Annotated[int, Flag(FROM_ONE, changes_base=True, curve="{} prompt(s)")] = 8
    """Evaluation prompts of each subject."""
    num_images: Annotated[int, Flag(FROM_ONE, changes_base=True, curve="{} picture(s)")] = 2
    """Pictures for each prompt."""
    num_drift_prompts: Annotated[int, Flag(NOT_NEGATIVE, changes_base=True, added_later=True)] = 4
    """Unrelated prompts whose pictures' change from the base model's is scored; 0 for none."""
    num_inference_steps: Annotated[int | None, Flag(POSITIVE, changes_base=True, curve="{} sampler step(s)")] = None
    """Sampler steps; default: the model's."""
    guidance_scale: Annotated[float | None, Flag(NOT_NEGATIVE, changes_base=True, curve="guidance {}")] = None
    """Classifier-free guidance; default: the model's."""
    gauge_every: Annotated[int, Flag(FROM_ONE)] = 1
    """Steps between two rows of the dynamics."""
    norms_every: Annotated[int, Flag(FROM_ONE)] = 50
    """Steps between two snapshots of the weight norms."""
    sharpness_steps: Annotated[tuple[int, ...], Flag(added_later=True)] = ()
    """Steps before whose update the loss's sharpness (largest Hessian eigenvalue) is measured (1: at the start)."""


@dataclass(frozen=True, kw_only=True)
class RunningFlags:
    """How the work is done: no part of a run's identity, since results agree, up to rounding."""

    deterministic: bool = False
    """Take only algorithms whose sums have one order: the same bits each time on a GPU too, slower."""
    gradient_checkpointing: bool = False
    """Recompute activations instead of keeping them."""
    cache_latents: bool = True
    """Encode the subjects' pictures once; switched off, at every step."""
    pre_compute_text_embeddings: bool = True
    """Encode each prompt once; switched off, at every step."""
    spectra: bool = False
    """Store the updates' spectra with the norms of the weights, and at a run's end the weights' intruder dimensions."""


@dataclass(frozen=True, kw_only=True)
class Cell(TrainingFlags):
    """One run of a sweep. Rates are absolute; every field here, and every training flag, is part of the run's identity."""

    method: str
    """A name of `adapters.METHODS`, `peft:<type>`, the name of a user's own method with the hash of its file
    (`mymethod@1a2b3c4d5e`), or "base" for the base model."""
    options: str
    """The method's options in canonical form (`key=value,key=value`, defaults filled in)."""
    rank: int
    """r of the low-rank factors; 0 for methods without a rank."""
    subject: Annotated[str, Flag(varies_in_pack=True, changes_base=True)]
    """Name of the subject's folder."""
    seed: Annotated[int, Flag(varies_in_pack=True)]
    """Init, order of pictures, noise and time steps follow from (seed, step)."""
    steps: int
    """Optimiser steps."""
    lr: Annotated[float, Flag(varies_in_pack=True)]
    """Rate of the factors (B and A, or ETHER's vectors); under Prodigy what d is multiplied by."""
    lr_lambda: Annotated[float | None, Flag(varies_in_pack=True)] = None
    """Rate of DeLoRA's lambda; None where the method trains none."""
    lr_magnitude: Annotated[float | None, Flag(varies_in_pack=True)] = None
    """Rate of DoRA's m; None where the method has none."""
    boundary: Annotated[float | None, Flag(varies_in_pack=True, curve="lambda {}")] = None
    """lambda at the start (DeLoRA, NB-LoRA); None elsewhere."""
    # Where a flag's None means the model's own value, a cell holds the number; its defaults are the pocket's, without extras.
    resolution: int = 64
    num_inference_steps: int = 12
    guidance_scale: float = 4.0
    num_class_images: int = 0
    num_drift_prompts: int = 0
    model_hash: Annotated[str, Flag(changes_base=True)] = ""
    """Content of the model."""
    subject_hash: Annotated[str, Flag(varies_in_pack=True, changes_base=True)] = ""
    """Content of the subject's pictures and prompts."""
    scorer_hash: Annotated[str, Flag(changes_base=True)] = ""
    """Content of the scorers."""
    task: Annotated[str, Flag(changes_base=True, added_later=True)] = PICTURES
    """Name of the task (`training.task_kinds`)."""
    task_options: Annotated[str, Flag(changes_base=True, added_later=True, curve="{}")] = ""
    """The task's options in canonical form (`key=value,key=value`, defaults filled in)."""
    init_adapter: Annotated[str, Flag(added_later=True, curve="from adapter {}")] = ""
    """Content of the adapter that the run starts from; empty for the method's own start."""

    def identity(self) -> str:
        """SHA-256 over every field of `to_dict`, in hexadecimal: the same cell asked for twice runs once."""
        return self._identity

    @functools.cached_property
    def _identity(self) -> str:
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def run_id(self, label: str) -> str:
        """The folder's name, `delora-r16-x4-s0-dog-1a2b3c4d5e`; `label` is what stands for the rate or the step."""
        return f"{self.method_stem}-r{self.rank}-{label}-s{self.seed}-{self.subject}-{self.identity()[:10]}"

    @property
    def method_stem(self) -> str:
        """The method as the beginning of a file's name: `peft:boft` is `peft-boft`."""
        return self.method.replace(":", "-")

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        fields = {name: getattr(self, name) for name in FLAGS}
        fields |= {name: list(fields[name]) for name in STEP_LISTS}
        return {name: value for name, value in fields.items() if name not in NEWER or value != NEWER[name]}

    @classmethod
    def from_dict(cls, fields: Mapping) -> Cell:
        """The inverse of `to_dict`.

        Raises:
            BadInput: if a field is unknown or missing; the message lists the known ones.
        """
        if unknown := sorted(set(fields) - FLAGS.keys()):
            raise BadInput(f"unknown cell field {unknown[0]!r}; known fields: {', '.join(sorted(FLAGS))}")
        try:
            return cls(**(dict(fields) | {name: tuple(fields.get(name, ())) for name in STEP_LISTS}))
        except TypeError as error:
            raise BadInput(f"incomplete cell: {error}") from None

    def pack_key(self) -> tuple:
        """Cells with equal keys may train in one pack: they differ only in what is declared `varies_in_pack`."""
        return tuple(getattr(self, name) for name in KEY_FIELDS)

    def evaluated_steps(self) -> list[int]:
        """Steps after which this run is scored, the last one included, in order."""
        return sorted({step for step in self.eval_steps if 0 <= step < self.steps} | {self.steps})

    def base(self) -> Cell:
        """The cell of the base model that this run is compared with: same subject, pictures and scorers."""
        kept = {name: getattr(self, name) for name, flag in FLAGS.items() if flag.changes_base}
        return Cell(method=BASE, options="", rank=0, seed=0, steps=0, lr=0.0, **kept)


def _declared(kind: type, name: str) -> Flag | None:
    """The flag that a class declares of a field, if it does."""
    hint = get_type_hints(kind, include_extras=True).get(name)
    return next((part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Flag)), None)


FLAGS: dict[str, Flag] = {
    field.name: _declared(Cell, field.name) or _declared(TrainingFlags, field.name) or Flag()
    for field in dataclasses.fields(Cell)
}
TYPES: dict[str, Any] = get_type_hints(Cell)
STEP_LISTS = tuple(name for name in FLAGS if TYPES[name] == tuple[int, ...])
NUMBERS = tuple(name for name in FLAGS if TYPES[name] in (int, float, float | None))
NEWER: dict[str, object] = {
    name: list(getattr(Cell, name)) if name in STEP_LISTS else getattr(Cell, name)
    for name in FLAGS
    if FLAGS[name].added_later
}
KEY_FIELDS = tuple(name for name, flag in FLAGS.items() if not flag.varies_in_pack)


def by_pack_key(cells: Iterable[Cell]) -> dict[tuple, list[Cell]]:
    """Group cells that may share a pack, in the order given."""
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.pack_key(), []).append(cell)
    return groups
