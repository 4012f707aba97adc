"""Ask SLURM about the job that this process runs in, and requeue it."""

from __future__ import annotations

import subprocess
import sys


def is_to_go_on(job: str) -> bool:
    """Whether SLURM ends this job for its time limit, or asks it to leave for another: then it is to be started again.

    SLURM requeues by itself a job that it had to end by force for another, but not one that ends when it is asked to.
    """
    facts = show_job(job)
    asked_to_leave = facts.get("PreemptTime", "None") != "None" and facts.get("JobState") in ("RUNNING", "SIGNALING")
    return facts.get("Reason") == "TimeLimit" or asked_to_leave


def is_preempted(job: str) -> bool:
    """Whether a job has to leave for another one; True where SLURM does not answer, since that happens to jobs of any length."""
    facts = show_job(job)
    return not facts or facts.get("PreemptTime", "None") != "None"


def show_job(job: str) -> dict[str, str]:
    """What SLURM says about a job; empty if it does not answer."""
    try:
        asked = ["scontrol", "show", "job", job]
        words = subprocess.run(
            asked, capture_output=True, encoding="utf-8", errors="replace", timeout=20
        ).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)


def requeue(job: str) -> None:
    """Have SLURM start this job again; if it refuses, its words go to stderr and the same command resumes by hand."""
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, encoding="utf-8", errors="replace", timeout=60
        )
        words = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        words = str(error)
    if words:
        print(f"job {job} is not requeued: {words}; give the same command again", file=sys.stderr)
