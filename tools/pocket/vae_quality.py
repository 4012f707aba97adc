"""How good the autoencoder is, also while it trains: decibels beside the linear code's, and a sheet at 4x.

    python -m tools.pocket.vae_quality --work DIR --out FOLDER         # the averaged weights of DIR's checkpoint

Reads the held-out vendor's pictures to report, never to choose: no training and no stopping looks at what it writes:
``vae.json``, ``vae_4x.png`` (photograph, autoencoder, error of edges) and the weights in float16.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from adapters.ending import end_well
from tools.pocket.linear_code import LinearCode, psnr_db
from tools.pocket.pictures import HELD_OUT_VENDOR, TRAIN_VENDORS, PictureSet, load_pictures, read_classes
from tools.pocket.runs import checkpoint_path, read_counters, read_group
from tools.pocket.sheets import make_sheet, to_bytes
from tools.pocket.split import FIRST_EDITION, draw_split
from tools.pocket.studio import Studio
from tools.pocket.subjects import photograph_class
from tools.pocket.vae import differences, draw_batch, make_vae, measure_std, round_trip, split_pictures

ZOOM = 4
DARKEST = 0.5  # error of edges, of a range of 2, that the map draws in black
SHOWN = 18


@torch.no_grad()
def newest_vae(work: Path, studio: Studio) -> AutoencoderKL:
    """The averaged autoencoder of ``work/vae``'s checkpoint with its scaling factor; without one, the stage's model."""
    if not checkpoint_path(work / "vae").exists():
        return AutoencoderKL.from_pretrained(work / "vae" / "model").eval()
    average = read_group(checkpoint_path(work / "vae"), "ema")
    vae = make_vae(latent_channels=average["decoder.conv_in.weight"].shape[1]).eval()
    vae.load_state_dict(average)
    vae.register_to_config(scaling_factor=1 / measure_std(vae, studio, seed=0))
    return vae


def photographs_of(pictures: PictureSet, vendor: str = HELD_OUT_VENDOR) -> dict[str, Float[Tensor, "b 3 64 64"]]:
    """Five photographs for each class by a vendor; of the held-out one without those kept for the last look."""
    split = draw_split()
    names = [name for name, _ in read_classes().values() if vendor != HELD_OUT_VENDOR or split[name] != "last_look"]
    return {name: photograph_class(pictures, name, vendor=vendor) for name in names}


def measure(vae: AutoencoderKL, code: LinearCode, images: Float[Tensor, "b 3 64 64"]) -> dict[str, float]:
    """Mean of the pictures' decibels: the autoencoder's, and the linear code's of as many channels."""
    made = psnr_db(round_trip(vae, images), images)
    linear = psnr_db(code.round_trip(images), images)
    return {
        "vae_db": made.mean().item(),
        "linear_db": linear.mean().item(),
        "gain_db": (made - linear).mean().item(),
        "worst_vae_db": made.min().item(),
        "pictures": len(images),
    }


def edge_error(made: Float[Tensor, "b 3 h w"], real: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Where edges are lost or invented: white where none, black from DARKEST; as a picture in [-1, 1]."""
    down, across = differences(made - real)
    size = (F.pad(down, (0, 0, 0, 1)).square() + F.pad(across, (0, 1)).square()).mean(1, keepdim=True).sqrt()
    return 1 - 2 * (size / DARKEST).clamp(0, 1).expand_as(made)


def draw_sheet(real: Float[Tensor, "b 3 h w"], made: Float[Tensor, "b 3 h w"], path: Path, columns: int = 3) -> None:
    """Triples of photograph, autoencoder and error of edges, each pixel ZOOM x ZOOM."""
    triples = to_bytes(torch.stack([real, made, edge_error(made, real)], 1).flatten(0, 1))
    make_sheet(triples.repeat(ZOOM, 1).repeat(ZOOM, 2), 3 * columns).save(path, optimize=True)


def report(work: Path, out: Path) -> dict[str, object]:
    """Measure the newest autoencoder, draw the sheet, write the weights; returns what ``vae.json`` says."""
    out.mkdir(parents=True, exist_ok=True)
    pictures = load_pictures(work)
    studio, aside = split_pictures(pictures)
    vae = newest_vae(work, studio)
    views = torch.cat([draw_batch(studio, 256, 3, i) for i in range(16)])
    code = LinearCode.fit(views, vae.config["latent_channels"])
    held_out = photographs_of(pictures)
    first_edition = torch.cat([held_out[name] for name in FIRST_EDITION])
    everything = torch.cat(list(held_out.values()))
    sets = {"first_edition_subjects": first_edition, "held_out_vendor": everything, "kept_aside": aside}
    sets |= {vendor: torch.cat(list(photographs_of(pictures, vendor).values())) for vendor in TRAIN_VENDORS}
    found: dict[str, object] = {name: measure(vae, code, images) for name, images in sets.items()}
    begun = checkpoint_path(work / "vae")
    found |= {
        "latent_channels": vae.config["latent_channels"],
        "training": read_counters(begun) if begun.exists() else "ended",
    }
    shown = first_edition[:: len(first_edition) // SHOWN][:SHOWN]
    draw_sheet(shown, round_trip(vae, shown), out / "vae_4x.png")
    vae.half().save_pretrained(out / "vae")
    (out / "vae.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def main() -> int:
    """Report on the newest autoencoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("~/.cache/plateau/pocket"), help="as for tools.pocket.build")
    parser.add_argument("--out", type=Path, required=True, help="folder for figures, sheet and weights")
    arguments = parser.parse_args()
    print(json.dumps(report(arguments.work.expanduser(), arguments.out.expanduser()), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(end_well(main))
