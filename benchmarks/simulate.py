"""Do the printed 95 % intervals cover 95 %, and do tests at 5 % reject 5 %? Simulated studies of the sizes used.

python -m benchmarks.simulate --out docs/statistics.md      # every table, each written when it is done
python -m benchmarks.simulate --out docs/statistics.md --tables false_findings --studies 500

Every number goes through the functions that print it: `plateau`, `joint_plateau`, `compare`, `sign_flip`, `split_variance`.
"""

from __future__ import annotations

import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from adapters.errors import BadInput
from adapters.words import counted
from analysis.comparisons import compare, subject_measures
from analysis.matched_prompt import find_front, matched_prompt
from analysis.permutation import holm, sign_flip
from analysis.plateau import HALF_GAIN, PROMPT_LOSS, TOLERANCE, find_plateaus, joint_plateau, plateau
from analysis.statistics import Ints, rate_interval, subject_bootstrap, t_interval
from analysis.tables import to_markdown
from analysis.variance import split_variance
from benchmarks.simulated import OCTAVES, PROMPT, SHAPES, World
from training.store import writing

SIZES = tuple((n, seeds) for seeds in (1, 3) for n in (6, 8, 12, 16))
MANY = tuple((n, 1) for n in (6, 12, 16, 24, 40))  # sizes at which headline and matched prompt are asked
HEADS = {"area": "area", "half_width": "half-gain width", "width": "5 % width"}
FIELDS = {
    "peak": "peak", "worst": "worst", "area": "area", "sensitivity": "sensitivity", "width": "width_octaves",
    "low_edge": "low_edge", "high_edge": "high_edge",
}  # fmt: skip
NULL = ("at_one", "at_best", "area", "sensitivity", "worst", "width")
Outcome = dict[str, bool]
NONE = np.zeros(len(OCTAVES), dtype=bool)


@dataclass(frozen=True)
class Options:
    """Flags of the command.

    Attributes:
        out: a page in which each table is replaced between its own markers; made if it is not there.
        tables: which ones; none for all.
        studies: simulated studies of each size.
        seed: of all draws.
        num_processes: sizes that are simulated side by side; the numbers do not depend on it.
    """

    out: Path
    tables: tuple[str, ...] = ()
    studies: int = 2000
    seed: int = 0
    num_processes: int = 1


def plateaus(world: World, draw: np.random.Generator, num_subjects: int, num_seeds: int) -> Outcome:
    """Whether the intervals of `plateau` cover, for three shapes; and those of the joint plateau."""
    table = world.study(draw, num_subjects, num_seeds, {shape: shape for shape in SHAPES})
    result: Outcome = {}
    for row in plateau(table[table["metric"] == "dino"]).to_dict("records"):
        truth = world.truth(row["series"], TOLERANCE)._asdict()
        for name, field in FIELDS.items():
            result[f"{name}, {row['series']}"] = _covers(row[f"{name}_low"], row[f"{name}_high"], truth[field])
    row = joint_plateau(table[table["series"] == "flat"]).iloc[0]
    spare = world.prompt * (PROMPT - 0.8)[None]
    level = np.array([world.level])
    joint = find_plateaus(np.exp2(OCTAVES), world.curve("flat")[None], level, NONE, TOLERANCE, spare)
    result["joint width, flat"] = _covers(row["width_low"], row["width_high"], joint["width_octaves"][0])
    return result


def differences(world: World, draw: np.random.Generator, num_subjects: int, num_seeds: int) -> Outcome:
    """Whether the intervals of `compare` cover, for two series of different shapes."""
    table = world.study(draw, num_subjects, num_seeds, {"flat": "flat", "hill": "hill"})
    flat, hill = (world.truth(shape, TOLERANCE) for shape in ("flat", "hill"))
    one = int(np.flatnonzero(OCTAVES == 0)[0])
    truth = {
        "at_one": world.curve("flat")[one] - world.curve("hill")[one],
        "at_best": flat.peak - hill.peak,
        "area": flat.area - hill.area,
        "sensitivity": flat.sensitivity - hill.sensitivity,
        "worst": flat.worst - hill.worst,
    }
    result: Outcome = {}
    for row in compare(table, tuple(truth)).to_dict("records"):
        name = row["measure"]
        result[f"{name}, t"] = _covers(row["low"], row["high"], truth[name])
        result[f"{name}, bootstrap"] = _covers(row["boot_low"], row["boot_high"], truth[name])
        result[f"{name}, interquartile"] = _covers(row["iqm_low"], row["iqm_high"], truth[name])
    return result


