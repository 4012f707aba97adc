"""One turn at a pack: train it with a heartbeat, and write down how that ended.

An error in a pack of several runs, or two kills in a row where memory is taken (before the first step is done, or at the
same pictures), halves it. An error in a single run is tried again, `N_TRIES` times in all; then the run has failed, with
the traceback in its run.json.
"""

from __future__ import annotations

import dataclasses
import gc
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from adapters import BadInput
from slurm.claims import Claim, Heart, TurnLost
from slurm.ended import last_line, write_ended
from slurm.halve import halve
from slurm.states import Outcome
from training.accelerator import arithmetic
from training.loop import Interrupted, train_pack
from training.memory_advice import describe_too_large
from training.pack import Setting, forget_model, make_task
from training.run import Progress, Run
from training.states import ENDED, RunStatus

N_TRIES = 3


@dataclasses.dataclass
class Turn:
    """A claimed pack.

    Attributes:
        claim: our turn.
        spec, contents: the specification's path and what stands in it.
        runs: its runs.
        report: told of the progress.
        stop: says whether to stop; None: after a signal.
    """

    claim: Claim
    spec: Path
    contents: dict
    runs: list[Run]
    report: Callable[[Progress], None]
    stop: Callable[[], bool] | None = None

    def play(self) -> bool:
        """Train the pack; returns whether it has ended (False: another turn is to be taken).

        Raises:
            BadInput: if the disk is full, a folder cannot be written, or an input changed since the plan.
            Interrupted: when asked to stop, with everything checkpointed.
        """
        try:
            with Heart(self.claim) as heart:
                return self._play(heart)
        except TurnLost as error:
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

    def _play(self, heart: Heart) -> bool:
        if done := next((claim for claim in self.claim.before if claim.get("replaced_by")), None):
            return self._close(replaced_by=done["replaced_by"], reason=done["reason"])
        for line in filter(None, (run.folder.mend() for run in self.runs)):
            print(line, file=sys.stderr)
        if all(run.folder.status() in ENDED for run in self.runs):
            return self._close()
        count, reason = count_kills(self.claim.before)
        if reason and len(self.runs) > 1:
            return self._halve(reason)
        if reason and count >= N_TRIES:
            return self._fail(f"killed {count} times: {reason}")
        text = self._train(heart)
        if text is None:
            return self._close()
        print(text, file=sys.stderr)
        if len(self.runs) > 1:
            return self._halve(last_line(text))
        tries = 1 + count_tries(self.claim.before)
        if tries >= N_TRIES:
            return self._fail(text)
        self.claim.end(Outcome.FAILED, error=last_line(text), tries=tries)
        return False

    def _train(self, heart: Heart) -> str | None:
        """Train; returns the traceback of an error, None if there was none."""
        began: list[tuple[float, int]] = []

        def hear(progress: Progress) -> None:
            if heart.lost:
                self.claim.check()
            began.append((time.monotonic(), progress.step))
            del began[1:-1]
            heart.tell(**describe(progress, *began[0]))
            self.report(progress)

        setting = Setting.read(self.spec, self.contents)
        if setting.threads:
            torch.set_num_threads(setting.threads)
        try:
            if self.stop and self.stop():
                raise Interrupted(self.claim.pack.name)
            with arithmetic(allow_tf32=self.runs[0].cell.allow_tf32, deterministic=setting.deterministic):
                train_pack(
                    self.runs, make_task(setting, self.runs), pack=self.claim.pack.name, report=hear, stop=self.stop,
                    checkpoint_every_s=setting.checkpoint_every_s, before_write=self.claim.check,
                )  # fmt: skip
            return None
        except (BadInput, Interrupted, TurnLost):
            raise
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            if len(self.runs) == 1 and is_lack_of_memory(error):
                cell, checkpointing = self.runs[0].cell, setting.gradient_checkpointing
                text += describe_too_large(cell, checkpointing, "memory", None) + "\n"
        forget_model()
        gc.collect()
        return text

    def _close(self, *, replaced_by: Sequence[str] = (), reason: str | None = None) -> bool:
        self.claim.check()
        folders = [run.folder for run in self.runs if not replaced_by or run.folder.status() in ENDED]
        write_ended(self.claim.pack, folders, self.claim.turn, replaced_by=replaced_by, reason=reason)
        more = {"replaced_by": list(replaced_by), "reason": reason} if replaced_by else {}
        self.claim.end(Outcome.DONE, **more)
        return True

    def _halve(self, reason: str) -> bool:
        self.claim.check()
        open_ids = {run.folder.run_id for run in self.runs if run.folder.status() not in ENDED}
        names = halve(self.spec, self.contents, open_ids, reason)
        print(f"pack {self.claim.pack.name} is halved, {' and '.join(names)} take its place: {reason}", file=sys.stderr)
        return self._close(replaced_by=names, reason=reason)

    def _fail(self, text: str) -> bool:
        """Mark the runs that have not ended as failed."""
        self.claim.check()
        for run in self.runs:
            if run.folder.status() not in ENDED:
                known = run.folder.read() if run.folder.exists() else {"cell": run.cell.to_dict(), "labels": run.labels}
                run.folder.write(known | {"status": RunStatus.FAILED, "error": text})
        return self._close_failed(last_line(text))

    def _close_failed(self, error: str) -> bool:
        write_ended(self.claim.pack, [run.folder for run in self.runs], self.claim.turn)
        self.claim.end(Outcome.FAILED, error=error)
        return True


def describe(progress: Progress, since: float, first: int) -> dict:
    """What a heartbeat says: where the pack is, and its steps a second since this process began."""
    passed = time.monotonic() - since
    rate = (progress.step - first) / passed if progress.step > first and passed > 0 else None
    return {
        "phase": progress.phase, "step": progress.step, "steps": progress.steps, "diverged": progress.diverged,
        "rate": rate,
    }  # fmt: skip


def is_lack_of_memory(error: Exception) -> bool:
    """Whether an error says that memory could not be had; torch's CPU allocator has no class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def count_tries(before: Sequence[dict]) -> int:
    """How often an error was met and tried again since the pack was last given up or begun."""
    for claim in reversed(before):
        if claim.get("outcome") == Outcome.FAILED:
            return int(claim.get("tries", 0))
    return 0


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
        places.append((last.get("phase"), last.get("step")) if last.get("turn") == turn else ("starting", None))
    if not places:
        return 0, None
    if is_out_of_memory((before[-1].get("holder") or {}).get("job", "")):
        return 1, "SLURM ended it: out of memory"
    count = next((n for n, place in enumerate(places) if place != places[0]), len(places))
    where = {"starting": "before its first step was done", "pictures": f"at the pictures of step {places[0][1]}"}
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
