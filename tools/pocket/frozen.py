"""The parts that later stages are trained on, kept in half precision while the others are not there yet.

    python -m tools.pocket.frozen --work DIR        # keep the autoencoder and the text tower of DIR

Stages ``vae`` and ``clip`` are taken from here, not trained, where a folder of work has neither their models nor their
checkpoints; the U-Net is trained on what ships.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from diffusers import AutoencoderKL
from transformers import CLIPModel, CLIPTokenizer

from adapters.ending import end_well
from tools.pocket.clip import save_clip
from tools.pocket.export import drop_local_paths, load_as_float32, weigh
from tools.pocket.runs import checkpoint_path

FROZEN = Path(__file__).with_name("frozen")
PARTS = ("vae", "clip")


def take(work: Path, part: str, frozen: Path = FROZEN) -> bool:
    """Copy a kept part to ``work/<part>/model`` unless the stage has begun there; returns whether there is nothing to train."""
    kept, model = frozen / part, work / part / "model"
    if not kept.is_dir() or checkpoint_path(work / part).exists():
        return False
    if not model.exists():
        shutil.copytree(kept, model)
    return True


def keep(work: Path, frozen: Path = FROZEN) -> dict[str, float]:
    """Write both models of ``work`` in half precision, and take them up there; returns megabytes."""
    for part in PARTS:
        shutil.rmtree(frozen / part, ignore_errors=True)
    AutoencoderKL.from_pretrained(work / "vae" / "model").half().save_pretrained(frozen / "vae")
    folder = work / "clip" / "model"
    save_clip(CLIPModel.from_pretrained(folder).half(), CLIPTokenizer.from_pretrained(folder), frozen / "clip")
    load_as_float32(frozen, parts=("clip",))
    drop_local_paths(frozen)
    for part in PARTS:
        shutil.rmtree(work / part / "model")
        shutil.copytree(frozen / part, work / part / "model")
    return weigh(frozen)


def main() -> int:
    """Keep both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("~/.cache/plateau/pocket"), help="as for tools.pocket.build")
    print(keep(parser.parse_args().work.expanduser()))
    return 0


if __name__ == "__main__":
    sys.exit(end_well(main))
