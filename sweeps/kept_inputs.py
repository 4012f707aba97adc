"""Keep in a sweep's folder what its workers and later readers need of its inputs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from adapters.own_method import source
from adapters.starting_point import to_bytes
from analysis.compact_copy import to_png
from analysis.folders import OWN_PICTURES
from sweeps.grid import ResolvedInputs
from training.store import method_file, start_file, writing


def keep_method_files(folder: Path, methods: Iterable[str]) -> None:
    """Copy the files of users' own methods into a sweep's folder: workers and later readers use the copies."""
    for method in set(methods):
        if "@" in method and not (path := method_file(folder, method)).exists():
            with writing(path) as aside:
                aside.write_bytes(source(method).read_bytes())


def keep_start(folder: Path, inputs: ResolvedInputs) -> None:
    """Write the adapter that cells start from into a sweep's folder: workers and resumes use the copy."""
    if inputs.start is None or (path := start_file(folder, inputs.shared["init_adapter"])).exists():
        return
    with writing(path) as aside:
        aside.write_bytes(to_bytes(inputs.start))


def keep_own_pictures(folder: Path, inputs: ResolvedInputs) -> None:
    """Put a photograph of each subject into a sweep's folder, small, for the sheets of pictures."""
    for subject in inputs.subjects:
        path = folder / OWN_PICTURES / f"{subject.name}.png"
        if subject.picture is not None and (subject.is_read_anew or not path.exists()):
            with writing(path) as aside:
                aside.write_bytes(to_png(subject.picture))
