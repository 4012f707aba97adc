"""Numbers of things: one function says them all, and one is never several."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from adapters import counted
from analysis.series import name_series
from tests.test_house import ROOMS, list_modules

ROOT = Path(__file__).resolve().parents[1]
# A number in an f-string before a noun in the plural, where the number may be one.
PLURAL = re.compile(r"\{[^{}\"]*(?:len\(|nunique\(|num_|count)[^{}\"]*\} (?:failed )?"
                    r"(?:cells|packs|prompts|subjects|seeds|runs|jobs|tasks|workers|pictures|cores|files)\b")  # fmt: skip


def test_one_is_not_several() -> None:
    said = [counted(n, noun) for n in (0, 1, 2) for noun in ("cell", "matrix", "worker process")]
    assert said == [
        "0 cells", "0 matrices", "0 worker processes", "1 cell", "1 matrix", "1 worker process",
        "2 cells", "2 matrices", "2 worker processes",
    ]  # fmt: skip
    assert counted(12345, "cell", ",") == "12,345 cells"


def test_nobody_makes_plurals_by_hand() -> None:
    allowed = {
        "training/tasks/dreambench.py",
        "analysis/comparisons.py",
        "analysis/summary.py",
    }  # never one, or a list's length
    found = []
    for name in list_modules(*ROOMS):
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
            by_hand = re.search(r"""['"]s['"] if """, line) or PLURAL.search(line)
            if by_hand and '"""' not in line and str(name) not in allowed:
                found.append(f"{name}:{number}: {line.strip()}")
    assert not found, "say it with adapters.counted:\n" + "\n".join(found)


def test_series_of_one_prompt_is_named_so() -> None:
    runs = pd.DataFrame({"method": ["lora"] * 2, "options": [""] * 2, "num_prompts": [1, 8], "scale": "both",
                         "multiplier": 1.0, "lr": 1e-3, "lr_lambda": None, "lr_magnitude": None})  # fmt: skip
    assert list(name_series(runs)) == ["LoRA, 1 prompt", "LoRA, 8 prompts"]
