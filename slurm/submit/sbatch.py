"""One job array: submitit's parameters, the text that sbatch reads, and the submission.

A task replaces its shell by Python (`exec`), so that signals meant for the batch script reach it and no step has to be
started; with `-P`, since SLURM starts it in /tmp where the checkout is missing. It is warned with SIGURG before its time ends
or it is preempted, which ends nobody who does not listen yet: neither the shell nor Python. What it is to run stands in the
record of its submission, which is there before sbatch is called. Of the environment only the variables named here travel to
the job: SLURM keeps copies of them in its spool, and tokens have no business there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.errors import BadInput
from slurm.store.code_version import ROOT
from slurm.store.leases import user_name
from slurm.store.queue import SchedulerError, in_one_line
from slurm.submit.clusters import SETTINGS, Cluster
from training.store import store_error, writing

WARN_S = 90  # seconds before the end at which a task is warned
SBATCH_S = 300.0  # sbatch itself tries again for minutes while the controller is busy
EXPORT = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX",
    "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TORCH_HOME", "XDG_CACHE_HOME", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    "TOKENIZERS_PARALLELISM", "ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "PLATEAU_BEAT_S", "PLATEAU_STALE_S",
    "PLATEAU_SETTLE_S",
)  # fmt: skip
# sbatch's words for an answer of SLURM's that it did not get: the job may be in the queue all the same.
_LOST = re.compile(r"timed out|unable to contact|zero bytes|connection (reset|refused)|communication", re.IGNORECASE)
# What sbatch would read from the environment in place of the lines of its file; a site's defaults for what no line says stay.
_KEPT = ("SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS", "SBATCH_CONSTRAINT", "SBATCH_RESERVATION", "SBATCH_WCKEY")


class UnknownJob(SchedulerError):
    """sbatch took a job, and its number is not known: it must not be sent again before the queue has been asked."""


@dataclass(frozen=True)
class Request:
    """A job array before it is sent.

    Attributes:
        cluster: what every task asks for.
        tasks: the names of the packs of each task.
        time_min: wall time of a task.
        cpus: cores of a task.
        expected_s: seconds that each task is expected to take; empty where nothing was measured.
        num_cells: cells of all its packs.
        mib: memory of a task; 0 for the cluster's default.
    """

    cluster: Cluster
    tasks: tuple[tuple[str, ...], ...]
    time_min: int
    cpus: int
    expected_s: tuple[float, ...] = ()
    num_cells: int = 0
    mib: int = 0

    @property
    def packs(self) -> list[str]:
        """Every pack, in order."""
        return [pack for task in self.tasks for pack in task]

    def warn_s(self) -> int:
        """Seconds before its end at which a task is warned: a quarter of a short time."""
        return min(WARN_S, self.time_min * 60 // 4)

    def parameters(self, name: str, private: Path) -> dict[str, Any]:
        """What submitit's `SlurmExecutor.update_parameters` takes."""
        cluster = self.cluster
        more = {option: value or True for option, value in cluster.sbatch}
        told = {
            "job_name": name, "time": self.time_min, "cpus_per_task": self.cpus,
            "partition": cluster.partition, "account": cluster.account, "qos": cluster.qos,
            "constraint": cluster.constraint, "exclude": cluster.exclude,
            "gpus_per_node": cluster.gpus if cluster.num_gpus and "gpu" not in dict(cluster.sbatch).get("gres", "") else "",
            "mem": f"{self.mib}M" if self.mib and cluster.memory == "task" else "",
            "mem_per_cpu": f"{-(-self.mib // self.cpus)}M" if self.mib and cluster.memory == "cpu" else "",
        }  # fmt: skip
        return {
            **{key: value for key, value in told.items() if value},
            "nodes": 1, "ntasks_per_node": 1, "wckey": None, "use_srun": False,
            "array_parallelism": cluster.parallel or len(self.tasks), "signal_delay_s": self.warn_s(),
            "setup": [*set_up(cluster.setup), *_guards(private), *find_modules(str(ROOT))],
            "additional_parameters": {
                **more, "signal": f"B:URG@{self.warn_s()}", "requeue": True, "chdir": str(ROOT),
                "export": ",".join((*EXPORT, *cluster.export)),
            },
        }  # fmt: skip

    def text(self, name: str, private: Path) -> str:
        """The file that sbatch reads, exactly as it is sent."""
        from submitit.slurm.slurm import _make_sbatch_string

        private = private.absolute()
        record = private.parent / f"{name.removeprefix('plateau-')}.json"
        command = f"{python()} -P -u -m slurm.task --sent {shlex.quote(str(record))}"
        count = len(self.tasks) if len(self.tasks) > 1 else None
        parameters, job = self.parameters(name, private), "%A_%a" if count else "%j"
        logs = {"output": f"{literal(private)}/{job}_0_log.out", "error": f"{literal(private)}/{job}_0_log.err"}
        parameters["additional_parameters"] |= logs
        return _make_sbatch_string(command, private, map_count=count, **parameters)

    def send(self, name: str, private: Path, find: Callable[[], str]) -> str:
        """Hand the array to sbatch; returns the job's id.

        Args:
            name: of the job.
            private: the folder from `open_private`, in which the text stays.
            find: looks this job up in the queue by its name, for an sbatch whose answer has no number; "" if it is not there.

        Raises:
            SchedulerError: if sbatch refuses, in its own words.
            UnknownJob: if it took the job, and nobody says which it is.
            StoreError: if the text cannot be written.
        """
        path = text_path(private, name)
        with writing(path) as aside:
            aside.write_text(self.text(name, private), encoding="utf-8")
        with sbatch_environment(self.cluster):
            done = run_sbatch(path)
        said = in_one_line(done.stderr or done.stdout)
        if done.returncode and not _LOST.search(said):
            raise SchedulerError(f"sbatch refused: {said}")
        if not (job := ("" if done.returncode else read_job(done.stdout)) or find()):
            raise UnknownJob(
                f"sbatch may have taken {name}: its answer has no job's number ({said}), and the queue does not show it "
                "yet; the same command looks for it again"
            )
        path.replace(private / f"{job}_submission.sh")
        return job


