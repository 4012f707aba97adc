"""A small sweep on a real SLURM, whose runs wait, die or raise on demand: what the fault tests inject their faults into.

Its method is LoRA from a file of its own. Inside SLURM, and only there, it obeys the studio's `mood.json`, so that a run
without SLURM is the undisturbed reference of every test.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slurm.store.layout import PackFiles, SweepFolder
from slurm.store.leases import read_beat, read_claims
from slurm.store.pack_states import PackState, survey
from slurm.store.queue import Scheduler
from slurm.store.submissions import Submissions
from tests.compare_runs import assert_same
from tests.make_cluster import call, find_states
from tests.make_studio import Studio
from tests.waiting import HANG_S, wait_for
from training.store import RunFolder, find_runs

ROOT = Path(__file__).resolve().parents[1]
STEPS = 40
NAN_STEP = 10
MULTIPLIERS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6)
METHOD = '''\
"""LoRA that does what mood.json says while it is inside SLURM: "sleep_s" a step, "kill_above" replicas, "raise_seed";
"nan_seed": whose activations are not finite from a step on; and "kill_at": the step about which each task of the array gets
SIGKILL, wherever it is then."""

import json, os, random, signal, threading, time
import torch
from adapters import METHODS
from adapters.lora import Lora

MOOD = {mood!r}
NAN_STEP = {nan_step}
PLACE = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def mood():
    return json.load(open(MOOD)) if "SLURM_JOB_ID" in os.environ else {{}}


class Patient(Lora):
    OPTIONS = METHODS["lora"].options

    def __init__(self, base, *, seeds, **more):
        now = mood()
        if len(seeds) > now.get("kill_above", 99):
            os.kill(os.getpid(), signal.SIGKILL)
        if now.get("raise_seed") in seeds:
            raise RuntimeError("this cell is bad")
        super().__init__(base, seeds=seeds, **more)
        self.seeds, self.num_steps = list(seeds), 0

    def forward(self, x):
        if self.path == PLACE and torch.is_grad_enabled():
            now, self.num_steps = mood(), self.num_steps + 1
            if "kill_at" in now and now["kill_at"][int(os.environ["SLURM_ARRAY_TASK_ID"])] == self.num_steps:
                threading.Timer(random.uniform(0, 0.4), os.kill, (os.getpid(), signal.SIGKILL)).start()
            time.sleep(now.get("sleep_s", 0))
            if self.num_steps >= NAN_STEP and now.get("nan_seed") in self.seeds:
                return self.poison(super().forward(x), self.seeds.index(now["nan_seed"]))
        return super().forward(x)

    def poison(self, out, replica):
        factor = torch.ones(len(self.seeds), *(1 for _ in out.shape))
        factor[replica] = torch.nan
        return (out.unflatten(0, (len(self.seeds), -1)) * factor).flatten(0, 1)
'''
FAST = {"PLATEAU_BEAT_S": "0.2", "PLATEAU_CHECKPOINT_S": "0.3", "PLATEAU_SETTLE_S": "0.5", "PLATEAU_STALE_S": "20"}


@dataclass
class Grid:
    """A sweep of the front door in a runs folder of its own.

    Attributes:
        studio: model, scorers, subjects; and the file that commands the method's mood.
        runs: the runs folder.
        flags: what else the driver is told.
        times: environment variables in place of those of `FAST`.
    """

    studio: Studio
    runs: Path
    flags: tuple[str, ...]
    times: Mapping[str, str] = field(default_factory=dict)

    # The front door.

    def words(self, *more: str) -> tuple[str, ...]:
        """Flags of the driver: one subject, one run a pack, and a time limit that no busy machine reaches."""
        return (
            "--method", str(write_method(self.studio)), "--base-lr", "1e-3", "--subjects", "1", "--steps", str(STEPS),
            "--pack-size", "1", "--workers", "2", *self.flags, *more,
            *(("--time-min", "240") if "slurm" in more and "--time-min" not in more else ()),
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Short times, for every process of the sweep."""
        return self.studio.environment() | FAST | dict(self.times)

    def run(self, *more: str, cluster: str = "slurm", **options: Any) -> subprocess.CompletedProcess:
        """The same command, to its end."""
        arguments = self.studio.arguments(self.runs, *self.words("--cluster", cluster, *more))
        return subprocess.run(
            arguments, cwd=ROOT, env=self.environment(), capture_output=True, text=True, timeout=HANG_S, **options
        )

    def submit(self, *more: str, **options: Any) -> str:
        """The same command, which must succeed; returns what it says."""
        done = self.run(*more, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, *more: str) -> subprocess.Popen:
        """The same command in the background."""
        arguments = self.studio.arguments(self.runs, *self.words("--cluster", "slurm", *more))
        return subprocess.Popen(
            arguments, cwd=ROOT, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def status(self, *words: str) -> subprocess.CompletedProcess:
        """`python -m slurm.status`."""
        command = [sys.executable, "-m", "slurm.status", str(self.sweep.path), "--every-s", "0.5", *words]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment(), capture_output=True, text=True, timeout=HANG_S
        )  # fmt: skip

    def mood(self, **wishes: float | list[int]) -> None:
        """What the method does inside SLURM from now on."""
        aside = mood_file(self.studio).with_suffix(".tmp")
        aside.write_text(json.dumps(wishes))
        aside.replace(mood_file(self.studio))

    # What it left.

    @property
    def sweep(self) -> SweepFolder:
        """The sweep's folder."""
        return SweepFolder(self.runs / "lr_robustness")

    def packs(self) -> dict[str, PackFiles]:
        """Its packs, but for the base model's."""
        return {name: files for name, files in self.sweep.scan().items() if not name.startswith("base")}

    def jobs(self) -> list[str]:
        """SLURM's ids of the arrays that were sent, the oldest first."""
        submissions = Submissions(self.sweep)
        submissions.refresh()
        return [str(record["job"]) for record in submissions.records if record["job"]]

    def states(self) -> dict[str, PackState]:
        """How every pack stands, as `slurm.status` sees it in one refresh."""
        return {state.name: state for state in survey(self.sweep, Scheduler())}

    def count(self) -> Counter[str]:
        """Packs by state."""
        return Counter(state.state for state in self.states().values())

    def settle(self) -> Counter[str]:
        """Wait until nobody works on the sweep or means to."""
        wait_for(lambda: not {"running", "queued"} & self.count().keys(), "the end of all packs")
        live = ("PENDING", "RUNNING", "COMPLETING")
        for job in self.jobs():  # a process may still write how its turn ended
            wait_for(lambda: not any(s.startswith(live) for s in find_states(job).values()), "the end of all jobs")  # noqa: B023
        return self.count()

    def wait_for_step(self, names: Iterable[str], step: int) -> None:
        """Wait until each of these packs has done so many steps in its present turn."""
        files = [self.sweep.scan()[name] for name in names]
        wait_for(lambda: all(find_step(each) >= step for each in files), f"step {step} of {sorted(names)}")

    def claims(self) -> dict[str, list[dict]]:
        """Every turn at every pack, the oldest first."""
        return {name: read_claims(files) for name, files in self.packs().items()}

    def outcomes(self) -> dict[str, list[str]]:
        """How each turn ended."""
        return {name: [claim.get("outcome", "open") for claim in claims] for name, claims in self.claims().items()}

    def runs_by_id(self) -> dict[str, RunFolder]:
        """Its runs."""
        return {run.run_id: run for run in find_runs(self.runs)}

    def resumed(self) -> dict[str, int]:
        """The steps from which runs went on, for those that did."""
        records = {name: run.read() for name, run in self.runs_by_id().items()}
        found = {name: (record.get("provenance") or {}).get("resumed_at") for name, record in records.items()}
        return {name: step for name, step in found.items() if step}

    def said(self) -> str:
        """What its jobs wrote to stderr."""
        return "".join(path.read_text() for path in sorted(self.sweep.submissions.glob(".private-*/*.err")))

    def assert_same_as(self, reference: Path, num_cells: int) -> None:
        """Every run has ended, and is equal to the bit to that of an undisturbed sweep."""
        undisturbed = {run.run_id: run for run in find_runs(reference)}
        runs = self.runs_by_id()
        assert len(runs) == num_cells + 1, sorted(runs)  # the base's is one more
        for name, run in runs.items():
            assert_same(undisturbed[name], run)


