"""A SLURM of shell and Python scripts on the PATH: it records every call, keeps a queue in a file, and fails on demand."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SHIM = r"""#!{python}
import json, os, pathlib, re, signal, sys, time
home = pathlib.Path({home!r})
program, words = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with open(home / "calls", "a") as file:
    file.write(" ".join([program, *words]) + "\n")
state = json.loads((home / "state.json").read_text())

def keep():
    aside = home / f"state.{{os.getpid()}}"
    aside.write_text(json.dumps(state))
    aside.replace(home / "state.json")

def flag(name):
    return words[words.index(name) + 1] if name in words else None

def stop_parent(when):
    if os.environ.get("FAKE_SLURM_KILLS_PARENT") == when:
        os.kill(os.getppid(), signal.SIGKILL)
        return True

if program in state["hang"]:
    time.sleep(60)
if program in state["fail"]:
    print(state["fail"][program], file=sys.stderr)
    sys.exit(1)
if program == "squeue":
    names, ids = flag("-n"), flag("-j")
    rows = state["jobs"].items()
    if names:
        rows = [(job, row) for job, row in rows if row[1] in names.split(",")]
    if ids:
        rows = [(job, row) for job, row in rows if job in ids.split(",") or job.split("_")[0] in ids.split(",")]
        if not rows:
            sys.exit("slurm_load_jobs error: Invalid job id specified")
    for job, (status, name) in rows:
        print(f"{{job}}|{{status}}|me|None|{{name}}")
elif program == "scontrol" and words[:2] == ["show", "config"]:
    print("Configuration data as of 2026-11-24T16:01:02")
    for name, value in state["config"].items():
        print(f"{{name:<23}} = {{value}}")
elif program == "scontrol" and words[:2] == ["show", "partition"]:
    print(state["partitions"])
elif program == "sacctmgr":
    print("lab|12|normal|normal" if "assoc" in words else "normal|100|")
elif program == "scancel":
    for job in words:
        for known, row in state["jobs"].items():
            if job in (known, known.split("_")[0]):
                row[0] = "CANCELLED"
    keep()
elif program == "sbatch":
    if stop_parent("before"):
        sys.exit(1)
    if stop_parent("while it waits"):
        while not (home / "go").exists():
            time.sleep(0.01)
    text = pathlib.Path(words[-1]).read_text()
    told = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.M))
    told = {{name: value.strip("'") for name, value in told.items()}}
    low, high = 0, 0
    if "array" in told:
        low, high = map(int, re.match(r"(\d+)-(\d+)", told["array"]).groups())
    queued = sum(row[0] in ("PENDING", "RUNNING") for row in state["jobs"].values())
    if high >= int(state["config"]["MaxArraySize"]):
        sys.exit("sbatch: error: Batch job submission failed: Invalid job array specification")
    if state["most"] is not None and queued + high - low + 1 > state["most"]:
        sys.exit("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates "
                 "accounting/QOS policy (job submit limit, user's size and/or time limits)")
    if state["refuse"]:
        sys.exit("sbatch: error: Batch job submission failed: " + state["refuse"])
    state["next"] += 1
    number = state["next"]
    for task in range(low, high + 1):
        state["jobs"][f"{{number}}_{{task}}" if "array" in told else str(number)] = ["PENDING", told["job-name"]]
    keep()
    (home / f"sbatch-{{number}}.sh").write_text(text)
    (home / f"sbatch-{{number}}.env").write_text(json.dumps(dict(os.environ)))
    stop_parent("after")
    answer = state["answer"].format(job=number)
    if answer.startswith("!"):
        sys.exit("sbatch: error: " + answer[1:])
    print(answer)
"""


@dataclass
class FakeSlurm:
    """The scripts' folder and what they are told to do."""

    home: Path
    config: dict[str, str] = field(
        default_factory=lambda: {
            "ClusterName": "fake", "MaxArraySize": "20", "AccountingStorageType": "accounting_storage/none",
            "PrivateData": "none",
        }
    )  # fmt: skip
    partitions: str = (
        "PartitionName=debug Default=YES QoS=N/A MaxTime=01:00:00 State=UP\n"
        "PartitionName=gpu Default=NO QoS=N/A MaxTime=2-00:00:00 State=UP"
    )

    def __post_init__(self) -> None:
        self.hangs: list[str] = []
        self.failures: dict[str, str] = {}
        self.most: int | None = None
        self.refusal = ""
        self.answer = "Submitted batch job {job}"

    def write(self) -> None:
        """Tell the scripts; what they keep stays."""
        path = self.home / "state.json"
        kept = json.loads(path.read_text()) if path.exists() else {"jobs": {}, "next": 100}
        told = {"config": self.config, "partitions": self.partitions, "hang": self.hangs, "fail": self.failures,
                "most": self.most, "refuse": self.refusal, "answer": self.answer}  # fmt: skip
        path.write_text(json.dumps(kept | told))

    def add(self, job: str, state: str, name: str = "other") -> None:
        """Put a job into the queue."""
        stored = json.loads((self.home / "state.json").read_text())
        stored["jobs"][job] = [state, name]
        (self.home / "state.json").write_text(json.dumps(stored))

    def jobs(self) -> dict[str, list[str]]:
        """Everything in the queue: [state, name] by id."""
        return json.loads((self.home / "state.json").read_text())["jobs"]

    def forget(self) -> None:
        """Empty the queue."""
        stored = json.loads((self.home / "state.json").read_text())
        (self.home / "state.json").write_text(json.dumps(stored | {"jobs": {}}))

    def fail(self, program: str, words: str) -> None:
        """Let a program fail with these words."""
        self.failures[program] = words
        self.write()

    def hang(self, program: str) -> None:
        """Let a program hang."""
        self.hangs.append(program)
        self.write()

    def calls(self) -> list[str]:
        """Every call so far."""
        path = self.home / "calls"
        return path.read_text().splitlines() if path.exists() else []


def make_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Put the scripts first on the PATH."""
    home = folder / "fake_slurm"
    (home / "bin").mkdir(parents=True)
    for program in ("squeue", "scontrol", "sacctmgr", "scancel", "sbatch", "srun"):
        path = home / "bin" / program
        path.write_text(SHIM.format(python=sys.executable, home=str(home)))
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home / 'bin'}:{os.environ['PATH']}")
    fake = FakeSlurm(home)
    fake.write()
    return fake
