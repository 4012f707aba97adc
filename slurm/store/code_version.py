"""A hash over the files that decide results, so that a job notices a changed checkout."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("adapters", "training", "slurm")


@functools.cache
def code_version() -> str:
    """Twelve digits of a SHA-256 over the Python files of `adapters`, `training` and `slurm`, by name.

    `slurm/clusters.toml` is left out: a job reads none of it, and users edit it.
    """
    return hash_files(ROOT)


def hash_files(root: Path) -> str:
    """The version of the code below a folder."""
    digest = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]