def literal(path: Path) -> Path:
    """A path as sbatch reads those of logs, in which a percent sign begins a pattern."""
    return Path(str(path).replace("%", "%%"))


def text_path(private: Path, name: str) -> Path:
    """Where the text that sbatch reads stands while it does."""
    return private / f".{name}.sh"


def run_sbatch(path: Path) -> subprocess.CompletedProcess[str]:
    """What sbatch says of a text; one that does not answer for minutes is ended."""
    command = ["sbatch", str(path)]
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=SBATCH_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"it timed out after {SBATCH_S:g} s")


def read_job(answer: str) -> str:
    """The number in what sbatch says of a job that it took, or a site's program in its place; "" if there is none.

    `Submitted batch job 12`, with more words around it or not, or a line with the number alone, as `--parsable` has it.
    """
    plain = re.sub(r"\x1b\[[\d;]*m", "", answer)
    found = re.search(r"\bjob\W{1,3}(\d+)\b", plain, re.IGNORECASE) or re.search(
        r"^\s*(\d+)\s*(;.*)?$", plain, re.MULTILINE
    )
    return found[1] if found else ""


def set_up(commands: Sequence[str]) -> list[str]:
    """Lines that run a cluster's commands with what a login shell defines (`module`, say); one that fails ends the job.

    The job's last words are then which command it was, and what it said. The PATH of the submitter stays in front.
    """
    if not commands:
        return []
    return [*_SETUP_BEGINS.splitlines(), *commands, *_SETUP_ENDS.splitlines()]


_SETUP_BEGINS = """\
exec 3>&2
plateau_words=$(mktemp) || exit 1
plateau_end() {
    plateau_code=$?
    cat "$plateau_words" >&3
    plateau_last=$(tail -n 1 "$plateau_words")
    echo "setup failed with exit code $plateau_code: ${plateau_last:-${plateau_command:-see above}}" >&3
    rm -f "$plateau_words"
    exit 1
}
trap plateau_end EXIT
{
plateau_path=$PATH
for plateau_file in /etc/profile ~/.bash_profile ~/.bash_login ~/.profile; do
    [ -r "$plateau_file" ] || continue
    . "$plateau_file"
    [ "$plateau_file" = /etc/profile ] || break
done
PATH=$plateau_path:$PATH
trap 'plateau_code=$?; plateau_command=$BASH_COMMAND; (exit $plateau_code); exit' ERR"""
_SETUP_ENDS = """\
} 2> "$plateau_words"
trap - ERR EXIT
cat "$plateau_words" >&2
rm -f "$plateau_words"
exec 3>&-"""


def python() -> str:
    """How a task starts Python."""
    return f"exec {shlex.quote(sys.executable)}"


def find_modules(root: str) -> list[str]:
    """Lines after which Python finds this checkout's modules."""
    return [f"export PYTHONPATH={shlex.quote(root)}${{PYTHONPATH:+:$PYTHONPATH}}"]


def _guards(private: Path) -> list[str]:
    """Lines that stop a task whose folder has been exchanged for somebody else's."""
    folder = shlex.quote(str(private))
    return [
        f"[ -O {folder} ] && [ ! -L {folder} ] || {{ echo 'the folder of this submission is not your own' >&2; exit 1; }}"
    ]


def open_private(submissions: Path) -> Path:
    """The user's own folder for what both sides of a submission load: made if it is not there, else checked.

    Raises:
        BadInput: if it belongs to somebody else, or others can look into it.
        StoreError: if it cannot be made.
    """
    folder = submissions / f".private-{user_name()}"
    try:
        submissions.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
    except OSError as error:
        raise store_error(error, folder) from None
    if not stat.S_ISDIR(status.st_mode):
        raise BadInput(f"{folder} is no folder: remove it and run the same command again")
    if status.st_uid != os.geteuid():
        raise BadInput(
            f"{folder} belongs to user {status.st_uid}, not to you: whoever can write there runs code as you"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise BadInput(
            f"{folder} is open to others (mode {stat.S_IMODE(status.st_mode):04o}; 0700 is needed): whoever can write "
            "there runs code as you; look into it, remove it, and run the same command again"
        )
    return folder


@contextlib.contextmanager
def sbatch_environment(cluster: Cluster) -> Iterator[None]:
    """This process's environment without what would overrule the lines of an sbatch file, or belongs to another job."""
    told = {name for name in SETTINGS if getattr(cluster, name)} | dict(cluster.sbatch).keys()
    kept = {name for name in _KEPT if name.removeprefix("SBATCH_").lower() not in told}
    kept |= {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"}
    hidden = {name: value for name, value in os.environ.items() if name.startswith(("SBATCH_", "SLURM_"))}
    hidden = {name: value for name, value in hidden.items() if name not in kept}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
