"""Folders of pretrained language models as transformers saves them: whether one can be read, what it is, which matrices it has.

Nothing here loads a model: shapes come from the headers of its safetensors, other files are JSON and text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from adapters.documents import COUNT, read_json
from adapters.errors import BadInput
from adapters.tensor_file import open_safetensors, read_shapes
from training.tasks import hub
from training.tasks.model_kind import read_config
from training.tasks.pipeline import file_hash

PATTERNS = ("*.json", "*.txt", "*.safetensors", "*.model")
SHORTEST = 3  # tokens: of a text with the two special ones; of a prompt, its answer and the end
Text = str | tuple[str, str]  # what a row says: a text, or a pair


@dataclass(frozen=True)
class Family:
    """A family of language models.

    Attributes:
        what: what they are, in the singular ("encoder").
        kinds: `model_type`s that are read.
        counts: what of a configuration counts for what a model computes.
        prefixes: what stands before the tensors' names in the files of models with a head on them.
        embeddings: path of the tokens' embeddings.
        layer: how the path of a layer's matrix begins, up to its number: "encoder.layer" in `encoder.layer.0.output.dense`.
        matrices: what the matrices of a layer are, by their paths in it, in order.
        attention: those that are attention's.
        sets: names of sets of them, to be adapted, and what is in each.
        example: a matrix as it is looked for.
        allows: whether a configuration is one of them, as far as its `model_type` does not say: why not, or "".
        packaged: models that have a name of their own, and what finds their folders.
    """

    what: str
    kinds: tuple[str, ...]
    counts: tuple[str, ...]
    prefixes: tuple[str, ...]
    embeddings: str
    layer: str
    matrices: Mapping[str, str]
    attention: tuple[str, ...]
    sets: Mapping[str, tuple[str, ...]]
    example: str
    allows: Callable[[Mapping[str, Any]], str] = lambda config: ""
    packaged: Mapping[str, Callable[[], Path]] = field(default_factory=dict)

    @property
    def allowed(self) -> str:
        """The kinds that are read, in words."""
        return f"the {self.what}s {', '.join(self.kinds)}"

    def locate(self, name: str) -> Path:
        """The folder of a model: a name of its own, a path, or a hub id that is in the local cache or can be downloaded.

        A hub id may name a revision, `ORG/NAME@REVISION`.

        Raises:
            BadInput: it is not there, or as `check`.
        """
        if name in self.packaged:
            return self.check(self.packaged[name]())
        if Path(name).exists():
            return self.check(Path(name).resolve())
        if name.count("/") != 1 or name.startswith((".", "/")):
            own = "".join(f"{one!r}, " for one in self.packaged)
            raise BadInput(
                f"no {self.what} folder {name!r}; give {own}a folder, or a hub id ORG/NAME or ORG/NAME@REVISION"
            )
        try:
            repository, _, revision = name.partition("@")
            folder = hub.fetch(repository, revision or None, PATTERNS)
        except Exception as error:
            raise BadInput(hub.explain("model", name, error)) from None
        return self.check(folder)

    def check(self, folder: Path) -> Path:
        """Check that a folder holds a model of a kind that is read here, with a tokenizer of its own.

        Raises:
            BadInput: naming what is missing or of another kind, and what is allowed.
        """
        if not (folder / "config.json").is_file():
            raise BadInput(f"{self.what} folder {folder} has no config.json; give a folder as transformers saves it")
        config = read_config(folder / "config.json")
        kind = config.get("model_type")
        why = "" if kind in self.kinds else f"is a {kind}"
        if why := why or self.allows(config):
            raise BadInput(f"{self.what} folder {folder} {why}; allowed: {self.allowed}")
        if not any(folder.glob("*.safetensors")):
            raise BadInput(f"{self.what} folder {folder} has no *.safetensors; only safetensors are read")
        rows, words = self._shapes(folder)[f"{self.embeddings}.weight"][0], count_vocabulary(folder, self.what)
        if words > rows:
            raise BadInput(
                f"{self.what} folder {folder}: the tokenizer knows {words} tokens, the model embeds {rows}; it is another model's"
            )
        return folder

    def hash_of(self, folder: Path) -> str:
        """A hash of all that a model computes with: its weights, its vocabulary, and what of its configuration counts.

        Packages that hold the same model beside other files have the same hash.
        """
        config = read_config(folder / "config.json")
        digest = hashlib.sha256(json.dumps({name: config.get(name) for name in self.counts}).encode())
        for path in sorted(folder.glob("*.safetensors")):
            digest.update(file_hash(path).encode())
        digest.update(json.dumps(sorted(read_vocabulary(folder, self.what).items())).encode())
        return digest.hexdigest()[:16]

    def target_shapes(self, folder: Path, which: str = "all") -> dict[str, tuple[int, int]]:
        """`(out, in)` of the matrices that are adapted by their paths, in the model's order, from the weights' headers alone.

        Args:
            folder: as from `locate`.
            which: a name of `sets`.

        Raises:
            BadInput: `which` is something else, or the model has no such matrix.
        """
        if which not in self.sets:
            raise BadInput(f"unknown targets {which!r}; allowed: {', '.join(self.sets)}")
        places = {kind: place for place, kind in enumerate(self.matrices.values())}
        found = {}
        for name, shape in self._shapes(folder).items():
            path = name.removesuffix(".weight")
            match = self._split(path) if path != name else None
            if match and match[1] in self.sets[which]:
                found[match[0], places[match[1]]] = (path, (shape[0], shape[1]))
        if not found:
            raise BadInput(f"the weights in {folder} have no {self.example}, ...")
        return dict(found[place] for place in sorted(found))

    def read_weights(self, folder: Path, paths: Collection[str]) -> Iterator[tuple[str, Float[Tensor, "out in"]]]:
        """Some matrices of a model's folder, with their paths, one after the other."""
        for file in sorted(folder.glob("*.safetensors")):
            with open_safetensors(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    if (path := self._own_name(name).removesuffix(".weight")) in paths and name.endswith(".weight"):
                        yield path, tensors.get_tensor(name)

    def where(self, path: str) -> dict[str, str]:
        """Where a matrix of `target_shapes` stands: its block ("layer.0"), kind ("query"), and "self-attention" or "MLP".

        Raises:
            BadInput: it is none of them.
        """
        if (match := self._split(path)) is None:
            allowed = ", ".join(self.matrices)
            raise BadInput(f"{path!r} is no matrix of {_a(self.what)}'s layer; allowed in {self.layer}.0: {allowed}")
        number, kind = match
        return {
            "block": f"layer.{number}", "kind": kind, "attention": "self-attention" if kind in self.attention else "MLP"
        }  # fmt: skip

    def find_layers(self, model: nn.Module, which: str) -> dict[str, nn.Linear]:
        """The linear layers of a model that one of `sets` names, by path, in its order."""

        def is_named(path: str) -> bool:
            match = self._split(path)
            return match is not None and match[1] in self.sets[which]

        return {p: m for p, m in model.named_modules() if isinstance(m, nn.Linear) and is_named(p)}

    def _split(self, path: str) -> tuple[int, str] | None:
        """Number of the layer and kind of a matrix."""
        match = re.fullmatch(rf"{re.escape(self.layer)}\.(\d+)\.(.+)", path)
        return (int(match[1]), self.matrices[match[2]]) if match and match[2] in self.matrices else None

    def _own_name(self, name: str) -> str:
        """A tensor's name as the model alone calls it."""
        return re.sub(rf"^({'|'.join(self.prefixes)})\.", "", name)

    def _shapes(self, folder: Path) -> dict[str, tuple[int, ...]]:
        shapes = {self._own_name(name): shape for name, shape in read_shapes(folder).items()}
        if f"{self.embeddings}.weight" not in shapes:
            raise BadInput(f"the weights in {folder} have no {self.embeddings}; allowed: {self.allowed}")
        return shapes


def _a(what: str) -> str:
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what}"


