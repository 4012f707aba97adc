"""Write many small files at once, each seen whole or not at all, at little more than the cost of one. Imports no torch.

A file by itself costs two flushes, its own and its folder's. Here all are written aside first and flushed side by side,
which a disk does together; then they are renamed, and each folder is flushed once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adapters.documents import flush
from training.whole_files import name_aside, store_error

FLUSHES = 16  # at a time


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write files; after an error those that are there are whole, and all old ones are untouched or replaced as a whole.

    Raises:
        StoreError: if the disk is full or a folder cannot be written.
    """
    asides = {path: name_aside(path) for path in texts}
    folders = dict.fromkeys(path.parent for path in texts)
    at = next(iter(texts), Path())
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for at, text in texts.items():
            asides[at].write_text(text, encoding="utf-8")
        with ThreadPoolExecutor(FLUSHES) as pool:
            list(pool.map(flush, asides.values()))
        for at, aside in asides.items():
            os.replace(aside, at)
        with ThreadPoolExecutor(FLUSHES) as pool:
            list(pool.map(flush, folders))
    except OSError as error:
        raise store_error(error, at) from error
    finally:
        for aside in asides.values():
            aside.unlink(missing_ok=True)
