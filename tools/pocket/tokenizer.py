"""A CLIP tokenizer trained on the pocket's captions; the rare token ``sks`` is one token, as in DreamBooth."""

from __future__ import annotations

import json

from jaxtyping import Int
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

MAX_LENGTH = 24
VOCAB_SIZE = 1000
RARE = "sks"
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def train_tokenizer(corpus: list[str], whole: list[str]) -> CLIPTokenizer:
    """Byte-level BPE over the corpus; the rare token and the ``whole`` words are merged first, whatever the corpus says."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        end_of_word_suffix="</w>",
        initial_alphabet=sorted(alphabet),
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus + [RARE, *whole] * len(corpus), trainer)
    return _as_clip(bpe)


def _as_clip(bpe: Tokenizer) -> CLIPTokenizer:
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=MAX_LENGTH)


def encode(tokenizer: CLIPTokenizer, captions: list[str]) -> Int[Tensor, "b 24"]:
    """Token ids ``[b, 24]``, padded as Stable Diffusion pads them."""
    return tokenizer(
        captions, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
