"""Load a Stable Diffusion folder or hub id as the parts that training needs, with a hash of its weights."""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from adapters.documents import read_json
from adapters.errors import BadInput
from adapters.tensor_file import read_shapes
from training.tasks import hub
from training.tasks.model_kind import PARTS, XL_PARTS, check_parts, is_xl, read_config, read_index
from training.tasks.text import Text, encode_by_one, encode_by_two, picture_sizes, tokenize

POCKET = Path(__file__).resolve().parents[1] / "pocket"
POCKET_MODEL, POCKET_SUBJECTS = POCKET / "pipeline", POCKET / "subjects"
PIXELS_AT_A_TIME = 8 * 512 * 512  # of the VAE


@dataclass
class Pipeline:
    """The frozen parts of a text-to-image pipeline on one device.

    Attributes:
        unet, vae, text_encoder, tokenizer: diffusers' and transformers' objects, in evaluation mode, frozen.
        scheduler_config: configuration of the noise schedule, read by the training loss and by the sampler.
        device: where everything lies.
        text_encoder_2, tokenizer_2: SDXL's second ones; None elsewhere.
        zero_empty: whether guidance leads away from zeros instead of the empty prompt's embedding, as SDXL's does.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler_config: dict
    device: torch.device
    text_encoder_2: Any = None
    tokenizer_2: Any = None
    zero_empty: bool = False

    @functools.cached_property
    def alphas_cumprod(self) -> Float[Tensor, " t"]:
        """The noise schedule's cumulative alphas, one for each training time step."""
        from diffusers import DDPMScheduler

        return DDPMScheduler.from_config(self.scheduler_config).alphas_cumprod.to(self.device)

    @property
    def prediction_type(self) -> str:
        """What the U-Net predicts: "epsilon" or "v_prediction"."""
        return self.scheduler_config.get("prediction_type", "epsilon")

    def predict(self, noisy: Float[Tensor, "n c h w"], times: Tensor, text: Text) -> Float[Tensor, "n c h w"]:
        """What the U-Net says of noisy latents: their noise or their velocity (`prediction_type`).

        Args:
            noisy: latents, noisy and scaled.
            times: time step of each row, or one for all.
            text: embeddings of the rows' prompts.
        """
        more = {}
        if text.pooled is not None:
            height, width = (self.vae_factor * side for side in noisy.shape[-2:])
            sizes = picture_sizes(height, width, noisy.device).expand(len(noisy), -1)
            more["added_cond_kwargs"] = {"text_embeds": text.pooled, "time_ids": sizes}
        return self.unet(noisy, times, encoder_hidden_states=text.sequence, **more).sample

    @property
    def vae_factor(self) -> int:
        """Pixels along the side of one latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> Text:
        """Embeddings of prompts, padded to the tokenizer's full length."""
        ids = tokenize(self.tokenizer, prompts, self.device)
        if self.text_encoder_2 is None:
            return encode_by_one(self.text_encoder, ids)
        ids_2 = tokenize(self.tokenizer_2, prompts, self.device)
        return encode_by_two((self.text_encoder, self.text_encoder_2), (ids, ids_2))

    def encode_empty(self) -> Text:
        """The embedding that guidance leads away from."""
        empty = self.encode_text([""])
        return empty.zeros() if self.zero_empty else empty

    @torch.no_grad()
    def encode_pictures(self, pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c hh ww"]:
        """Latents (the posterior's mean, scaled) of pictures in [-1, 1]."""
        latents = torch.cat([self.vae.encode(part.to(self.device)).latent_dist.mode() for part in _few(pictures)])
        return (latents - self._shift) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "n c hh ww"]) -> Float[Tensor, "n 3 h w"]:
        """Pictures in [0, 1] of latents; what is not finite becomes mid-grey."""
        parts = _few(latents / self.vae.config.scaling_factor + self._shift, self.vae_factor)
        decoded = torch.cat([self.vae.decode(part).sample.to(latents.dtype) for part in parts])
        return torch.nan_to_num(decoded / 2 + 0.5, nan=0.5, posinf=1.0, neginf=0.0).clamp(0, 1)

    @property
    def _shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0


