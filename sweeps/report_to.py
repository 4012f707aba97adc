"""Runs as runs of an experiment tracker, named as diffusers' scripts name them: `loss`, `lr`, and what Plateau measures besides.

    python -m sweeps.report_to runs/lr_robustness --report-to tensorboard --logging-dir logs
    python -m sweeps.report_to runs --report-to wandb trackio --project plateau

A run is given over as a whole, after it has ended, with accelerate's trackers. Its name is its folder's; its configuration
is its cell. A run that a tracker's folder holds already is left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import pandas as pd
import tyro

from adapters.errors import BadInput
from adapters.words import counted
from analysis import Results, load
from training.command_line import run_program
from training.states import ENDED

TrackerName = Literal["tensorboard", "wandb", "trackio"]
GAUGES = ("distance", "distance_rel", "lambda", "saturation", "transform_distance", "orthogonality")
MISSING = "--report-to {name} needs the package {name}: pip install {name}"


@dataclass(frozen=True)
class Options:
    """Flags of the export."""

    results: Annotated[Path, tyro.conf.Positional]
    """A runs folder, or one sweep of it."""
    report_to: tuple[TrackerName, ...] = ("tensorboard",)
    """Trackers, as in diffusers' scripts."""
    logging_dir: Path = Path("logs")
    """Folder of tensorboard's files."""
    project: str = "plateau"
    """Project of wandb and trackio."""


class Tracker(Protocol):
    """What is used of `accelerate.tracking.GeneralTracker`."""

    def store_init_configuration(self, values: dict[str, Any]) -> None: ...
    def log(self, values: dict[str, Any], step: int) -> None: ...
    def finish(self) -> None: ...


def report(options: Options) -> int:
    """Give every ended run to every tracker, and say how many were given."""
    results, count = load(options.results), 0
    ended = results.runs[results.runs["status"].isin(ENDED)]
    if ended.empty:
        raise BadInput(f"no run in {options.results} has ended yet")
    for name in options.report_to:
        for run_id in ended["run_id"]:
            if name == "tensorboard" and (options.logging_dir / run_id).exists():
                print(f"{options.logging_dir / run_id} is there already", file=sys.stderr)
                continue
            give(results.select([run_id]), open_tracker(name, run_id, options))
            count += 1
    print(f"{counted(count, 'run')} given to {', '.join(options.report_to)}")
    return 0


def open_tracker(name: str, run_id: str, options: Options) -> Tracker:
    """A tracker of one run, started.

    Raises:
        BadInput: if its package is not installed.
    """
    from accelerate import PartialState, tracking  # type: ignore[import-untyped]

    PartialState(cpu=True)  # trackers ask which process they are in
    try:
        if name == "tensorboard":
            tracker = tracking.TensorBoardTracker(run_id, options.logging_dir)
        else:
            kind = tracking.WandBTracker if name == "wandb" else tracking.TrackioTracker
            tracker = kind(options.project, name=run_id)
        tracker.start()
    except ImportError:
        raise BadInput(MISSING.format(name=name)) from None
    started: Tracker = tracker
    return started


def give(results: Results, tracker: Tracker) -> None:
    """Log the configuration and every step of the one run that results hold."""
    run = results.runs.iloc[0]
    fields = {name: value.item() if hasattr(value, "item") else value for name, value in run.items()}
    tracker.store_init_configuration({n: v for n, v in fields.items() if isinstance(v, str | int | float) and v == v})
    for step, values in rows(results):
        tracker.log(values, step=step)
    tracker.finish()


def rows(results: Results) -> Iterator[tuple[int, dict[str, float]]]:
    """What is known at each step of one run: losses and rates, means over prompts of the scores, and of the gauges over all
    matrices and (for the distance) over the matrices of each block.
    """
    losses = results.steps().set_index("step").drop(columns=["run_id", "seconds"])
    gauges = results.trajectories("mean").set_index("step")
    gauges = gauges[[name for name in GAUGES if name in gauges and gauges[name].notna().any()]]
    parts = [losses, gauges, _by_block(results), _scores(results)]
    table = pd.concat(parts, axis=1).sort_index()
    for step, row in zip(table.index, table.to_dict("records")):
        yield int(step), {str(name): float(value) for name, value in row.items() if value == value}


def _by_block(results: Results) -> pd.DataFrame:
    blocks = results.matrices.drop_duplicates("matrix").set_index("matrix")["block"].astype(str)
    frame = results.dynamics(["distance_rel"])
    frame["block"] = frame["matrix"].astype(object).map(blocks)
    wide = frame.pivot_table("distance_rel", "step", "block", observed=True)
    return wide.add_prefix("distance_rel/")


def _scores(results: Results) -> pd.DataFrame:
    return results.scores.pivot_table("value", "step", "metric", observed=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    return run_program(Options, report, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
