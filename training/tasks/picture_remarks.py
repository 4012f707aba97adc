"""Remarks of a plan on its model, subjects and prompts, so that every decision about them is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapters.words import counted
from training.tasks.picture_folder import describe_remarks
from training.tasks.pipeline import POCKET_MODEL, POCKET_SUBJECTS
from training.tasks.prompt_length import Cut, find_cut
from training.tasks.scorers import POCKET_CLIP, POCKET_DINO


def describe_inputs(inputs: Any) -> list[str]:
    """Lines on what the user has to know: where the pocket is out of its world, what becomes of pictures and prompts.

    Args:
        inputs: of a sweep: its `setting`, `shared` fields and `subjects`.

    Raises:
        BadInput: if a tokenizer is damaged.
    """
    pictures = [remark for subject in inputs.subjects for remark in subject.remarks]
    return [*_describe_pocket(inputs), *describe_remarks(pictures), *_describe_prompts(inputs)]


def _describe_pocket(inputs: Any) -> list[str]:
    setting = inputs.setting
    if Path(setting.subjects) == POCKET_SUBJECTS.resolve():
        return []
    parts = {
        "model": (setting.model, POCKET_MODEL),
        "DINO": (setting.dino, POCKET_DINO),
        "CLIP": (setting.clip, POCKET_CLIP),
    }
    pocket = [name for name, (used, own) in parts.items() if Path(used).resolve() == own.resolve()]
    if not pocket:
        return []
    know = "knows" if len(pocket) == 1 else "know"
    return [
        f"the pocket's {_join(pocket)} {know} 65 emoji and nothing else: what comes out says nothing about photographs"
    ]


def _describe_prompts(inputs: Any) -> list[str]:
    """A line where the model's text encoders cut a prompt, or where CLIP alone does for its scores."""
    count, drift = (int(inputs.shared[name]) for name in ("num_prompts", "num_drift_prompts"))
    asked = [
        prompt for s in inputs.subjects for prompt in (*s.prompts[:count], s.instance_prompt, *s.unrelated[:drift])
    ]
    plain = [prompt for s in inputs.subjects for prompt in s.plain_prompts[:count]]
    model = Path(inputs.setting.model)
    readers = [(model / part, asked, "") for part in ("tokenizer", "tokenizer_2") if (model / part).is_dir()]
    readers.append((Path(inputs.setting.clip), plain, " for CLIP-T"))
    for folder, prompts, where in readers:
        if cut := find_cut(folder, list(dict.fromkeys(prompts))):
            return [_describe_cut(cut, prompts) + where]
    return []


def _describe_cut(cut: Cut, prompts: Sequence[str]) -> str:
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts), 1)}
    groups = [_join([f"{numbers[p]} ({_shorten(p)})" for p in group]) for group in cut.alike[:3]]
    same = f"; the same after that: {'; '.join(groups)}{' and others' if len(cut.alike) > 3 else ''}" if groups else ""
    are = "is" if len(cut.prompts) == 1 else "are"
    return f"{len(cut.prompts)} of {counted(len(numbers), 'prompt')} {are} cut at {cut.places} tokens{same}"


def _shorten(prompt: str) -> str:
    """A long prompt's end, which is what tells it from others."""
    return prompt if len(prompt) <= 40 else f"...{prompt[-37:]}"


def _join(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
