"""A training flag is declared in one place: one field in `training/cell.py`, and every room knows it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARK = "    gauge_every: Annotated"
FLAG = '''    ema_decay: Annotated[float, Flag(NOT_NEGATIVE, added_later=True, curve="EMA {}")] = 0.0
    """Decay of the weights' moving average; 0 for none."""
'''
SCRIPT = """
import dataclasses, io, contextlib
import pandas as pd
from analysis.folders import absent_row, runs_frame
from analysis.load import _with_defaults
from analysis.series import name_series
from sweeps.grid import shared_flags
from sweeps.options import Options
from training import forms
from training.cell import Cell
from training.command_line import end_well, parse
from training.planned import PlannedRun
from pathlib import Path

with contextlib.suppress(SystemExit):
    parse(Options, "", ["--help"])
refused = io.StringIO()
with contextlib.redirect_stderr(refused):
    assert end_well(lambda: parse(Options, "", ["--ema-decay", "-1"]).check()) == 2
assert refused.getvalue() == "error: --ema-decay is -1.0; allowed: 0 or a positive number\\n", refused.getvalue()
shared = shared_flags(parse(Options, "", ["--ema-decay", "0.5"]))
plain = Cell(method="lora", options="", rank=4, subject="dog", seed=0, steps=9, lr=0.1)
other = dataclasses.replace(plain, ema_decay=shared["ema_decay"])
assert plain.identity() == IDENTITY, "runs made before keep their names"
assert other.identity() != plain.identity() and Cell.from_dict(other.to_dict()) == other
assert other.pack_key() != plain.pack_key(), "a pack's cells agree in it"
assert forms.CELL["ema_decay"] is forms.NUMBER
rows = [{"run_id": str(n), "multiplier": 1.0, "scale": "both", **cell.to_dict()} for n, cell in enumerate((plain, other))]
frame = _with_defaults(runs_frame(rows))
assert list(frame["ema_decay"]) == [0.0, 0.5]
assert list(name_series(frame)) == ["LoRA, EMA 0", "LoRA, EMA 0.5"], list(name_series(frame))
"""


def test_a_flag_added_in_one_place_is_known_everywhere(tmp_path: Path) -> None:
    from training.cell import Cell

    identity = Cell(method="lora", options="", rank=4, subject="dog", seed=0, steps=9, lr=0.1).identity()
    shutil.copytree(ROOT / "training", tmp_path / "training", ignore=shutil.ignore_patterns("pocket", "__pycache__"))
    declared = tmp_path / "training" / "cell.py"
    text = declared.read_text(encoding="utf-8")
    assert text.count(MARK) == 1
    declared.write_text(text.replace(MARK, FLAG + MARK), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("IDENTITY", repr(identity))], cwd=tmp_path, capture_output=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "COLUMNS": "160"}, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--ema-decay FLOAT" in done.stdout
    assert "Decay of the weights' moving average" in done.stdout
