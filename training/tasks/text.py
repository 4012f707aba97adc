"""Embed prompts for a U-Net: one text encoder (Stable Diffusion) or two (SDXL, arXiv 2307.01952)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Text:
    """Embeddings of prompts, one for each place of the leading axes; a single prompt's has none.

    Attributes:
        sequence: an embedding of every token, which cross-attention reads.
        pooled: an embedding of the whole prompt, which SDXL's U-Net adds to that of the time step; None elsewhere.
    """

    sequence: Float[Tensor, "*places length dim"]
    pooled: Float[Tensor, "*places pooled_dim"] | None = None

    @property
    def places(self) -> torch.Size:
        """Sizes of the leading axes."""
        return self.sequence.shape[:-2]

    def __getitem__(self, chosen: Any) -> Text:
        return self._each(lambda part: part[chosen])

    def expand(self, *sizes: int) -> Text:
        """The same embeddings over leading axes of these sizes; -1 keeps one."""
        axes = len(self.places)
        return self._each(lambda part: part.expand(*sizes, *part.shape[axes:]))

    def flatten(self) -> Text:
        """The two first axes as one."""
        return self._each(lambda part: part.flatten(0, 1))

    def repeat_each(self, count: int) -> Text:
        """Every place of the first axis as often as this, one after the other."""
        return self._each(lambda part: part.repeat_interleave(count, dim=0))

    def zeros(self) -> Text:
        """Zeros in place of every embedding."""
        return self._each(torch.zeros_like)

    @staticmethod
    def stack(texts: Sequence[Text]) -> Text:
        """Embeddings along a new first axis."""
        return Text._join(texts, torch.stack)

    @staticmethod
    def cat(texts: Sequence[Text], dim: int = 0) -> Text:
        """Embeddings one after the other, along a leading axis."""
        return Text._join(texts, functools.partial(torch.cat, dim=dim))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Text:
        return Text(change(self.sequence), None if self.pooled is None else change(self.pooled))

    @staticmethod
    def _join(texts: Sequence[Text], join: Callable[[list[Tensor]], Tensor]) -> Text:
        pooled = [text.pooled for text in texts if text.pooled is not None]
        return Text(join([text.sequence for text in texts]), join(pooled) if pooled else None)


def tokenize(tokenizer: Any, prompts: list[str], device: torch.device) -> Tensor:
    """Token ids of prompts, padded or cut to the tokenizer's full length."""
    return tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)


def encode_by_one(encoder: Any, ids: Tensor) -> Text:
    """The last layer of one text encoder, normalised: Stable Diffusion 1 (CLIP) and 2 (OpenCLIP)."""
    return Text(encoder(ids)[0])


def encode_by_two(encoders: Sequence[Any], ids: Sequence[Tensor]) -> Text:
    """The last layers but one of two encoders side by side, and the second one's projected embedding: SDXL (section 2.1)."""
    outputs = [encoder(own, output_hidden_states=True) for encoder, own in zip(encoders, ids, strict=True)]
    sequence = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return Text(sequence, outputs[-1].text_embeds)


@functools.cache
def picture_sizes(height: int, width: int, device: torch.device) -> Float[Tensor, "1 6"]:
    """SDXL's conditions on a picture's size, for one neither scaled nor cut: original size, top left corner, target size."""
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=device)
