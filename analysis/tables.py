"""Write a frame as Markdown, CSV and LaTeX, every number with its interval."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adapters.errors import printable
from training.store import writing
from training.task_kinds import metrics

DIGITS = 6  # significant ones, of what is written and drawn
TITLES = {  # of what is no score
    "distance": "distance / ‖W0‖", "num_subjects": "n",
    "half_width": "half-gain width (octaves)", "half_low_edge": "half from", "half_high_edge": "half to",
    "width": "plateau (octaves)", "best_multiplier": "best multiplier", "low_edge": "from", "high_edge": "to",
    "num_runs": "runs", "lambda": "lambda",
}  # fmt: skip


def rounded(value: Any) -> Any:
    """The same frames, or tuples, lists and mappings of frames, with numbers of 6 significant digits.

    What is written and drawn is rounded first: beyond that, sums hang on the instruction set of the machine.
    """
    if isinstance(value, pd.DataFrame):
        return value.assign(**{str(name): _round(column) for name, column in value.items() if column.dtype.kind == "f"})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(rounded, value))
    if isinstance(value, list | tuple):
        return type(value)(map(rounded, value))
    return {name: rounded(part) for name, part in value.items()} if isinstance(value, dict) else value


def _round(column: pd.Series) -> list[float]:
    return [float(f"{number:.{DIGITS}g}") for number in column.to_numpy(dtype=float, na_value=np.nan)]


def format_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The same table for people: numbers as short text, and `name`, `name_low`, `name_high` in one column `0.61 [0.58, 0.64]`.

    In a curve's frame `mean`, `low`, `high` are put together as well. A missing interval leaves the number alone.
    """
    columns: dict[str, list[str]] = {}
    for name in map(str, frame.columns):
        low, high = ("low", "high") if name == "mean" else (f"{name}_low", f"{name}_high")
        if name == "width_octaves":
            low, high = "width_low", "width_high"
        if low in frame and high in frame:
            cells = zip(frame[name], frame[low], frame[high], strict=True)
            columns[_title(name)] = [_with_interval(*cell) for cell in cells]
        elif not _is_end(name, frame):
            text = _rate if name in ("multiplier", "best_multiplier", "lr") else _number
            columns[_title(name)] = [text(value) for value in frame[name]]
    return pd.DataFrame(columns)


def _is_end(name: str, frame: pd.DataFrame) -> bool:
    """Whether a column is the end of another column's interval."""
    stem = name.removesuffix("_low") if name.endswith("_low") else name.removesuffix("_high")
    return (name in ("low", "high") and "mean" in frame) or (stem != name and (stem in frame or stem == "width"))


def _title(name: str) -> str:
    metric = metrics().get(name)
    return metric.title if metric else TITLES.get(name, name.replace("_", " "))


def _with_interval(value: Any, low: Any, high: Any) -> str:
    return _number(value) + ("" if pd.isna(low) else f" [{_number(low)}, {_number(high)}]")


def _rate(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:g}"


def _number(value: Any) -> str:
    """Text of a cell: three decimals for ordinary numbers, three digits for the small and large, nothing for a missing one."""
    if isinstance(value, str | bool | np.bool_):
        return printable(value)
    if value is None or pd.isna(value):
        return ""
    if abs(value) < 1e-9:  # what rounding leaves of nothing
        return "0"
    if float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.3f}" if 0.1 <= abs(value) < 1000 else f"{value:.3g}"


