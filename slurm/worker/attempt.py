"""One attempt at a pack: train it with a heartbeat, and record how it ended.

An error in a pack of several runs, or two kills in a row where memory is taken (before the first step is done, or at the
same scoring): from then on half as many runs are trained together. An error in a single run is tried again, `N_TRIES` times in
all; then the run has failed, with the traceback in its run.json, and the others go on.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from adapters.errors import BadInput
from slurm.store.leases import Heartbeat, Lease, LeaseLost
from slurm.store.outcome import last_line, write_ended
from slurm.store.states import Outcome
from training.accelerator import arithmetic
from training.loop import Interrupted, train_pack
from training.memory_advice import describe_too_large
from training.pack import Setting, forget_model, make_task
from training.run import Progress, Run
from training.states import ENDED, RunStatus

N_TRIES = 3


@dataclasses.dataclass
class Attempt:
    """A claimed pack.

    Attributes:
        claim: our turn.
        spec, contents: the specification's path and what stands in it.
        runs: its runs.
        report: told of the progress.
        stop: says whether to stop; None: after a signal.
        failed: the runs that have failed in it, and how.
    """

    claim: Lease
    spec: Path
    contents: dict
    runs: list[Run]
    report: Callable[[Progress], None]
    stop: Callable[[], bool] | None = None
    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    def play(self) -> bool:
        """Train the pack; returns whether it has ended (False: another turn is to be taken).

        Raises:
            BadInput: if the disk is full, a folder cannot be written, or an input changed since the plan.
            Interrupted: when asked to stop, with everything checkpointed.
        """
        try:
            with Heartbeat(self.claim) as heart:
                return self._play(heart)
        except LeaseLost as error:
            print(f"{error}: another process has taken it over", file=sys.stderr)
            return False
        except BadInput as error:
            self.claim.end_quietly(Outcome.FAILED, error=str(error))
            raise
        except (Interrupted, KeyboardInterrupt, SystemExit):
            self.claim.end_quietly(Outcome.STOPPED)
            raise
        except BaseException as error:
            self.claim.end_quietly(Outcome.FAILED, error=f"{type(error).__name__}: {error}")
            raise

    def _play(self, heart: Heartbeat) -> bool:
        for line in filter(None, (run.folder.mend() for run in self.runs)):
            print(line, file=sys.stderr)
        count, reason = count_kills(self.claim.before)
        if reason and (runs := self._due()) and (len(runs) > 1 or count >= N_TRIES):
            self._take_less(runs, reason if len(runs) > 1 else f"killed {count} times: {reason}")
        while runs := self._due():
            if text := self._try(heart, runs):
                print(text, file=sys.stderr)
                self._take_less(runs, text)
        return self._close()

    def _due(self) -> list[Run]:
        """The runs that are trained together next: all of the pack, or as many of those left as memory has held before.

        In a whole pack ended runs keep their places, so that the others come out the same to the bit.
        """
        due = [run for run in self.runs if run.folder.status() not in ENDED and run.folder.run_id not in self.failed]
        number = at_most((*self.claim.before, self.claim.contents))
        return due[:number] if number or not due else self.runs

    def _take_less(self, runs: Sequence[Run], text: str) -> None:
        """Train half as many runs together from now on; a single one has failed, and the others are together again."""
        if len(runs) > 1:
            number, reason = (len(runs) + 1) // 2, last_line(text)
            self.claim.note(at_most=number, reason=reason)
            print(
                f"pack {self.claim.pack.name} goes on with at most {number} runs at a time: {reason}", file=sys.stderr
            )
        else:
            self.claim.check()
            fail(runs[0], text)
            self.failed[runs[0].folder.run_id] = text
            self.claim.note(at_most=len(self.runs))  # it may have been the only one that could not be trained

    def _try(self, heart: Heartbeat, runs: Sequence[Run]) -> str | None:
        """Train runs together, one alone up to `N_TRIES` times; returns the traceback of the last error."""
        for _ in range(N_TRIES if len(runs) == 1 else 1):
            if not (text := self._train(heart, runs)):
                return None
        return text

    def _train(self, heart: Heartbeat, runs: Sequence[Run]) -> str | None:
        """Train; returns the traceback of an error, None if there was none."""
        began: list[tuple[float, int]] = []

        def hear(progress: Progress) -> None:
            if heart.lost:
                self.claim.check()
            began.append((time.monotonic(), progress.step))
            del began[1:-1]
            heart.tell(**describe(progress, *began[0]), run=runs[0].folder.run_id)
            self.report(progress)

        setting = Setting.read(self.spec, self.contents)
        if setting.threads:
            torch.set_num_threads(setting.threads)
        try:
            if self.stop and self.stop():
                raise Interrupted(self.claim.pack.name)
            with arithmetic(allow_tf32=runs[0].cell.allow_tf32, deterministic=setting.deterministic):
                train_pack(
                    runs, make_task(setting, list(runs)), pack=self.claim.pack.name, report=hear, stop=self.stop,
                    checkpoint_every_s=setting.checkpoint_every_s, before_write=self.claim.check,
                    spectra=setting.spectra,
                )  # fmt: skip
            return None
        except (BadInput, Interrupted, LeaseLost):
            raise
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            if len(runs) == 1 and is_lack_of_memory(error):
                cell, checkpointing = runs[0].cell, setting.gradient_checkpointing
                text += describe_too_large(cell, checkpointing, "memory", None) + "\n"
        forget_model(runs[0].cell.task)
        gc.collect()
        return text

    def _close(self) -> bool:
        self.claim.check()
        claims = (*self.claim.before, self.claim.contents)
        reason = next((claim["reason"] for claim in reversed(claims) if claim.get("reason")), None)
        write_ended(self.claim.pack, [run.folder for run in self.runs], self.claim.turn, reason=reason)
        if self.failed:
            self.claim.end(Outcome.FAILED, error=last_line(next(iter(self.failed.values()))))
        else:
            self.claim.end(Outcome.DONE)
        return True


def at_most(claims: Sequence[dict]) -> int | None:
    """How many runs are trained together, by the history of a pack; None where all are."""
    return next((claim["at_most"] for claim in reversed(claims) if claim.get("at_most")), None)


def fail(run: Run, text: str) -> None:
    """Mark a run as failed."""
    known = run.folder.read() if run.folder.exists() else {"cell": run.cell.to_dict(), "labels": run.labels}
    run.folder.write(known | {"status": RunStatus.FAILED, "error": text})


def describe(progress: Progress, since: float, first: int) -> dict:
    """What a heartbeat says: where the pack is, its steps a second since this process began, and the last values."""
    passed = time.monotonic() - since
    rate = (progress.step - first) / passed if progress.step > first and passed > 0 else None
    return {
        "phase": progress.phase, "step": progress.step, "steps": progress.steps, "diverged": progress.diverged,
        "rate": rate, "loss": span(progress.losses, "{:.3f}"), "distance": span(progress.distances, "{:.3g}"),
    }  # fmt: skip


def span(values: Sequence[float], form: str) -> str:
    """The smallest and the largest of a pack's values."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "not finite" if values else ""
    low, high = form.format(min(finite)), form.format(max(finite))
    return low if low == high else f"{low} to {high}"


