"""Write numbers of things in words (`1 cell`, `2 cells`). Imports no torch."""

from __future__ import annotations

PLURALS = {"matrix": "matrices"}


def counted(number: int, noun: str, form: str = "") -> str:
    """`1 cell`, `2 cells`: a number with its noun.

    Args:
        number: how many.
        noun: of one, the word that changes last.
        form: how the number is written, as "," for 1,000.
    """
    return f"{number:{form}} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """`cells`, `classes`, `matrices`."""
    before, blank, last = noun.rpartition(" ")
    ending = "es" if last.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{before}{blank}{PLURALS.get(last, last + ending)}"
