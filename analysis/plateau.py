"""Width of the plateau: the learning rates around the best at which the score stays within a tolerance of its peak.

Head with the area and with the half-gain width, the plateau on which at least half of the peak's gain is kept: a width within 5 %
of the gain hangs on noise at the peak, and its intervals cover most of a grid at the numbers of subjects in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from adapters.errors import BadInput
from adapters.words import counted
from analysis.grid import Grid, subject_grid
from analysis.metrics import UNIT, is_side_effect, kind_with, prompt_metric_of, sign_of, title_of, value_range
from analysis.plateau_intervals import edge_intervals, max_interval
from analysis.statistics import Bools, Floats, Ints, t_interval

TOLERANCE = 0.05  # of the peak's gain over the base model
HALF_GAIN = 0.5  # the tolerance of the half-gain width
PROMPT_LOSS = 0.2  # of the base model's score of the prompt
SCORES = ("peak", "worst")  # which are reported as the score itself, whichever way is better
LEAST_SUBJECTS = 3  # that a plateau is named from
OWN = ("sensitivity", "area", "worst", "peak_", "half_")  # what a joint plateau has not


class Plateau(NamedTuple):
    """The plateau of one curve.

    Attributes:
        peak: the highest mean score among the multipliers without divergence.
        best_multiplier: where it is reached.
        width_octaves: log2 of high_edge / low_edge; 0 if the peak does not exceed the base. A lower bound if an edge is open.
        low_edge, high_edge: multipliers at which the curve crosses peak - tolerance (peak - base), or the grid's end.
        open_low, open_high: whether the curve was still on the plateau at that end of the grid.
        sensitivity: mean over the grid of the loss of score against the peak, clipped at the base's score (Wortsman et al. 2023,
            arXiv 2309.14322, with the sign turned and the base in place of the loss at initialisation); NaN if the peak does
            not exceed the base, so that there is nothing to lose.
        area: mean gain over the base along the grid's octaves, losses counted as such; no choice of a peak enters it.
        worst: the lowest mean score on the grid, diverged points among them.
    """

    peak: float
    best_multiplier: float
    width_octaves: float
    low_edge: float
    high_edge: float
    open_low: bool
    open_high: bool
    sensitivity: float
    area: float
    worst: float


def find_plateau(
    multipliers: Floats, scores: Floats, base: float, diverged: Bools, tolerance: float = TOLERANCE
) -> Plateau:
    """The plateau of one curve, its edges interpolated between the grid's points in log2 of the multiplier.

    Args:
        multipliers: the grid, increasing.
        scores: the mean score at each point.
        base: the mean score of the base model.
        diverged: whether any run diverged there; such a point is never on the plateau.
        tolerance: the share of the gain (peak - base) that may be lost on the plateau.
    """
    found = find_plateaus(multipliers, scores[None], np.array([base]), diverged, tolerance)
    return Plateau(*(value[0].item() for value in found.values()))


def find_plateaus(
    multipliers: Floats,
    scores: Floats,
    base: Floats,
    diverged: Bools,
    tolerance: float = TOLERANCE,
    spare: Floats | None = None,
) -> dict[str, np.ndarray]:
    """`find_plateau` of many curves `[curve, point]` on one grid, each with its own base; one array a field of `Plateau`.

    `spare` `[curve, point]` is a second condition of the plateau: it may not be below zero there.
    """
    alive = ~diverged & ~np.isnan(scores)
    allowed = alive if spare is None else alive & (spare >= 0)
    top = np.where(allowed, scores, -np.inf).max(axis=1)
    top = np.where(np.isfinite(top), top, np.nan)
    gains = top > base
    best = np.where(allowed, scores, -np.inf).argmax(axis=1)
    level = np.where(gains, top - tolerance * (top - base), top)
    octaves = np.log2(multipliers)
    margins = np.stack([scores - level[:, None], *([] if spare is None else [spare])])
    low, open_low = _edges(octaves, margins, alive, best, gains, -1)
    high, open_high = _edges(octaves, margins, alive, best, gains, +1)
    return {
        "peak": top,
        "best_multiplier": np.where(gains, multipliers[best], np.nan),
        "width_octaves": np.where(gains, high - low, 0.0),
        "low_edge": np.where(gains, 2**low, np.nan),
        "high_edge": np.where(gains, 2**high, np.nan),
        "open_low": open_low & gains,
        "open_high": open_high & gains,
        "sensitivity": np.where(gains, _sensitivity(scores, top, base), np.nan),
        "area": mean_over_octaves(octaves, scores - base[:, None]),
        "worst": np.where(np.isnan(scores).all(axis=1), np.nan, np.where(np.isnan(scores), np.inf, scores).min(axis=1)),
    }


def _sensitivity(scores: Floats, top: Floats, base: Floats) -> Floats:
    """The mean over the points that were tried of the loss of score, which ends at the base's score."""
    tried = ~np.isnan(scores)
    lost = np.where(tried, top[:, None] - np.fmax(scores, base[:, None]), 0.0).clip(min=0.0)
    return lost.sum(axis=1) / np.maximum(tried.sum(axis=1), 1)


