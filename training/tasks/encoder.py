"""Load a pretrained BERT or RoBERTa as a frozen encoder of sentences, and of pairs of them.

Features are the mean over the tokens of its last layer, or its first token there. Not BERT's pooler: what was trained with mean
pooling (MiniLM, by sentence-transformers) keeps a pooler that is left over.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from adapters.documents import COUNT, read_json
from adapters.errors import BadInput
from adapters.tensor_file import open_safetensors, read_shapes
from training.tasks import fetch_text, hub, sentences
from training.tasks.model_kind import read_config
from training.tasks.pipeline import file_hash

ALLOWED = ("bert", "roberta")
PATTERNS = ("*.json", "*.txt", "*.safetensors")
COUNTS = ("model_type", "num_attention_heads", "hidden_act", "layer_norm_eps", "max_position_embeddings")
EMBEDDINGS = "embeddings.word_embeddings"
SHORTEST = 3  # tokens: the two special ones and one of the text
KINDS = {
    "attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value",
    "attention.output.dense": "out", "intermediate.dense": "up", "output.dense": "down",
}  # fmt: skip
"""What the matrices of a layer are, by their paths in it, in order."""
ATTENTION = ("query", "key", "value", "out")
TARGETS = {"all": tuple(KINDS.values()), "attention": ATTENTION, "qv": ("query", "value")}
_TARGET = re.compile(r"encoder\.(layer\.\d+)\.(.+)")

Text = str | tuple[str, str]  # what a row says: a sentence, or a pair


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


def tokenize(tokenizer: Any, texts: Sequence[Text], **how: Any) -> list[list[int]]:
    """Token ids of sentences and pairs by a tokenizer of transformers, not padded."""
    found: dict[Text, list[int]] = {}
    if alone := [text for text in texts if isinstance(text, str)]:
        found |= zip(alone, tokenizer(alone, padding=False, **how)["input_ids"], strict=True)
    if pairs := [text for text in texts if not isinstance(text, str)]:
        a, b = map(list, zip(*pairs, strict=True))
        found |= zip(pairs, tokenizer(a, b, padding=False, **how)["input_ids"], strict=True)
    return [found[text] for text in texts]


def count_cut(folder: Path, texts: Sequence[Text], limit: int) -> int:
    """How many of some texts a folder's tokenizer cuts at a limit of tokens; no weight is read."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    most = min(limit, tokenizer.model_max_length, count_positions(AutoConfig.from_pretrained(folder)))
    return sum(len(ids) > most for ids in tokenize(tokenizer, texts, truncation=False, verbose=False))


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Int[Tensor, "n t"], Int[Tensor, "n t"]]:
    """Token ids as one tensor as wide as the longest row, and its mask: 1 for tokens, 0 behind them."""
    width = max(map(len, rows), default=0)
    ids = [[*row, *[pad_id] * (width - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    shape = (len(rows), width)
    return torch.tensor(ids, dtype=torch.long).view(shape), torch.tensor(mask, dtype=torch.long).view(shape)


def locate(name: str) -> Path:
    """The folder of an encoder: "minilm", a path, or a hub id that is in the local cache or can be downloaded.

    A hub id may name a revision, `ORG/NAME@REVISION`.

    Raises:
        BadInput: it is not there, its weights are not the pinned ones (of "minilm"), or as `check_encoder`.
    """
    if name == "minilm":
        return check_encoder(_locate_package())
    if Path(name).exists():
        return check_encoder(Path(name).resolve())
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise BadInput(
            f"no encoder folder {name!r}; give 'minilm', a folder, or a hub id ORG/NAME or ORG/NAME@REVISION"
        )
    try:
        repository, _, revision = name.partition("@")
        folder = hub.fetch(repository, revision or None, PATTERNS)
    except Exception as error:
        raise BadInput(hub.explain("model", name, error)) from None
    return check_encoder(folder)


def _locate_package() -> Path:
    """The folder inside an installed package, its weights checked."""
    folder = fetch_text.find_encoder()
    if folder is None:
        raise BadInput(f"the encoder 'minilm' is in no package that is installed; {sentences.FETCH}")
    weights = folder / fetch_text.WEIGHTS
    if weights.is_file():
        fetch_text.check_weights(weights, file_hash(weights))
    return folder


def check_encoder(folder: Path) -> Path:
    """Check that a folder holds an encoder of a kind that is read here, with a tokenizer of its own.

    Raises:
        BadInput: naming what is missing or of another kind, and what is allowed.
    """
    if not (folder / "config.json").is_file():
        raise BadInput(f"encoder folder {folder} has no config.json; give a folder as transformers saves it")
    config = read_config(folder / "config.json")
    kind, allowed = config.get("model_type"), ", ".join(ALLOWED)
    if kind not in ALLOWED:
        raise BadInput(f"encoder folder {folder} is a {kind}; allowed: the encoders {allowed}")
    if config.get("is_decoder"):
        raise BadInput(
            f"encoder folder {folder} is a {kind} set up as a decoder (is_decoder); allowed: the encoders {allowed}"
        )
    if not any(folder.glob("*.safetensors")):
        raise BadInput(f"encoder folder {folder} has no *.safetensors; only safetensors are read")
    rows, words = _read_encoder_shapes(folder)[f"{EMBEDDINGS}.weight"][0], count_vocabulary(folder)
    if words > rows:
        raise BadInput(
            f"encoder folder {folder}: the tokenizer knows {words} tokens, the model embeds {rows}; it is another model's"
        )
    return folder


def hash_of(folder: Path) -> str:
    """A hash of all that an encoder computes with: its weights, its vocabulary, and what of its configuration counts.

    Packages that hold the same model beside other files have the same hash.
    """
    config = read_config(folder / "config.json")
    digest = hashlib.sha256(json.dumps({name: config.get(name) for name in COUNTS}).encode())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(file_hash(path).encode())
    digest.update(json.dumps(sorted(read_vocabulary(folder).items())).encode())
    return digest.hexdigest()[:16]


def count_vocabulary(folder: Path) -> int:
    """How many tokens a folder's tokenizer knows: its largest id and one.

    Raises:
        BadInput: as `read_vocabulary`.
    """
    return max(read_vocabulary(folder).values(), default=-1) + 1


def read_vocabulary(folder: Path) -> dict[str, int]:
    """The tokens that a folder's tokenizer knows, with their ids.

    Raises:
        BadInput: it has no tokenizer, or one that cannot be read.
    """
    for name, read in VOCABULARIES.items():
        if (path := folder / name).is_file():
            try:
                return read(path)
            except Exception as error:  # tokenizers raises nothing more special
                raise BadInput(f"{path} cannot be read: {(str(error).splitlines() or ['?'])[0]}") from None
    raise BadInput(f"encoder folder {folder} has no tokenizer ({', '.join(VOCABULARIES)})")


def _read_tokenizer(path: Path) -> dict[str, int]:
    import tokenizers

    return dict(tokenizers.Tokenizer.from_file(str(path)).get_vocab())


def _read_lines(path: Path) -> dict[str, int]:
    return {word: place for place, word in enumerate(path.read_text(encoding="utf-8").splitlines())}


def _read_words(path: Path) -> dict[str, int]:
    return dict(read_json(path, {"*": COUNT}))


VOCABULARIES: dict[str, Callable[[Path], dict[str, int]]] = {
    "tokenizer.json": _read_tokenizer, "vocab.txt": _read_lines, "vocab.json": _read_words,
}  # fmt: skip
"""How a tokenizer's tokens are read from its file, the first that is there."""


def _read_encoder_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors as the encoder alone calls them: files of whole classifiers have `bert.` before that."""
    prefix = re.compile(rf"^({'|'.join(ALLOWED)})\.")
    shapes = {prefix.sub("", name): shape for name, shape in read_shapes(folder).items()}
    if f"{EMBEDDINGS}.weight" not in shapes:
        raise BadInput(f"the weights in {folder} have no {EMBEDDINGS}; allowed: the encoders {', '.join(ALLOWED)}")
    return shapes


def target_shapes(folder: Path, which: str = "all") -> dict[str, tuple[int, int]]:
    """`(out, in)` of the matrices that are adapted by their paths, in the model's order, from the weights' headers alone.

    Args:
        folder: as from `locate`.
        which: "all" six of each layer, its four of "attention", or "qv", query and value.

    Raises:
        BadInput: `which` is something else, or the model has no such matrix.
    """
    if which not in TARGETS:
        raise BadInput(f"unknown targets {which!r}; allowed: {', '.join(TARGETS)}")
    kinds = list(KINDS.values())
    found = {}
    for name, shape in _read_encoder_shapes(folder).items():
        path = name.removesuffix(".weight")
        match = _TARGET.fullmatch(path) if path != name else None
        if match and KINDS.get(match[2]) in TARGETS[which]:
            found[int(match[1].split(".")[1]), kinds.index(KINDS[match[2]])] = (path, (shape[0], shape[1]))
    if not found:
        raise BadInput(f"the weights in {folder} have no encoder.layer.0.attention.self.query, ...")
    return dict(found[place] for place in sorted(found))


def read_weights(folder: Path, paths: Collection[str]) -> Iterator[tuple[str, Float[Tensor, "out in"]]]:
    """Some matrices of an encoder's folder, with their paths, one after the other."""
    prefix = re.compile(rf"^({'|'.join(ALLOWED)})\.")
    for file in sorted(folder.glob("*.safetensors")):
        with open_safetensors(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if (path := prefix.sub("", name).removesuffix(".weight")) in paths and name.endswith(".weight"):
                    yield path, tensors.get_tensor(name)


def where(path: str) -> dict[str, str]:
    """Where a matrix of `target_shapes` stands: its block ("layer.0"), kind ("query"), and "self-attention" or "MLP".

    Raises:
        BadInput: it is none of them.
    """
    match = _TARGET.fullmatch(path)
    if not match or match[2] not in KINDS:
        raise BadInput(f"{path!r} is no matrix of an encoder's layer; allowed in encoder.layer.0: {', '.join(KINDS)}")
    kind = KINDS[match[2]]
    return {"block": match[1], "kind": kind, "attention": "self-attention" if kind in ATTENTION else "MLP"}


def load(folder: Path, device: torch.device) -> Encoder:
    """Load an encoder as float32 in evaluation mode, frozen.

    Args:
        folder: as from `locate`.
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


def count_positions(config: Any) -> int:
    """Tokens that a model has positions for: RoBERTa counts them from behind its padding token's number."""
    taken = config.pad_token_id + 1 if config.model_type == "roberta" else 0
    return int(config.max_position_embeddings) - taken
