"""File systems that run full or become read-only under their users, as real ones do; only root can make them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.make_cluster import call


@contextlib.contextmanager
def mounted(path: Path, *options: str | Path) -> Iterator[Path]:
    """A file system at `path` inside the block; afterwards it is gone, even if somebody still has files of it open."""
    path.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *map(str, options), str(path)], capture_output=True, text=True)
    if done.returncode:  # a container, in which not even root may
        pytest.skip(f"NO DISK: this machine mounts nothing, so disks are not filled: {done.stderr.strip()}")
    try:
        yield path
    finally:
        call("umount", "--lazy", path)


@dataclass(frozen=True)
class Disk:
    """A file system in memory that takes a few MiB."""

    path: Path

    def fill(self) -> None:
        """Leave it not one free block."""
        for _ in range(100):  # what is written meanwhile would not fit, and the system refuses
            facts = os.statvfs(self.path)
            if self._resize((facts.f_blocks - facts.f_bfree) * facts.f_frsize) == 0:
                return
        raise AssertionError(f"{self.path} could not be made small: {facts}")

    def grow(self) -> None:
        """Give it space again."""
        assert self._resize(64 * 2**20) == 0

    def limit_files(self) -> None:
        """Allow not one file more than there are."""
        for _ in range(100):  # one that is made meanwhile would be too many, and the system refuses
            facts = os.statvfs(self.path)
            if self._remount(f"nr_inodes={facts.f_files - facts.f_ffree}") == 0:
                return
        raise AssertionError(f"{self.path} could not be made small: {facts}")

    def allow_files(self) -> None:
        """Allow enough files again."""
        assert self._remount("nr_inodes=100000") == 0

    def _resize(self, size: int) -> int:
        return self._remount(f"size={size}")

    def _remount(self, option: str) -> int:
        return subprocess.run(["mount", "-o", f"remount,{option}", str(self.path)], capture_output=True).returncode


@dataclass(frozen=True)
class Quota:
    """A folder with a quota of its own, which binds root too."""

    path: Path

    def fill(self) -> None:
        """Allow nothing more."""
        self._limit("64K")

    def grow(self) -> None:
        """Allow enough again."""
        self._limit("64M")

    def _limit(self, size: str) -> None:
        call("btrfs", "qgroup", "limit", size, "0/256", self.path.parent)  # the first subvolume's; told from outside it


@contextlib.contextmanager
def make_quota(path: Path) -> Iterator[Quota]:
    """A folder with a quota inside the block, on btrfs in a file."""
    image, volume = path.with_name(f"{path.name}.image"), path.with_name(f"{path.name}.volume")
    call("truncate", "--size=128M", image)
    call("mkfs.btrfs", "--quiet", "--mixed", image)
    with mounted(volume, "-o", "loop", image):
        call("btrfs", "quota", "enable", volume)
        call("btrfs", "subvolume", "create", volume / "mine")
        yield Quota(volume / "mine")


def why_no_quota() -> str:
    """Why no folder with a quota can be made here; "" if one can."""
    if not (shutil.which("mkfs.btrfs") and shutil.which("btrfs")):
        return "the package btrfs-progs is not installed"
    return "" if "btrfs" in Path("/proc/filesystems").read_text(encoding="utf-8").split() else "this Linux has no btrfs"


@contextlib.contextmanager
def make_disk(path: Path, size: str = "16m") -> Iterator[Disk]:
    """A small file system inside the block."""
    with mounted(path, "-t", "tmpfs", "-o", f"size={size}", "plateau-test"):
        yield Disk(path)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nobody can write to a folder inside the block, but for files that are open already."""
    with mounted(folder, "--bind", "-o", "ro", folder):
        yield
