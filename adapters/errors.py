"""What a user did wrong, in one line."""

from __future__ import annotations

import re


class BadInput(ValueError):
    """A value that the user gave and that cannot be used; its text is one printable line that says what is allowed."""

    def __init__(self, text: object = "") -> None:
        super().__init__(printable(text))


def printable(text: object) -> str:
    """Text in one line: white space becomes a blank; what else is not printed (escape codes) is spelled, as `\\x1b`."""
    words = re.sub(r"\s*[\t\n\v\f\r]\s*", " ", str(text).strip())
    if words.isprintable():
        return words
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