def _edges(octaves: Floats, margins: Floats, alive: Bools, best: Ints, gains: Bools, side: int) -> tuple[Floats, Bools]:
    """Walk from the best point of every curve that gains until any of its margins `[condition, curve, point]` is below zero.

    Returns log2 of the edge, the first crossing, and whether it is open.
    """
    rows, here, walking = np.arange(len(best)), best.copy(), gains.copy()
    edge = octaves[best].copy()
    for _ in range(len(octaves) - 1):
        there = (here + side).clip(0, len(octaves) - 1)
        walking &= there != here
        now, after = margins[:, rows, here], margins[:, rows, there]
        crossed = walking & (after < 0)
        share = np.divide(now, now - after, out=np.ones_like(now), where=crossed).min(axis=0)
        fallen = crossed.any(axis=0)
        edge = np.where(fallen, octaves[here] + share * (octaves[there] - octaves[here]), edge)
        walking &= ~fallen & alive[rows, there]
        here = np.where(walking, there, here)
        edge = np.where(walking, octaves[here], edge)
    at_end = here == (0 if side < 0 else len(octaves) - 1)
    return edge, at_end


def plateau(table: pd.DataFrame, tolerance: float = TOLERANCE, *, x: str = "multiplier") -> pd.DataFrame:
    """The plateau of every series and score, with intervals over the subjects; a side effect, which has no peak, has none.

    Of a score of which less is better the peak is the lowest mean, the worst the highest, and a gain what it has less.

    Args:
        table: what `subject_scores` returned. Subjects that lack a point of the grid are left out if others have all of it, so
            that every point of a curve is a mean over the same subjects.
        tolerance: the share of the gain that may be lost on the plateau.
        x: the column of the rates, or "step" for training lengths, of which step 0, the base itself, is left out.

    Returns:
        Rows series, method, metric, num_subjects, num_diverged; area; half_width (octaves), half_low_edge, half_high_edge,
        half_open_low, half_open_high (the plateau on which half of the gain is kept, whatever the tolerance); base, every other
        field of `Plateau`, and the ends of 95 % intervals: peak_low/_high, gain_low/_high (of the peak over the base, paired by
        subject), and so for width, low_edge, high_edge, half_width and its edges, sensitivity, area, worst. They allow for the
        choice of the best point (`analysis.plateau_intervals`), and never leave the range of the score; from 2 subjects.

    Raises:
        BadInput: if the tolerance is not between 0 and 1, or a subject has no score of the base model.
    """
    _check(table, tolerance)
    shown = table[(table[x] > 0) & ~table["metric"].map(is_side_effect).astype(bool)]
    groups = shown.groupby(["series", "method", "metric"], sort=False, observed=True)
    return pd.DataFrame([_row(key, subject_grid(group, x), tolerance) for key, group in groups])


def half_gain_plateaus(plateaus: pd.DataFrame) -> pd.DataFrame:
    """The rows of `plateau` with the half-gain plateau in place of that of its tolerance."""
    half = {name: plateaus[f"half_{name}"] for name in ("low_edge", "high_edge", "open_low", "open_high")}
    half |= {f"width_{end}": plateaus[f"half_width_{end}"] for end in ("low", "high")}
    return plateaus.assign(width_octaves=plateaus["half_width"], **half)


def exceeds_base(row: Mapping[Any, Any] | pd.Series) -> bool:
    """Whether the peak of a row of `plateau` is better than the base."""
    sign = sign_of(str(row["metric"]))
    return bool(sign * row["peak"] > sign * row["base"])