def copy_plan(source: SweepFolder, target: SweepFolder, packs: Iterable[str] | None = None) -> None:
    """Give a new sweep's folder the stored plan of another one: its packs (or some), and nothing of what they did."""
    names = ("sweep.json", "plan.json", "calibration.json", "methods/*.py")
    kept = [path for name in names for path in source.path.glob(name)]
    for path in [*kept, *(files.spec for name, files in source.scan().items() if packs is None or name in packs)]:
        place = target.path / path.relative_to(source.path)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def find_step(files: PackFiles) -> int:
    """The step of a pack's present holder, 0 before the first."""
    beat = read_beat(files)
    fresh = beat.get("turn") == files.newest_turn()
    return int(beat.get("step") or 0) if fresh else 0


def mood_file(studio: Studio) -> Path:
    """Where the method reads its mood."""
    return studio.folder / "mood.json"


def write_method(studio: Studio) -> Path:
    """The method's file."""
    path = studio.folder / "patient.py"
    if not path.exists():
        mood_file(studio).write_text("{}")
        path.write_text(METHOD.format(mood=str(mood_file(studio)), nan_step=NAN_STEP))
    return path


def cells(multipliers: Iterable[float], seeds: Iterable[int] = (0,)) -> tuple[str, ...]:
    """Flags of a grid of cells."""
    return ("--multipliers", *(f"{m:g}" for m in multipliers), "--seeds", *map(str, seeds))


def count_jobs(name: str = "plateau-") -> int:
    """How many jobs whose name begins so SLURM remembers, tasks of an array counted each."""
    listed = call("squeue", "--noheader", "--array", "--states=all", "--format=%j")
    return sum(line.startswith(name) for line in listed.splitlines())
