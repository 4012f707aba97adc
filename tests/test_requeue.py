"""What a task asks SLURM: whether SIGTERM means that it is to be started again, and whether memory ended one before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.worker.attempt import is_out_of_memory
from slurm.worker.own_job import is_to_go_on

# As SLURM 22.05 answers `scontrol show job` while the job has SIGTERM.
CANCELLED = "JobId=9 JobName=wrap\n   JobState=COMPLETING Reason=None Dependency=(null)\n   PreemptTime=None\n"
TIMED_OUT = "JobId=7 JobName=wrap\n   JobState=COMPLETING Reason=TimeLimit Dependency=(null)\n   PreemptTime=None\n"
LEAVING = "JobId=11 JobName=wrap\n   JobState=RUNNING Reason=None Restarts=0\n   PreemptTime=2026-11-24T16:20:31\n"
REQUEUED = "JobId=11 JobName=wrap\n   JobState=COMPLETING Reason=None Restarts=1\n"


@pytest.mark.parametrize(
    ("answer", "goes_on"),
    [(CANCELLED, False), (TIMED_OUT, True), (LEAVING, True), (REQUEUED, False), ("", False)],
    ids=["cancelled", "timed out", "asked to leave", "requeued already", "no answer"],
)
def test_job_goes_on_when_slurm_ends_it_for_another_or_for_time(
    answer: str, goes_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "scontrol"
    program.write_text(f"#!/bin/sh\n[ \"$*\" = 'show job 7_1' ] || exit 1\ncat <<END\n{answer}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert is_to_go_on("7_1") is goes_on


def test_job_does_not_go_on_when_there_is_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert is_to_go_on("7_1") is False


@pytest.mark.parametrize(("state", "memory"), [("OUT_OF_MEMORY", True), ("FAILED", False), ("COMPLETED", False)])
def test_job_was_out_of_memory_when_slurm_says_so(
    state: str, memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "scontrol"
    program.write_text(
        "#!/bin/sh\n[ \"$*\" = 'show job --oneliner 7_1' ] || exit 1\n"
        f"echo 'JobId=8 ArrayJobId=7 ArrayTaskId=1 JobName=wrap JobState={state} Reason=None'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert is_out_of_memory("7_1") is memory
    assert is_out_of_memory("8_1") is is_out_of_memory("") is False
