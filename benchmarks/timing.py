"""Time variants that take turns in one run, and report their ratio with its 95 % interval.

A machine's speed drifts (clock, cache, neighbours), so only what was measured at the same moment is compared. In every
round each variant runs a few laps in turn, in an order drawn anew; a variant's time in a round is the median of its
laps; a ratio is formed inside the round, and the rounds are the sample.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """An estimate with its 95 % interval from `num` repetitions; the limits are NaN where there is only one."""

    value: float
    low: float
    high: float
    num: int


def clock(device: torch.device) -> float:
    """Seconds, after everything that was sent to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def interleave(
    variants: Mapping[str, Callable[[], object]], *, rounds: int, laps: int, device: torch.device, warmup: int = 3
) -> dict[str, np.ndarray]:
    """Time variants in turns.

    Args:
        variants: what to run, by name; one call is one lap.
        rounds: repetitions, the sample of every interval.
        laps: calls of each variant in a round.
        device: where they run.
        warmup: calls of each variant before the first round.

    Returns:
        Seconds of a lap by variant, one value a round.
    """
    for variant in variants.values():
        for _ in range(warmup):
            variant()
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        spent: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(laps):
            for name in order.sample(list(variants), len(variants)):
                began = clock(device)
                variants[name]()
                spent[name].append(clock(device) - began)
        for name, values in spent.items():
            times[name].append(statistics.median(values))
    return {name: np.array(values) for name, values in times.items()}


def mean_of(values: Sequence[float] | np.ndarray) -> Spread:
    """The mean with its t interval."""
    sample = np.asarray(values, dtype=float)
    mean, half = float(sample.mean()), _half_width(sample)
    return Spread(mean, mean - half, mean + half, len(sample))


def once(value: float) -> Spread:
    """A value that was measured a single time, without limits."""
    return Spread(value, math.nan, math.nan, 1)


def ratio_of(numerators: Sequence[float] | np.ndarray, denominators: Sequence[float] | np.ndarray) -> Spread:
    """The paired ratio: the t interval of the rounds' log ratios, turned back."""
    logs = mean_of(np.log(np.asarray(numerators, dtype=float) / np.asarray(denominators, dtype=float)))
    return Spread(math.exp(logs.value), math.exp(logs.low), math.exp(logs.high), logs.num)


def ratio_of_means(numerators: Sequence[float] | np.ndarray, denominators: Sequence[float] | np.ndarray) -> Spread:
    """The ratio of two paired means, with Fieller's interval (1954): right also where a single value may be negative.

    For differences such as the time above a base. The limits are the values q for which the mean of
    `numerator - q * denominator` does not differ from 0; they are infinite where the denominator's mean itself does not.
    """
    over, under = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    value, num = float(over.mean() / under.mean()), len(over)
    if num < 2:
        return Spread(value, math.nan, math.nan, num)
    (var_over, cov), (_, var_under) = np.cov(over, under) / num * stats.t.ppf(0.5 + CONFIDENCE / 2, num - 1) ** 2
    a, b, c = under.mean() ** 2 - var_under, over.mean() * under.mean() - cov, over.mean() ** 2 - var_over
    if a <= 0 or b * b < a * c:
        return Spread(value, -math.inf, math.inf, num)
    root = math.sqrt(b * b - a * c)
    return Spread(value, float((b - root) / a), float((b + root) / a), num)


def _half_width(sample: np.ndarray) -> float:
    if len(sample) < 2:
        return math.nan
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample)))
