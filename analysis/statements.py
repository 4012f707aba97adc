"""Fill numbers into prose from the data: `<!-- ID: VERDICT -->0.08 [0.05, 0.12]<!-- end -->` holds a claim's measurement.

A sentence stands only while the verdict that it was written for does.
"""

from __future__ import annotations

import re

import pandas as pd

from adapters.errors import BadInput

CONTROLS_FAIL = "controls fail on: "  # what the note of such a verdict begins with
MARKER = re.compile(r"<!-- (?P<id>[\w-]+): (?P<verdict>[a-z ]+) -->(?P<text>.*?)<!-- end -->", re.DOTALL)


def fill(text: str, verdicts: pd.DataFrame, where: str = "the page") -> str:
    """Put the measured numbers into a text.

    Args:
        text: Markdown with markers.
        verdicts: of `judge_claims`.
        where: the text's name, for errors.

    Raises:
        BadInput: for an unknown id, and for a sentence whose claim has another verdict than it says.
    """
    rows = verdicts.set_index("id")

    def number(found: re.Match[str]) -> str:
        if found["id"] not in rows.index:
            raise BadInput(
                f"{where}: no claim {found['id']!r}; the files of claims have {', '.join(rows.index[:4])} ..."
            )
        row = rows.loc[found["id"]]
        if row["verdict"] != found["verdict"]:
            raise BadInput(
                f"{where}: {found['id']} is {row['verdict']!r}, the sentence says {found['verdict']!r}: rewrite it"
            )
        return f"<!-- {found['id']}: {found['verdict']} -->{with_interval(row)}{_controls(row)}<!-- end -->"

    return MARKER.sub(number, text)


def _controls(row: pd.Series) -> str:
    """The subjects whose controls fail, in brackets: a mean over them is not told without."""
    note = str(row.get("note", ""))
    return f" ({note})" if note.startswith(CONTROLS_FAIL) else ""


def with_interval(row: pd.Series) -> str:
    """A mean with its interval: two decimals, three of what is small, none of what is large."""
    digits = 0 if abs(row["mean"]) >= 100 else 2 if abs(row["mean"]) >= 0.1 else 3
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(row["mean"], row["low"], row["high"], d=digits)
