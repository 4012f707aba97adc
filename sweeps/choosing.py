"""Split subjects into those that choose a setting and those that are reported."""

from __future__ import annotations

from collections.abc import Sequence

from adapters.errors import BadInput
from sweeps.grid import ResolvedInputs, choose_subjects, resolve_inputs
from sweeps.options import Options, with_defaults


def split_subjects(
    options: Options, choosing: Sequence[str], *, num_choosing: int, num_subjects: int
) -> tuple[ResolvedInputs, ResolvedInputs]:
    """The inputs of the subjects that choose, and of those that are reported.

    Args:
        options: the flags; `--subjects` names those that are reported.
        choosing: names of those that choose, or how many of the tuning split.
        num_choosing, num_subjects: how many there are of each where no flag says.

    Raises:
        BadInput: if a subject that is named for one is among the other.
    """
    task = options.kind[0].name
    folder, _ = choose_subjects(options.subjects, 1, "evidence", task=task)
    place = f"{folder.resolve()}/"
    _, few = choose_subjects((place, *choosing), num_choosing, "tuning", task=task)
    _, many = choose_subjects(options.subjects, num_subjects, "evidence", without=few, task=task)
    if both := [name for name in many if name in few]:
        raise BadInput(f"subject {both[0]} would choose the settings and be reported; name it for one of the two")
    chosen = resolve_inputs(with_defaults(options, subjects=(place, *few)), num_subjects=0)
    return chosen, resolve_inputs(with_defaults(options, subjects=(place, *many)), num_subjects=0)
