"""What jobs request from a cluster: defaults of `slurm/clusters.toml` < the user's `clusters.toml` < flags.

The user's file is `clusters.toml` in the folder that one works in, or `~/.config/plateau/clusters.toml`; the first wins.
Every value is checked before it can reach a line of sbatch; `setup` is shell, `export` takes variables along, and `sbatch` is
anything, so these are taken only from a file that belongs to the user and that nobody else can write or exchange.
"""

from __future__ import annotations

import dataclasses
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.documents import read_toml
from adapters.errors import BadInput

DEFAULTS = Path(__file__).parents[1] / "clusters.toml"
EXECUTORS = ("inline", "local", "slurm", "export")
_WORD = re.compile(r"(?!-)[\w.,:+@/=-]*", re.ASCII)  # what begins with a dash would be an option
_EXPRESSION = re.compile(
    r"(?!-)[\w.,:+@/=&|()*!\[\]-]*", re.ASCII
)  # constraints, lists of nodes: (a100|h100)&ib, node[1-3]
_GPUS = re.compile(r"(?:\w[\w.-]*:)?\d{1,4}", re.ASCII)  # 2, a100:1, 1g.10gb:1
_MEMORY = re.compile(r"task|cpu|none")
_FORMS = {
    "gpus": (_GPUS, "a number, or a type and a number as in a100:1"), "constraint": (_EXPRESSION, "a name without blanks"),
    "exclude": (_EXPRESSION, "a name without blanks"), "memory": (_MEMORY, "task, cpu or none"),
}  # fmt: skip
_OPTION = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_VALUE = re.compile(r"(?!-)[^'\"\\`$#]*")
# Options of sbatch that are Plateau's own business, with the setting that says what can be said.
_OWN = {
    "partition": "partition", "account": "account", "qos": "qos", "gpus": "gpus", "gpus-per-node": "gpus",
    "gpus-per-task": "gpus", "cpus-per-task": "cpus_per_task", "mem": "mem_gb", "mem-per-cpu": "memory",
    "time": "time_min", "constraint": "constraint", "exclude": "exclude", "array": "parallel", "export": "export",
    "export-file": "export",
} | dict.fromkeys((
    "job-name", "output", "error", "input", "open-mode", "signal", "requeue", "no-requeue", "chdir", "wrap", "nodes",
    "ntasks", "ntasks-per-node", "clusters", "cluster", "parsable", "quiet", "wait", "test-only", "hold", "help", "usage",
    "version", "uid", "gid",
), "")  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """What every task of a sweep asks for; `slurm/clusters.toml` says what each setting means."""

    name: str = "slurm"
    partition: str = ""
    account: str = ""
    qos: str = ""
    gpus: str = "0"
    cpus_per_task: int = 0
    mem_gb: float = 0.0
    time_min: int = 0
    constraint: str = ""
    exclude: str = ""
    parallel: int = 0
    packs_per_task: int = 1
    max_submit: int = 0
    memory: str = "task"
    export: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    sbatch: tuple[tuple[str, str], ...] = ()

    @property
    def num_gpus(self) -> int:
        """GPUs of a task, without their type."""
        return int(self.gpus.rpartition(":")[2])

    @property
    def device(self) -> str:
        """Where its packs train."""
        return "cuda" if self.num_gpus else "cpu"

    def cpus(self, threads: int) -> int:
        """Cores of a task whose packs use so many threads."""
        return self.cpus_per_task or (4 if self.num_gpus else max(1, threads))


PRIVATE = ("setup", "export", "sbatch")  # taken only from a file that is the user's own; no flags, told to nobody
_WHOLE = ("ALL", "NONE", "NIL")  # to sbatch these are no names
SETTINGS = {field.name: field for field in dataclasses.fields(Cluster) if field.name != "name"}


def choose_cluster(name: str, flags: Mapping[str, Any] | None = None) -> Cluster:
    """The settings of `--cluster NAME`.

    Args:
        name: "slurm", "export", or a section of the user's file.
        flags: settings given on the command line; None for those that were not.

    Raises:
        BadInput: for an unknown cluster, listing the known ones, and for a broken file or a value that is not allowed.
    """
    files = [_read(path) for path in (DEFAULTS, *list_files())]
    known = dict.fromkeys(section for tables in files for section, _ in tables)
    if name not in known and name != "export":
        others = ", ".join(dict.fromkeys([*EXECUTORS, *known]))
        places = " or ".join(str(path) for path in _places())
        raise BadInput(f"--cluster is {name}; known: {others} (sections of {places})")
    settings: dict[str, Any] = {}
    for tables in files:
        for section, values in tables:
            if section in ("slurm", name):
                more = dict(settings.get("sbatch", ())) | dict(values.get("sbatch", ()))
                settings |= values | {"sbatch": tuple(more.items())}
    for setting, value in (flags or {}).items():
        if value is not None:
            settings[setting] = check_setting(setting, value, f"--{setting.replace('_', '-')}")
    if "gpu" in dict(settings["sbatch"]).get("gres", "") and settings["gpus"] == "0":
        raise BadInput(
            f"gres of --cluster {name} asks for GPUs: say how many by gpus too, or packs would train on a CPU"
        )
    return Cluster(name, **settings)


