"""A driver run to its end in this process: what it says, what it draws, and the folder that it leaves."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pandas as pd
from matplotlib.figure import Figure

import figures
from figures import saving
from slurm.worker import pool
from slurm.worker import run as job
from sweeps.options import Options, run_driver
from tests.make_studio import Studio


@dataclass
class Driven:
    """What a driver left.

    Attributes:
        code: its exit code.
        out, err: its two streams.
        folder: the sweep's.
        drawn: every figure that it saved there, by name.
    """

    code: int
    out: str
    err: str
    folder: Path
    drawn: dict[str, Figure] = field(default_factory=dict)

    def table(self, name: str) -> pd.DataFrame:
        """One of the tables written."""
        return pd.read_csv(self.folder / f"{name}.csv")


def drive_studio(studio: Studio, module: ModuleType, runs: Path, *more: str) -> Driven:
    """Run a driver on two of the studio's subjects; packs are trained in this process, without workers."""
    short = ("--pack-size", "8", "--steps", "3", "--subjects", str(studio.folder / "subjects"), "2")
    return drive_here(module, studio.arguments(runs, *short, *more)[1:], runs)


def drive_here(module: ModuleType, arguments: Sequence[str], runs: Path, formats: Sequence[str] = ("png",)) -> Driven:
    """Run a driver with a command line in this process, without workers; figures of other formats are empty words."""
    (options,) = [kind for kind in vars(module).values() if is_own(kind, module)] or [Options]
    driven = Driven(0, "", "", runs / module.NAME)
    out, err = StringIO(), StringIO()
    with (
        mock.patch.object(sys, "argv", list(arguments)),
        mock.patch.object(pool, "run_inline", run_here),
        mock.patch.object(figures, "save", keep(driven.drawn, figures.save)),
        mock.patch.object(saving, "render", render_only(formats)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        driven.code = run_driver(options, module.drive, "")
    driven.out, driven.err = out.getvalue(), err.getvalue()
    return driven


def is_own(kind: Any, module: ModuleType) -> bool:
    """Whether something is the options class that a driver's module defines."""
    return isinstance(kind, type) and issubclass(kind, Options) and kind.__module__ == module.__name__


def keep(drawn: dict[str, Figure], save: Callable[..., list[Path]]) -> Callable[..., list[Path]]:
    """`figures.save` that remembers the figures."""

    def save_and_keep(figure: Figure, stem: Path, formats: Sequence[str]) -> list[Path]:
        drawn[Path(stem).name] = figure
        return save(figure, stem, formats)

    return save_and_keep


def render_only(wanted: Sequence[str]) -> Callable[..., dict[str, bytes]]:
    """`saving.render` of some formats: to lay out and draw a figure takes longer than all else that a driver says."""
    render = saving.render

    def render_wanted(figure: Figure, formats: Sequence[str]) -> dict[str, bytes]:
        shown = [name for name in formats if name in wanted]
        drawn = render(figure, shown) if shown else {}
        return {name: drawn.get(name, b"not drawn here") for name in formats}

    return render_wanted


def run_here(specs: Sequence[Path], **_: Any) -> str:
    """`pool.run_inline` without processes."""
    for spec in specs:
        assert job.run_pack(spec, lambda progress: None, stop=lambda: False) != "failed"
    return "done"
