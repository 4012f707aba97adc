"""Rounds of a loop inside one case, and few rows of values that meet every pair of them, or each once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager


@contextmanager
def told(*what: object) -> Iterator[None]:
    """What fails inside says in which round of a loop it did."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the round of {', '.join(map(str, what))}")
        raise


def pairwise(choices: Mapping[str, Sequence]) -> list[dict]:
    """Rows of one value a key, few, in which every value meets every value of every other key.

    The first row holds the first value of each key. Each further one is the combination that adds most pairs, the
    earliest of equals.
    """
    product = [dict(zip(choices, values)) for values in itertools.product(*choices.values())]
    pairs = [set(itertools.combinations(row.items(), min(2, len(row)))) for row in product]
    missing, rows = set().union(*pairs), list[dict]()
    while missing:
        best = max(range(len(product)), key=lambda place: len(pairs[place] & missing))
        rows.append(product[best])
        missing -= pairs[best]
    return rows


def each_once(choices: Mapping[str, Sequence]) -> list[dict]:
    """Rows of one value a key, as few as hold every value of each; the first holds the first value of each key."""
    most = max((len(values) for values in choices.values()), default=1)
    return [{key: values[place % len(values)] for key, values in choices.items()} for place in range(most)]