def to_markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table, intervals put together (`format_table`), numbers to the right."""
    table = format_table(frame)
    numeric = [_is_numeric(frame, str(name)) for name in table.columns]
    table = table.map(escape_markdown)
    widths = [max(3, len(str(name)), *(len(value) for value in table[name])) for name in table.columns]

    def line(cells: list[str]) -> str:
        padded = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(cells, widths, numeric, strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = (
        "|" + "|".join("-" * (w + 1) + (":" if right else "-") for w, right in zip(widths, numeric, strict=True)) + "|"
    )
    return "\n".join(
        [line([str(name) for name in table.columns]), rule, *(line(list(row)) for row in table.itertuples(index=False))]
    )


def escape_markdown(text: str) -> str:
    """Text that neither ends a cell, nor becomes a link, a picture or HTML."""
    return text.replace("|", r"\|").replace("<", "&lt;").replace("](", r"]\(").replace("`", r"\`")


# LaTeX.

LATEX_CHARACTERS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "‖W0‖": r"$\lVert W_0\rVert$", "≥": r"$\geq$", "λ": r"$\lambda$", "×": r"$\times$", "−": r"$-$",
}  # fmt: skip


def to_latex(frame: pd.DataFrame) -> str:
    """A frame as a LaTeX table in booktabs' rules, intervals put together (`format_table`), numbers to the right.

    A score is bold where it is the best of its column and its interval lies beyond the interval of every other row.
    Needs the packages booktabs and amsmath.
    """
    table = format_table(frame)
    bold = {_title(name): row for name in metrics() if (row := clearly_best(frame, name)) is not None}
    places = "".join("r" if _is_numeric(frame, name) else "l" for name in table.columns)
    lines = [
        rf"\begin{{tabular}}{{{places}}}", r"\toprule",
        _latex_row([escape_latex(str(name)) for name in table.columns]), r"\midrule",
    ]  # fmt: skip
    for number, row in enumerate(table.itertuples(index=False)):
        cells = [escape_latex(cell) for cell in row]
        for place, name in enumerate(table.columns):
            if bold.get(name) == number:
                cells[place] = rf"\textbf{{{cells[place]}}}"
        lines.append(_latex_row(cells))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def clearly_best(frame: pd.DataFrame, name: str) -> int | None:
    """The row whose interval of a score lies beyond those of all other rows; None if there is none, or no intervals.

    Args:
        frame: holds the columns `name`, `name_low` and `name_high`.
        name: a score.
    """
    if not {name, f"{name}_low", f"{name}_high"} <= set(frame.columns) or len(frame) < 2:
        return None
    sign = -1.0 if metrics()[name].lower_is_better else 1.0
    ends = sign * frame[[f"{name}_low", f"{name}_high"]].to_numpy(dtype=float)
    if np.isnan(ends).any():
        return None
    best = int((sign * frame[name].to_numpy(dtype=float)).argmax())
    others = np.delete(ends, best, axis=0).max()
    return best if ends[best].min() > others else None


def escape_latex(text: str) -> str:
    """Text with LaTeX's own characters, and those that its fonts lack, written as commands."""
    pattern = "|".join(re.escape(name) for name in sorted(LATEX_CHARACTERS, key=len, reverse=True))
    return re.sub(pattern, lambda found: LATEX_CHARACTERS[found[0]], text)


def _latex_row(cells: list[str]) -> str:
    guard = "{}" if cells and cells[0].startswith(("[", "*")) else ""  # else an argument of the line break before
    return guard + " & ".join(cells) + r" \\"


def _is_numeric(frame: pd.DataFrame, name: str) -> bool:
    """Whether a column of the formatted table stands at the right: all but the first and the names of series."""
    return str(frame.columns[0]) != name and name != "series"


def write_tables(folder: Path | str, tables: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Write every table as `<name>.md` (for people), `<name>.tex` (for papers) and `<name>.csv` (six digits), atomically.

    Returns:
        The files.

    Raises:
        StoreError: if the folder cannot be written.
    """
    texts = {}
    for name, frame in ((name, rounded(frame)) for name, frame in tables.items()):
        texts[Path(folder) / f"{name}.md"] = to_markdown(frame) + "\n"
        texts[Path(folder) / f"{name}.tex"] = to_latex(frame) + "\n"
        texts[Path(folder) / f"{name}.csv"] = frame.to_csv(index=False, lineterminator="\n")
    for path, text in texts.items():
        with writing(path) as aside:
            aside.write_text(text, encoding="utf-8")
    return list(texts)
