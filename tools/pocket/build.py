"""Remake the pocket pipeline from the packages.

python -m tools.pocket.build                       # everything, in order
python -m tools.pocket.build --stage unet          # one stage; a stopped stage goes on where it was
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tools.pocket.pictures import PACKAGES, PictureSet, build_pictures
from tools.pocket.studio import open_studio
from training.command_line import end_well
from training.tasks.pipeline import POCKET

if TYPE_CHECKING:
    from tools.pocket.likeness import Likeness

STAGES = ("pictures", "vae", "clip", "dino", "unet", "clip_vision", "subjects", "export")
NUM_STEPS = {"vae": 8_000, "clip": 2_200, "dino": 7_600, "unet": 10_000, "clip_vision": 2_000}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=STAGES, help="what to make; default: all")
    parser.add_argument("--work", type=Path, default=Path("~/.cache/plateau/pocket"), help="checkpoints, logs, caches")
    parser.add_argument("--packages", type=Path, help="folder with the three .tgz; default: npm pack")
    parser.add_argument("--steps", type=int, help="training steps of the chosen stages; default: per stage")
    parser.add_argument("--threads", type=int, help="torch threads; default: torch's")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def run_stage(stage: str, arguments: argparse.Namespace) -> None:
    """Make one stage; imports late, so that a stage loads only what it needs."""
    work, seed = arguments.work.expanduser(), arguments.seed
    work.mkdir(parents=True, exist_ok=True)
    num_steps = arguments.steps or NUM_STEPS.get(stage, 0)
    pictures = build_pictures(work, arguments.packages)
    record_versions(work, stage, seed, num_steps)
    makers = {
        "vae": _vae, "clip": _clip, "dino": _dino, "unet": _unet, "clip_vision": _clip_vision,
        "subjects": _subjects, "export": _export,
    }  # fmt: skip
    makers.get(stage, _nothing)(pictures, work, num_steps, seed)


def record_versions(work: Path, stage: str, seed: int, num_steps: int) -> None:
    """Append what ran, with which versions and on which machine, to ``work/provenance.jsonl``."""
    row = {
        "stage": stage,
        "seed": seed,
        "num_steps": num_steps,
        "machine": _processor(),
        "threads": torch.get_num_threads(),
    }
    row |= {name: version(name) for name in ("torch", "diffusers", "transformers", "tokenizers", "numpy", "pillow")}
    row |= {"python": platform.python_version(), "packages": PACKAGES}
    with (work / "provenance.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":")[1].strip()
            for line in info.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
        if info.exists()
        else []
    )
    return f"{names[0]} x {len(names)}" if names else platform.processor()


def _nothing(pictures: PictureSet, work: Path, num_steps: int, seed: int) -> None:
    """The pictures stage is over once the pictures are read."""


def _vae(pictures: PictureSet, work: Path, num_steps: int, seed: int) -> None:
    from tools.pocket.vae import train_vae

    train_vae(pictures, work, num_steps=num_steps, seed=seed)


def _clip(pictures: PictureSet, work: Path, num_steps: int, seed: int) -> None:
    from tools.pocket.clip import train_clip

    train_clip(open_studio(pictures), work, num_steps=num_steps, seed=seed)


def _likeness(pictures: PictureSet, work: Path, seed: int) -> Likeness:
    from diffusers import AutoencoderKL

    from tools.pocket.likeness import Likeness, decoded_cache

    studio = open_studio(pictures)
    vae = AutoencoderKL.from_pretrained(work / "vae" / "model").eval()
    return Likeness(studio, decoded_cache(studio, vae, work, seed=seed))


def _dino(pictures: PictureSet, work: Path, num_steps: int, seed: int) -> None:
    from tools.pocket.dino import train_dino

    train_dino(_likeness(pictures, work, seed), work, num_steps=num_steps, seed=seed)


def _unet(pictures: PictureSet, work: Path, num_steps: int, seed: int) -> None:
    from tools.pocket.unet import load_frozen, train_unet, view_cache

    views = view_cache(open_studio(pictures, only_classes=True), *load_frozen(work), work, seed=seed)
    train_unet(views, work, num_steps=num_steps, seed=seed)


def _clip_vision(pictures: PictureSet, work: Path, num_steps: int, seed: int) -> None:
    from tools.pocket.clip import train_vision

    train_vision(open_studio(pictures), _likeness(pictures, work, seed), work, num_steps=num_steps, seed=seed)


def _subjects(pictures: PictureSet, work: Path, num_steps: int, seed: int) -> None:
    from tools.pocket.subjects import write_subjects

    write_subjects(pictures, POCKET / "subjects", seed)


def _export(pictures: PictureSet, work: Path, num_steps: int, seed: int) -> None:
    from tools.pocket.export import export

    print(json.dumps(export(work), indent=1))


def main() -> int:
    """Run the chosen stages in order."""
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    for stage in STAGES:
        if stage in arguments.stage:
            print(f"== {stage}", flush=True)
            run_stage(stage, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(end_well(main))
