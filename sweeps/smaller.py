"""Offer a smaller sweep where the planned one takes long: the same command with fewer subjects and multipliers."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from slurm.store.sweep_state import duration
from sweeps.grid import LabelledCell

LONG_S = 600.0
SUBJECTS, MULTIPLIERS = "subjects", "multipliers"


def offer_smaller(
    planned: Sequence[LabelledCell],
    arguments: Sequence[str],
    asked: Sequence[str],
    seconds: Callable[[set[str]], float | None],
    kinds: Sequence[str] = (SUBJECTS, MULTIPLIERS),
    sweep: str = "",
) -> list[str]:
    """A line with a command that takes less than ten minutes, or as little as can be; none where that is no half of the whole.

    Args:
        planned: the cells of the whole question.
        arguments: the command line, the program's path first.
        asked: the value of `--subjects`.
        seconds: how long the cells of some identities take.
        kinds: which flags may be given smaller values.
        sweep: the folder of its own that the smaller sweep gets: packs that are stored already would be trained whole.
    """
    best: tuple[float, list[str]] | None = None
    for subjects, multipliers in _fewer(planned, kinds):
        kept = {p.cell.identity() for p in planned if _is_kept(p, subjects, multipliers)}
        takes = seconds(kept)
        if takes is None:
            return []
        command = [*arguments]
        if SUBJECTS in kinds and len(subjects) < len(_values(planned)[0]):
            command = _replace(command, SUBJECTS, _as_asked(asked, subjects))
        if MULTIPLIERS in kinds and len(multipliers) < len(_values(planned)[1]):
            command = _replace(command, MULTIPLIERS, [f"{value:g}" for value in multipliers])
        best = (takes, _replace(command, "sweep", [sweep]) if sweep else command)
        if takes <= LONG_S:
            break
    whole = seconds({p.cell.identity() for p in planned})
    if best is None or whole is None or best[0] > whole / 2:
        return []
    takes, (program, *words) = best
    words = [word for word in words if word != "--dry-run"]
    return [f"smaller, {duration(takes)} or so: python sweeps/{Path(program).name} {shlex.join(words)}"]


def _values(planned: Sequence[LabelledCell]) -> tuple[list[str], list[float]]:
    """The subjects and the multipliers, in the order of the plan."""
    multipliers = [p.labels["multiplier"] for p in planned if p.labels.get("multiplier") is not None]
    return list(dict.fromkeys(p.cell.subject for p in planned)), sorted(set(multipliers))


def _fewer(planned: Sequence[LabelledCell], kinds: Sequence[str]) -> Iterator[tuple[list[str], list[float]]]:
    """Ever smaller selections: subjects halved with every multiplier; then one, with the ends and what is between them halved."""
    subjects, multipliers = _values(planned)
    while SUBJECTS in kinds and len(subjects) > 1:
        subjects = subjects[: len(subjects) // 2]
        yield subjects, multipliers
    while MULTIPLIERS in kinds and len(multipliers) > 3:
        multipliers = sorted({*multipliers[::2], multipliers[-1]})
        yield subjects, multipliers


def _is_kept(p: LabelledCell, subjects: Sequence[str], multipliers: Sequence[float]) -> bool:
    multiplier = p.labels.get("multiplier")
    return p.cell.subject in subjects and (multiplier is None or multiplier in multipliers)


def _as_asked(asked: Sequence[str], subjects: Sequence[str]) -> list[str]:
    """The value of `--subjects` that takes the first few: their number, or their names where names were given."""
    folder = list(asked[:1]) if asked and ("/" in asked[0] or Path(asked[0]).is_dir()) else []
    rest = asked[len(folder) :]
    named = bool(rest) and not (len(rest) == 1 and rest[0].isdigit())
    return [*folder, *(subjects if named else [str(len(subjects))])]


def _replace(arguments: Sequence[str], flag: str, values: Sequence[str]) -> list[str]:
    """A command line with another value of a flag that takes a list."""
    kept, skips = [], False
    for word in arguments:
        name = word.split("=")[0].replace("_", "-")
        if word.startswith("--"):
            skips = name == f"--{flag}"
        if not skips:
            kept.append(word)
    return [*kept, f"--{flag}", *values]
