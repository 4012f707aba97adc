"""States of packs, attempts and submissions. The values are those in the files."""

from __future__ import annotations

from enum import StrEnum


class PackStatus(StrEnum):
    """How a pack stands."""

    ENDED = "ended"
    RUNNING = "running"
    QUEUED = "queued"
    PLANNED = "planned"
    PREEMPTED = "preempted"
    FAILED = "failed"


MISSING = (PackStatus.PLANNED, PackStatus.PREEMPTED, PackStatus.FAILED)  # not done, and nobody works on it or means to
ALIVE = (PackStatus.RUNNING, PackStatus.QUEUED)


class Outcome(StrEnum):
    """How a turn at a pack ended: a claim without one is held, or its holder was killed."""

    DONE = "done"
    STOPPED = "stopped"
    KILLED = "killed"
    FAILED = "failed"
    REFUSED = "refused"
    HELD = "held"  # it has not; stands in no file


ENDS = (Outcome.STOPPED, Outcome.KILLED, Outcome.FAILED, Outcome.REFUSED)  # of a turn that left the pack unfinished


class Sent(StrEnum):
    """What became of an array that was meant for a cluster."""

    INTENT = "intent"
    SENT = "sent"
    REFUSED = "refused"
