"""What stands in for the hours when documented commands are typed: measurements, training, a machine's SLURM.

All of it acts after parsing, planning and identities: a pack that is due gets made-up results in place of its training.

    python -m tests.stand_in COMMANDS.json    # [{"words", "cwd", "out", "only"}]: each in a fork; prints their exit codes

A command whose `only` is "parse" or "plan" ends, well, once it is parsed or planned.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from figures import saving, style
from slurm.estimate import calibrate
from slurm.store.layout import PackFiles, read_contents, sweep_of
from slurm.store.outcome import write_ended
from slurm.worker import pool
from sweeps import rate_file
from tests.make_controls import GOOD, make_control_rows
from tests.make_runs import BASE_SCORE, GAIN, MATRICES, PROMPTS, matrix_names, norms_columns, steps_columns
from training import command_line, step_price
from training.cell import BASE
from training.demand import Cost
from training.pack import list_runs
from training.run import Run
from training.store import GAUGES

HEAVY = (
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "transformers.models.clip.modeling_clip",
    "transformers.models.vit.modeling_vit", "matplotlib.pyplot", "scipy.stats", "duckdb", "tyro", "rich.live", "submitit",
    "figures.registry", "sweeps.driver", "sweeps.report",
)  # fmt: skip


def stand_in(only: str = "", draws: bool = False) -> None:
    """Replace what takes long in this process.

    Args:
        only: "parse" or "plan", where the command is to end well before anything else; "" goes on.
        draws: whether figures are rendered too, which costs more than all else.
    """
    os.fsync = lambda _: None  # type: ignore[assignment]
    calibrate._measure_elsewhere = lambda setting, cell: {n: Cost(0.01, 500.0) for n in (1, 16)}  # type: ignore[assignment]
    rate_file.write_rates.__defaults__ = (Path("base_rates.toml").absolute(),)  # not into the checkout
    step_price.price = lambda load, method, rank: step_price.StepPrice(1.0, 0.9, 1.1, 3, 600.0, 500.0)  # type: ignore[assignment]
    pool.run_inline = stop if only == "plan" else make_results  # type: ignore[assignment]
    if not draws:
        saving.render = lambda figure, formats: dict.fromkeys(formats, b"drawn")  # type: ignore[assignment]
    if only == "parse":
        command_line.run_program = parse_only  # type: ignore[assignment]


def stop(*_: Any, **__: Any) -> str:
    """In place of training, where a plan is all."""
    raise SystemExit(0)


def parse_only(options: type, run: Callable, description: str, arguments: Sequence[str] | None = None) -> int:
    """`run_program` without the run."""
    return command_line.end_well(lambda: command_line.parse(options, description, arguments) and 0)


def make_results(specs: Sequence[Path], **_: Any) -> str:
    """`pool.run_inline`: every run of every pack has results at once."""
    for spec in specs:
        runs = list_runs(sweep_of(spec).path, read_contents(spec))
        for run in runs:
            make_result(run)
        write_ended(PackFiles.of(spec), [run.folder for run in runs], 1)
    return "done"


def make_result(run: Run) -> None:
    """Scores, pictures and tables of every kind, which rise and fall with the multiplier."""
    cell, folder = run.cell, run.folder
    octaves = np.log2(float(run.labels.get("multiplier") or 1.0))
    names = ("matrix", "block", "kind", "attention")
    matrices = [dict(zip(names, row)) | {"num_out": 64, "num_in": 64, "base_norm": 8.0} for row in MATRICES]
    folder.write(
        {
            "sweep": folder.sweep.name, "cell": cell.to_dict(), "labels": run.labels, "status": "finished",
            "diverged_step": None, "num_parameters": 1000, "matrices": matrices, "provenance": {"commit": "0" * 40},
            "error": None, "seconds": 1.0, "pack_seconds": 1.0,
        }
    )  # fmt: skip
    rows = []
    for step in cell.evaluated_steps():
        height = 0.0 if cell.method == BASE else (1 - 0.05 * octaves**2) * min(1.0, 2 * step / max(cell.steps, 1))
        height += 0.01 * np.sin(hash(cell.subject) % 100)
        rows += [
            (step, m, p.format(cell.subject), b + GAIN[m] * height) for m, b in BASE_SCORE.items() for p in PROMPTS
        ]
        rows += [(step, "drift", "a cat", 0.1 * abs(height))] if cell.num_drift_prompts else []
        draw = partial(_draw, int(100 + 50 * height))
        folder.add_images(step, [(p.format(cell.subject), 7, draw) for p in PROMPTS])
    if cell.method == BASE:
        folder.write_controls(make_control_rows(GOOD), "made")
    folder.write_scores(pd.DataFrame(rows, columns=["step", "metric", "prompt", "value"]))
    steps = sorted({0, cell.steps // 2, cell.steps, *cell.evaluated_steps()})
    folder.append("norms", norms_columns(steps, 0.01) | _norm_changes(len(steps)), cell.steps)
    if cell.method != BASE:
        moved = np.repeat(np.asarray(steps) / max(cell.steps, 1), len(MATRICES)).astype(np.float32)
        columns = {
            "step": np.repeat(np.asarray(steps, dtype=np.int32), len(MATRICES)),
            "matrix": matrix_names(len(steps)),
        }
        folder.append("dynamics", columns | dict.fromkeys(("distance", *GAUGES), 0.1 + moved), cell.steps)
        folder.append("steps", steps_columns(steps, 1.0), cell.steps)


def _draw(brightness: int, path: Path) -> None:
    Image.fromarray(np.full((16, 16, 3), brightness, dtype=np.uint8)).save(path, format="png")


def _norm_changes(num_steps: int) -> dict[str, np.ndarray]:
    values = np.linspace(0.01, 0.1, num_steps * len(MATRICES), dtype=np.float32)
    return {"dm_rows": values, "dd_rows": values[::-1].copy(), "dm_cols": values, "dd_cols": values[::-1].copy()}


# Typed in forks.


def type_all(commands: Sequence[dict[str, Any]]) -> list[int]:
    """Run each command in a fork that has loaded what takes long to load; returns the exit codes."""
    for name in HEAVY:
        importlib.import_module(name)
    return [os.waitstatus_to_exitcode(os.waitpid(_fork(command), 0)[1]) for command in commands]


def _fork(command: dict[str, Any]) -> int:
    if child := os.fork():
        return child
    code: Any = 1
    try:
        code = _type(command)
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _type(command: dict[str, Any]) -> int:
    """Become `python WORDS`, with stdin closed and an output that knows ASCII alone."""
    os.chdir(command["cwd"])
    os.close(0)
    out = os.open(command["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr]
    stand_in(command["only"])
    style.SteadyLayout.execute = lambda *_: None  # type: ignore[method-assign]  # tests of each driver lay its figures out
    words = command["words"]
    is_module = words[0] == "-m"
    sys.argv = words[is_module:]
    sys.path.insert(0, os.getcwd() if is_module else str(Path(words[0]).parent.absolute()))
    if is_module:
        sys.modules.pop(words[1], None)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    print(json.dumps(type_all(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
