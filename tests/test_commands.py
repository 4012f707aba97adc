"""README's table of figures and commands: each command plans, trains nothing and ends well with --dry-run."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from slurm import calibrate, expect
from slurm.forecast import Cost
from training.store import find_runs

ROOT = Path(__file__).resolve().parents[1]
DRIVERS = {path.stem for path in (ROOT / "sweeps").glob("*.py") if "run_driver(" in path.read_text()} - {"options"}


def read_commands() -> list[str]:
    """The commands of the table, each once."""
    section = re.search(r"^## Figures and the commands.*?(?=^## )", (ROOT / "README.md").read_text(), re.S | re.M)
    assert section, "README.md has no table of figures and commands"
    return list(dict.fromkeys(re.findall(r"`python (sweeps/\w+\.py[^`]*)`", section[0])))


@pytest.mark.parametrize("command", read_commands())
def test_command_of_a_figure_plans_and_leaves_nothing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = shlex.split(command)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # the speed pretended here is no one else's
    monkeypatch.setattr(calibrate, "_measure_elsewhere", lambda setting, cell: {n: Cost(0.03, 500.0) for n in (1, 8)})
    monkeypatch.setattr(expect, "rehearse", lambda *_: {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", [program, *arguments, "--dry-run", "--runs", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / program), run_name="__main__")
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    planned = re.search(r"^(\d+) cells: 0 done, \1 to train", said.out, re.M)
    assert planned or "nothing to train" in said.out
    assert not planned or int(planned[1]) > 1
    assert not find_runs(tmp_path / "runs")


def test_every_driver_that_draws_has_a_command() -> None:
    named = {Path(shlex.split(command)[0]).stem for command in read_commands()}
    assert DRIVERS - {"base_lr"} == named, "base_lr finds the base rates; every other driver draws or tabulates"
