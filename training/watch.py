"""Record the dynamics of any training loop, as Plateau does for its own runs, for any model and adapter.

    from training.watch import watch

    with watch(unet, "runs/watched/my-run") as w:
        for batch in loader:
            ...
            optimizer.step()
            w.step(loss=loss)

With `optimizer=` every step of that optimiser is recorded by itself; under accelerate give it the prepared one, so that
accumulated micro-batches count once. The folder is a run like any other: `analysis` and `figures` read it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from adapters.errors import BadInput
from adapters.exact import exactly
from training.base_norms import describe_matrix
from training.cell import FLAGS
from training.dynamics import Directions, norms_and_angles
from training.effective_weights import Watched, find_watched
from training.provenance import provenance
from training.states import RunStatus
from training.store import COLUMNS, RunFolder

LARGEST = torch.finfo(torch.float32).max


class Watch:
    """Rows (step, matrix) of one foreign run, buffered between flushes.

    Attributes:
        matrices: what is watched, by path.
        now: the last step that was recorded or passed.
    """

    def __init__(
        self, matrices: dict[str, Watched], folder: RunFolder, every: int, optimizer: Any, cell: dict[str, Any]
    ) -> None:
        self.matrices, self.folder, self.now = matrices, folder, 0
        self._every, self._optimizer, self._cell = every, optimizer, cell
        self._rows: list[tuple[int, list[dict[str, float]]]] = []
        self._losses: list[dict[str, float | None]] = []
        self._before: list[dict[str, Directions]] = [{} for _ in matrices]
        self._since = time.perf_counter()

    def step(self, loss: Tensor | float | None = None) -> None:
        """Count one optimiser step, after it was taken, and read the weights if it is due.

        Args:
            loss: of this step, for the table of steps; None leaves it out.
        """
        self.now += 1
        seconds, self._since = time.perf_counter() - self._since, time.perf_counter()
        value = None if loss is None else float(torch.as_tensor(loss).detach())
        self._losses.append({"step": self.now, "seconds": seconds, "lr": self._rate(), "loss": value})
        if self.now % self._every == 0:
            self.record()
        if len(self._losses) >= 100:
            self.flush()

    @exactly
    @torch.no_grad()
    def record(self) -> None:
        """Read every matrix as it is now."""
        rows = []
        for number, one in enumerate(self.matrices.values()):
            factors = {name: Directions.of(rows[None, None].float().clone()) for name, rows in one.factors().items()}
            turned = norms_and_angles(factors, self._before[number])
            self._before[number] = factors
            values = {
                "distance": one.distance(),
                **one.gauges(),
                **{name: value[0, 0] for name, value in turned.items()},
            }
            rows.append({name: float(value.double().clamp(max=LARGEST)) for name, value in values.items()})
        self._rows.append((self.now, rows))

    def flush(self) -> None:
        """Write what is buffered as one part, and forget it."""
        if self._rows:
            paths, names = list(self.matrices), [name for name in COLUMNS["dynamics"] if name not in ("step", "matrix")]
            index = np.tile(np.arange(len(paths), dtype=np.int32), len(self._rows))
            columns: dict[str, Any] = {
                "step": np.repeat(np.array([step for step, _ in self._rows], dtype=np.int32), len(paths)),
                "matrix": pa.DictionaryArray.from_arrays(pa.array(index), pa.array(paths)),
            }
            flat = [row for _, rows in self._rows for row in rows]
            for name in names:
                if any(name in row for row in flat):
                    columns[name] = np.array([row.get(name, np.nan) for row in flat], dtype=np.float32)
            self.folder.append("dynamics", columns, self.now)
        if self._losses:
            steps = {
                name: pa.array([row[name] for row in self._losses], pa.int32() if name == "step" else pa.float32())
                for name in self._losses[0]
            }
            self.folder.append("steps", steps, self.now)
        self._rows.clear()
        self._losses.clear()

    def _rate(self) -> float | None:
        return rate_of(self._optimizer)

    def open_run(self, device: torch.device) -> None:
        """Write run.json and the rows of step 0."""
        rows = [describe_matrix(path, one.base) for path, one in self.matrices.items()]
        self.folder.write(
            {
                "sweep": self.folder.path.parent.name, "cell": self._cell, "labels": {"watched": True},
                "status": RunStatus.RUNNING, "diverged_step": None, "num_parameters": None, "matrices": rows,
                "provenance": provenance(device), "error": None,
            }
        )  # fmt: skip
        self.record()

    def close_run(self, error: BaseException | None) -> None:
        """Write what is left, and how it ended."""
        self.flush()
        record = self.folder.read()
        record["cell"]["steps"] = self.now
        ended = RunStatus.PREEMPTED if isinstance(error, KeyboardInterrupt) else RunStatus.FAILED
        status = RunStatus.FINISHED if error is None else ended
        self.folder.write(record | {"status": status, "error": None if error is None else repr(error)})


def rate_of(optimizer: Any) -> float | None:
    """The rate of an optimiser's first group; None without an optimiser."""
    return None if optimizer is None else float(optimizer.param_groups[0]["lr"])


@contextmanager
def watch(
    model: nn.Module,
    folder: Path | str,
    *,
    every: int = 1,
    optimizer: Any = None,
    method: str = "watched",
    subject: str = "watched",
    seed: int = 0,
    wrappers: tuple[type[nn.Module], ...] = (),
) -> Iterator[Watch]:
    """Record how far each adapted or trainable matrix of a model moves while somebody else's loop trains it.

    Settings of the loop that are not seen from here stay empty (null): all of a cell's but those named below.

    Args:
        model: with its adapters in place: HF PEFT's (`unet.add_adapter`), parametrizations, hooks, or layers that train.
        folder: a run folder to make, best `runs/<sweep>/<name>`.
        every: steps between two readings; step 0 is read at once, the last one at the end.
        optimizer: records each of its steps by itself, its learning rate too; then `step` must not be called.
        method, subject, seed: what the run is called in tables and figures.
        wrappers: classes of your own that take the place of a linear layer; see `training.effective_weights`.

    Raises:
        BadInput: there is nothing to watch, an adapter is merged, `every` is below 1, or the folder holds a run already.
    """
    run = RunFolder(folder)
    if every < 1:
        raise BadInput(f"every is {every}; allowed: a whole number from 1 on")
    if run.exists():
        raise BadInput(f"{run.path} holds a run already: watch into another folder")
    matrices = find_watched(model, wrappers)
    known = {
        "method": method, "options": "", "rank": max(one.rank for one in matrices.values()), "subject": subject,
        "seed": seed, "steps": 0, "lr": rate_of(optimizer), "gauge_every": every,
    }  # fmt: skip
    cell = dict.fromkeys(FLAGS) | known
    watching = Watch(matrices, run, every, optimizer, cell)
    watching.open_run(next(iter(matrices.values())).base.device)
    hook = None
    if optimizer is not None:
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper steps it once an accumulation
        hook = inner.register_step_post_hook(lambda *_: watching.step())
    error: BaseException | None = None
    try:
        yield watching
        if watching.now % every:
            watching.record()
    except BaseException as raised:
        error = raised
        raise
    finally:
        if hook is not None:
            hook.remove()
        watching.close_run(error)
