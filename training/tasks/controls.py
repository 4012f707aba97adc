"""Controls of the scorers: score what they must tell apart, in place of generated pictures.

A subject's photographs are scored against each other, each left out of those that it is scored against; so is what is
made of them: reconstructions by the model's VAE, blurred ones, shuffled patches, the flat mean colour. Beside them stand
photographs of other subjects, noise, and what the VAE makes of noise, as a broken adapter does. No picture is generated.
`analysis.controls` judges the scores.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from adapters.errors import BadInput, printable
from training.columns import COLUMNS
from training.seeds import seed_of
from training.store import RunFolder
from training.tasks.picture_folder import list_pictures
from training.tasks.sampling import start_noise
from training.tasks.scorers import to_tensor
from training.tasks.subject import SubjectTask
from training.tasks.subject_tables import read_table
from training.tasks.subjects import Subject, class_of, names, open_pictures

VERSION = 1  # of what is measured: another one is measured anew
MOST_OTHERS, PER_OTHER = 30, 3  # subjects of the same folder, the first by name, and photographs of each
NUM_NOISE = 8
PATCHES = 4  # along a side
BLUR = 1 / 32  # of a side: the standard deviation
AT_A_TIME = 16  # pictures that a scorer takes

Features = dict[str, Tensor]  # by metric, `[picture, feature]`


@dataclass(frozen=True)
class Photographs:
    """Some photographs of one of the folder's subjects.

    Attributes:
        subject, cls: its name and class.
        labels: `<subject>/<file>` of each.
        features: by metric.
    """

    subject: str
    cls: str
    labels: list[str]
    features: Features


class Controls:
    """The controls of a pack's subjects, with the pack's own scorers, VAE and resolution.

    Args:
        task: the pack's, with scorers.
        folder: of subjects; the others are taken from it.
    """

    def __init__(self, task: SubjectTask, folder: Path) -> None:
        self.task, self.folder = task, folder
        self._side = task.shared.resolution

    @torch.no_grad()
    def measure(self, subject: Subject) -> pd.DataFrame:
        """Cosines of every picture with each of the subject's photographs.

        Returns:
            Rows metric ("dino", "clip_i"), kind (of `CONTROL_KINDS`), picture (its name or number), against (the photograph's
            name), value. A photograph, and what is made of it, is not scored against itself.
        """
        real = self.task.pictures[subject.name]
        own = [printable(path.name) for path in subject.pictures]
        made = {kind: (own, self._features(change(real))) for kind, change in self._changes(subject).items()}
        drawn = {kind: ([f"#{n}" for n in range(1, NUM_NOISE + 1)], found) for kind, found in self._noise.items()}
        others = {
            kind: ([label for o in chosen for label in o.labels], _join([o.features for o in chosen]))
            for kind, chosen in self._others(subject).items()
            if chosen
        }
        photographs = made["real"][1]
        rows = [
            (metric, kind, label, other, float(value))
            for kind, (labels, features) in (made | others | drawn).items()
            for metric in photographs
            for label, values in zip(labels, (features[metric] @ photographs[metric].T).cpu(), strict=True)
            for other, value in zip(own, values, strict=True)
            if label != other
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS["controls"]))

    def _changes(self, subject: Subject) -> dict[str, Callable[[Tensor], Tensor]]:
        """What is made of a subject's photographs, by kind."""
        latents = self.task.clean_latents(subject.name, list(range(len(subject.pictures))))
        return {
            "real": lambda real: real,
            "vae": lambda _: self.task.to_pictures(latents) / 255,
            "blurred": blur,
            "shuffled": shuffle_patches,
            "flat": lambda real: real.mean(dim=(2, 3), keepdim=True).expand_as(real),
        }

    @cached_property
    def _noise(self) -> dict[str, Features]:
        """Noise in pixels, and the VAE's pictures of noise in latents."""
        seeds = [seed_of("control", number) for number in range(NUM_NOISE)]
        draws = [torch.rand(3, self._side, self._side, generator=torch.Generator().manual_seed(s)) for s in seeds]
        decoded = self.task.to_pictures(start_noise(self.task.pipeline, seeds, self._side)) / 255
        return {"noise": self._features(torch.stack(draws)), "latent_noise": self._features(decoded)}

    @cached_property
    def _photographs(self) -> list[Photographs]:
        found = []
        for name, cls, paths in choose_photographs(self.folder):
            pictures = _open(paths, self._side)
            if pictures:
                labels = [printable(f"{name}/{path.name}") for path in pictures]
                found.append(Photographs(name, cls, labels, self._features(to_tensor(list(pictures.values())))))
        return found

    def _others(self, subject: Subject) -> dict[str, list[Photographs]]:
        """Photographs of other subjects, those of the same class apart."""
        others = [found for found in self._photographs if found.subject != subject.name]
        return {
            "same_class": [found for found in others if found.cls == subject.cls],
            "other": [found for found in others if found.cls != subject.cls],
        }

    def _features(self, pictures: Float[Tensor, "n 3 h w"]) -> Features:
        assert self.task.scorers is not None
        scorers, parts = self.task.scorers, pictures.split(AT_A_TIME)
        return _join([{"dino": scorers.dino_features(part), "clip_i": scorers.clip_features(part)} for part in parts])


