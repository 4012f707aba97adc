"""The caption grammar: ``[style] [size] noun [with companion] [background]``, and nothing else.

Every phrase is shared by all classes. ``Composition`` is what a view is painted from and what its caption says.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

STYLES = {"google": "a drawing of", "fluent": "a 3d render of"}
SIZES = {"": 0.80, "small": 0.50, "big": 1.0}  # share of the picture's side


@dataclass(frozen=True)
class Composition:
    """What to paint around a noun; None or "" leaves a part out of the picture.

    say_style, say_size: whether the caption names what the picture shows.
    """

    size: str = ""
    companion: str | None = None
    background: str = "on a white background"
    say_style: bool = True

    def caption(self, noun: str, vendor: str) -> str:
        """The caption of ``noun`` drawn by ``vendor`` in this composition."""
        head = " ".join(part for part in (self.size, noun) if part)
        start = STYLES[vendor] if self.say_style else ""
        parts = [start, article(head), f"with {self.companion}" if self.companion else "", self.background]
        return " ".join(part for part in parts if part)


def article(words: str) -> str:
    """``words`` with its indefinite article."""
    return f"{'an' if words[0] in 'aeio' or words.startswith('umb') else 'a'} {words}"


def draw_composition(rng: random.Random, backgrounds: list[str], companions: list[str]) -> Composition:
    """A random composition: half of them plain sizes, a quarter with a companion."""
    return Composition(
        size=rng.choices(list(SIZES), (0.7, 0.2, 0.1))[0],
        companion=rng.choice(companions) if rng.random() < 0.25 else None,
        background=rng.choice(backgrounds),
        say_style=rng.random() < 0.5,
    )


def corpus(nouns: list[str], backgrounds: list[str], companions: list[str], seed: int = 0) -> list[str]:
    """Captions to train the tokenizer on: every noun in a few compositions of each style."""
    rng = random.Random(seed)
    return [
        draw_composition(rng, backgrounds, companions).caption(noun, v)
        for noun in nouns
        for v in STYLES
        for _ in range(3)
    ]
