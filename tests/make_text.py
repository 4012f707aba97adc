"""A tiny BERT or RoBERTa with random weights, and domains of made-up sentences in which a few words decide the label."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from training.tasks import sentences

GOOD = ("good", "great", "lovely", "fine", "superb", "happy", "bright", "kind")
BAD = ("bad", "poor", "awful", "dull", "broken", "sad", "dark", "cruel")
NOUNS = tuple(
    f"{first}{last}" for first in ("ka", "lo", "mi", "ne", "pu", "ra") for last in ("bo", "da", "fu", "gi", "te")
)
PLAIN = ("the", "a", "is", "was", "and", "so", "very", "it", "this", "that", "of", "in")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'"
PIECES = (*LETTERS, *(f"##{letter}" for letter in LETTERS))  # of words that are not listed
VOCABULARY = tuple(dict.fromkeys((*SPECIAL, *PIECES, *GOOD, *BAD, *NOUNS, *PLAIN)))


def make_encoder(folder: Path, kind: str = "bert", *, head: bool = False, seed: int = 0, **changes: Any) -> Path:
    """An encoder folder as transformers saves it, 32 wide, of two layers.

    Args:
        folder: where it goes.
        kind: "bert" or "roberta".
        head: whether a classifier is on it, as in a finetuned model's folder: the tensors' names begin with the kind then.
        seed: of the weights.
        changes: of the configuration.
    """
    import transformers

    name = {"bert": "Bert", "roberta": "Roberta"}[kind]
    sizes: dict[str, Any] = {
        "vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 66, "pad_token_id": 1 if kind == "roberta" else 0,
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**{**sizes, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        getattr(transformers, f"{name}{'ForSequenceClassification' if head else 'Model'}")(config).save_pretrained(
            folder
        )
    make_word_tokenizer(folder, pad="[UNK]" if kind == "roberta" else "[PAD]")
    return folder


def make_word_tokenizer(folder: Path, words: Sequence[str] = VOCABULARY, pad: str = "[PAD]") -> None:
    """A WordPiece tokenizer's files in a folder; texts of these words have a token for each."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(word, ids[word]) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, **names).save_pretrained(folder)


def pad_all_texts(folder: Path, length: int) -> None:
    """Set truncation and padding in a tokenizer's file, as in MiniLM's: its bare library makes all texts `length` long."""
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    found["truncation"] = {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0}
    found["padding"] = {
        "strategy": {"Fixed": length}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "[PAD]",
    }  # fmt: skip
    path.write_text(json.dumps(found), encoding="utf-8")


def make_domains(folder: Path, domains: Sequence[str] = ("books", "games"), num: int = 400) -> Path:
    """A folder of domains: half of the sentences have a good word and half a bad one, among nouns of the domain's own.

    Args:
        folder: where it goes.
        domains: their names. The first one's sentences are cut from documents of four; those of others stand alone.
        num: sentences in each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for place, domain in enumerate(domains):
        rows = []
        for number, (text, rating) in enumerate(make_sentences(num, place)):
            id_ = f"{number // 4}_{number % 4}" if place == 0 else str(number)
            rows.append(f"{id_}\t{rating}\t{text}\n")
        (folder / f"{domain}.tsv").write_text("".join(rows), encoding="utf-8")
    return folder


def make_sentences(num: int, domain: int) -> list[tuple[str, float]]:
    """(text, rating) of made-up sentences, all different; `domain` chooses the nouns."""
    draw, nouns = random.Random(domain), NOUNS[domain % 3 :: 3]
    found: dict[str, float] = {}
    while len(found) < num:
        words = [list(group)[int(draw.random() * len(group))] for group in (PLAIN, nouns, PLAIN, nouns, PLAIN, nouns)]
        positive = draw.random() < 0.5
        words.insert(int(draw.random() * 7), (GOOD if positive else BAD)[int(draw.random() * 8)])
        found.setdefault(" ".join(words), 1.5 if positive else -1.5)
    return list(found.items())


def make_archive(path: Path, tables: Mapping[str, bytes]) -> dict[str, tuple[str, str]]:
    """An archive as vaderSentiment's: a tar in a tar.

    Args:
        path: where it goes.
        tables: content of the files by domain.

    Returns:
        What `sentences.TABLES` has to be for it.
    """
    stems = {domain: sentences.TABLES[domain][0] for domain in tables}
    inner = _pack({f"{sentences.FOLDER}/{stems[domain]}_GroundTruth.txt": text for domain, text in tables.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_pack({sentences.INNER: inner}))
    return {domain: (stems[domain], hashlib.sha256(text).hexdigest()) for domain, text in tables.items()}


def _pack(files: Mapping[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    return content.getvalue()