def doubt(row: Mapping[Any, Any] | pd.Series, unit: str = UNIT) -> str:
    """Why no plateau is named from a row of `plateau`; "" where one is. `unit` is what an interval generalises over."""
    if not np.isfinite(row["peak"]):
        return "diverged everywhere"
    if not exceeds_base(row):
        return f"never {'above' if sign_of(str(row['metric'])) > 0 else 'below'} the base"
    if row["num_subjects"] < LEAST_SUBJECTS:
        return f"no plateau from fewer than {counted(LEAST_SUBJECTS, unit)}"
    return "" if row["gain_low"] > 0 else "a gain that cannot be told from 0"


def joint_plateau(
    table: pd.DataFrame, tolerance: float = TOLERANCE, *, prompt_loss: float = PROMPT_LOSS, x: str = "multiplier"
) -> pd.DataFrame:
    """The plateau of the headline (DINO) on which the prompt (CLIP-T) is kept: memorising pictures is not learning the subject.

    The peak is the headline's best among the points that keep the prompt; the plateau ends where either falls too low.

    Args:
        table: what `subject_scores` returned.
        tolerance: the share of the headline's gain that may be lost.
        prompt_loss: the share of the base model's score of the prompt that may be lost.
        x: as for `plateau`.

    Returns:
        The rows of `plateau` for the headline. Width and edges are those of the joint plateau, and their intervals too; the
        peak is NaN where no point keeps the prompt, and has no interval. Sensitivity, area and worst case are the headline's
        own: see `plateau`.

    Raises:
        BadInput: as for `plateau`, or if the task has no score of the prompt, the table lacks either score, or the loss is not
            between 0 and 1.
    """
    _check(table, tolerance)
    kind = kind_with(table["metric"].unique())
    headline, prompt = wanted = (kind.headline.name, prompt_metric_of(kind))
    check_prompt_loss(prompt_loss, prompt)
    if missing := set(wanted) - set(table["metric"]):
        raise BadInput(f"no scores of {', '.join(sorted(missing))}: the joint plateau needs {' and '.join(wanted)}")
    rows = []
    for (series, method), group in table[table[x] > 0].groupby(["series", "method"], sort=False, observed=True):
        gained, given_up = (subject_grid(group[group["metric"] == name], x) for name in wanted)
        row = _row((series, method, headline), gained, tolerance, _kept(gained, given_up, prompt_loss))
        rows.append({name: value for name, value in row.items() if not name.startswith(OWN)})
    return pd.DataFrame(rows)


def check_prompt_loss(prompt_loss: float, prompt_metric: str) -> None:
    """Refuse a loss of the prompt's score that is not between 0 and 1."""
    if not 0 < prompt_loss < 1:
        raise BadInput(f"loss of {title_of(prompt_metric)} {prompt_loss}: allowed are numbers between 0 and 1")


def _check(table: pd.DataFrame, tolerance: float) -> None:
    if not 0 < tolerance < 1:
        raise BadInput(f"tolerance {tolerance} of the plateau: allowed are numbers between 0 and 1")
    if table["base"].isna().any():
        missing = table.loc[table["base"].isna(), "subject"].unique()
        raise BadInput(f"no score of the base model for subject {', '.join(map(str, missing))}: run the sweep again")


def _kept(gained: Grid, prompt: Grid, prompt_loss: float) -> Floats:
    """How much better each subject's prompt is at each of the headline's points than the least wanted; NaN where none."""
    spare = prompt.scores.sub((1 - prompt.sign * prompt_loss) * prompt.base, axis=0)
    result: Floats = spare.reindex(index=gained.scores.index, columns=gained.scores.columns).to_numpy(dtype=float)
    return result


