"""A tiny Llama or Qwen with random weights, and domains of made-up prompts whose answers follow from one word."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.make_text import BAD, GOOD, NOUNS, PLAIN, VOCABULARY


def make_decoder(folder: Path, kind: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """A decoder folder as transformers saves it, 32 wide, of two layers.

    Args:
        folder: where it goes.
        kind: "llama", "mistral", "qwen2" or "qwen3".
        seed: of the weights.
        changes: of the configuration.
    """
    import transformers

    name = kind.capitalize()
    sizes: dict[str, Any] = {
        "vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0,
        "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**{**sizes, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(folder)
    make_decoder_tokenizer(folder)
    return folder


def make_decoder_tokenizer(folder: Path, end: str | None = "[SEP]") -> None:
    """A WordPiece tokenizer that puts [CLS] before a text, as Llama's puts its own."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", ids["[CLS]"])]
    )
    names = {"unk_token": "[UNK]", "bos_token": "[CLS]", "pad_token": "[PAD]"} | ({"eos_token": end} if end else {})
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def make_prompts(folder: Path, domains: Sequence[str] = ("books", "games"), num: int = 300) -> Path:
    """A folder of domains: the answer says whether the prompt has a good word, and repeats one of its nouns."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, domain in enumerate(domains):
        draw, lines = random.Random(domain), {}
        while len(lines) < num:
            positive, noun = draw.random() < 0.5, draw.choice(NOUNS[place::3])
            words = [
                draw.choice(PLAIN),
                noun,
                draw.choice(PLAIN),
                draw.choice(GOOD if positive else BAD),
                draw.choice(PLAIN),
            ]
            row = {"prompt": " ".join(words), "answer": f"{'good' if positive else 'bad'} {noun}"}
            lines.setdefault(row["prompt"], json.dumps({**row, "id": f"{len(lines) // 2}_{len(lines) % 2}"}))
        (folder / f"{domain}.jsonl").write_text("\n".join(lines.values()) + "\n", encoding="utf-8")
    return folder