# Vocabularies and tokens


def count_vocabulary(folder: Path, what: str) -> int:
    """How many tokens a folder's tokenizer knows: its largest id and one.

    Raises:
        BadInput: as `read_vocabulary`.
    """
    return max(read_vocabulary(folder, what).values(), default=-1) + 1


def read_vocabulary(folder: Path, what: str) -> dict[str, int]:
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
    raise BadInput(f"{what} folder {folder} has no tokenizer ({', '.join(VOCABULARIES)})")


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


def tokenize(tokenizer: Any, texts: Sequence[Text], **how: Any) -> list[list[int]]:
    """Token ids of texts and pairs by a tokenizer of transformers, not padded."""
    found: dict[Text, list[int]] = {}
    if alone := [text for text in texts if isinstance(text, str)]:
        found |= zip(alone, tokenizer(alone, padding=False, **how)["input_ids"], strict=True)
    if pairs := [text for text in texts if not isinstance(text, str)]:
        a, b = map(list, zip(*pairs, strict=True))
        found |= zip(pairs, tokenizer(a, b, padding=False, **how)["input_ids"], strict=True)
    return [found[text] for text in texts]


def count_positions(config: Any) -> int:
    """Tokens that a model has positions for: RoBERTa counts them from behind its padding token's number."""
    taken = config.pad_token_id + 1 if config.model_type == "roberta" else 0
    return int(config.max_position_embeddings) - taken


def count_cut(folder: Path, texts: Sequence[Text], limit: int, ending: int = 0) -> tuple[int, int]:
    """How many texts are cut; no weight is read.

    Args:
        folder: of the model.
        texts: as they are given to its tokenizer.
        limit: the largest number of tokens that is asked for.
        ending: tokens that are put behind each text.

    Returns:
        How many are longer than the limit, the tokenizer or the model's positions allow, and what these allow, in tokens.
    """
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    most = min(limit, tokenizer.model_max_length, count_positions(AutoConfig.from_pretrained(folder)))
    ids = tokenize(tokenizer, texts, truncation=False, verbose=False)
    return sum(len(own) + ending > most for own in ids), most
