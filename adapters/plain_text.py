"""Text from files and folders that may be anybody's, made fit for a line of a terminal, a table or a figure."""

from __future__ import annotations

import re


def printable(text: object) -> str:
    """Text in one line: white space becomes a blank; what else is not printed (escape codes) is spelled, as `\\x1b`."""
    words = re.sub(r"\s*[\t\n\v\f\r]\s*", " ", str(text).strip())
    if words.isprintable():
        return words
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
