"""Prompts longer than a text encoder takes: where they are cut, and which become the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.documents import read_json
from adapters.errors import BadInput

PLACES = 77  # of CLIP's text encoders, where a tokenizer does not say


@dataclass(frozen=True)
class Cut:
    """Prompts that a tokenizer cuts.

    Attributes:
        places: tokens that the encoder takes, the first and the last ones that mark a prompt's ends among them.
        prompts: those that are longer.
        alike: groups of prompts of which the encoder sees one and the same.
    """

    places: int
    prompts: tuple[str, ...]
    alike: tuple[tuple[str, ...], ...]


def find_cut(folder: Path | str, prompts: Sequence[str]) -> Cut | None:
    """What a tokenizer cuts of prompts; None if nothing.

    Args:
        folder: the tokenizer's folder, or a hub id.
        prompts: with all fields filled in.

    Raises:
        BadInput: if its configuration is damaged.
    """
    places = _read_places(folder)
    if all(len(prompt.encode()) <= places - 2 for prompt in prompts):
        return None  # a token is a byte at least, and two mark the ends
    ids = dict(zip(prompts, _tokenize(folder, list(prompts))))
    long = tuple(prompt for prompt, own in ids.items() if len(own) > places)
    seen: dict[tuple[int, ...], list[str]] = {}
    for prompt in long:
        seen.setdefault(tuple(ids[prompt][: places - 1]), []).append(prompt)
    return Cut(places, long, tuple(tuple(group) for group in seen.values() if len(group) > 1)) if long else None


def _tokenize(folder: Path | str, prompts: list[str]) -> list[list[int]]:
    """Token ids of whole prompts."""
    try:
        if (Path(folder) / "tokenizer.json").is_file():  # what transformers reads too, and takes seconds to import for
            from tokenizers import Tokenizer

            fast = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
            fast.no_truncation()
            fast.no_padding()
            return [encoded.ids for encoded in fast.encode_batch(prompts)]
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(folder)(prompts, verbose=False).input_ids
    except Exception as error:
        raise BadInput(f"cannot load the tokenizer {folder}: {error}") from None


def _read_places(folder: Path | str) -> int:
    path = Path(folder) / "tokenizer_config.json"
    places = read_json(path, {}).get("model_max_length", PLACES) if path.is_file() else PLACES
    return int(places) if isinstance(places, int | float) and 2 < places < 1e6 else PLACES
