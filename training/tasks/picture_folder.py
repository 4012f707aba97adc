"""List a subject's pictures in a folder: which files are used, which are left out and why, and what the user is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import BadInput, printable
from training.read_picture import HEIF_NEEDS, HEIF_SUFFIXES, MAYBE_UNREAD, WORDS, NoPicture, list_suffixes, read_picture

LEFT_BEHIND = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "$recycle.bin", "system volume information",
    "lost+found", "__pycache__",
}  # fmt: skip
"""What systems leave in folders, in small letters; hidden files and folders are passed over too."""
NUM_NAMED = 5  # files of a line


@dataclass(frozen=True)
class Pictures:
    """The pictures of one folder.

    Attributes:
        paths: in the order of their names.
        readings: of each picture, what `read_picture` does to it that changes its pixels; "" for most.
        remarks: (what, file) of all that was done to a picture or is the reason why a file is left out.
    """

    paths: tuple[Path, ...]
    readings: tuple[str, ...]
    remarks: tuple[tuple[str, str], ...]


def is_left_behind(path: Path) -> bool:
    """Whether a file or folder is nobody's: hidden, or left there by a system."""
    return path.name.startswith(".") or path.name.lower() in LEFT_BEHIND


def list_pictures(folder: Path) -> list[Path]:
    """Files whose names end as a picture's, in the order of their names."""
    return [path for path in _list_files(folder) if path.is_file() and path.suffix.lower() in list_suffixes()]


def read_folder(folder: Path) -> Pictures:
    """Read every picture of a folder to its end.

    Raises:
        BadInput: there is none, or one is broken or cannot be used.
    """
    read, remarks = {}, []
    for path in _list_files(folder):
        shown = f"{folder.name}/{path.name}"
        if why := _find_reason(path):
            remarks.append((f"left out ({why})", shown))
            continue
        try:
            picture = read_picture(path)
        except NoPicture as error:
            if path.suffix.lower() not in MAYBE_UNREAD:
                raise
            remarks.append((f"left out ({error.why})", shown))
            continue
        read[path] = picture.reading
        remarks += [(WORDS[key], shown) for key in picture.done]
    if not read:
        raise BadInput(f"no pictures in {folder}{_explain_none(remarks)}; expected files such as 01.png or 01.jpg")
    return Pictures(tuple(read), tuple(read.values()), tuple(remarks))


def describe_remarks(remarks: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each thing that was done to pictures, and one for all that is left out."""
    groups: dict[str, list[str]] = {}
    for what, name in remarks:
        groups.setdefault(what, []).append(printable(name))
    done = [f"pictures {what}: {_join(names)}" for what, names in groups.items() if not what.startswith("left out")]
    left = [f"{_join(names)} {what.removeprefix('left out ')}" for what, names in groups.items() if what[:4] == "left"]
    return [*done, *([f"left out: {', '.join(left)}"] if left else [])]


def _list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not is_left_behind(path))


def _find_reason(path: Path) -> str:
    """Why a file is not even tried, "" for one that is."""
    ending = path.suffix.lower()
    if not path.is_file():
        return "a folder" if path.is_dir() else "no file"
    if ending in list_suffixes():
        return ""
    if ending in HEIF_SUFFIXES:
        return HEIF_NEEDS
    return "captions are not read" if ending in (".txt", ".caption", ".jsonl") else "no picture"


def _explain_none(remarks: list[tuple[str, str]]) -> str:
    return f" ({'; '.join(describe_remarks(remarks))})" if remarks else ""


def _join(names: list[str]) -> str:
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more
