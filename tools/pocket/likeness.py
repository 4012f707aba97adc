"""What a scorer of likeness learns: which views show one thing, and what shows nothing at all.

Views of one picture attract, wherever it stands and whatever a generator does to it: blur, noise, other colours, a pass
through the autoencoder; views of other things repel (InfoNCE, van den Oord et al. 2018, arXiv 1807.03748). The same thing as
another vendor draws it scores between the two. Distractors (shuffled views, their flat mean colours, noise, decoded noise, bare
backgrounds) score nothing, also with the views that they were made of. Colour channels in another order make more things. Manners
of drawing that several things of a batch share (tone, colours, flatness, relief) are no likeness: a vendor's style is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from tools.pocket.runs import seeded
from tools.pocket.studio import Studio
from tools.pocket.vae import round_trip
from training.tasks.controls import arrange_patches, blur

JITTER = {"shift": 6.0, "zoom": 0.1, "turn": 0.15, "flip": 0.2, "light": 0.15}
SCALE = (0.45, 1.05)
NAMED = 0.5  # share of named scenes: the subjects are photographed on them
TEMPERATURE = 0.07
SAME_THING = (0.1, 0.3)  # where another vendor's views of the same thing are to score
DISTRACTORS = 1 / 8  # of the pictures of a batch: so many of each kind of distractor
# Weights beside the contrast, of mean squares: distractors' cosines, those with the views that they were made of, cosines of
# different things, what same things are out of their band, and what views of one picture lack of 1.
NOTHING, OWN, APART, BAND, ONE = 50.0, 10.0, 60.0, 5.0, 5.0
# They count a tenth until so much of the run is done, and in full from there on: from the start they keep the views of one
# thing from coming together.
EARLY, FIRM_FROM, FIRM_AT = 0.1, 0.6, 0.75
NUM_NOISES = 256  # that are decoded
NUM_STYLES = 4  # manners of drawing in a batch, each of an eighth of its pictures


@dataclass
class Decoded:
    """What the autoencoder makes of one photograph of every picture of a studio, and of noise in its latents; in [-1, 1]."""

    pictures: Float[Tensor, "n 3 64 64"]
    noises: Float[Tensor, "m 3 64 64"]


@torch.no_grad()
def decode(studio: Studio, vae: AutoencoderKL, seed: int) -> Decoded:
    """Photograph every picture once, and pass the photographs through the autoencoder."""
    made = []
    for rows in torch.arange(len(studio.rgba)).split(128):
        g = seeded(seed, int(rows[0]))
        made.append(round_trip(vae, studio.paint_wild(rows.tolist(), g, SCALE, JITTER, NAMED)))
    noises = decode_noise(vae, NUM_NOISES, seeded(seed, -1))
    return Decoded(*(pictures.half().contiguous() for pictures in (torch.cat(made), noises)))


@torch.no_grad()
def decode_noise(vae: AutoencoderKL, count: int, g: torch.Generator) -> Float[Tensor, "n 3 64 64"]:
    """What the autoencoder makes of noise in its latents, as a broken adapter does; in [-1, 1]."""
    latents = torch.randn((count, vae.config.latent_channels, 8, 8), generator=g) / vae.config.scaling_factor
    return torch.cat([vae.decode(part).sample.clamp(-1, 1) for part in latents.split(32)])


def decoded_cache(studio: Studio, vae: AutoencoderKL, work: Path, *, seed: int) -> Decoded:
    """``decode``, made once and kept at ``work/decoded.safetensors``."""
    path = work / "decoded.safetensors"
    if not path.exists():
        save_file(vars(decode(studio, vae, seed)), path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)
    return Decoded(**load_file(path))


@dataclass
class LikenessBatch:
    """Views to tell apart.

    views: two of each picture, first one of all, then another of all. distractors: pictures of nothing, first those that were
    made of views. thing: the number of each picture's thing, which two vendors may have drawn. origin: the view of each of the
    first distractors.
    """

    views: Float[Tensor, "2b 3 64 64"]
    distractors: Float[Tensor, "d 3 64 64"]
    thing: Int[Tensor, " b"]
    origin: Int[Tensor, " m"]


class Likeness:
    """Draws batches of a studio's pictures, and judges embeddings of them."""

    def __init__(self, studio: Studio, decoded: Decoded) -> None:
        self.studio, self.decoded = studio, decoded

    @cached_property
    def things(self) -> list[list[int]]:
        """Rows of the studio's pictures, those of one thing together."""
        found: dict[str, list[int]] = {}
        for row, code in enumerate(self.studio.pictures.codes.tolist()):
            found.setdefault(code, []).append(row)
        return list(found.values())

    def draw(self, size: int, seed: int, step: int) -> LikenessBatch:
        """Two views each of about ``size`` pictures: things at random, by all their vendors."""
        g = seeded(seed, step)
        picked = torch.randperm(len(self.things), generator=g)[: size // 2].tolist()
        rows = [row for thing in picked for row in self.things[thing]]
        thing = torch.tensor([thing for thing in picked for _ in self.things[thing]])
        first, second = (self.studio.paint_wild(rows, g, SCALE, JITTER, NAMED) for _ in range(2))
        second = degrade(second, self.decoded.pictures[rows].float(), g)
        swap = (torch.rand(len(rows), generator=g) < 0.5)[:, None, None, None]
        first, second = torch.where(swap, second, first), torch.where(swap, first, second)
        views, count = recolour(torch.cat([first, second]), thing.repeat(2), g), int(len(rows) * DISTRACTORS)
        views = restyle(views, g)
        origin = torch.randperm(len(views), generator=g)[: 3 * count]
        return LikenessBatch(views, self._distract(views[origin], count, g), thing, origin)

    def _distract(
        self, views: Float[Tensor, "m 3 64 64"], count: int, g: torch.Generator
    ) -> Float[Tensor, "d 3 64 64"]:
        pick = torch.randint(len(self.decoded.noises), (count,), generator=g)
        scenes = self.studio.unnamed[torch.randint(len(self.studio.unnamed), (count,), generator=g)]
        known = torch.stack(list(self.studio.scenes.values()))
        scenes[: count // 2] = known[torch.randint(len(known), (count // 2,), generator=g)]
        flat = views[2 * count :].mean(dim=(2, 3), keepdim=True).expand(-1, -1, *views.shape[2:])
        made = [shuffle(views[:count], 4, g), shuffle(views[count : 2 * count], 8, g), flat]
        return torch.cat([*made, draw_noise(count, g), self.decoded.noises[pick].float(), scenes * 2 - 1])

    def loss(self, embedding: Float[Tensor, "n d"], batch: LikenessBatch, progress: float) -> Tensor:
        """Contrast of the views of different things, and what same things, other things and distractors score.

        Args:
            embedding: L2-normalised, of the batch's views and, behind them, its distractors.
            progress: share of the training that is done, by which the penalties grow.
        """
        size = len(batch.views)
        cosine = embedding[:size] @ embedding.T
        between, nothing = cosine[:, :size], cosine[:, size:].square()
        picture, thing = torch.arange(size) % (size // 2), batch.thing.repeat(2)
        own_thing, own_picture = thing[:, None] == thing[None, :], picture[:, None] == picture[None, :]
        alike = own_thing & ~own_picture
        left_out = alike | torch.eye(size, dtype=torch.bool)
        partner = torch.arange(size).roll(size // 2)
        contrast = F.cross_entropy((between / TEMPERATURE).masked_fill(left_out, -1e4), partner)
        places = torch.arange(len(batch.origin))
        made_of = nothing[batch.origin, places] + nothing[(batch.origin + size // 2) % size, places]
        penalty = NOTHING * nothing.mean() + OWN * made_of.mean()
        penalty = penalty + ONE * (1 - between[torch.arange(size), partner]).square().mean()
        penalty = penalty + APART * between[~own_thing].square().mean()
        if alike.any():
            low, high = SAME_THING
            out = (low - between[alike]).clamp(min=0) + (between[alike] - high).clamp(min=0)
            penalty = penalty + BAND * out.square().mean()
        firmness = min(1.0, max(0.0, (progress - FIRM_FROM) / (FIRM_AT - FIRM_FROM)))
        return contrast + (EARLY + (1 - EARLY) * firmness) * penalty


def recolour(
    views: Float[Tensor, "b 3 64 64"], thing: Int[Tensor, " b"], g: torch.Generator
) -> Float[Tensor, "b 3 64 64"]:
    """Put the colour channels of half of the things into another order, the same in all views of a thing: more things."""
    orders = torch.tensor(list(permutations(range(3))))
    kinds, of_view = thing.unique(return_inverse=True)
    pick = torch.where(torch.rand(len(kinds), generator=g) < 0.5, 0, torch.randint(6, kinds.shape, generator=g))
    order = orders[pick][of_view]
    return views.gather(1, order[:, :, None, None].expand_as(views))


def restyle(views: Float[Tensor, "2b 3 64 64"], g: torch.Generator) -> Float[Tensor, "2b 3 64 64"]:
    """Draw half of the pictures in ``NUM_STYLES`` manners, both views of a picture in one.

    Different things share a manner and are still to score nothing; so does a vendor whom nobody has seen.
    """
    size = len(views) // 2
    order, share = torch.randperm(size, generator=g), size // (2 * NUM_STYLES)
    made = views.clone()
    for part in order[: share * NUM_STYLES].split(share):
        rows = torch.cat([part, part + size])
        made[rows] = _in_a_manner((views[rows] + 1) / 2, g) * 2 - 1
    return made


def _in_a_manner(images: Float[Tensor, "b 3 h w"], g: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Images in [0, 1] in one manner of drawing for all of them: half of the manners are flat, the others in relief."""
    tone, saturation, hue, relief, angle, levels = (torch.rand(6, generator=g) * 2 - 1).tolist()
    grey = images.mean(1, keepdim=True)
    axis = torch.full((3, 3), 3**-0.5)
    turn = torch.linalg.matrix_exp(torch.linalg.cross(torch.eye(3), axis) * hue * math.pi / 4)
    images = grey + (1 + 0.7 * saturation) * torch.einsum("ij,bjhw->bihw", turn, images - grey)
    images = images.clamp(0, 1) ** (2**tone)
    if levels > 0:
        count = 3 + int(5 * levels)
        return (images * count).round() / count
    shift = (round(2 * math.sin(math.pi * angle)), round(2 * math.cos(math.pi * angle)))
    return (images + relief * (grey - grey.roll(shift, (2, 3)))).clamp(0, 1)


def degrade(
    views: Float[Tensor, "b 3 64 64"], decoded: Float[Tensor, "b 3 64 64"], g: torch.Generator
) -> Float[Tensor, "b 3 64 64"]:
    """Views as generators spoil them, a fifth each: decoded, blurred, noisy, in other colours, and as they are."""
    fifth = len(views) // 5
    parts = views.split([fifth, fifth, fifth, fifth, len(views) - 4 * fifth])
    sd = (0.5 + 2.0 * torch.rand(1, generator=g).item()) / views.shape[-2]
    noise = 0.25 * torch.rand(fifth, 1, 1, 1, generator=g) * torch.randn(parts[2].shape, generator=g)
    gain = 1 + 0.25 * (torch.rand(fifth, 3, 1, 1, generator=g) * 2 - 1)
    shift = 0.25 * (torch.rand(fifth, 3, 1, 1, generator=g) * 2 - 1)
    spoiled = [
        decoded[:fifth],
        blur((parts[1] + 1) / 2, sd) * 2 - 1,
        parts[2] + noise,
        parts[3] * gain + shift,
        parts[4],
    ]
    return torch.cat(spoiled).clamp(-1, 1)


def shuffle(images: Float[Tensor, "b 3 64 64"], along: int, g: torch.Generator) -> Float[Tensor, "b 3 64 64"]:
    """Images with their ``along`` x ``along`` squares in an order of its own for each."""
    return arrange_patches(images, torch.rand(len(images), along * along, generator=g).argsort(-1), along)


def draw_noise(count: int, g: torch.Generator) -> Float[Tensor, "n 3 64 64"]:
    """Noise in pixels: half uniform, half coarse."""
    fine = torch.rand(count - count // 2, 3, 64, 64, generator=g) * 2 - 1
    coarse = torch.randn(count // 2, 3, 16, 16, generator=g)
    return torch.cat([fine, F.interpolate(coarse, size=64, mode="bilinear").clamp(-1, 1)])
