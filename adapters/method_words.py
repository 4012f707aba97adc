"""What a command line says about a method besides its options: rates and label.

``mymethod.py:base_lr=0.002,label=My method``: such words stand among the options, and enter neither the method's identity nor
its canonical options.
"""

from __future__ import annotations

import math
import unicodedata

from adapters.errors import BadInput

RATES = ("base_lr", "lr_lambda", "lr_magnitude", "boundary")
LABEL = "label"
WORDS = (*RATES, LABEL)
BASE_MODEL = "base model"  # the series of its runs, in tables and figures
TAKEN = ("base", BASE_MODEL)  # what runs of the base model go by


def parse_word(method: str, key: str, text: str) -> float | str:
    """The value of one of :data:`WORDS`: a rate as a number, a label as it stands.

    Raises:
        BadInput: A rate is no positive number; a label is empty or holds control characters.
    """
    if key == LABEL:
        return _check_label(method, text)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise BadInput(f"{key} of method {method!r} is {text!r}; allowed: a positive number")
    return value


def _check_label(method: str, text: str) -> str:
    if not text or clean(text) != text or text in TAKEN:
        others = " or ".join(map(repr, TAKEN))
        raise BadInput(
            f"label of method {method!r} is {text!r}; allowed: a name in one line, without control characters, not {others}"
        )
    return text


def clean(text: str) -> str:
    """A name without what would act on a terminal or page: control and formatting characters, runs of white space."""
    kept = "".join(" " if letter.isspace() else letter for letter in text if not _acts(letter))
    return " ".join(kept.split())


def _acts(letter: str) -> bool:
    return unicodedata.category(letter).startswith("C") and not letter.isspace()