def headline(world: World, draw: np.random.Generator, num_subjects: int, num_seeds: int) -> Outcome:
    """Whether intervals of area and half-gain width cover, and how often they tell shapes as found apart; so for the 5 % width.

    The intervals are those that `compare` prints: Student's t of each subject's area and own 5 % width, the bootstrap over
    subjects of the half-gain width.
    """
    names = {"LoRA": "LoRA", "DeLoRA": "DeLoRA", "ETHER+": "ETHER+", "twin": "LoRA"}
    table = world.study(draw, num_subjects, num_seeds, names)
    dino = dict(list(table[table["metric"] == "dino"].groupby("series", sort=False)))
    pairs = (("DeLoRA", "LoRA"), ("DeLoRA", "ETHER+"), ("LoRA", "twin"))
    compared = compare(table, tuple(HEADS), pairs=pairs).set_index(["measure", "a", "b"])
    truth = {name: (world.truth(name, HALF_GAIN), world.truth(name, TOLERANCE)) for name in names if name != "twin"}
    result: Outcome = {}
    for row in plateau(pd.concat(dino[name] for name in truth)).to_dict("records"):
        half = truth[row["series"]][0]
        result[f"covers: area, {row['series']}"] = _covers(row["area_low"], row["area_high"], half.area)
        covers = _covers(row["half_width_low"], row["half_width_high"], half.width_octaves)
        result[f"covers: half-gain width, {row['series']}"] = covers
    for a, b in pairs[:2]:
        (half_a, five_a), (half_b, five_b) = truth[a], truth[b]
        wanted = {
            "area": half_a.area - half_b.area,
            "half_width": half_a.width_octaves - half_b.width_octaves,
            "width": five_a.width_octaves - five_b.width_octaves,
        }
        for name, true in wanted.items():
            low, high = compared.loc[(name, a, b), ["low", "high"]]
            result[f"covers: {HEADS[name]}, {a} - {b}"] = _covers(low, high, true)
            result[f"finds: {HEADS[name]}, {a} - {b}"] = bool(low > 0 or high < 0)
    for name, words in HEADS.items():
        low, high = compared.loc[(name, "LoRA", "twin"), ["low", "high"]]
        result[f"finds where none is: {words}"] = bool(low > 0 or high < 0)
    return result


def matched(world: World, draw: np.random.Generator, num_subjects: int, num_seeds: int) -> Outcome:
    """Whether the bootstrap intervals of `matched_prompt` cover, of mean gains and their difference."""
    table = world.study(draw, num_subjects, num_seeds, {"LoRA": "LoRA", "DeLoRA": "DeLoRA"})
    levels, losses = np.linspace(0, PROMPT_LOSS, 2001), np.r_[0, 1 - PROMPT]
    truth = {
        name: float(
            np.trapezoid(find_front(losses, np.r_[0, world.curve(name) - world.level], levels), levels) / PROMPT_LOSS
        )
        for name in ("LoRA", "DeLoRA")
    }
    found = matched_prompt(table, num_draws=400)
    result: Outcome = {}
    for row in found.gains[found.gains["loss"] == "0 to 20 %"].to_dict("records"):
        result[f"mean gain, {row['series']}"] = _covers(row["low"], row["high"], truth[row["series"]])
    row = found.differences.iloc[0]
    result["difference, LoRA - DeLoRA"] = _covers(row["low"], row["high"], truth["LoRA"] - truth["DeLoRA"])
    return result


