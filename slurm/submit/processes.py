"""Processes of this machine, as Linux shows them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def list_processes() -> Iterator[tuple[int, tuple[str, ...]]]:
    """Process id and command line of every process that has one (zombies have none)."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                words = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")[:-1]
                if words:
                    yield int(entry), tuple(os.fsdecode(word) for word in words)
