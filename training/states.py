"""States of a run, as `run.json`, outcomes and frames store them."""

from __future__ import annotations

from enum import StrEnum


class RunStatus(StrEnum):
    """How a run stands; a folder without `run.json` is planned."""

    PLANNED = "planned"
    RUNNING = "running"
    FINISHED = "finished"
    DIVERGED = "diverged"
    PREEMPTED = "preempted"
    FAILED = "failed"


ENDED = (RunStatus.FINISHED, RunStatus.DIVERGED)