def list_files() -> list[Path]:
    """The user's files that are there, the winning one last."""
    return [path for path in _places() if path.is_file() and not path.samefile(DEFAULTS)]


def _places() -> tuple[Path, Path]:
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return config / "plateau" / "clusters.toml", Path.cwd() / "clusters.toml"


def _read(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The sections of a file with their settings, checked.

    Raises:
        BadInput: naming the file and the line.
    """
    try:
        tables, text = read_toml(path)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    found = []
    for section, values in tables.items():
        if not isinstance(values, dict):
            line = find_line(text, "", section)
            raise BadInput(f"{path}, line {line}: {section!r} stands in no section; write [slurm] or a name above it")
        if section in ("inline", "local", "export"):
            line = find_line(text, section, "")
            raise BadInput(f"{path}, line {line}: [{section}] is the name of an executor; give the section another one")
        checked = {
            name: check_setting(name, value, f"{path}, line {find_line(text, section, name)}: {name}")
            for name, value in values.items()
        }
        for name in PRIVATE:
            if checked.get(name):
                check_own(path, name, find_line(text, section, name))
        found.append((section, checked))
    return found


def find_line(text: str, section: str, setting: str) -> int:
    """Number of the line on which a setting of a section stands; of the section itself for "". 1 if it cannot be found."""
    now = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*[\"']?(.*?)[\"']?\s*\]", line):
            now = header[1]
            if now == (f"{section}.{setting}" if setting else section):
                return number
        elif setting and now == section and re.match(rf"\s*[\"']?{re.escape(setting)}[\"']?\s*=", line):
            return number
    return 1


def check_setting(name: str, value: Any, where: str) -> Any:
    """A setting's value in its own type.

    Args:
        name: the setting.
        value: as a file or a flag gives it.
        where: how the error begins.

    Raises:
        BadInput: for an unknown setting or a value that is not allowed.
    """
    if name not in SETTINGS:
        raise BadInput(f"{where} is no setting of a cluster; settings: {', '.join(SETTINGS)}")
    default = SETTINGS[name].default
    if name == "gpus" and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if name == "sbatch":
        return _check_options(value, where)
    if isinstance(default, tuple):
        return _check_list(name, value, where)
    if isinstance(default, str):
        form, allowed = _FORMS.get(name, (_WORD, "a name without blanks"))
        if not isinstance(value, str) or not form.fullmatch(value):
            raise BadInput(f"{where} is {value!r}; allowed: {allowed}")
        return value
    lowest = 1 if name == "packs_per_task" else 0
    kinds = (int, float) if isinstance(default, float) else (int,)
    if isinstance(value, bool) or not isinstance(value, kinds) or not lowest <= value < 1e9:
        raise BadInput(f"{where} is {value!r}; allowed: a {'whole ' if kinds == (int,) else ''}number from {lowest} on")
    return float(value) if isinstance(default, float) else value


def _check_list(name: str, value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise BadInput(f"{where} is {value!r}; allowed: a list of texts")
    for item in value:
        if name == "export" and (not re.fullmatch(r"[A-Za-z_]\w*", item, re.ASCII) or item.upper() in _WHOLE):
            raise BadInput(f"{where} holds {item!r}; allowed: names of environment variables, without values, not all")
        if not item.isprintable():
            raise BadInput(f"{where} holds {item!r}; allowed: one line each")
    return tuple(value)


def _check_options(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    """The table of what else sbatch gets: options without dashes in front, with their values; true for those without."""
    if not isinstance(value, dict):
        raise BadInput(f"{where} is {value!r}; allowed: a table of sbatch's options")
    found = {}
    for option, given in value.items():
        name = option.replace("_", "-")
        if name in _OWN:
            raise BadInput(
                f"{where} sets {option}, {f'which is {_OWN[name]} here' if _OWN[name] else 'as Plateau does'}"
            )
        if not _OPTION.fullmatch(option):
            raise BadInput(f"{where} holds {option!r}; allowed: long options of sbatch without dashes, such as gres")
        word = "" if given is True else str(given)
        if given is False or isinstance(given, list | dict) or not (word.isprintable() and _VALUE.fullmatch(word)):
            raise BadInput(
                f"{where}: {option} is {given!r}; allowed: one line without quotes, $, # and backslashes, a number, or true"
            )
        found[name] = word
    return tuple(found.items())


def check_own(path: Path, setting: str, line: int = 1) -> None:
    """Refuse what runs commands, or takes variables along, in a file that others may have written or can exchange.

    Raises:
        BadInput: saying whose it is, or how to close it.
    """
    file = path.resolve()
    status, where = file.stat(), f"{path}, line {line}: {setting}"
    if status.st_uid != os.geteuid():
        raise BadInput(f"{where} of a file that belongs to user {status.st_uid} is not taken")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BadInput(f"{where} of a file that others can write is not taken: chmod go-w {path}")
    for folder in file.parents:
        above = folder.stat()
        theirs = above.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if folder == file.parent else 0))
        if theirs and not above.st_mode & stat.S_ISVTX:
            raise BadInput(
                f"{where} is not taken from a folder in which others can exchange the file: chmod go-w {folder}"
            )
