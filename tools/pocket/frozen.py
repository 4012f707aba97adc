"""The parts that later stages are trained on, kept in half precision while the others are not there yet.

    python -m tools.pocket.frozen --work DIR --part vae clip        # keep the autoencoder and the text tower of DIR

A stage is taken from here, not trained, where a folder of work has neither its model nor its checkpoint; what is trained on
top of it is then trained on what ships.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTokenizer, ViTModel

from adapters.ending import end_well
from tools.pocket.clip import save_clip
from tools.pocket.export import drop_local_paths, load_as_float32, weigh
from tools.pocket.runs import checkpoint_path

FROZEN = Path(__file__).with_name("frozen")
PARTS = ("vae", "clip", "dino", "unet", "clip_vision")
OF_ORDINARY = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "dino": ViTModel}


def take(work: Path, part: str, frozen: Path = FROZEN) -> bool:
    """Copy a kept part to ``work/<part>/model`` unless the stage has begun there; returns whether there is nothing to train."""
    kept, model = frozen / part, work / part / "model"
    if not kept.is_dir() or checkpoint_path(work / part).exists():
        return False
    if not model.exists():
        shutil.copytree(kept, model)
    return True


def keep(work: Path, parts: Sequence[str], frozen: Path = FROZEN) -> dict[str, float]:
    """Write models of ``work`` in half precision, and take them up there; returns megabytes of all that is kept."""
    for part in parts:
        model, kept = work / part / "model", frozen / part
        shutil.rmtree(kept, ignore_errors=True)
        if part in ("clip", "clip_vision"):
            save_clip(CLIPModel.from_pretrained(model).half(), CLIPTokenizer.from_pretrained(model), kept)
        else:
            more = {"add_pooling_layer": False} if part == "dino" else {}
            OF_ORDINARY[part].from_pretrained(model, **more).half().save_pretrained(kept)
        drop_local_paths(kept)
    load_as_float32(frozen, parts=[part for part in parts if part in ("clip", "clip_vision", "dino")])
    for part in parts:
        shutil.rmtree(work / part / "model")
        shutil.copytree(frozen / part, work / part / "model")
    return weigh(frozen)


def main() -> int:
    """Keep what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("~/.cache/plateau/pocket"), help="as for tools.pocket.build")
    parser.add_argument("--part", nargs="+", choices=PARTS, required=True, help="whose stages have ended")
    arguments = parser.parse_args()
    print(keep(arguments.work.expanduser(), arguments.part))
    return 0


if __name__ == "__main__":
    sys.exit(end_well(main))