def false_findings(world: World, draw: np.random.Generator, num_subjects: int, num_seeds: int) -> Outcome:
    """Whether sign flips reject at 5 % although two series are alike, and Holm's correction in a table of four."""
    table = world.study(draw, num_subjects, num_seeds, dict.fromkeys("abcd", "flat"))
    dino = table[table["metric"] == "dino"]
    measures = {name: subject_measures(rows) for name, rows in dino.groupby("series")}
    pair = {name: sign_flip(measures["a"][name] - measures["b"][name]).p for name in NULL}
    family = [sign_flip(measures[a]["at_one"] - measures[b]["at_one"]).p for a, b in combinations("abcd", 2)]
    return {
        **{f"{name}, sign flip": bool(pair[name] <= 0.05) for name in NULL},
        "any of 6, uncorrected": bool(min(family) <= 0.05),
        "any of 6, Holm": bool(holm(family).min() <= 0.05),
    }


def means_and_units(world: World, draw: np.random.Generator, num_subjects: int, num_seeds: int) -> Outcome:
    """Whether the t interval of a mean covers with the subject as its unit, and with pairs or pictures as units."""
    images = world.images(draw, num_subjects, num_seeds)
    runs = images.mean(axis=2)
    units = {"subjects": runs.mean(axis=1), "(subject, seed) pairs": runs.ravel(), "pictures": images.ravel()}
    if num_seeds == 1:
        del units["(subject, seed) pairs"]
    return {f"mean, {name} as units": _covers(*t_interval(values)[1:3], 0.0) for name, values in units.items()}


