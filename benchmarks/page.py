"""Parts of a document that commands write, each between a pair of comments that name it."""

from __future__ import annotations

import re
from pathlib import Path

from adapters.errors import BadInput
from adapters.words import counted
from training.store import writing


def write_part(page: Path, name: str, text: str) -> None:
    """Replace a part of a document; the rest stays as it is.

    Args:
        page: the document, which holds the lines `<!-- begin NAME -->` and `<!-- end NAME -->`.
        name: the part's name.
        text: its new content.

    Raises:
        BadInput: if the document cannot be read or has no such part.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    try:
        before = page.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{page} cannot be read: {error.strerror}") from None
    after, count = re.subn(
        f"(?s){re.escape(begin)}\n.*?{re.escape(end)}", lambda _: f"{begin}\n\n{text.strip()}\n\n{end}", before
    )
    if count != 1:
        raise BadInput(f"{page} has {counted(count, 'part')} between {begin!r} and {end!r}; it needs one")
    with writing(page) as aside:
        aside.write_text(after, encoding="utf-8")


def list_parts(page: Path) -> list[str]:
    """Names of a document's parts, in order."""
    return re.findall(r"^<!-- begin (\S+) -->$", page.read_text(encoding="utf-8"), re.M)
