"""Plateau's own tasks. Imports no torch: what trains them is named, and imported where it is used."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from training.columns import CONTROL_ORDER
from training.task_kinds import ControlSet, Metric, TaskKind

COSINE = (-1.0, 1.0)


def _picture_rows(cell: Any) -> int:
    return int(cell.train_batch_size) * (2 if cell.prior_loss_weight > 0 else 1)


def _picture_passes(cell: Any) -> int:
    pictures = cell.num_prompts * cell.num_images + cell.num_drift_prompts
    return int((2 if cell.guidance_scale != 1 else 1) * cell.num_inference_steps * pictures)


def _picture_shape(cell: Any) -> str:
    return f"{cell.resolution}-{cell.mixed_precision}-{cell.prior_loss_weight > 0:d}"


PICTURES = TaskKind(
    name="pictures",
    title="DreamBooth: a Stable Diffusion learns a subject from a few pictures",
    metrics=(
        Metric("dino", "DINO", "likeness to the subject", *COSINE),
        Metric("clip_i", "CLIP-I", "likeness to the subject", *COSINE),
        Metric("clip_t", "CLIP-T", "likeness to the prompt", *COSINE),
        Metric("drift", "drift", "change of other pictures", 0.0, 1.0, lower_is_better=True, is_side_effect=True),
    ),
    maker="training.tasks.picture_maker:MAKER",
    prompt_metric="clip_t",
    part="U-Net",
    flags=frozenset(
        (
            "num_instance_images",
            "prior_loss_weight",
            "num_class_images",
            "snr_gamma",
            "resolution",
            "num_prompts",
            "num_images",
            "num_drift_prompts",
            "num_inference_steps",
            "guidance_scale",
            "cache_latents",
            "pre_compute_text_embeddings",
            "dino",
            "clip",
            "token",
        )
    ),
    rows=_picture_rows,
    passes=_picture_passes,
    shape=_picture_shape,
    published_rates="sd15",
    has_pictures=True,
    controls=ControlSet(
        kinds=MappingProxyType(
            {
                "real": "photographs",
                "vae": "their VAE reconstructions",
                "same_class": "same class",
                "other": "other subjects",
                "shuffled": "shuffled patches",
                "noise": "noise",
                "flat": "flat colour",
                "latent_noise": "decoded noise",
                "blurred": "blurred photographs",
            }
        ),
        order=CONTROL_ORDER,
        apart=("same_class", "other", "shuffled", "flat", "noise", "latent_noise"),
        near=("other", "flat", "noise", "latent_noise"),
        needed=("real", "vae", "other", "shuffled", "flat", "noise", "latent_noise"),  # a class may have one subject
        thing="photograph",
    ),
)

TEXT = TaskKind(
    name="text",
    title="sentiment: a pretrained encoder learns which sentences people rated positive",
    metrics=(
        Metric("accuracy", "balanced accuracy", "sentences told right", 0.0, 1.0),
        Metric("matthews", "Matthews", "correlation of answers and labels", *COSINE),
        Metric(
            "drift", "drift", "change of other domains' sentences", 0.0, 1.0, lower_is_better=True, is_side_effect=True
        ),
    ),
    maker="training.tasks.text_maker:MAKER",
    unit="training set",
    part="encoder",
    options=MappingProxyType({"tokens": 48, "sentences": 512, "head_lr": 1e-3, "head": "fixed", "targets": "all"}),
    choices=MappingProxyType({"head": ("fixed", "follows"), "targets": ("all", "attention", "qv")}),
    least=MappingProxyType({"tokens": 3, "sentences": 2, "head_lr": 0.0}),
    defaults=MappingProxyType({"model": "minilm", "steps": 60, "train_batch_size": 16, "norms_every": 20}),
    passes=lambda cell: 396,
    controls=ControlSet(
        kinds=MappingProxyType(
            {"probe": "the probe", "shuffled_labels": "probes of shuffled labels", "majority": "the larger class"}
        ),
        order=("probe", "shuffled_labels"),
        apart=("shuffled_labels", "majority"),
        near=(),
        needed=("probe", "shuffled_labels", "majority"),
        thing="test sentence",
    ),
)

GLUE = TaskKind(
    name="glue",
    title="GLUE: a pretrained encoder learns the benchmark's tasks (DeLoRA, Table 4)",
    metrics=(
        Metric("score", "score", "the task's own: Matthews (CoLA), correlation (STS-B), accuracy", *COSINE),
        Metric(
            "drift", "drift", "change of other tasks' sentences", 0.0, 1.0, lower_is_better=True, is_side_effect=True
        ),
    ),
    maker="training.tasks.glue_task:MAKER",
    unit="task",
    num_units=8,
    part="encoder",
    options=MappingProxyType({"tokens": 256, "sentences": 0, "head_lr": 1e-3, "head": "fixed", "targets": "qv"}),
    choices=TEXT.choices,
    least=MappingProxyType({"tokens": 3, "sentences": 0, "head_lr": 0.0}),
    defaults=MappingProxyType(
        {"model": "FacebookAI/roberta-base", "steps": 2000, "train_batch_size": 32, "norms_every": 200}
    ),
    passes=lambda cell: 1000,  # rows to test on are 138 (RTE) to 39,000 (QQP)
    published_rates="glue",
)

ANSWERS = TaskKind(
    name="answers",
    title="instruction tuning: a decoder learns to give the answers of prompts",
    metrics=(
        Metric("answer_loss", "loss of answers", "nats a token of held-out answers", 0.0, lower_is_better=True),
        Metric("right_tokens", "tokens told", "share of the answers' tokens that were the likeliest", 0.0, 1.0),
        Metric(
            "drift", "drift", "change of other domains' prompts", 0.0, 1.0, lower_is_better=True, is_side_effect=True
        ),
    ),
    maker="training.tasks.answer_task:MAKER",
    unit="training set",
    part="decoder",
    options=MappingProxyType({"tokens": 256, "rows": 512, "targets": "qv"}),
    choices=MappingProxyType({"targets": ("qv", "attention", "all")}),
    least=MappingProxyType({"tokens": 3, "rows": 2}),
    defaults=MappingProxyType({"steps": 200, "train_batch_size": 8, "norms_every": 50}),
    passes=lambda cell: 396,
    published_rates="instruct",
)

KINDS = (PICTURES, TEXT, GLUE, ANSWERS)
