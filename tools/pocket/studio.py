"""Hold all training pictures, scenes and companions, and compose batches of them."""

from __future__ import annotations

import random

import torch
from jaxtyping import Float
from torch import Tensor

from tools.pocket.captions import SIZES, Composition, draw_composition
from tools.pocket.pictures import TRAIN_VENDORS, PictureSet
from tools.pocket.scenes import COMPANIONS, make_scenes, random_scene
from tools.pocket.views import Placement, light, over, place, premultiply, to_model

COMPANION_SCALE, COMPANION_AT = 0.34, 0.62  # its size, and its centre to the lower right in [-1, 1] units


class Studio:
    """Paints compositions of the pictures it was given."""

    def __init__(self, pictures: PictureSet, companions: PictureSet) -> None:
        self.pictures = pictures
        self.rgba = premultiply(torch.from_numpy(pictures.pixels))
        self.scenes = make_scenes()
        self.unnamed = torch.stack([random_scene(torch.Generator().manual_seed(i)) for i in range(512)])
        self.companions = self._photograph_companions(companions)

    @staticmethod
    def _photograph_companions(pictures: PictureSet) -> dict[str, Float[Tensor, "4 64 64"]]:
        found = {}
        for phrase, (code, vendor) in COMPANIONS.items():
            row = pictures.where((pictures.codes == code) & (pictures.vendors == vendor))
            corner = Placement.still(torch.full((1,), COMPANION_SCALE))
            corner.x += COMPANION_AT
            corner.y += COMPANION_AT
            found[phrase] = place(premultiply(torch.from_numpy(row.pixels)), corner)[0]
        return found

    @property
    def nouns(self) -> list[str]:
        """All caption nouns, sorted, once each."""
        return sorted(set(self.pictures.names.tolist()))

    @property
    def class_nouns(self) -> list[str]:
        """The nouns that the U-Net learns, sorted."""
        return sorted(set(self.pictures.names[self.pictures.is_class].tolist()))

    def compositions(self, count: int, rng: random.Random) -> list[Composition]:
        """Random compositions of the scenes and companions."""
        return [draw_composition(rng, list(self.scenes), list(self.companions)) for _ in range(count)]

    def captions(self, indices: list[int], compositions: list[Composition]) -> list[str]:
        """The captions of pictures in their compositions."""
        p = self.pictures
        return [c.caption(str(p.names[i]), str(p.vendors[i])) for i, c in zip(indices, compositions, strict=True)]

    def paint(
        self, indices: list[int], compositions: list[Composition], g: torch.Generator, jitter: dict
    ) -> Float[Tensor, "b 3 64 64"]:
        """Pictures in their compositions, in [-1, 1]; ``jitter`` as in ``Placement.jitter``, and ``light``."""
        jitter = dict(jitter)
        strength = jitter.pop("light")
        scale = torch.tensor([SIZES[c.size] for c in compositions])
        subject = place(self.rgba[indices], Placement.jitter(scale, g, **jitter))
        image = over(subject, torch.stack([self.scenes[c.background] for c in compositions]))
        for row, composition in enumerate(compositions):
            if composition.companion:
                image[row : row + 1] = over(self.companions[composition.companion][None], image[row : row + 1])
        return to_model(light(image, g, strength))

    def paint_wild(
        self, indices: list[int], g: torch.Generator, scale: tuple[float, float], jitter: dict, named: float = 0.0
    ) -> Float[Tensor, "b 3 64 64"]:
        """Pictures on random backgrounds at random scales, for models that must see the subject and not its place.

        ``named`` is the share of named scenes among the backgrounds.
        """
        jitter = dict(jitter)
        strength = jitter.pop("light")
        low, high = scale
        scales = low + (high - low) * torch.rand(len(indices), generator=g)
        subject = place(self.rgba[indices], Placement.jitter(scales, g, **jitter))
        scene = self.unnamed[torch.randint(len(self.unnamed), (len(indices),), generator=g)]
        if named:
            known = torch.stack(list(self.scenes.values()))
            picked = known[torch.randint(len(known), (len(indices),), generator=g)]
            scene = torch.where((torch.rand(len(indices), generator=g) < named).view(-1, 1, 1, 1), picked, scene)
        return to_model(light(over(subject, scene), g, strength))


def open_studio(pictures: PictureSet, *, only_classes: bool = False) -> Studio:
    """A studio of the training vendors' pictures; the held-out vendor stays outside."""
    known = pictures.of(*TRAIN_VENDORS)
    return Studio(known.where(known.is_class) if only_classes else known, known)
