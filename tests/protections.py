"""What protects a sweep from each fault, as `tests/protections.toml` lists it, and as docs/reliability.md shows it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from adapters import BadInput

LIST = Path(__file__).with_suffix(".toml")
MARK = "<!-- seen: python -m tests.take_out --docs docs -->"
HEAD = "| fault | protection | taken out by | test | what it then says |\n|---|---|---|---|---|"


@dataclass(frozen=True)
class Protection:
    """A protection, and how it is taken out.

    Attributes:
        name: what it is called on the command line.
        fault: key of the fault that it is there for.
        protects: what it does, in a sentence.
        file: where it stands.
        old, new: the text to be replaced, which occurs once in the file, and what takes its place.
        tests: nodes of pytest, each of which must fail then.
        slurm: whether they need a real SLURM.
    """

    name: str
    fault: str
    protects: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    slurm: bool = False

    @property
    def first_file(self) -> str:
        """Where its first test stands."""
        return self.tests[0].partition("::")[0]

    def change(self, text: str) -> str:
        """The file's text without the protection.

        Raises:
            BadInput: if what is to be replaced does not occur exactly once.
        """
        if (count := text.count(self.old)) != 1:
            raise BadInput(f"{self.name}: its text occurs {count} times in {self.file}, not once: {self.old!r}")
        return text.replace(self.old, self.new)


def read_list(path: Path = LIST) -> tuple[dict[str, str], list[Protection]]:
    """The faults by their keys, and the protections."""
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    made = [
        Protection(name, **entry | {"tests": tuple(entry["tests"])}) for name, entry in found["protections"].items()
    ]
    return found["faults"], made


# The table.


def write_docs(path: Path, faults: dict[str, str], known: Sequence[Protection], said: Mapping[str, str]) -> None:
    """Put a row for each protection into a document, below its mark.

    Args:
        path: the document.
        faults: by their keys.
        known: all protections, also those that were not taken out now: their rows stay if nothing changed.
        said: what a test said without a protection, by the protection's name.
    """
    head, mark, table = path.read_text(encoding="utf-8").partition(MARK)
    stood = dict(line.rpartition(" | ")[::2] for line in table.splitlines() if line.startswith("| "))
    rows = []
    for fault in faults:
        for protection in (p for p in known if p.fault == fault):
            key = row_of(protection, faults)
            if (
                says := cell(said[protection.name])
                if protection.name in said
                else stood.get(key, "").removesuffix(" |")
            ):
                rows.append(f"{key} | {says} |")
    lines = (
        f"{len(rows)} of {len(known)} protections, {date.today().isoformat()}; `python -m tests.take_out --docs docs`."
    )
    path.write_text("\n".join([f"{head}{mark or MARK}", "", lines, "", HEAD, *rows, ""]), encoding="utf-8")


def row_of(protection: Protection, faults: dict[str, str]) -> str:
    """A row but for its last cell."""
    change = f"`{protection.file}`: {code(protection.old)} → {code(protection.new)}"
    tests = ", ".join(f"`{node.removeprefix('tests/')}`" for node in protection.tests)
    return f"| {faults[protection.fault]} | {cell(protection.protects)} | {change} | {tests}"


def code(text: str) -> str:
    """Code in one line of a table."""
    return f"`{cell(' '.join(text.split()))}`" if text.strip() else "nothing"


def cell(text: str) -> str:
    """A text that does not end a table's cell."""
    return text.replace("|", "\\|")
