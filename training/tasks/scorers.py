"""DINO, CLIP-I and CLIP-T as in the public DreamBooth evaluations (OFT `oft-db/eval.py`, google/dreambooth).

DINO is the cosine of L2-normalised CLS tokens of a ViT, CLIP-I that of CLIP's picture embeddings, both averaged over
every pair of a real and a generated picture; CLIP-T is the cosine of picture and prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from adapters.documents import read_json
from adapters.errors import BadInput
from training.tasks import hub
from training.tasks.pipeline import POCKET, content_hash
from training.tasks.scorer_kind import check_scorers, picture_sides

POCKET_DINO, POCKET_CLIP = POCKET / "dino", POCKET / "clip"


def to_tensor(pictures: Sequence[Image.Image]) -> Float[Tensor, "n 3 h w"]:
    """RGB pictures of one size as values in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(p, dtype=np.float32) for p in pictures])).permute(0, 3, 1, 2) / 255


def hash_of(dino: str, clip: str) -> str:
    """What a run's identity says of its scorers: a hash of the files of those that are folders; of two hub ids their names."""
    folders = [path for path in (Path(dino), Path(clip)) if path.exists()]
    return content_hash(*folders) if folders else f"{dino},{clip}"


def locate(name: str, pocket: Path) -> str:
    """A scorer's folder or hub id; "pocket" is the embedded one.

    A hub id is fetched into the hub's cache, so that jobs without a network find it there. With a revision, ORG/NAME@REVISION,
    it is the folder in that cache.

    Raises:
        BadInput: if it is not there, cannot be had, or has no safetensors.
    """
    path = pocket if name == "pocket" else Path(name)
    if path.exists():
        return str(_with_weights(path, f"scorer folder {path}").resolve())
    if name == "pocket" or name.count("/") != 1:
        raise BadInput(
            f"no scorer {name!r}; give 'pocket', a folder, or a hub id such as openai/clip-vit-large-patch14"
        )
    repository, _, revision = name.partition("@")
    try:
        folder = hub.fetch(repository, revision or None, ("*.json", "*.txt", "*.safetensors"))
    except Exception as error:
        raise BadInput(hub.explain("scorer", name, error)) from None
    _with_weights(folder, f"scorer {name!r} of the hub")
    return str(folder) if revision else name


def _with_weights(folder: Path, what: str) -> Path:
    if not list(folder.glob("*.safetensors")):
        raise BadInput(f"{what} has no *.safetensors, and nothing else is read: {hub.GUIDE} says how to convert it")
    return folder


class Scorers:
    """The two scorers, frozen on one device.

    Args:
        dino: folder or hub id of a `transformers.ViTModel`.
        clip: folder or hub id of a `transformers.CLIPModel` with its tokenizer.

    Raises:
        BadInput: if one cannot be loaded, or is a model of another kind.
    """

    def __init__(self, dino: str, clip: str, device: torch.device) -> None:
        from transformers import CLIPModel, CLIPTokenizer, ViTModel

        check_scorers(dino, clip)
        try:
            options = {"torch_dtype": torch.float32, "use_safetensors": True}
            self.dino = ViTModel.from_pretrained(dino, add_pooling_layer=False, **options)
            self.clip = CLIPModel.from_pretrained(clip, **options)
            self.tokenizer = CLIPTokenizer.from_pretrained(clip)
        except Exception as error:
            raise BadInput(f"cannot load scorers {dino}, {clip}: {(str(error).splitlines() or ['?'])[0]}") from None
        self.device = device
        for module in (self.dino, self.clip):
            module.to(device).eval().requires_grad_(False)
        self._dino_transform, self._clip_transform = Preprocessor(dino), Preprocessor(clip)

    @torch.no_grad()
    def dino_features(self, pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Normalised CLS tokens of pictures in [0, 1]."""
        hidden = self.dino(self._dino_transform(pictures.to(self.device))).last_hidden_state
        return F.normalize(hidden[:, 0], dim=-1)

    @torch.no_grad()
    def clip_features(self, pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Normalised picture embeddings of pictures in [0, 1]."""
        return F.normalize(
            _pooled(self.clip.get_image_features(self._clip_transform(pictures.to(self.device)))), dim=-1
        )

    @torch.no_grad()
    def text_features(self, prompts: list[str]) -> Float[Tensor, "n d"]:
        """Normalised text embeddings."""
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
        tokens = {"input_ids": tokens.input_ids.to(self.device)}
        return F.normalize(_pooled(self.clip.get_text_features(**tokens)), dim=-1)


def _pooled(features: Any) -> Tensor:
    # transformers 5 returns an output object where 4 returned the projected tensor itself.
    return features if isinstance(features, Tensor) else features.pooler_output


class Preprocessor:
    """Resize, centre crop and normalisation as `preprocessor_config.json` says, on tensors."""

    def __init__(self, folder: str) -> None:
        from transformers.utils import cached_file

        config = read_json(Path(cached_file(folder, "preprocessor_config.json")), {})
        self.resize, self.crop = picture_sides(config)
        self.mode = {2: "bilinear", 3: "bicubic"}.get(config.get("resample", 3), "bicubic")
        self.mean = torch.tensor(config["image_mean"])[:, None, None]
        self.std = torch.tensor(config["image_std"])[:, None, None]

    def __call__(self, pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 s s"]:
        """Pictures in [0, 1] as the scorer wants them."""
        height, width = pictures.shape[-2:]
        scale = self.resize / min(height, width)
        if scale != 1:
            size = (round(height * scale), round(width * scale))
            pictures = F.interpolate(pictures, size=size, mode=self.mode, antialias=True, align_corners=False).clamp(
                0, 1
            )
        top, left = ((length - self.crop) // 2 for length in pictures.shape[-2:])
        pictures = pictures[..., top : top + self.crop, left : left + self.crop]
        return (pictures - self.mean.to(pictures)) / self.std.to(pictures)
