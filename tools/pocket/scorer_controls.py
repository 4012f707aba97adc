"""Controls of the scorers while they are made: real pictures only, no pipeline, as docs/statistics.md says.

    python -m tools.pocket.scorer_controls --work DIR --split tuning       # on the subjects by which scorers are chosen

Reads the newest weights of the stages ``dino`` and ``clip_vision``, trained to the end or not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, ViTModel

from adapters.ending import end_well
from analysis.control_verdicts import control_gaps, judge_controls
from tools.pocket.clip import embed_image
from tools.pocket.dino import embed, make_dino
from tools.pocket.likeness import decode_noise
from tools.pocket.pictures import TRAIN_VENDORS, PictureSet, load_pictures
from tools.pocket.runs import checkpoint_path, read_counters, read_group, seeded
from tools.pocket.split import draw_split
from tools.pocket.studio import open_studio
from tools.pocket.subjects import photograph_class
from tools.pocket.vae import round_trip
from tools.pocket.vae_quality import newest_vae
from training.store import COLUMNS, CONTROL_KINDS
from training.task_kinds import TaskKind
from training.tasks.controls import NUM_NOISE, PER_OTHER, blur, shuffle_patches
from training.tasks.kinds import PICTURES

Embed = Callable[[Float[Tensor, "n 3 64 64"]], Float[Tensor, "n d"]]


@dataclass(eq=False)
class Scores:
    """What `analysis.control_verdicts` reads of a sweep's results; no base model was drawn."""

    controls: pd.DataFrame
    base: pd.DataFrame
    kind: TaskKind = PICTURES


class ScorerBench:
    """Photographs of subjects, and what stands in for generated pictures of them.

    Args:
        names: of the subjects; the others' photographs are taken from them too.
    """

    def __init__(self, pictures: PictureSet, vae: AutoencoderKL, names: Sequence[str]) -> None:
        self.pictures, self.vae, self.names = pictures, vae.eval(), names
        self.photographs = {name: photograph_class(pictures, name) for name in names}
        g = seeded(0, 0)
        pixels = torch.rand(NUM_NOISE, 3, 64, 64, generator=g) * 2 - 1
        self.noise = {"noise": pixels, "latent_noise": decode_noise(vae, NUM_NOISE, g)}

    def pictures_of(self, name: str) -> dict[str, Float[Tensor, "n 3 64 64"]]:
        """Pictures to be scored, by kind, in [-1, 1]."""
        real = self.photographs[name]
        half = (real + 1) / 2
        made = {
            "real": real,
            "vae": round_trip(self.vae, real),
            "blurred": blur(half) * 2 - 1,
            "shuffled": shuffle_patches(half) * 2 - 1,
            "flat": real.mean(dim=(2, 3), keepdim=True).expand_as(real),
        }
        same = [photograph_class(self.pictures, name, vendor=vendor)[:PER_OTHER] for vendor in TRAIN_VENDORS]
        others = [photographs[:PER_OTHER] for other, photographs in self.photographs.items() if other != name]
        return made | {"same_class": torch.cat(same), "other": torch.cat(others)} | self.noise

    @torch.no_grad()
    def measure(self, metric: str, see: Embed) -> Scores:
        """Cosines as `training.tasks.controls` leaves them, and no base model."""
        rows: list[tuple[Any, ...]] = []
        for name in self.names:
            against = see(self.photographs[name])
            for kind, pictures in self.pictures_of(name).items():
                own = kind in ("real", "vae", "blurred", "shuffled", "flat")
                for i, values in enumerate((see(pictures) @ against.T).tolist()):
                    label = f"{i:02d}.png" if own else f"#{i + 1}"
                    rows += [
                        (name, metric, kind, label, f"{j:02d}.png", v)
                        for j, v in enumerate(values)
                        if label != f"{j:02d}.png"
                    ]
        none = pd.DataFrame(columns=["subject", "metric", "value"])
        return Scores(pd.DataFrame(rows, columns=["subject", *COLUMNS["controls"]]), none)


def newest_dino(work: Path) -> Embed:
    """The averaged ViT of ``work/dino``'s checkpoint; without one, the stage's model."""
    dino = make_dino().eval()
    if checkpoint_path(work / "dino").exists():
        dino.load_state_dict(read_group(checkpoint_path(work / "dino"), "ema"))
    else:
        dino = ViTModel.from_pretrained(work / "dino" / "model", add_pooling_layer=False).eval()
    return lambda images: embed(dino, images)


def newest_clip(work: Path) -> Embed:
    """The averaged vision tower of ``work/clip_vision``'s checkpoint; without one, the stage's model."""
    begun = checkpoint_path(work / "clip_vision")
    folder = work / ("clip" if begun.exists() else "clip_vision") / "model"
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    if begun.exists():
        clip.load_state_dict(read_group(begun, "ema"), strict=False)
    return lambda images: embed_image(clip, images)


SCORERS = {"dino": newest_dino, "clip_vision": newest_clip}


def report(work: Path, split: str, stages: Sequence[str]) -> None:
    """Print each subject's verdict, and how often each criterion fails."""
    pictures = load_pictures(work)
    names = [name for name, of in draw_split().items() if of == split]
    bench = ScorerBench(pictures, newest_vae(work, open_studio(pictures)), names)
    for stage in stages:
        scores = bench.measure("dino" if stage == "dino" else "clip_i", SCORERS[stage](work))
        table, gaps, kinds = judge_controls(scores), control_gaps(scores), list(CONTROL_KINDS)
        begun = checkpoint_path(work / stage)
        print(stage, read_counters(begun) if begun.exists() else "of the stage that has ended")
        with pd.option_context("display.width", 200, "display.max_columns", 20, "display.max_colwidth", 90):
            print(table[["subject", *kinds, "verdict", "why"]].round(2).to_string(index=False))
            print(table[kinds].mean().round(3).to_dict())
            print(gaps.groupby("criterion", sort=False)["verdict"].value_counts().unstack(fill_value=0))


def main() -> int:
    """Report on the newest scorers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("~/.cache/plateau/pocket"), help="as for tools.pocket.build")
    parser.add_argument("--split", choices=("tuning", "evidence", "last_look"), default="tuning")
    parser.add_argument("--stage", nargs="+", choices=tuple(SCORERS), default=["dino"])
    arguments = parser.parse_args()
    report(arguments.work.expanduser(), arguments.split, arguments.stage)
    return 0


if __name__ == "__main__":
    sys.exit(end_well(main))