def is_lack_of_memory(error: Exception) -> bool:
    """Whether an error says that memory could not be had; torch's CPU allocator has no class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def count_kills(before: Sequence[dict]) -> tuple[int, str | None]:
    """How often in a row the pack was killed at the present place, and why it should not be tried again as it is.

    The place is where memory is taken: before the first step is done, or at the pictures of a step. Killed while it
    trains, a pack goes on from its checkpoint, as often as it takes.
    """
    places = []
    for turn, claim in reversed(list(enumerate(before, 1))):
        if claim.get("outcome") != Outcome.KILLED or claim.get("reopened"):
            break
        last = claim.get("last") or {}
        known = last.get("turn") == turn and last.get("phase") != "starting"
        places.append((last["phase"], last.get("step"), last.get("run")) if known else ("starting", None, None))
        if claim.get("at_most"):  # fewer since then
            break
    if not places:
        return 0, None
    if is_out_of_memory((before[-1].get("holder") or {}).get("job", "")):
        return 1, "SLURM ended it: out of memory"
    count = next((n for n, place in enumerate(places) if place != places[0]), len(places))
    where = {"starting": "before its first step was done", "scoring": f"at the scoring of step {places[0][1]}"}
    if count < 2 or places[0][0] not in where:
        return count, None
    return count, f"killed {count} times in a row {where[places[0][0]]} (out of memory?)"


def is_out_of_memory(job: str) -> bool:
    """Whether SLURM says that a job was ended for its memory; False where it cannot be asked."""
    if not job or not shutil.which("scontrol"):
        return False
    try:
        asked = ["scontrol", "show", "job", "--oneliner", job]
        said = subprocess.run(asked, capture_output=True, encoding="utf-8", errors="replace", timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "JobState=OUT_OF_MEMORY" in said
