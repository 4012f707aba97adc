"""What is read from SLURM's programs; the texts are those that SLURM 22.05.8 printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.store import limits, queue
from slurm.store.queue import Scheduler, SchedulerError, State
from tests.make_slurm import FakeSlurm, make_slurm

QUEUE = """\
5_0|COMPLETED|root|None|plateau-single
1_2|PENDING|root|JobArrayTaskLimit|plateau-abc
1_0|RUNNING|root|None|plateau-abc
1_1|CANCELLED|root|None|plateau-abc
2|PENDING|root|PartitionTimeLimit|a|b.sh
"""
PARTITIONS = """\
PartitionName=debug AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A MaxTime=01:00:00 State=UP
PartitionName=long AllowGroups=ALL Default=NO QoS=big MaxTime=UNLIMITED MinNodes=0 State=DOWN TotalCPUs=8
PartitionName=urgent AllowGroups=ALL Default=NO QoS=N/A MaxTime=2-00:00:00 State=UP
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return make_slurm(tmp_path, monkeypatch)


def test_queue_is_read_task_by_task() -> None:
    found = queue.read_queue(QUEUE)
    assert found["1_2"] == State("PENDING", "JobArrayTaskLimit", "plateau-abc", "root")
    assert [job for job, state in found.items() if state.over] == ["5_0", "1_1"]
    assert found["2"].name == "a|b.sh"


def test_partitions_are_read_with_their_limits() -> None:
    found = limits.read_partitions(PARTITIONS)
    assert {name: p.max_time_min for name, p in found.items()} == {"debug": 60, "long": None, "urgent": 2880}
    assert [p.name for p in found.values() if p.default] == ["debug"]
    assert (found["long"].up, found["long"].qos, found["debug"].qos) == (False, "big", "")


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 90), ("01:30:00", 90), ("1-0", 1440), ("1-2:30", 1590), ("2-00:00:00", 2880), ("UNLIMITED", None)],
)  # fmt: skip
def test_times_are_read_in_slurms_forms(text: str, minutes: int | None) -> None:
    assert limits.read_minutes(text) == minutes


def test_time_is_refused_when_it_is_none() -> None:
    with pytest.raises(ValueError, match="'soon' is no time"):
        limits.read_minutes("soon")


@pytest.mark.parametrize(
    ("account", "qos", "most"), [(None, None, 50), ("lab", None, 200), ("lab", "short", 20), ("other", None, 50)]
)
def test_tightest_submit_limit_counts(account: str | None, qos: str | None, most: int) -> None:
    associations = "lab||normal,short|normal\nother|50|normal|normal\n"
    assert limits.read_max_submit(associations, "normal|200|\nshort|20|500\n", account, qos) == most


def test_jobs_are_asked_for_in_one_query(slurm: FakeSlurm) -> None:
    slurm.add("7_0", "PENDING", "plateau-x")
    slurm.add("8", "RUNNING", "other")
    assert set(Scheduler().jobs()) == {"7_0", "8"}
    assert set(Scheduler().jobs(["plateau-x"])) == {"7_0"}
    assert Scheduler().jobs([]) == {}
    assert set(Scheduler().jobs(["7", "8"])) == {"7_0", "8"}
    assert set(Scheduler().jobs(["8", "plateau-x"])) == {"7_0", "8"}
    assert Scheduler().jobs(["9"]) == {}
    assert [call.split()[0] for call in slurm.calls()] == ["squeue"] * 5


def test_filters_of_the_users_own_squeue_do_not_count(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SQUEUE_PARTITION", "SQUEUE_FORMAT", "SLURM_TIME_FORMAT"):
        monkeypatch.setenv(name, "surprise")
    assert not {"SQUEUE_PARTITION", "SQUEUE_FORMAT", "SLURM_TIME_FORMAT"} & queue.query_env().keys()


def test_job_is_gone_only_when_it_cannot_run_again(slurm: FakeSlurm) -> None:
    for job, state in {"1_0": "RUNNING", "1_1": "PENDING", "1_2": "TIMEOUT", "1_3": "COMPLETING"}.items():
        slurm.add(job, state)
    gone = Scheduler().job_gone
    assert [gone(job) for job in ("1_0", "1_1", "1_2", "1_3", "99")] == [False, False, True, False, True]


def test_job_may_live_when_others_jobs_are_hidden_or_slurm_is_silent(slurm: FakeSlurm) -> None:
    slurm.config["PrivateData"] = "jobs,usage"
    slurm.write()
    assert Scheduler().job_gone("99") is None
    slurm.fail("squeue", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    assert Scheduler().job_gone("1_0") is None


def test_limits_are_asked_once_and_the_database_only_where_there_is_one(slurm: FakeSlurm) -> None:
    asked = Scheduler()
    allowed = asked.limits()
    assert asked.limits() is allowed
    assert (allowed.max_array_size, allowed.max_submit, allowed.default_partition()) == (20, None, "debug")
    assert not [call for call in slurm.calls() if call.startswith("sacctmgr")]
    slurm.config["AccountingStorageType"] = "accounting_storage/slurmdbd"
    slurm.write()
    assert Scheduler().limits().max_submit == 12


def test_limits_are_known_when_the_database_does_not_answer(slurm: FakeSlurm) -> None:
    slurm.config["AccountingStorageType"] = "accounting_storage/slurmdbd"
    slurm.fail("sacctmgr", "sacctmgr: error: Sending PersistInit msg: Connection refused")
    allowed = Scheduler().limits()
    assert (allowed.max_submit, allowed.max_array_size, allowed.default_partition()) == (None, 20, "debug")


def test_errors_are_one_line_in_slurms_words(slurm: FakeSlurm) -> None:
    slurm.fail("scancel", "scancel: error: Kill job error on job id 5: Access/permission denied")
    with pytest.raises(SchedulerError, match="^scancel: Kill job error on job id 5: Access/permission denied$"):
        Scheduler().cancel(["5"])
    slurm.hang("squeue")
    with pytest.raises(SchedulerError, match=r"^squeue did not answer within 0.2 s$"):
        Scheduler(query_s=0.2).jobs()


def test_missing_slurm_says_what_else_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not Scheduler.is_here()
    with pytest.raises(SchedulerError, match="no squeue on the PATH.*--cluster local.*--cluster export"):
        Scheduler().jobs()
