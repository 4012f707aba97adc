"""The flags that all drivers share, named as in diffusers' training scripts where those have one."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from adapters import METHODS, MethodSpec, parse_method
from adapters.documents import PART
from adapters.errors import BadInput
from slurm.store.queue import Scheduler
from slurm.submit.clusters import EXECUTORS, Cluster, choose_cluster
from slurm.submit.send import check_cluster
from sweeps import presets
from training.cell import FLAGS, POSITIVE, STEP_LISTS, RunningFlags, TrainingFlags
from training.command_line import end_well, parse
from training.task_kinds import PICTURES, TaskKind, all_kinds, parse_task

DEFAULT_MULTIPLIERS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class ClusterOptions:
    """Flags that say where packs run, and what their jobs ask for; what no flag says, `slurm/clusters.toml` does."""

    cluster: str = "inline"
    """`inline` (in this process's workers), `local` (workers that outlive it), `slurm`, `export` (files for sbatch), or a
    section of your `clusters.toml`."""
    partition: str | None = None
    """SLURM's partition."""
    account: str | None = None
    """SLURM's account, who is charged."""
    qos: str | None = None
    """SLURM's quality of service."""
    gpus: str | None = None
    """GPUs of a task: a number, or a type and a number as in a100:1; above 0 it trains on cuda."""
    cpus_per_task: int | None = None
    """Cores of a task."""
    mem_gb: float | None = None
    """Memory of a task in GB."""
    memory: Literal["task", "cpu", "none"] | None = None
    """How memory is asked for: of a task, of each of its cores, or not at all."""
    time_min: int | None = None
    """Wall time of a task in minutes; default: what its packs are expected to need. What needs longer is requeued."""
    wait: bool = False
    """Stay until everything has ended, and draw; otherwise jobs go on alone, and the same command draws later."""

    @property
    def executor(self) -> str:
        """One of `inline`, `local`, `slurm`, `export`; a user's own cluster is `slurm`."""
        return self.cluster if self.cluster in EXECUTORS else "slurm"

    def choose(self) -> Cluster | None:
        """What jobs ask for; None where there are none.

        Raises:
            BadInput: for an unknown cluster, a broken file, a value that is not allowed, or a flag that nobody reads.
        """
        flags = {name: value for name, value in dataclasses.asdict(self).items() if name not in ("cluster", "wait")}
        if self.executor in ("slurm", "export"):
            return choose_cluster(self.cluster, flags)
        for name, value in flags.items():
            _need(value is None, name, value, f"only with --cluster slurm, export or your own, not {self.cluster}")
        return None

    def check(self) -> None:
        """Check what can be checked before any work, the cluster's own limits included.

        Raises:
            BadInput: as `choose`; where there is no SLURM, for an unknown partition or a time above its limit.
        """
        cluster = self.choose()
        if cluster is not None and self.executor == "slurm":
            check_cluster(cluster, Scheduler())


@dataclass(frozen=True, kw_only=True)
class Question:
    """Flags that say what is asked: methods, subjects, seeds, rates."""

    preset: str = "none"
    """Defaults of these flags: DeLoRA's figures (`paper`), its tables of pictures (`paper-table`), ETHER's (`ether`), HF's script
    (`diffusers`), DeLoRA's tables of GLUE (`glue`; a single task as there: `glue-cola`, ...) and of instructions (`instruct`)."""
    explain_preset: bool = False
    """Print the preset's settings, each with its source, and exit."""
    method: tuple[str, ...] = ("delora",)
    """Methods to train: names, `name:option=value,...`, or `all`. Every one may have `base_lr=...` and `label=...`."""
    task: str = PICTURES
    """What is learned: `pictures`, `text`, `glue`, `answers`, or a package's own task; `text:key=value,...` sets its options."""
    model: str = "pocket"
    """`pocket`, a diffusers pipeline folder, or a hub id, ORG/NAME or ORG/NAME@REVISION."""
    subjects: tuple[str, ...] = ()
    """Names of subjects, or how many of the evidence split (default: the driver's); a folder may come first."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; each is one run of every setting."""
    multipliers: tuple[float, ...] = DEFAULT_MULTIPLIERS
    """Learning rates as multiples of each method's base rate."""
    rate_table: str | None = None
    """Table of `sweeps/base_rates.toml` for the base rates; default: the model's."""
    base_lr: float | None = None
    """Base learning rate of methods without one of their own (`name:base_lr=...`, `sweeps/base_rates.toml`)."""
    base_lr_for_all: bool = False
    """Let --base-lr replace the tuned and published base rates too; not those of `name:base_lr=...`."""
    lr_lambda: float | None = None
    """Base learning rate of DeLoRA's lambda, in place of the tuned one."""
    lr_magnitude: float | None = None
    """Base learning rate of DoRA's magnitudes; default: that of the factors."""
    boundary: float | None = None
    """DeLoRA's lambda at the start, in place of the tuned one."""
    scale: Literal["both", "lambda", "factors"] = "both"
    """Which rates the multiplier scales."""
    init_adapter: Path | None = None
    """Start from this adapter (a run folder, or a file or folder of another program) and not from the method's own start."""


@dataclass(frozen=True, kw_only=True)
class Options(RunningFlags, TrainingFlags, Question):
    """Flags of a sweep."""

    dino: str = "pocket"
    """DINO scorer: `pocket`, a folder, or a hub id."""
    clip: str = "pocket"
    """CLIP scorer: `pocket`, a folder, or a hub id."""
    token: str = "sks"
    """The rare token that stands for the subject."""
    runs: Path = Path("runs")
    """Folder of all runs; what is there is never trained twice."""
    sweep: str | None = None
    """Name of the sweep's folder in it; default: the driver's name."""
    results: tuple[Path, ...] = ()
    """Earlier results on this model (`docs/results/...`, compact copies, runs folders): what they hold is not trained again."""
    docs: Path | None = None
    """Also write tables, figures and compact Parquet to this folder, to be committed."""
    pack_size: str = "auto"
    """Runs in one pack: a number, or `auto` (measured once on each machine)."""
    workers: str = "auto"
    """Worker processes: a number, or `auto`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    dry_run: bool = False
    """Show the plan and exit."""
    where: Annotated[ClusterOptions, tyro.conf.arg(name="")] = ClusterOptions()
    """Where packs run."""

    def __post_init__(self) -> None:
        """Count a value that is given twice once, and put steps in order: neither changes what is asked for."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and field.name != "subjects":  # whose folder may be called as one of them
                once = sorted(set(value)) if field.name in STEP_LISTS else dict.fromkeys(value)
                object.__setattr__(self, field.name, tuple(once))

    @functools.cached_property
    def kind(self) -> tuple[TaskKind, str]:
        """The task, and its options in canonical form.

        Raises:
            BadInput: as `parse_task`.
        """
        return parse_task(self.task)

    def specs(self) -> list[MethodSpec]:
        """The methods asked for, parsed.

        Raises:
            BadInput: for an unknown method or option, naming near matches.
        """
        names = [n for m in self.method for n in (METHODS if m == "all" else (m,))]
        if not names:
            raise BadInput(f"--method got no name (methods: {', '.join(METHODS)})")
        specs: dict[tuple[str, str], MethodSpec] = {}
        for spec in map(parse_method, names):
            if specs.setdefault((spec.name, spec.canonical), spec).words != spec.words:
                raise BadInput(f"--method has {spec.name} twice, with different rates or labels: name it once")
        _check_labels(list(specs.values()))
        return list(specs.values())

    def check(self) -> None:
        """Check every number.

        Raises:
            BadInput: naming the flag, its value, and what is allowed.
        """
        self._check_task()
        if self.init_adapter is None or self.steps != 0:
            _need(self.steps >= 1, "steps", self.steps, "a whole number from 1 on, or 0 with --init-adapter")
        for field in dataclasses.fields(TrainingFlags):
            value, allowed = getattr(self, field.name), FLAGS[field.name].allowed
            _need(value is None or allowed.fits(value), field.name, value, allowed.says)
        plain = self.optimizer == "prodigy" or self.d_coef == 1
        _need(plain, "d-coef", self.d_coef, "1 under AdamW; it is a factor of Prodigy's: give --optimizer prodigy")
        for name in ("base_lr", "lr_lambda", "lr_magnitude", "boundary"):
            value = getattr(self, name)
            _need(value is None or POSITIVE.fits(value), name, value, POSITIVE.says)
        longest = f"steps from 0 to the {self.steps} of the training, whose full rate is else never reached"
        fits = self.steps == 0 or self.lr_warmup_steps <= self.steps
        _need(fits, "lr-warmup-steps", self.lr_warmup_steps, longest)
        is_name = self.sweep is None or (self.sweep not in ("", ".") and PART.fits(self.sweep))
        _need(is_name, "sweep", self.sweep, "a name in one line, without a slash")
        _need(self.token.isprintable(), "token", self.token, "a word in one line")
        for value in self.multipliers:
            _need(math.isfinite(value) and value > 0, "multipliers", value, "positive numbers")
        for value in self.seeds:
            _need(value >= 0, "seeds", value, "whole numbers from 0 on")
        for value in self.eval_steps:
            _need(0 <= value <= self.steps, "eval-steps", value, f"steps from 0 to {self.steps}")
        for value in self.sharpness_steps:
            _need(1 <= value <= self.steps, "sharpness-steps", value, f"steps from 1 to {self.steps}")
        _need(bool(self.multipliers), "multipliers", "nothing", "at least one positive number")
        _need(bool(self.seeds), "seeds", "nothing", "at least one whole number from 0 on")
        for flag in ("pack_size", "workers"):
            value = getattr(self, flag)
            _need(value == "auto" or (value.isdecimal() and int(value) > 0), flag, value, "auto or a number from 1 on")
        self.where.check()

    def _check_task(self) -> None:
        """Refuse flags that the task does not read."""
        kind, _ = self.kind
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for other in all_kinds().values() if kind.name != PICTURES else ():
            for flag in sorted((other.flags - kind.flags) & defaults.keys()):
                allowed = f"only with --task {other.name}; this is {kind.name}"
                _need(getattr(self, flag) == defaults[flag], flag, getattr(self, flag), allowed)


def _check_labels(specs: Sequence[MethodSpec]) -> None:
    counts = Counter(spec.label for spec in specs)
    if shared := [spec for spec in specs if "label" in spec.words and counts[spec.label] > 1]:
        raise BadInput(f"--method has two methods that are called {shared[0].label!r}: give them different labels")


def _need(holds: bool, flag: str, value: object, allowed: str) -> None:
    if not holds:
        raise BadInput(f"--{flag.replace('_', '-')} is {value}; allowed: {allowed}")


Parsed = TypeVar("Parsed", bound=Options)


class Stopped(Exception):
    """The user stopped the sweep; its text says how to go on."""


def run_driver(options: type[Parsed], drive: Callable[[Parsed], int], description: str) -> int:
    """Parse the command line and run a driver; bad input is one line on stderr and exit code 2."""

    def run() -> int:
        start = presets.start_from(options, presets.named(sys.argv[1:], "preset") or presets.NONE, common=Options)
        start = start_task(start, presets.named(sys.argv[1:], "task") or start.task)
        parsed = parse(options, description, default=start)
        if parsed.explain_preset:
            presets.explain(parsed.preset)
            return 0
        parsed.check()
        try:
            return drive(parsed)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return 130

    return end_well(run)


def start_task(start: Parsed, task: str) -> Parsed:
    """Options with a task's own defaults, where a driver or preset has no other for its question.

    Raises:
        BadInput: for an unknown task.
    """
    common = {field.name: field.default for field in dataclasses.fields(Options)}
    own = parse_task(task)[0].defaults
    return with_defaults(start, **{flag: v for flag, v in own.items() if getattr(start, flag) == common[flag]})


def with_defaults(options: Parsed, **changes: Any) -> Parsed:
    """A copy of the options with some fields replaced."""
    return dataclasses.replace(options, **changes)
