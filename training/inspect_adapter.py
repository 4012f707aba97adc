"""Inspect an adapter: format, rank, targets, how far it moves each matrix, as text, table and picture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

from adapters.checkpoint import Checkpoint
from adapters.errors import BadInput
from adapters.words import counted
from training.measure import by_block, measure, write_table
from training.open_adapter import Opened
from training.stop import describe_exit
from training.store import writing

ROOT = Path(__file__).resolve().parents[1]


def inspect(opened: Opened, out: Path | None) -> int:
    """Print what an adapter is and how far it moves each block; write a table of all matrices and a picture of it.

    Args:
        opened: the adapter.
        out: the picture, beside which the table lies; None means the current folder, under the adapter's name.

    Raises:
        BadInput: the adapter is of another model, or a file cannot be written.
    """
    checkpoint = opened.checkpoint
    rows = measure(checkpoint, opened.base)
    print("\n".join(describe(checkpoint, rows)))
    out = out or Path.cwd() / f"{opened.stem.name}-norms.png"
    table = out.with_suffix(".csv")
    with writing(table) as aside:
        write_table(rows, aside)
    print(f"\n{table}")
    if rows["distance"].notna().any():
        rank = f", rank {checkpoint.rank}" if checkpoint.rank else ""
        title = f"{opened.stem.name}\n{checkpoint.spec.label}{rank}"
        draw = [sys.executable, "-m", "figures.checkpoint_norms", str(table.resolve()), str(out.resolve()), title]
        done = subprocess.run(draw, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            words = done.stderr.splitlines() or [f"the process that draws {describe_exit(done.returncode)}"]
            raise BadInput(f"the picture {out} could not be drawn: {words[-1]}")
        print(out)
    return 0


def describe(checkpoint: Checkpoint, rows: pd.DataFrame) -> list[str]:
    """Format, method, rank, targets and the change by block, as lines for a terminal."""
    ranks = sorted(set(checkpoint.ranks.values()))
    kinds = rows.groupby(["component", "attention", "kind"], sort=False).size()
    lines = [
        f"format   {checkpoint.format}",
        f"method   {checkpoint.spec.label} ({checkpoint.spec.canonical})",
        f"rank     {', '.join(str(rank or 'none') for rank in ranks)}",
        f"targets  {counted(len(rows), 'matrix')}: "
        + ", ".join(f"{count} {'.'.join(filter(None, key))}" for key, count in kinds.items()),
        *(f"note     {note}" for note in checkpoint.notes),
    ]
    if bad := checkpoint.find_not_finite():
        lines.append(f"note     NaN or infinity in {bad!r}: its run has diverged, or it is damaged")
    if rows["distance"].isna().all():
        return [*lines, "note     how far it moves depends on the base model: name it with --model"]
    lines += ["", f"{'block':<28}{'matrices':>9}{'‖ΔW‖':>12}{'‖ΔW‖/‖W0‖':>12}"]
    for row in by_block(rows).itertuples():
        relative = f"{row.distance_rel:.4g}" if row.distance_rel == row.distance_rel else "-"
        lines.append(f"{row.component + '.' + row.block:<28}{row.num_matrices:>9}{row.distance:>12.5g}{relative:>12}")
    return lines