def _few(pictures: Float[Tensor, "n c h w"], factor: int = 1) -> tuple[Tensor, ...]:
    """Parts of a batch that the VAE takes at a time: a picture of 512 pixels takes it more than a GiB.

    Args:
        pictures: pictures or latents.
        factor: pixels of a picture for one of these.
    """
    return pictures.split(max(1, PIXELS_AT_A_TIME // (pictures.shape[-2] * pictures.shape[-1] * factor**2)))


def locate(model: str) -> Path:
    """The folder of a model: "pocket", a path, or a hub id that is in the local cache or can be downloaded.

    A hub id may name a revision, `ORG/NAME@REVISION`: a branch, a tag, or a commit, which never changes.

    Raises:
        BadInput: if it is not there, or has no U-Net.
    """
    if model == "pocket":
        return check_parts(POCKET_MODEL)
    if Path(model).exists():
        return check_parts(Path(model).resolve())
    if model.count("/") != 1 or model.startswith((".", "/")):
        named = "a hub id ORG/NAME or ORG/NAME@REVISION"
        raise BadInput(f"no model folder {model!r}; give 'pocket', a diffusers pipeline folder, or {named}")
    try:
        patterns = [
            f"{part}/*{end}" for part in PARTS + XL_PARTS for end in (".json", ".txt", ".safetensors", ".model")
        ]
        name, _, revision = model.partition("@")
        wanted = ["model_index.json", *patterns]
        return check_parts(hub.fetch(name, revision or None, wanted))
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(hub.explain("model", model, error)) from None


def content_hash(*folders: Path) -> str:
    """A hash of every weight and configuration file in folders; large files' hashes are remembered by size and time."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.suffix in {".safetensors", ".json", ".txt"}):
            if any(part.startswith(".") for part in path.relative_to(folder).parts):
                continue  # what `hf download` keeps in .cache
            digest.update(f"{path.relative_to(folder)}:{file_hash(path)}".encode())
    return digest.hexdigest()[:16]


def file_hash(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, remembered of a large one by its size and time."""
    stat = path.stat()
    if stat.st_size < 64 << 20:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "plateau" / "hashes"
    key = hashlib.sha256(f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()
    if (home / key).exists():
        return (home / key).read_text(encoding="utf-8")
    with open(path, "rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        home.mkdir(parents=True, exist_ok=True)
        (home / key).write_text(value, encoding="utf-8")
    except OSError:
        pass  # a cache that cannot be written costs time, never a result
    return value


def load(folder: Path, device: torch.device) -> Pipeline:
    """Load the parts of a pipeline folder as float32, frozen.

    Raises:
        BadInput: if it is no Stable Diffusion, or a part cannot be loaded; the message names it.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    def part(cls: Any, name: str, **options: object) -> Any:
        try:
            module = cls.from_pretrained(folder / name, torch_dtype=torch.float32, **options)
        except Exception as error:
            raise BadInput(f"cannot load {folder / name}: {(str(error).splitlines() or ['?'])[0]}") from None
        return module.to(device).eval().requires_grad_(False)

    config, xl = read_config(folder / "scheduler" / "scheduler_config.json"), is_xl(folder)
    vae = part(AutoencoderKL, "vae")
    if device.type == "cpu":
        vae = vae.to(memory_format=torch.channels_last)  # the pocket's next autoencoder decodes in 0.77 of the time
    return Pipeline(
        unet=part(UNet2DConditionModel, "unet"),
        vae=vae,
        text_encoder=part(CLIPTextModel, "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler_config={k: v for k, v in config.items() if not k.startswith("_")},
        device=device,
        text_encoder_2=part(CLIPTextModelWithProjection, "text_encoder_2") if xl else None,
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2") if xl else None,
        zero_empty=xl and read_index(folder).get("force_zeros_for_empty_prompt", True),
    )


def model_defaults(folder: Path) -> dict:
    """Sampler setting, resolution and instance prompt of a model: the pocket's own file, else Stable Diffusion's.

    For other models: 25 steps of DPM-Solver at guidance 7.5 as in OFT's DreamBooth scripts (5 for SDXL, as in diffusers'
    pipeline), the resolution that the U-Net's `sample_size` says, and "a photo of {token} {cls}".
    """
    own = folder.parent / "defaults.json"
    if own.exists():
        return read_json(own, {})
    unet, vae = (read_json(folder / part / "config.json", {}) for part in ("unet", "vae"))
    side = int(unet.get("sample_size") or 64) * 2 ** (len(vae.get("block_out_channels", [0] * 4)) - 1)
    return {
        "num_inference_steps": 25, "guidance_scale": 5.0 if is_xl(folder) else 7.5, "resolution": side,
        "instance_prompt": "a photo of {token} {cls}",
    }  # fmt: skip


def attention_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """`(out, in)` of every attention projection, read from the weights' headers alone."""
    ends = tuple(f"{kind}.weight" for kind in ("to_q", "to_k", "to_v", "to_out.0"))
    found = read_shapes(folder / "unet")
    shapes = {n.removesuffix(".weight"): (s[0], s[1]) for n, s in found.items() if ".attn" in n and n.endswith(ends)}
    if not shapes:
        raise BadInput(f"the U-Net in {folder / 'unet'} has no attention projections (attn1/attn2.to_q, to_k, ...)")
    return shapes