def leave_controls(
    task: SubjectTask,
    folders: Sequence[RunFolder | None],
    may_go_on: Callable[[], None] = lambda: None,
    before_write: Callable[[], None] = lambda: None,
) -> None:
    """Leave the controls of a pack's scorers in the base model's run of each subject.

    Args:
        task: the pack's; nothing is done where it has no scorers.
        folders: the runs, in its order; None for one that is left alone.
        may_go_on: called between subjects; may raise, to break off.
        before_write: called before anything is written; may raise.
    """
    if task.scorers is None:
        return
    folder_of_subjects = task.subjects[0].pictures[0].parents[1]
    controls, key = Controls(task, folder_of_subjects), key_of(folder_of_subjects)
    for folder, subject in zip(folders, task.subjects, strict=True):
        if folder is not None:
            may_go_on()
            rows = controls.measure(subject)
            before_write()
            folder.write_controls(rows, key)


def choose_photographs(folder: Path) -> list[tuple[str, str, list[Path]]]:
    """Name, class and some photographs of subjects of a folder, from which a subject's others are taken."""
    table = read_table(folder)
    chosen = names(folder)[: MOST_OTHERS + 1]
    return [(name, class_of(name, table.get(name, {})), list_pictures(folder / name)[:PER_OTHER]) for name in chosen]


def key_of(folder: Path) -> str:
    """What controls hang on besides the hash of the base model's run: the others' photographs, and how it is done."""
    digest = hashlib.sha256(repr((VERSION, PER_OTHER, MOST_OTHERS, NUM_NOISE, PATCHES, BLUR)).encode())
    for name, cls, paths in choose_photographs(folder):
        for path in paths:
            digest.update(f"{name} {cls} {path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()[:16]


def _join(parts: Sequence[Features]) -> Features:
    return {metric: torch.cat([part[metric] for part in parts]) for metric in parts[0]}


def _open(paths: Sequence[Path], side: int) -> dict[Path, Image.Image]:
    """Photographs that can be read; of the others the user is told."""
    found = {}
    for path in paths:
        try:
            (found[path],) = open_pictures([path], side)
        except BadInput as error:
            print(f"left out of the controls: {error}", file=sys.stderr)
    return found


def blur(pictures: Float[Tensor, "n 3 h w"], share: float = BLUR) -> Float[Tensor, "n 3 h w"]:
    """Pictures under a Gaussian whose standard deviation is a share of their height, mirrored at the borders."""
    sd = share * pictures.shape[-2]
    reach = max(1, math.ceil(3 * sd))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=pictures.dtype) / sd) ** 2)
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    padded = F.pad(pictures, (reach, reach, reach, reach), mode="reflect")
    across = F.conv2d(padded, weights, groups=3)
    return F.conv2d(across, weights.transpose(2, 3), groups=3).clamp(0, 1)


def shuffle_patches(pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Pictures with their `PATCHES` x `PATCHES` squares in another order, one of its own for each picture.

    Colours and textures stay, the thing does not; pixels that a side has over stay where they are.
    """
    seeds = [seed_of("patches", number) for number in range(len(pictures))]
    orders = [torch.randperm(PATCHES**2, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return arrange_patches(pictures, torch.stack(orders), PATCHES)


def arrange_patches(
    pictures: Float[Tensor, "n 3 h w"], orders: Int[Tensor, "n p"], along: int
) -> Float[Tensor, "n 3 h w"]:
    """Pictures whose `along` x `along` squares stand in the given orders; pixels that a side has over stay where they are."""
    side = pictures.shape[-1] // along
    whole, arranged = along * side, pictures.clone()
    squares = F.unfold(pictures[..., :whole, :whole], side, stride=side)  # picture, colour and pixel, square
    moved = squares.gather(2, orders[:, None].expand_as(squares))
    arranged[..., :whole, :whole] = F.fold(moved, (whole, whole), side, stride=side)
    return arranged
