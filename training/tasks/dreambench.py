"""DreamBooth's published data set (github.com/google/dreambooth, `dataset/`): its classes and prompts as published, and a check.

python -m training.tasks.dreambench check PATH
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from adapters.errors import BadInput
from adapters.words import counted
from training.command_line import run_program
from training.read_picture import read_picture
from training.tasks.picture_folder import list_pictures

FILE = "prompts_and_classes.txt"
LIVE = frozenset({"cat", "dog"})  # classes of the nine live subjects
NUM_PROMPTS = 25  # of each kind
# Photographs of each of the 30 subjects, 158 in all.
PUBLISHED = {
    "backpack": 6, "backpack_dog": 5, "bear_plushie": 5, "berry_bowl": 6, "can": 6, "candle": 5, "cat": 5, "cat2": 5, "clock": 6,
    "colorful_sneaker": 5, "dog": 5, "dog2": 6, "dog3": 6, "dog5": 5, "dog6": 5, "dog7": 5, "dog8": 5, "duck_toy": 4,
    "fancy_boot": 6, "grey_sloth_plushie": 5, "monster_toy": 5, "pink_sunglasses": 6, "poop_emoji": 5, "rc_car": 5,
    "red_cartoon": 4, "robot_toy": 5, "shiny_sneaker": 6, "teapot": 5, "vase": 6, "wolf_plushie": 5,
}  # fmt: skip
HEADINGS = {"Object Prompts": "object", "Live Subject Prompts": "live"}


@dataclass(frozen=True)
class Published:
    """What the file of prompts and classes says.

    Attributes:
        classes: of every subject.
        prompts: templates with `{token}` and `{cls}` of "object" and "live".
    """

    classes: dict[str, str] = field(default_factory=dict)
    prompts: dict[str, list[str]] = field(default_factory=dict)

    def kind(self, subject: str) -> str:
        """ "live" or "object"."""
        return "live" if self.classes.get(subject) in LIVE else "object"


def read_published(path: Path) -> Published:
    """Read the file of prompts and classes; its Python lists are read as text, and nothing is executed.

    Raises:
        BadInput: if there are no classes, or no prompts of either kind; the message says which.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from None
    found, kind = Published(), ""
    for line in map(str.strip, lines):
        kind = HEADINGS.get(line, kind)
        if prompt := re.match(r"""['"](.*?)['"]\.format\(unique_token, class_token\)""", line):
            found.prompts.setdefault(kind, []).append(prompt[1].replace("{0}", "{token}").replace("{1}", "{cls}"))
        elif not kind and (row := re.fullmatch(r"(\w+),([\w ]+)", line)) and row[1] != "subject_name":
            found.classes[row[1]] = row[2].strip()
    if not found.classes:
        raise BadInput(f"{path} has no classes: expected lines like `backpack_dog,backpack` under `subject_name,class`")
    if absent := [name for name, kind in HEADINGS.items() if kind not in found.prompts]:
        raise BadInput(f"{path} has no {absent[0].lower()}: expected them under the line `{absent[0]}`")
    return found


def find_faults(folder: Path) -> list[str]:
    """What a copy of the data set lacks or has broken, a line each; none if it is whole.

    Raises:
        BadInput: if the folder is no copy of it at all.
    """
    if not (folder / FILE).is_file():
        raise BadInput(f"{folder} has no {FILE}: give the folder `dataset` of github.com/google/dreambooth")
    published, faults = read_published(folder / FILE), []
    for name, count in PUBLISHED.items():
        if not (folder / name).is_dir():
            faults.append(f"{name}: its folder is missing")
            continue
        pictures = list_pictures(folder / name)
        if len(pictures) != count:
            faults.append(f"{name}: {counted(len(pictures), 'picture')}, not {count}")
        for picture in pictures:
            try:
                read_picture(picture)
            except BadInput as error:
                faults.append(f"{name}: {error}")
        if name not in published.classes:
            faults.append(f"{name}: {FILE} gives it no class")
    faults += [
        f"{FILE}: {len(prompts)} {kind} prompts, not {NUM_PROMPTS}"
        for kind, prompts in published.prompts.items()
        if len(prompts) != NUM_PROMPTS
    ]
    return faults


def check_named(folder: Path, names: Sequence[str]) -> None:
    """Refuse subjects that a copy of the data set has only in part; other folders, and subjects of one's own, are left alone.

    Args:
        folder: of subjects.
        names: those that are wanted.

    Raises:
        BadInput: naming the first that lacks pictures or its class.
    """
    if not (folder / FILE).is_file():
        return
    published = read_published(folder / FILE)
    for name in (name for name in names if name in PUBLISHED):
        if fault := _find_lack(folder, name, published):
            hint = f"`python -m training.tasks.dreambench check {folder}` lists everything"
            raise BadInput(f"{folder} is no whole copy of DreamBooth's data set: {fault} ({hint})")


def describe_missing(folder: Path) -> str:
    """Which of the published subjects a copy of the data set lacks, in brackets; "" for other folders and whole copies."""
    absent = [name for name in PUBLISHED if not (folder / name).is_dir()] if (folder / FILE).is_file() else []
    return (
        f" (of DreamBooth's {len(PUBLISHED)} {', '.join(absent)} {'is' if len(absent) == 1 else 'are'} missing)"
        if absent
        else ""
    )


def _find_lack(folder: Path, name: str, published: Published) -> str:
    """What a subject lacks, "" for nothing."""
    if not (folder / name).is_dir():
        return f"{name}: its folder is missing"
    if (count := len(list_pictures(folder / name))) != PUBLISHED[name]:
        return f"{name}: {counted(count, 'picture')}, not {PUBLISHED[name]}"
    return "" if name in published.classes else f"{name}: {FILE} gives it no class"


@dataclass(frozen=True)
class Options:
    """What is checked."""

    command: Annotated[Literal["check"], tyro.conf.Positional]
    """The one thing to do."""
    folder: Annotated[Path, tyro.conf.Positional]
    """The data set: `dataset` of github.com/google/dreambooth."""


def run(options: Options) -> int:
    """Say whether the copy is whole, and what is missing.

    Raises:
        BadInput: if something is.
    """
    faults = find_faults(options.folder)
    for fault in faults:
        print(fault)
    if faults:
        raise BadInput(f"{options.folder} is no whole copy: {counted(len(faults), 'fault')}")
    published = read_published(options.folder / FILE)
    live = sum(published.kind(name) == "live" for name in PUBLISHED)
    print(
        f"{options.folder} is whole: {len(PUBLISHED)} subjects ({live} live) of {len(set(published.classes.values()))} classes, "
        f"{sum(PUBLISHED.values())} pictures, {NUM_PROMPTS} prompts for objects and {NUM_PROMPTS} for live subjects"
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    return run_program(Options, run, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
