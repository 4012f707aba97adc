"""What became of the papers' claims: each has a measure and a range, and its 95 % interval lies inside, outside, or neither.

python -m analysis.verdicts --results runs --claims docs/claims.toml
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from inspect import signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pandas as pd

from adapters.documents import COUNT, NAME, NUMBER, OBJECT, PLACE, REAL, TEXT, Form, check_form, read_toml
from adapters.errors import BadInput
from adapters.words import counted
from analysis.control_words import failing_words
from analysis.load import load
from analysis.measures import MEASURES
from analysis.metrics import UNIT
from analysis.results import Results
from analysis.statistics import Interval, rate_interval
from analysis.tables import to_markdown, write_tables

TIME = Form(
    "a time with its zone, such as 2026-11-24T20:45:53Z", lambda t: isinstance(t, datetime) and t.tzinfo is not None
)
FROM_0 = Form("a whole number from 0 on", lambda value: COUNT.fits(value) and value >= 0)
FORM = {
    "id": NAME, "source": TEXT, "claim": TEXT, "sweep": PLACE, "measure": NAME, "arguments": {}, "low": REAL, "high": REAL,
    "fixed": TIME, "data": TIME, "num_subjects": FROM_0,
}  # fmt: skip
TABLES = {"claim!": [FORM], "dropped": [OBJECT]}  # of a file; those that are dropped are kept with their reason
AGREES, CONTRADICTS, OPEN = "agrees", "contradicts", "cannot be told"


@dataclass(frozen=True)
class Claim:
    """One claim of a paper.

    Attributes:
        id: a short name.
        source: paper, figure or table, section.
        claim: what is claimed, in one sentence.
        sweep: the folder of results that it is put to.
        measure: a key of `MEASURES`.
        arguments: of that measure.
        low, high: the range of the measure in which the claim holds.
        fixed: when this criterion was written down.
        data: when the first results of this question were there; None while there are none.
        num_subjects: for how many subjects the criterion was made.
    """

    id: str
    source: str
    claim: str
    sweep: str
    measure: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    low: float = -np.inf
    high: float = np.inf
    fixed: datetime | None = None
    data: datetime | None = None
    num_subjects: int = 0

    @property
    def is_exploratory(self) -> bool:
        """Whether the criterion came after the data: then it is a description of them, and no test."""
        return self.fixed is None or (self.data is not None and self.data <= self.fixed)


def read_claims(path: Path) -> list[Claim]:
    """The claims of a file, `[[claim]]` each.

    Raises:
        BadInput: if the file is no TOML or holds no claim, a key, measure or argument is unknown, missing or of a wrong type, a
            range is empty or holds everything, or no outcome of that many subjects could meet a criterion.
    """
    try:
        tables = read_toml(path)[0]
        if unknown := sorted(tables.keys() - {"claim", "dropped"}):
            raise BadInput(f"{path}: unknown table {unknown[0]!r}; allowed: [[claim]] and [[dropped]]")
        check_form(tables, TABLES, str(path))
        claims = [Claim(**row) for row in tables["claim"]]
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    except TypeError as error:
        allowed = ", ".join(f.name for f in fields(Claim))
        raise BadInput(f"{path}: {str(error).removeprefix('Claim.__init__() ')}; keys are {allowed}") from None
    for claim in claims:
        if claim.measure not in MEASURES:
            raise BadInput(f"{path}: unknown measure {claim.measure!r} of {claim.id}; allowed: {', '.join(MEASURES)}")
        _check_arguments(claim, path)
        if not claim.low < claim.high or (claim.low, claim.high) == (-np.inf, np.inf):
            raise BadInput(f"{path}: {claim.id} needs a low below its high, or one of them")
        if unmet := unreachable(claim, claim.num_subjects):
            raise BadInput(f"{path}: {claim.id}: {unmet}")
    return claims


def _check_arguments(claim: Claim, path: Path) -> None:
    """Hold the arguments of a claim to its measure's.

    Raises:
        BadInput: one is unknown, missing or of a wrong type.
    """
    measure = MEASURES[claim.measure]
    known = {name: kind for name, kind in get_type_hints(measure).items() if name not in ("results", "return")}
    said = f"{path}: {claim.id}: {claim.measure}"
    if unknown := sorted(claim.arguments.keys() - known.keys()):
        raise BadInput(f"{said} has no argument {unknown[0]!r}; allowed: {', '.join(known)}")
    for name, parameter in signature(measure).parameters.items():
        if name == "results":
            continue
        if name not in claim.arguments:
            if parameter.default is parameter.empty:
                raise BadInput(f"{said} lacks the argument {name!r}")
            continue
        wanted = TEXT if str in (known[name], *get_args(known[name])) else NUMBER
        check_form(claim.arguments[name], wanted, f"{said}, argument {name}")


def unreachable(claim: Claim, num_subjects: int, unit: str = UNIT) -> str:
    """Why no outcome of so many subjects can lie inside a claim's range with its whole interval; "" where one can.

    `unit` is what a subject is of the results (`Results.kind.unit`).

    A share of few subjects has a wide interval whatever comes out: 0 of 8 reaches up to 0.32 (Wilson).
    """
    if claim.measure != "diverged" or not num_subjects:
        return ""

    def can_be_met(num: int) -> bool:
        inside = [k for k in range(num + 1) if claim.low <= k / num <= claim.high]  # a share lies in its own interval
        return any(judge(rate_interval(k, num), claim.low, claim.high) == AGREES for k in inside)

    if can_be_met(num_subjects):
        return ""
    enough = next((num for num in range(num_subjects, 1000) if can_be_met(num)), None)
    return f"no outcome of {counted(num_subjects, unit)} can meet its criterion" + (f"; {enough} can" if enough else "")


def judge_claims(folder: Path, claims: list[Claim]) -> pd.DataFrame:
    """The verdict on every claim.

    Args:
        folder: holds the sweeps that the claims name, as run folders or compact copies.
        claims: `read_claims(...)`.

    Returns:
        Rows id, source, claim, sweep, measure, mean, low, high, num_subjects, range_low, range_high, verdict; note: what is
        missing where nothing could be measured, or on which subjects the scorers' controls fail; criterion, its date;
        exploratory, whether the data came first.

    Raises:
        BadInput: if there is no such folder, or two claims have one id.
    """
    if not folder.is_dir():
        raise BadInput(f"no folder of results {folder}")
    if twice := [name for name, count in Counter(claim.id for claim in claims).items() if count > 1]:
        raise BadInput(f"two claims have the id {twice[0]!r}")
    loaded: dict[Path, Results | BadInput] = {}
    return pd.DataFrame([_judge_one(claim, _load(folder / claim.sweep, loaded)) for claim in claims])


def judge(found: Interval, low: float, high: float) -> str:
    """Whether an interval lies in a range ("agrees"), beside it ("contradicts"), or neither; without one nothing can be told."""
    if not (np.isfinite(found.low) and np.isfinite(found.high)):
        return OPEN
    if low <= found.low and found.high <= high:
        return AGREES
    return CONTRADICTS if found.high < low or found.low > high else OPEN


def _load(folder: Path, loaded: dict[Path, Results | BadInput]) -> Results | BadInput:
    if folder not in loaded:
        try:
            loaded[folder] = load(folder)
        except BadInput as error:
            missing = BadInput(f"no results in {folder}: run python sweeps/{folder.name}.py")
            loaded[folder] = error if folder.exists() else missing
    return loaded[folder]


def _judge_one(claim: Claim, results: Results | BadInput) -> dict[str, Any]:
    note, found = "", Interval(np.nan, np.nan, np.nan, 0)
    try:
        if isinstance(results, BadInput):
            raise results
        found = MEASURES[claim.measure](results, **claim.arguments)
        unit = results.kind.unit
        note = unreachable(claim, found.num_subjects, unit)
        note = note if found.num_subjects > 1 else f"one {unit} or none: no interval"
        note = note or failing_words(results)
    except BadInput as error:
        note = str(error)
    return {
        **{name: getattr(claim, name) for name in ("id", "source", "claim", "sweep", "measure")},
        **found._asdict(), "range_low": claim.low, "range_high": claim.high,
        "verdict": judge(found, claim.low, claim.high), "note": note,
        "criterion": f"{claim.fixed:%Y-%m-%d}" if claim.fixed else "", "exploratory": claim.is_exploratory,
    }  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Which results are judged, by which claims."""

    results: Path
    """Folder of the sweeps."""
    claims: tuple[Path, ...]
    """The files of claims."""
    out: Path | None = None
    """Folder for the table."""


def main(options: Options) -> int:
    """Print the verdicts, and write them if a folder is given.

    Raises:
        BadInput: for a file of claims that cannot be used.
    """
    verdicts = judge_claims(options.results, [claim for path in options.claims for claim in read_claims(path)])
    shown = ["id", "claim", "mean", "low", "high", "range_low", "range_high", "num_subjects", "verdict", "note"]
    print(to_markdown(verdicts[shown]))
    if options.out is not None:
        write_tables(options.out, {"verdicts": verdicts})
    return 0


if __name__ == "__main__":
    import sys

    from training.command_line import run_program

    sys.exit(run_program(Options, main, __doc__ or ""))
