"""Accounting for a local cluster: slurmdbd, and a MariaDB in the cluster's folder; imports no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from adapters.errors import BadInput
from tools.slurm_node.daemons import Daemon
from tools.slurm_node.files import LocalSlurm, program

SQL = """\
create database if not exists slurm;
create user if not exists 'slurm'@'127.0.0.1' identified by '{password}';
alter user 'slurm'@'127.0.0.1' identified by '{password}';
grant all on slurm.* to 'slurm'@'127.0.0.1';
"""


def mariadb(cluster: LocalSlurm) -> Daemon:
    """The database's server, on its own port and socket."""
    data = cluster.folder / "database"
    return Daemon(
        "mariadbd",
        (program("mariadbd"), "--no-defaults", "--user=mysql", f"--datadir={data}", f"--socket={data / 'socket'}",
         f"--pid-file={data / 'pid'}", f"--port={cluster.ports[3]}", "--bind-address=127.0.0.1", "--skip-name-resolve",
         "--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"),
        cluster.folder / "mariadbd.out",
        (("TMPDIR", str(data)),),  # the caller's may be closed to the user mysql
    )  # fmt: skip


def start(cluster: LocalSlurm) -> None:
    """Make the database if there is none, start its server and slurmdbd, and enter the cluster with its user root.

    Raises:
        BadInput: naming what does not start, and what it said.
    """
    data = cluster.folder / "database"
    socket = f"--socket={data / 'socket'}"
    if not (data / "mysql").exists():
        _make_database(data)
    mariadb(cluster).start(lambda: cluster.ask("mariadb-admin", "--no-defaults", socket, "ping") is not None)
    password = (cluster.folder / "slurmdbd.conf").read_text(encoding="utf-8").partition("StoragePass=")[2].split()[0]
    if cluster.ask("mariadb", "--no-defaults", socket, "-e", SQL.format(password=password)) is None:
        raise BadInput(f"mariadbd takes no orders (log: {mariadb(cluster).log})")
    cluster.slurmdbd.start(lambda: cluster.ask("sacctmgr", "--noheader", "list", "cluster") is not None)
    for words in ("cluster plateau", "account plateau cluster=plateau", "user root account=plateau cluster=plateau"):
        cluster.ask("sacctmgr", "--immediate", "--quiet", "add", *words.split())  # fails where it is there already


def stop(cluster: LocalSlurm) -> None:
    """End slurmdbd, then the database's server."""
    cluster.slurmdbd.stop()
    mariadb(cluster).stop()


def _make_database(data: Path) -> None:
    data.mkdir(exist_ok=True, mode=0o755)
    shutil.chown(data, "mysql", "mysql")
    command = [program("mariadb-install-db"), "--no-defaults", "--user=mysql", f"--datadir={data}",
               "--auth-root-authentication-method=socket", "--skip-test-db"]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ | {"TMPDIR": str(data)}, capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        raise BadInput(f"no database can be made in {data}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
