"""What jobs ask of a cluster: defaults of `slurm/clusters.toml` < the user's `clusters.toml` < flags.

The user's file is `clusters.toml` in the folder that one works in, or `~/.config/plateau/clusters.toml`; the first wins.
Every value is checked before it can reach a line of sbatch; `setup` is shell, so it is taken only from a file that
belongs to the user and that nobody else can write.
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

from adapters import BadInput
from adapters.documents import read_toml

DEFAULTS = Path(__file__).with_name("clusters.toml")
EXECUTORS = ("inline", "local", "slurm", "export")
_WORD = re.compile(r"[\w.,:+@/=-]*")
_EXPRESSION = re.compile(r"[\w.,:+@/=&|()*!\[\]-]*")  # constraints and lists of nodes: (a100|h100)&ib, node[1-3]
_GPUS = re.compile(r"(?:[A-Za-z][\w.-]*:)?\d+")
_FORMS = {"gpus": _GPUS, "constraint": _EXPRESSION, "exclude": _EXPRESSION}


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
    export: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()

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
                settings |= values
    for setting, value in (flags or {}).items():
        if value is not None:
            settings[setting] = check_setting(setting, value, f"--{setting.replace('_', '-')}")
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
        if checked.get("setup"):
            check_own(path, find_line(text, section, "setup"))
        found.append((section, checked))
    return found


def find_line(text: str, section: str, setting: str) -> int:
    """Number of the line on which a setting of a section stands; of the section itself for "". 1 if it cannot be found."""
    now = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*[\"']?(.*?)[\"']?\s*\]", line):
            now = header[1]
            if not setting and now == section:
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
    if isinstance(default, tuple):
        return _check_list(name, value, where)
    if isinstance(default, str):
        form = _FORMS.get(name, _WORD)
        if not isinstance(value, str) or not form.fullmatch(value):
            allowed = "a number, or a type and a number as in a100:1" if name == "gpus" else "a name without blanks"
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
        if name == "export" and not re.fullmatch(r"[A-Za-z_]\w*", item):
            raise BadInput(f"{where} holds {item!r}; allowed: names of environment variables, without values")
        if not item.isprintable():
            raise BadInput(f"{where} holds {item!r}; allowed: one line each")
    return tuple(value)


def check_own(path: Path, line: int = 1) -> None:
    """Refuse `setup` commands of a file that others may have written.

    Raises:
        BadInput: saying whose it is, or how to close it.
    """
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise BadInput(
            f"{path}, line {line}: setup commands of a file that belongs to user {status.st_uid} are not run"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BadInput(
            f"{path}, line {line}: setup commands of a file that others can write are not run: chmod go-w {path}"
        )
