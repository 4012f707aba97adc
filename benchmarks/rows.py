"""A row of the benchmark table: what was measured, its interval, and whether it meets its aim."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from adapters.words import counted
from benchmarks.timing import Spread
from training.provenance import provenance
from training.store import writing

HEAD = ("| what | measured | 95 % interval | n | aim | met |", "|---|---:|:---:|---:|:---:|:---:|")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what was measured.
        measured: value and interval.
        aim: the limit; None for a row that is only reported.
        sense: whether the value shall be at most or at least the aim.
        judged: which end is held against the aim: the value, or the interval's upper limit.
        unit: "x" for a ratio, "%" for a share (stored as a fraction), "/s", "s", "B" (bytes), "GiB", "" for a number.
    """

    name: str
    measured: Spread
    aim: float | None = None
    sense: Literal["<=", ">="] = "<="
    judged: Literal["value", "high"] = "value"
    unit: Literal["x", "%", "/s", "s", "B", "GiB", ""] = "x"

    @property
    def met(self) -> str:
        """ "yes", "no", or "" where there is no aim."""
        if self.aim is None:
            return ""
        held = getattr(self.measured, self.judged)
        return "yes" if (held <= self.aim if self.sense == "<=" else held >= self.aim) else "no"

    def to_markdown(self) -> str:
        """The line."""
        low, high = (self._format(limit) for limit in (self.measured.low, self.measured.high))
        interval = "" if math.isnan(self.measured.low) else f"[{low}, {high}]"
        aim = "" if self.aim is None else f"{self.sense} {self._format(self.aim)}"
        aim += " (upper limit)" if self.judged == "high" else ""
        return f"| {self.name} | {self._format(self.measured.value)} | {interval} | {self.measured.num} | {aim} | {self.met} |"

    def _format(self, value: float) -> str:
        scale, digits = (100.0, 1) if self.unit == "%" else (1.0, 3 if self.unit == "x" else 2)
        gap = "" if self.unit in ("x", "") else " "
        return f"{value * scale:.{digits}f}{gap}{self.unit}"


def to_markdown(rows: Sequence[Row]) -> str:
    """The rows as one Markdown table."""
    return "\n".join([*HEAD, *(row.to_markdown() for row in rows)])


def describe_machine(device: torch.device) -> list[str]:
    """Machine, versions, commit and date, as Markdown items."""
    made = provenance(device)
    versions = made["versions"] | {"peft": importlib.metadata.version("peft"), "python": made["python"]}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    return [
        f"- machine: {_cpu_name()}, {counted(len(os.sched_getaffinity(0)), 'core')}, {made['instruction_set']}, device {device}"
        + (f" ({made['device_name']})" if device.type == "cuda" else "")
        + f"; load {load:.1f} when this was written",
        f"- versions: {', '.join(f'{name} {version}' for name, version in sorted(versions.items()))}",
        f"- commit: {made['commit'][:12] or 'none'}{' with changes' if made['dirty'] else ''}",
        f"- date: {made['started']}",
    ]


def describe_run(module: str) -> str:
    """The command that was given, on what machine, and when, as one line."""
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    facts = [item.removeprefix("- ") for item in describe_machine(torch.device("cpu")) if "versions" not in item]
    return f"`{command}`; {'; '.join(facts)}; torch {torch.__version__}."


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def write_page(
    folder: Path, tables: Sequence[str], command: str, device: torch.device, model: str, name: str = "benchmarks"
) -> Path:
    """Write a page, `<name>.md`, in a folder: the tables, and what made them."""
    path = folder / f"{name}.md"
    text = [
        "# Speed and memory",
        "",
        f"Printed by `{command}`. Every ratio compares variants that took turns in one run; intervals are over the n rounds.",
        "",
        *describe_machine(device),
        f"- model: {model}",
        *(f"\n{table}" for table in tables),
    ]
    with writing(path) as aside:
        aside.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path