def spreads_and_rates(world: World, draw: np.random.Generator, num_subjects: int, num_seeds: int) -> Outcome:
    """Whether the intervals of the variance split cover (a tenth of the runs missing), and Wilson's of a rate."""
    rate = draw.uniform(0.02, 0.98)
    found = rate_interval(int(draw.binomial(num_subjects, rate)), num_subjects)
    result = {"divergence rate": _covers(found.low, found.high, rate)}
    if num_seeds == 1:
        return result
    true = {"subject": 0.1, "seed": 0.03, "rest": 0.05}
    spread = (
        draw.normal(0, true[k], s) for k, s in zip(true, ((num_subjects, 1), (1, num_seeds), (num_subjects, num_seeds)))
    )
    values = sum(spread, np.zeros(()))
    rows = pd.DataFrame(
        [(i, s, values[i, s]) for i in range(num_subjects) for s in range(num_seeds)],
        columns=["subject", "seed", "value"],
    )
    for full, part in (
        ("", rows),
        (", unbalanced", rows.drop(index=draw.choice(len(rows), len(rows) // 10 + 1, replace=False))),
    ):
        for name, split in split_variance(part, num_draws=1000).items():
            result[f"spread of {name}{full}"] = _covers(split.low, split.high, true[name])
    return result


def dropped(world: World, draw: np.random.Generator, num_subjects: int, num_seeds: int) -> Outcome:
    """What was tried and does not cover: the bootstrap of the width, and a best multiplier chosen by the other subjects."""
    table = world.study(draw, num_subjects, num_seeds, {"flat": "flat", "hill": "hill"})
    table = table[table["metric"] == "dino"]
    wide = {
        name: group.pivot(index="subject", columns="multiplier", values="value")
        for name, group in table.groupby("series")
    }
    flat, hill = wide["flat"].to_numpy(), wide["hill"].to_numpy()
    base = table[table["series"] == "flat"].groupby("subject")["base"].mean().to_numpy()
    grid = np.exp2(OCTAVES)

    def width(draws: Ints) -> np.ndarray:
        means, bases = flat[draws].mean(axis=1), base[draws].mean(axis=1)
        return find_plateaus(grid, means, bases, NONE)["width_octaves"][:, None]

    low, high = subject_bootstrap(width, num_subjects, num_draws=400)
    left_out = t_interval(_best_of_others(flat) - _best_of_others(hill))
    return {
        "width, flat, bootstrap over subjects": _covers(low[0], high[0], world.truth("flat", TOLERANCE).width_octaves),
        "at_best, chosen by the others, t": _covers(left_out.low, left_out.high, 0.0),
    }


def _best_of_others(scores: np.ndarray) -> np.ndarray:
    """Each subject's score at the point that is best for the others."""
    best = (scores.sum(axis=0) - scores).argmax(axis=1)
    result: np.ndarray = scores[np.arange(len(scores)), best]
    return result


def _covers(low: float, high: float, truth: float) -> bool:
    return bool(low - 1e-9 <= truth <= high + 1e-9)


Study = Callable[[World, np.random.Generator, int, int], Outcome]
TABLES: Mapping[str, tuple[str, Study]] = {
    "means_and_units": ("Coverage of means (%)", means_and_units),
    "differences": ("Coverage of paired differences (%)", differences),
    "plateaus": ("Coverage of plateaus (%)", plateaus),
    "spreads_and_rates": ("Coverage of spreads and rates (%)", spreads_and_rates),
    "headline": ("Area, half-gain width and 5 % width: coverage and power (%)", headline),
    "matched": ("Coverage at matched prompt (%)", matched),
    "false_findings": ("False findings at 5 % (%)", false_findings),
    "dropped": ("Tried and dropped: coverage (%)", dropped),
}


def simulate(
    study: Study, sizes: tuple[tuple[int, int], ...] = SIZES, studies: int = 200, seed: int = 0, num_processes: int = 1
) -> pd.DataFrame:
    """Run a study many times at every size; the draws of a size depend on `seed` and the size alone.

    Returns:
        Rows name; one column for each size, with the percentage of studies in which the row's statement held.
    """
    tasks = [(study, size, studies, seed) for size in sizes]
    if num_processes > 1:
        with ProcessPoolExecutor(num_processes) as pool:
            columns = list(pool.map(_repeat, tasks))
    else:
        columns = [_repeat(task) for task in tasks]
    names = [f"{num_subjects} x {num_seeds}" for num_subjects, num_seeds in sizes]
    order = dict.fromkeys(name for column in reversed(columns) for name in column.index)
    frame = pd.concat(columns, axis=1, keys=names).reindex(list(order))
    return frame.rename_axis("subjects x seeds").reset_index()


def _repeat(task: tuple[Study, tuple[int, int], int, int]) -> pd.Series:
    study, (num_subjects, num_seeds), studies, seed = task
    draw = np.random.default_rng([seed, num_subjects, num_seeds])
    return 100 * pd.DataFrame([study(World(), draw, num_subjects, num_seeds) for _ in range(studies)]).mean()


def write_table(path: Path, name: str, text: str) -> None:
    """Replace what stands between a table's markers on a page, or put it at the page's end."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    if begin not in page:
        page = f"{page}\n{begin}\n{end}\n".lstrip()
    before, rest = page.split(begin, 1)
    with writing(path) as aside:
        aside.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")


def main(options: Options) -> int:
    """Run the studies and write their tables.

    Raises:
        BadInput: if a table is unknown.
    """
    if unknown := set(options.tables) - set(TABLES):
        raise BadInput(f"unknown table {', '.join(sorted(unknown))}; allowed: {', '.join(TABLES)}")
    for name in options.tables or TABLES:
        title, study = TABLES[name]
        start = time.monotonic()
        sizes = MANY if study in (headline, matched) else SIZES
        table = simulate(study, sizes, studies=options.studies, seed=options.seed, num_processes=options.num_processes)
        cells = table.set_index("subjects x seeds").map(lambda value: "" if pd.isna(value) else f"{value:.1f}")
        made = _provenance(options, time.monotonic() - start)
        text = f"### {title}\n\n{to_markdown(cells.reset_index())}\n\n{made}"
        write_table(options.out, name, text)
        print(f"{text}\n", flush=True)
    return 0


def _provenance(options: Options, seconds: float) -> str:
    error = 100 * np.sqrt(0.95 * 0.05 / options.studies)
    command = shlex.join(["python", "-m", "benchmarks.simulate", *sys.argv[1:]])
    return (
        f"{options.studies} studies of each size (a true 95.0 shows as 95.0 ± {2 * error:.1f}), `{command}`, {seconds:.0f} s, "
        f"{counted(options.num_processes, 'process')} on {_processor()}, numpy {np.__version__}, {time.strftime('%Y-%m-%d')}."
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    from training.command_line import run_program

    sys.exit(run_program(Options, main, __doc__ or ""))
