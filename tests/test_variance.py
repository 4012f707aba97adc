"""The split into subject, seed and rest: against the analysis of variance, and by simulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from adapters import BadInput
from analysis import load
from analysis.variance import split_variance, variance_table
from tests.make_runs import make_runs


def make_scores(
    draw: np.random.Generator, subjects: int, seeds: int, spreads: tuple[float, float, float]
) -> pd.DataFrame:
    """Scores with known standard deviations of subject, seed and rest."""
    parts = (draw.normal(0, sd, size) for sd, size in zip(spreads, ((subjects, 1), (1, seeds), (subjects, seeds))))
    values = pd.DataFrame(sum(parts, np.zeros(())))
    return values.rename_axis("subject").melt(var_name="seed", ignore_index=False).reset_index()


def reference_split(scores: pd.DataFrame) -> list[float]:
    """The textbook's mean squares of a full two-way table."""
    y = scores.pivot(index="subject", columns="seed", values="value").to_numpy()
    rows, columns = y.shape
    rest = y - y.mean(axis=1, keepdims=True) - y.mean(axis=0) + y.mean()
    square = (rest**2).sum() / ((rows - 1) * (columns - 1))
    variances = [y.mean(axis=1).var(ddof=1) - square / columns, y.mean(axis=0).var(ddof=1) - square / rows, square]
    return [float(np.sqrt(max(v, 0))) for v in variances]


@pytest.mark.parametrize(("subjects", "seeds"), [(4, 3), (8, 2), (16, 3)])
def test_balanced_split_is_the_analysis_of_variance(subjects: int, seeds: int) -> None:
    scores = make_scores(np.random.default_rng(seeds), subjects, seeds, (0.1, 0.06, 0.03))
    found = split_variance(scores)
    assert [found[name].sd for name in ("subject", "seed", "rest")] == pytest.approx(reference_split(scores))
    for part in found.values():
        assert part.low <= part.sd <= part.high


def test_unbalanced_split_is_unbiased() -> None:
    draw, found = np.random.default_rng(0), []
    for _ in range(150):
        scores = make_scores(draw, 8, 3, (0.1, 0.05, 0.03)).sample(frac=0.8, random_state=draw.integers(2**31))
        found.append([part.sd**2 for part in split_variance(scores, num_draws=10).values()])
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(len(found))
    assert (np.abs(mean - np.square([0.1, 0.05, 0.03])) < 4 * error + 1e-4).all()


def test_intervals_cover_when_runs_are_missing() -> None:
    draw, hits = np.random.default_rng(1), np.zeros(3)
    for _ in range(200):
        scores = make_scores(draw, 6, 3, (0.1, 0.03, 0.05)).sample(frac=0.9, random_state=draw.integers(2**31))
        found = split_variance(scores, num_draws=400)
        hits += [part.low <= true <= part.high for part, true in zip(found.values(), (0.1, 0.03, 0.05))]
    assert (hits / 200 > 0.90).all(), hits


def test_one_seed_cannot_be_split() -> None:
    scores = make_scores(np.random.default_rng(2), 8, 1, (0.1, 0.03, 0.05))
    assert all(np.isnan(part.sd) for part in split_variance(scores).values())
    nested = pd.DataFrame({"subject": [0, 1, 2], "seed": [0, 1, 2], "value": [0.1, 0.2, 0.3]})
    assert all(np.isnan(part.sd) for part in split_variance(nested).values())


def test_draws_depend_on_the_seed_only_and_pairs_come_once() -> None:
    scores = make_scores(np.random.default_rng(3), 6, 3, (0.1, 0.03, 0.05))
    assert split_variance(scores, seed=1) == split_variance(scores, seed=1)
    assert split_variance(scores, seed=1) != split_variance(scores, seed=2)
    with pytest.raises(BadInput, match="twice"):
        split_variance(pd.concat([scores, scores[:1]]))


def test_table_splits_every_multiplier_of_the_runs(tmp_path: Path) -> None:
    shape = {"multipliers": (1, 4), "seeds": (0, 1, 2), "subject_sd": 0.1, "noise_sd": 0.02, "dynamics": False}
    table = variance_table(load(make_runs(tmp_path, subjects=tuple("abcdefgh"), **shape)))
    assert list(table["multiplier"]) == [1, 4]
    assert set(table["num_runs"]) == {24}
    assert (table["subject"] > table["rest"]).all()
    assert table["seed_of_mean"].between(table["rest"] / 3, table["rest"] + table["seed"]).all()
    assert list(variance_table(load(tmp_path), multipliers=[4])["multiplier"]) == [4]
    with pytest.raises(BadInput, match="no scores of metric 'fid'"):
        variance_table(load(tmp_path), metric="fid")