def _row(key: tuple[str, str, str], grid: Grid, tolerance: float, kept: Floats | None = None) -> dict[str, object]:
    scores, diverged = grid.values, grid.num_diverged > 0
    spare = None if kept is None else _mean(kept)[None]
    found = find_plateaus(grid.points, _mean(scores)[None], grid.base.mean(keepdims=True), diverged, tolerance, spare)
    octaves = np.log2(grid.points)
    edges = edge_intervals(octaves, scores, grid.base, ~diverged, tolerance, kept)
    ends: dict[str, Sequence[float] | Floats] = {
        "width": edges[:2],
        "low_edge": np.exp2(edges[2:4]),
        "high_edge": np.exp2(edges[4:]),
    }
    ends |= _other_ends(octaves, scores, grid.base, ~diverged, _turned(value_range(key[2]), grid.sign))
    ends |= {name: _turned(ends[name], grid.sign) for name in SCORES}
    if np.isnan(found["sensitivity"][0]):
        ends["sensitivity"] = (np.nan, np.nan)
    half, half_ends = _half_gain(grid)
    gain = found["peak"][0].item() - float(grid.base.mean())
    found |= {name: grid.sign * found[name] for name in SCORES}
    return {
        **dict(zip(("series", "method", "metric"), key, strict=True)),
        "num_subjects": len(grid.base),
        "num_diverged": int(grid.num_diverged.sum()),
        "area": found.pop("area")[0].item(),
        **half,
        "base": grid.sign * float(grid.base.mean()),
        **{name: found.pop(name)[0].item() for name in ("peak", "best_multiplier", "sensitivity", "worst")},
        "gain": gain,
        **{name: value[0].item() for name, value in found.items()},
        **{f"{name}_low": float(low) for name, (low, _) in (ends | half_ends).items()},
        **{f"{name}_high": float(high) for name, (_, high) in (ends | half_ends).items()},
    }


def _turned(ends: Sequence[float] | Floats, sign: float) -> tuple[float, float]:
    """The ends of an interval times a sign, the lower one first."""
    low, high = ends
    return (float(low), float(high)) if sign > 0 else (-float(high), -float(low))


def _half_gain(grid: Grid) -> tuple[dict[str, float], dict[str, Sequence[float] | Floats]]:
    """The plateau on which half of the gain is kept, and the intervals of its width and edges."""
    scores, diverged = grid.values, grid.num_diverged > 0
    found = find_plateaus(grid.points, _mean(scores)[None], grid.base.mean(keepdims=True), diverged, HALF_GAIN)
    ends = edge_intervals(np.log2(grid.points), scores, grid.base, ~diverged, HALF_GAIN)
    names = ("low_edge", "high_edge", "open_low", "open_high")
    values = {"half_width": found["width_octaves"][0].item()} | {f"half_{n}": found[n][0].item() for n in names}
    edges = {"half_low_edge": np.exp2(ends[2:4]), "half_high_edge": np.exp2(ends[4:])}
    return values, {"half_width": ends[:2], **edges}


def _other_ends(
    octaves: Floats, scores: Floats, base: Floats, alive: Bools, limits: tuple[float, float]
) -> dict[str, Floats]:
    """The intervals of peak, gain, sensitivity, area and worst case of scores of which more is better, inside their limits."""
    span = limits[1] - limits[0]
    clipped = np.where(_mean(scores) < base.mean(), base[:, None], scores)
    below_peak = scores - _mean(clipped.T)[:, None]
    lost, worst = max_interval(below_peak[:, alive]), max_interval(-scores)
    area = t_interval(mean_over_octaves(octaves, scores - base[:, None]))
    gain = max_interval(scores[:, alive] - base[:, None])
    return {
        "peak": np.clip(max_interval(scores[:, alive]), *limits),
        "gain": np.clip(gain, -span, span),
        "sensitivity": np.clip(lost, 0.0, span),
        "area": np.clip((area.low, area.high), -span, span),
        "worst": np.clip((-worst[1], -worst[0]), *limits),
    }


def mean_over_octaves(octaves: Floats, gains: Floats) -> Floats:
    """The mean of every curve `[curve, point]` over the octaves, by the trapezoid rule; points without a score are left out."""
    steps = np.diff(octaves)
    weights = (np.r_[0, steps] + np.r_[steps, 0]) / 2 if len(steps) else np.ones(1)
    there = ~np.isnan(gains)
    total = (there * weights).sum(axis=1)
    return np.where(there, gains * weights, 0.0).sum(axis=1) / np.where(total > 0, total, np.nan)


def _mean(scores: Floats) -> Floats:
    """The mean over subjects `[..., subject, point]` at every point, NaN where none has it."""
    there = ~np.isnan(scores)
    return np.where(there, scores, 0.0).sum(axis=-2) / np.where(there.any(axis=-2), there.sum(axis=-2), np.nan)
